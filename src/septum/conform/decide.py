"""Which check of the module's source decided a status: one step, run again under a tracer.

Ordinary runs are not traced. The first function of `septum.module` that returns the final status
is where it was made; everything later only hands it on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import septum.module
from septum.abi.status import STATUS_MASK

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from _typeshed import TraceFunction

_ROOM = str(Path(septum.module.__file__).parent)
_FRONT = "module.py"
_DISPATCH = frozenset({"seamcall", "tdcall_step", "vp_enter", "guest_access_step"})


class _Watcher:
    """Collects (value, place) of every int returned in the module room, in order."""

    def __init__(self) -> None:
        self.returns: list[tuple[object, str]] = []

    def trace(self, frame: FrameType, event: str, arg: object) -> TraceFunction | None:
        filename = frame.f_code.co_filename
        if not filename.startswith(_ROOM):
            return None
        if event == "return":
            name = Path(filename).name
            place = f"{name}:{frame.f_lineno}:{frame.f_code.co_qualname}"
            self.returns.append((arg, place))
        return self.trace


def deciding_check(run_step: Callable[[], int | None]) -> str:
    """`file:line:function` of the check that decided the status of `run_step()`.

    `run_step` does the step and returns its status (RAX), or None for a guest-side outcome.
    """
    watcher = _Watcher()
    before = sys.gettrace()
    sys.settrace(watcher.trace)
    try:
        status = run_step()
    except Exception as error:
        return raised_at(error)
    finally:
        sys.settrace(before)
    return _first_source(watcher.returns, status)


def raised_at(error: BaseException) -> str:
    """`file:line:function` that raised."""
    trace = error.__traceback__
    place = "?"
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{Path(code.co_filename).name}:{trace.tb_lineno}:{code.co_qualname}"
        trace = trace.tb_next
    return place


def _first_source(returns: list[tuple[object, str]], status: int | None) -> str:
    """Where `status` was first returned; else its class; else the leaf that came last."""
    plain = [(v, p) for v, p in returns if isinstance(v, int) and not isinstance(v, bool)]
    if status:
        for value, place in plain:
            if value == status:
                return place
        for value, place in plain:
            if value & STATUS_MASK == status & STATUS_MASK:
                return place
    for _, place in reversed(returns):
        name, _, function = place.partition(":")
        if name != _FRONT or function.split(".")[-1] not in _DISPATCH:
            return place
    return returns[-1][1] if returns else "?"
