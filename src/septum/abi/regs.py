"""The general-purpose registers that SEAMCALL, SEAMRET, TDCALL and a TD exit exchange.

Mirrors the kernel's `struct tdx_module_args` plus RAX: every value is a 64-bit unsigned int.
"""


class Regs:
    """General-purpose registers (64-bit unsigned values). All are zero unless given."""

    __slots__ = (
        "r8",
        "r9",
        "r10",
        "r11",
        "r12",
        "r13",
        "r14",
        "r15",
        "rax",
        "rbp",
        "rbx",
        "rcx",
        "rdi",
        "rdx",
        "rsi",
    )

    def __init__(
        self,
        rax: int = 0,
        rcx: int = 0,
        rdx: int = 0,
        r8: int = 0,
        r9: int = 0,
        r10: int = 0,
        r11: int = 0,
        r12: int = 0,
        r13: int = 0,
        r14: int = 0,
        r15: int = 0,
        rbx: int = 0,
        rsi: int = 0,
        rdi: int = 0,
        rbp: int = 0,
    ) -> None:
        self.rax = rax
        self.rcx = rcx
        self.rdx = rdx
        self.r8 = r8
        self.r9 = r9
        self.r10 = r10
        self.r11 = r11
        self.r12 = r12
        self.r13 = r13
        self.r14 = r14
        self.r15 = r15
        self.rbx = rbx
        self.rsi = rsi
        self.rdi = rdi
        self.rbp = rbp

    def copy_from(self, other: "Regs") -> None:
        """Every register becomes what it is in `other`."""
        self.rax = other.rax
        self.rcx = other.rcx
        self.rdx = other.rdx
        self.r8 = other.r8
        self.r9 = other.r9
        self.r10 = other.r10
        self.r11 = other.r11
        self.r12 = other.r12
        self.r13 = other.r13
        self.r14 = other.r14
        self.r15 = other.r15
        self.rbx = other.rbx
        self.rsi = other.rsi
        self.rdi = other.rdi
        self.rbp = other.rbp

    def __repr__(self) -> str:
        shown = " ".join(f"{n}={getattr(self, n):#x}" for n in self.__slots__ if getattr(self, n))
        return f"Regs({shown})"
