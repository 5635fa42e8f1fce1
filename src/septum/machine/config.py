"""What the machine is made of, as plain data: processors, memory, keys, TDMRs."""

import msgspec


class Tdmr(msgspec.Struct, frozen=True):
    """A TD memory region: bytes `base` .. `base + size`, 1 GB aligned.

    `reserved` lists (offset, size) areas in bytes within it; `pamt_*` say where its (static part
    of the) PAMT lies, which is outside every TDMR.
    """

    base: int
    size: int
    reserved: tuple[tuple[int, int], ...] = ()
    pamt_1g: int = 0
    pamt_2m: int = 0
    pamt_4k: int = 0


class MachineConfig(msgspec.Struct, frozen=True):
    """The shape of a machine. Addresses and sizes in bytes.

    `max_pa` and `hkid_bits` place the HKID in physical address bits
    [max_pa - 1 : max_pa - hkid_bits].
    """

    num_lps: int = 4
    num_packages: int = 1
    max_pa: int = 46
    hkid_bits: int = 6
    private_hkid_min: int = 32
    private_hkid_max: int = 63
    global_hkid: int = 32
    dynamic_pamt: bool = False
    tdmrs: tuple[Tdmr, ...] = ()
    seamrr_base: int = 0
    seamrr_size: int = 0

    @property
    def hkid_shift(self) -> int:
        """Lowest physical address bit of the HKID."""
        return self.max_pa - self.hkid_bits
