"""What crossing into the TDX module takes, in virtual time.

No latency of a single SEAMCALL has been published, so these are assumed, not measured: they order
the leaves by the work they do and make the first 4 KB accept fault of a boot come to about the 8 us
that were reported for it. Virtual time is for comparing designs and for lock hold times, not for
predicting a machine.
"""

from septum.abi import leaves

SEAMCALL_NS = 1_000
"""MODEL: every SEAMCALL not listed below [assumed]."""

SEAMCALL_COST_NS = {
    leaves.TDH_VP_ENTER: 1_500,  # and the way back
    leaves.TDH_MEM_PAGE_ADD: 3_000,  # copies a page
    leaves.TDH_MEM_SEPT_ADD: 1_500,  # initialises a page
    leaves.TDH_MEM_PAGE_AUG: 1_200,
    leaves.TDH_MEM_RANGE_BLOCK: 800,
    leaves.TDH_MEM_PAGE_DEMOTE: 4_000,  # writes 512 entries
    leaves.TDH_MR_EXTEND: 700,
    leaves.TDH_MEM_PAGE_REMOVE: 1_000,
    leaves.TDH_MEM_TRACK: 600,
    leaves.TDH_PHYMEM_CACHE_WB: 10_000_000,
    leaves.TDH_PHYMEM_PAGE_WBINVD: 600,
}
"""MODEL: by leaf [assumed]."""

TDCALL_NS = 500
"""MODEL: every TDCALL [assumed]."""

IPI_NS = 2_000
"""MODEL: sending an IPI and having it acknowledged [assumed]."""
