"""The module's events: one per SEAMCALL, TDCALL and TD exit."""

from septum.sim import Event


class SeamcallEvent(Event, tag="seamcall", frozen=True, omit_defaults=True):
    """A SEAMCALL ended. `rcx` to `r13` are inputs; the `out_` values are after the call.

    `sept`: for a leaf that takes a GPA and level in RCX, the S-EPT entry there when the call ended,
    without the HKID; -1 when the walk ends above it. `sept_child`: after a DEMOTE that succeeded,
    the first entry of the table that `sept` points to.
    """

    leaf: int
    version: int
    rcx: int
    rdx: int
    r8: int
    status: int
    out_rcx: int
    out_rdx: int
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    out_r8: int = 0
    out_r9: int = 0
    out_r10: int = 0
    out_r11: int = 0
    out_r12: int = 0
    out_r13: int = 0
    sept: int = -1
    sept_child: int = -1


class TdcallEvent(Event, tag="tdcall", frozen=True, omit_defaults=True):
    """A TDCALL of the guest ended (one attempt): `outcome` is an OutcomeKind.

    `sept`: as in `SeamcallEvent`, for TDG.MEM.PAGE.ACCEPT.
    """

    leaf: int
    td: int
    vcpu: int
    rcx: int
    outcome: int
    status: int
    sept: int = -1


class TdExitEvent(Event, tag="td_exit", frozen=True):
    """A vCPU left its TD; `rax` to `r8` as TDH.VP.ENTER returns them."""

    td: int
    vcpu: int
    rax: int
    rcx: int
    rdx: int
    r8: int


class GuestAccessEvent(Event, tag="guest_access", frozen=True):
    """A guest access that did not hit the TLB (one attempt): `outcome` is an OutcomeKind."""

    td: int
    vcpu: int
    gpa: int
    access: int
    outcome: int


class SeptLeavesEvent(Event, tag="sept_leaves", frozen=True):
    """At the beginning of a trace: `nr_leaves` leaves of TDX level `level` from `gpa` on.

    The first entry is `entry`, without the HKID; the others map the frames that follow.
    """

    td: int
    gpa: int
    level: int
    nr_leaves: int
    entry: int


class PamtPairEvent(Event, tag="pamt_pair", frozen=True):
    """At the beginning of a trace: the 2 MB frame at `hpa` has a pair of PAMT pages."""

    hpa: int
