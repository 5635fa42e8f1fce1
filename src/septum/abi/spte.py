"""The TDP MMU's page-table entries (SPTEs) in EPT format, as 64-bit ints.

    63        SUPPRESS_VE
    58 57     MMU_WRITABLE, HOST_WRITABLE         (software)
    53:52     A/D type: 0 enabled                 (software)
    51:12     PFN of the page, or of the child table
    11        MMU_PRESENT                         (software)
    9 8       dirty, accessed
    7         page size: a leaf above 4 KB
    5:3       memory type, 6 is write-back
    2 1 0     execute, write, read

A mirror SPTE has the same format; no hardware reads it. Its non-leaf entries point to KVM's own
table, not to the S-EPT page. Frozen entries belong to whoever froze them.

Source: arch/x86/kvm/mmu/spte.h, spte.c.
"""

from septum.abi.kvm import PG_LEVEL_4K

VMX_EPT_READABLE_MASK = 1 << 0
VMX_EPT_WRITABLE_MASK = 1 << 1
VMX_EPT_EXECUTABLE_MASK = 1 << 2
VMX_EPT_RWX_MASK = VMX_EPT_READABLE_MASK | VMX_EPT_WRITABLE_MASK | VMX_EPT_EXECUTABLE_MASK
VMX_EPT_MT_WB = 6 << 3
PT_WRITABLE_MASK = VMX_EPT_WRITABLE_MASK
PT_PAGE_SIZE_MASK = 1 << 7
SHADOW_ACCESSED_MASK = 1 << 8
SHADOW_DIRTY_MASK = 1 << 9
SPTE_MMU_PRESENT_MASK = 1 << 11
SPTE_BASE_ADDR_MASK = ((1 << 52) - 1) & ~0xFFF
EPT_SPTE_HOST_WRITABLE = 1 << 57
EPT_SPTE_MMU_WRITABLE = 1 << 58
VMX_EPT_SUPPRESS_VE_BIT = 1 << 63

SHADOW_NONPRESENT_VALUE = VMX_EPT_SUPPRESS_VE_BIT
FROZEN_SPTE = SHADOW_NONPRESENT_VALUE | 0x5A0

_NONLEAF_BITS = (
    SPTE_MMU_PRESENT_MASK | VMX_EPT_SUPPRESS_VE_BIT | VMX_EPT_RWX_MASK | SHADOW_ACCESSED_MASK
)
_LEAF_BITS = (
    SPTE_MMU_PRESENT_MASK
    | VMX_EPT_SUPPRESS_VE_BIT
    | VMX_EPT_READABLE_MASK
    | VMX_EPT_EXECUTABLE_MASK
    | VMX_EPT_MT_WB
)
_LEAF_WRITABLE_BITS = (
    EPT_SPTE_HOST_WRITABLE | EPT_SPTE_MMU_WRITABLE | PT_WRITABLE_MASK | SHADOW_DIRTY_MASK
)


def is_shadow_present_pte(spte: int) -> bool:
    """is_shadow_present_pte(): the entry maps something (a leaf or a table)."""
    return spte & SPTE_MMU_PRESENT_MASK != 0


def is_last_spte(spte: int, level: int) -> bool:
    """is_last_spte(): a leaf. Meaningful for present entries only."""
    return level == PG_LEVEL_4K or spte & PT_PAGE_SIZE_MASK != 0


def is_frozen_spte(spte: int) -> bool:
    """is_frozen_spte(): another task is changing this entry."""
    return spte == FROZEN_SPTE


def is_mmio_spte(spte: int, shadow_mmio_value: int) -> bool:
    """is_mmio_spte(): an entry without permissions whose marker bits are `shadow_mmio_value`."""
    return spte & (VMX_EPT_RWX_MASK | VMX_EPT_SUPPRESS_VE_BIT) == shadow_mmio_value


def spte_to_pfn(spte: int) -> int:
    """spte_to_pfn(): the page, or the child table, that the entry points to."""
    return (spte & SPTE_BASE_ADDR_MASK) >> 12


def make_nonleaf_spte(child_pfn: int) -> int:
    """make_nonleaf_spte(): an entry that points to the table in page `child_pfn`."""
    return _NONLEAF_BITS | child_pfn << 12


def make_spte(pfn: int, level: int, prefetch: bool, host_writable: bool) -> int:
    """make_spte() for ACC_ALL: a leaf of `level`. A prefetched entry has no Accessed bit.

    MODEL: no write protection (no dirty logging, no shadow paging), so it never fails.
    """
    spte = _LEAF_BITS | pfn << 12
    if not prefetch:
        spte |= SHADOW_ACCESSED_MASK
    if level > PG_LEVEL_4K:
        spte |= PT_PAGE_SIZE_MASK
    if host_writable:
        spte |= _LEAF_WRITABLE_BITS
    return spte


def make_small_spte_template(huge_spte: int, child_level: int) -> tuple[int, int]:
    """make_small_spte() for all 512 children of `huge_spte`: entry i is `base + i * stride`.

    A 4 KB child has no page-size bit. Child permissions are those of the huge entry.
    """
    base = huge_spte
    if child_level == PG_LEVEL_4K:
        base &= ~PT_PAGE_SIZE_MASK
    return base, 1 << (12 + 9 * (child_level - 1))


def make_mmio_spte(gfn: int, shadow_mmio_value: int) -> int:
    """make_mmio_spte(): marks a GFN without memory. MODEL: the memslot generation is left out."""
    return shadow_mmio_value | gfn << 12


def spte_permissions(spte: int) -> str:
    """`rwxu` as the kvm_mmu_set_spte trace event prints it."""
    return "".join(
        (
            "r" if spte & VMX_EPT_READABLE_MASK else "-",
            "w" if spte & VMX_EPT_WRITABLE_MASK else "-",
            "x" if spte & VMX_EPT_EXECUTABLE_MASK else "-",
            "u" if spte & VMX_EPT_READABLE_MASK else "",
        )
    )
