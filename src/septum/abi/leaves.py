"""SEAMCALL and TDCALL leaf numbers, and the version that RAX carries beside them.

RAX on input: leaf in bits 15:0, version in bits 23:16, all else zero.
Source: TDX module 1.5.25, API definitions.
"""

LEAF_MASK = 0xFFFF
VERSION_SHIFT = 16
VERSION_MASK = 0xFF
RAX_RESERVED = ~0xFFFFFF & 0xFFFFFFFF_FFFFFFFF

TDH_VP_ENTER = 0
TDH_MNG_ADDCX = 1
TDH_MEM_PAGE_ADD = 2
TDH_MEM_SEPT_ADD = 3
TDH_VP_ADDCX = 4
TDH_MEM_PAGE_RELOCATE = 5
TDH_MEM_PAGE_AUG = 6
TDH_MEM_RANGE_BLOCK = 7
TDH_MNG_KEY_CONFIG = 8
TDH_MNG_CREATE = 9
TDH_VP_CREATE = 10
TDH_MNG_RD = 11
TDH_MEM_RD = 12
TDH_MNG_WR = 13
TDH_MEM_WR = 14
TDH_MEM_PAGE_DEMOTE = 15
TDH_MR_EXTEND = 16
TDH_MR_FINALIZE = 17
TDH_VP_FLUSH = 18
TDH_MNG_VPFLUSHDONE = 19
TDH_MNG_KEY_FREEID = 20
TDH_MNG_INIT = 21
TDH_VP_INIT = 22
TDH_MEM_PAGE_PROMOTE = 23
TDH_PHYMEM_PAGE_RDMD = 24
TDH_MEM_SEPT_RD = 25
TDH_VP_RD = 26
TDH_MNG_KEY_RECLAIMID = 27
TDH_PHYMEM_PAGE_RECLAIM = 28
TDH_MEM_PAGE_REMOVE = 29
TDH_MEM_SEPT_REMOVE = 30
TDH_SYS_KEY_CONFIG = 31
TDH_SYS_INFO = 32
TDH_SYS_INIT = 33
TDH_SYS_RD = 34
TDH_SYS_LP_INIT = 35
TDH_SYS_TDMR_INIT = 36
TDH_SYS_RDALL = 37
TDH_MEM_TRACK = 38
TDH_MEM_RANGE_UNBLOCK = 39
TDH_PHYMEM_CACHE_WB = 40
TDH_PHYMEM_PAGE_WBINVD = 41
TDH_VP_WR = 43
TDH_SYS_LP_SHUTDOWN = 44
TDH_SYS_CONFIG = 45
TDH_SYS_SHUTDOWN = 52
TDH_SYS_UPDATE = 53
TDH_PHYMEM_PAMT_ADD = 58
TDH_PHYMEM_PAMT_REMOVE = 59

TDG_VP_VMCALL = 0
TDG_VP_INFO = 1
TDG_MR_RTMR_EXTEND = 2
TDG_VP_VEINFO_GET = 3
TDG_MR_REPORT = 4
TDG_VP_CPUIDVE_SET = 5
TDG_MEM_PAGE_ACCEPT = 6
TDG_VM_RD = 7
TDG_VM_WR = 8
TDG_VP_RD = 9
TDG_VP_WR = 10
TDG_SYS_RD = 11
TDG_SYS_RDALL = 12
TDG_MEM_PAGE_ATTR_RD = 23
TDG_MEM_PAGE_ATTR_WR = 24

GPA_LEAVES = frozenset(
    (
        TDH_MEM_PAGE_ADD,
        TDH_MEM_SEPT_ADD,
        TDH_MEM_PAGE_RELOCATE,
        TDH_MEM_PAGE_AUG,
        TDH_MEM_RANGE_BLOCK,
        TDH_MEM_RANGE_UNBLOCK,
        TDH_MEM_PAGE_DEMOTE,
        TDH_MEM_PAGE_PROMOTE,
        TDH_MEM_PAGE_REMOVE,
        TDH_MEM_SEPT_REMOVE,
        TDH_MEM_SEPT_RD,
    )
)
"""SEAMCALLs with a GPA (and a level) in RCX; the others have a page of the host there."""

VERSIONED_SEAMCALLS = frozenset(
    {
        TDH_MEM_PAGE_PROMOTE,
        TDH_MEM_SEPT_ADD,
        TDH_MEM_SEPT_REMOVE,
        TDH_MNG_RD,
        TDH_VP_RD,
        TDH_VP_INIT,
        TDH_SYS_INIT,
        TDH_SYS_UPDATE,
    }
)
"""Leaves that take a version above 0; the dispatcher refuses it for all others."""

VERSIONED_TDCALLS = frozenset({TDG_VM_RD, TDG_VP_VEINFO_GET})


def _spec_name(name: str) -> str:
    """TDH_MEM_PAGE_AUG -> TDH.MEM.PAGE.AUG."""
    return name.replace("_", ".")


SEAMCALL_NAMES: dict[int, str] = {
    value: _spec_name(name) for name, value in list(globals().items()) if name.startswith("TDH_")
}
TDCALL_NAMES: dict[int, str] = {
    value: _spec_name(name) for name, value in list(globals().items()) if name.startswith("TDG_")
}
SEAMCALL_LEAVES: dict[str, int] = {name: leaf for leaf, name in SEAMCALL_NAMES.items()}
TDCALL_LEAVES: dict[str, int] = {name: leaf for leaf, name in TDCALL_NAMES.items()}


def seamcall_name(leaf: int) -> str:
    """The specification's name of a SEAMCALL leaf number."""
    return SEAMCALL_NAMES.get(leaf, f"SEAMCALL({leaf})")


def tdcall_name(leaf: int) -> str:
    """The specification's name of a TDCALL leaf number."""
    return TDCALL_NAMES.get(leaf, f"TDCALL({leaf})")
