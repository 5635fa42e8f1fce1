"""What crossing into the TDX module takes, in virtual time.

No latency of a single SEAMCALL has been published, so these are assumed, not measured: they order
the leaves by the work they do and make the first 4 KB accept fault of a boot come to about the 8 us
that were reported for it. Virtual time is for comparing designs and for lock hold times, not for
predicting a machine.
"""

SEAMCALL_NS = 1_000
"""MODEL: every SEAMCALL not listed below [assumed]."""

SEAMCALL_COST_NS = {
    0: 1_500,  # TDH.VP.ENTER, and the way back
    2: 3_000,  # TDH.MEM.PAGE.ADD: copies a page
    3: 1_500,  # TDH.MEM.SEPT.ADD: initialises a page
    6: 1_200,  # TDH.MEM.PAGE.AUG
    7: 800,  # TDH.MEM.RANGE.BLOCK
    15: 4_000,  # TDH.MEM.PAGE.DEMOTE: writes 512 entries
    16: 700,  # TDH.MR.EXTEND
    29: 1_000,  # TDH.MEM.PAGE.REMOVE
    38: 600,  # TDH.MEM.TRACK
    40: 10_000_000,  # TDH.PHYMEM.CACHE.WB
    41: 600,  # TDH.PHYMEM.PAGE.WBINVD
}
"""MODEL: by leaf number [assumed]."""

TDCALL_NS = 500
"""MODEL: every TDCALL [assumed]."""

IPI_NS = 2_000
"""MODEL: sending an IPI and having it acknowledged [assumed]."""
