"""What the registers of each SEAMCALL leaf hold, before and after, by the names of its parameters.

Only registers that a leaf reads or writes are named; errors that describe an S-EPT entry do so in
RCX and RDX whatever the leaf. Source: TDX module 1.5.25, API definitions.
"""

from __future__ import annotations

from septum.abi import leaves

Operands = dict[str, str]
"""Register -> what it holds."""

GPA_LEVEL = "GPA and level"
TDR = "TDR"
TDVPR = "TDVPR"
NEW_PAGE = "HPA of the new page"
REMOVED = "HPA of the page, bit 62: PAMT removal hint"
PAIR = "HPA of a PAMT page"
RANGE = "HPA and level of the 2 MB range"

INPUTS: dict[int, Operands] = {
    leaves.TDH_MNG_CREATE: {"rcx": "HPA of the TDR page", "rdx": "HKID"},
    leaves.TDH_MNG_KEY_CONFIG: {"rcx": TDR},
    leaves.TDH_MNG_ADDCX: {"rcx": "HPA of the TDCS page", "rdx": TDR},
    leaves.TDH_MNG_INIT: {"rcx": TDR, "rdx": "HPA of TD_PARAMS"},
    leaves.TDH_MNG_RD: {"rcx": TDR, "rdx": "metadata field"},
    leaves.TDH_MNG_WR: {"rcx": TDR, "rdx": "metadata field", "r8": "value", "r9": "mask"},
    leaves.TDH_MNG_VPFLUSHDONE: {"rcx": TDR},
    leaves.TDH_MNG_KEY_FREEID: {"rcx": TDR},
    leaves.TDH_MNG_KEY_RECLAIMID: {"rcx": TDR},
    leaves.TDH_VP_CREATE: {"rcx": "HPA of the TDVPR page", "rdx": TDR},
    leaves.TDH_VP_ADDCX: {"rcx": "HPA of the TDCX page", "rdx": TDVPR},
    leaves.TDH_VP_INIT: {"rcx": TDVPR, "rdx": "the guest's RCX and R8", "r8": "x2APIC id"},
    leaves.TDH_VP_RD: {"rcx": TDVPR, "rdx": "metadata field"},
    leaves.TDH_VP_WR: {"rcx": TDVPR, "rdx": "metadata field", "r8": "value", "r9": "mask"},
    leaves.TDH_VP_ENTER: {"rcx": TDVPR},
    leaves.TDH_VP_FLUSH: {"rcx": TDVPR},
    leaves.TDH_MEM_PAGE_ADD: {
        "rcx": GPA_LEVEL,
        "rdx": TDR,
        "r8": NEW_PAGE,
        "r9": "HPA of the source page",
    },
    leaves.TDH_MEM_SEPT_ADD: {
        "rcx": GPA_LEVEL,
        "rdx": "TDR, bit 0: allow existing",
        "r8": "HPA of the new S-EPT page",
    },
    leaves.TDH_MEM_PAGE_AUG: {"rcx": GPA_LEVEL, "rdx": TDR, "r8": NEW_PAGE},
    leaves.TDH_MEM_PAGE_RELOCATE: {"rcx": GPA_LEVEL, "rdx": TDR, "r8": NEW_PAGE},
    leaves.TDH_MEM_RANGE_BLOCK: {"rcx": GPA_LEVEL, "rdx": TDR},
    leaves.TDH_MEM_RANGE_UNBLOCK: {"rcx": GPA_LEVEL, "rdx": TDR},
    leaves.TDH_MEM_TRACK: {"rcx": TDR},
    leaves.TDH_MEM_PAGE_DEMOTE: {
        "rcx": GPA_LEVEL,
        "rdx": TDR,
        "r8": "HPA of the new S-EPT page",
        "r12": PAIR,
        "r13": PAIR,
    },
    leaves.TDH_MEM_PAGE_PROMOTE: {"rcx": GPA_LEVEL, "rdx": TDR},
    leaves.TDH_MEM_PAGE_REMOVE: {"rcx": GPA_LEVEL, "rdx": TDR},
    leaves.TDH_MEM_SEPT_REMOVE: {"rcx": GPA_LEVEL, "rdx": TDR},
    leaves.TDH_MEM_SEPT_RD: {"rcx": GPA_LEVEL, "rdx": TDR},
    leaves.TDH_MR_EXTEND: {"rcx": "GPA of the 256 bytes", "rdx": TDR},
    leaves.TDH_MR_FINALIZE: {"rcx": TDR},
    leaves.TDH_PHYMEM_PAGE_RECLAIM: {"rcx": "HPA of the page"},
    leaves.TDH_PHYMEM_PAGE_WBINVD: {"rcx": "HPA of the page, with the HKID"},
    leaves.TDH_PHYMEM_PAGE_RDMD: {"rcx": "HPA of the page"},
    leaves.TDH_PHYMEM_CACHE_WB: {"rcx": "0: start, 1: resume"},
    leaves.TDH_PHYMEM_PAMT_ADD: {"rcx": RANGE, "rdx": PAIR, "r8": PAIR},
    leaves.TDH_PHYMEM_PAMT_REMOVE: {"rcx": RANGE},
    leaves.TDH_SYS_RD: {"rdx": "metadata field"},
}
"""Leaf -> registers that it reads."""

OUTPUTS: dict[int, Operands] = {
    leaves.TDH_MNG_RD: {"r8": "value"},
    leaves.TDH_MNG_WR: {"r8": "value before"},
    leaves.TDH_VP_RD: {"r8": "value"},
    leaves.TDH_VP_WR: {"r8": "value before"},
    leaves.TDH_SYS_RD: {"r8": "value"},
    leaves.TDH_MEM_PAGE_REMOVE: {"rcx": REMOVED},
    leaves.TDH_MEM_PAGE_RELOCATE: {"rcx": REMOVED},
    leaves.TDH_MEM_SEPT_REMOVE: {"rcx": REMOVED},
    leaves.TDH_MEM_PAGE_PROMOTE: {
        "rcx": "HPA of the S-EPT page, bit 62: PAMT removal hint",
        "r12": PAIR,
        "r13": PAIR,
    },
    leaves.TDH_MEM_SEPT_RD: {"rcx": "S-EPT entry", "rdx": "level and state"},
    leaves.TDH_PHYMEM_PAGE_RECLAIM: {
        "rcx": "page type",
        "rdx": "owner",
        "r8": "page size",
        "r9": "bit 62: PAMT removal hint",
    },
    leaves.TDH_PHYMEM_PAGE_RDMD: {"rcx": "page type", "rdx": "owner", "r8": "page size"},
    leaves.TDH_PHYMEM_PAMT_REMOVE: {"rdx": PAIR, "r8": PAIR},
}
"""Leaf -> registers that it writes when it succeeds."""

REFUSED_BY_ENTRY: Operands = {"rcx": "S-EPT entry where the walk ended", "rdx": "level and state"}
"""What leaves with a GPA say when an S-EPT entry is the reason of their refusal."""
