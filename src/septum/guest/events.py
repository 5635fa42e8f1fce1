"""What a guest says of itself in the trace. Its TDCALLs are told by the module."""

from septum.sim import Event


class GuestPhaseEvent(Event, tag="guest_phase", frozen=True):
    """The guest's vCPU entered a phase of its program, e.g. "tdvf-sec"."""

    phase: str


class GuestReportEvent(Event, tag="guest_report", frozen=True):
    """The guest wrote `code` to its report port."""

    code: int
