"""The module's events: one per SEAMCALL, TDCALL and TD exit."""

from septum.sim import Event


class SeamcallEvent(Event, tag="seamcall", frozen=True):
    """A SEAMCALL ended. `rcx`, `rdx`, `r8` are inputs; the `out_` values are after the call."""

    leaf: int
    version: int
    rcx: int
    rdx: int
    r8: int
    status: int
    out_rcx: int
    out_rdx: int


class TdcallEvent(Event, tag="tdcall", frozen=True):
    """A TDCALL of the guest ended (one attempt): `outcome` is an OutcomeKind."""

    leaf: int
    td: int
    vcpu: int
    rcx: int
    outcome: int
    status: int


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
