"""What a guest instruction that enters the module ends in, as a value.

The machine's guest loop and the transcript replay both need the three ways a TDCALL or a
private access can end without a coroutine under them.
"""

import enum

from septum.abi.regs import Regs


class OutcomeKind(enum.IntEnum):
    """How a guest-side step ended."""

    TD = 0
    """Control is back in the guest; registers are updated and RIP is past the instruction."""
    TD_EXIT = 1
    """The step ended in a TD exit; `exit` holds the registers that TDH.VP.ENTER returns."""
    INTERRUPTED = 2
    """An interrupt is pending: RAX and RIP are unchanged, the instruction runs again."""
    EVENT = 3
    """The module injected an event (`event` is the VM-entry interruption information)."""


class GuestOutcome:
    """Result of `Module.tdcall_step` and `Module.guest_access_step`.

    `kind` says which of the other fields is meaningful: `exit` for TD_EXIT, `event` for EVENT.
    """

    __slots__ = ("event", "exit", "kind")

    def __init__(self, kind: OutcomeKind, exit: Regs | None = None, event: int = 0) -> None:
        self.kind = kind
        self.exit = exit
        self.event = event


RETURNED = GuestOutcome(OutcomeKind.TD)
INTERRUPTED = GuestOutcome(OutcomeKind.INTERRUPTED)
