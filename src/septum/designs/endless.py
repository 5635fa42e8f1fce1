"""Notices when a function of a user's design goes round without a scheduling point.

Nothing in the model can end such a loop: no other task runs, no schedule is asked, no search looks
at its clock. So a timer of the process looks at the stack now and then. When a function of the file
has been on it for long, calls are watched for a moment; if none of them is `Sim.point`, the run is
ended with a sentence.

The timer counts the processor's time, is set in every process that is forked, and is not there
without a design of a user. It decides nothing about a run that ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from septum.errors import EndlessLoop
from septum.sim import Sim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

TICK_S = 0.5
"""Seconds of the processor between two looks."""
PATIENCE = 8
"""After so many looks at the same call of a function its calls are watched."""
WATCHED = 4
"""For so many looks: then one of them was a scheduling point, or none will be."""

_POINT = Sim.point.__code__


class Watchdog:
    """Looks at what runs, from the files `paths` of users' designs."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self._calls: list[FrameType] = []  # of functions of these files, from the outermost
        self._looks = 0
        self._patience = PATIENCE
        self._points = 0
        self._watching = 0  # looks that its calls are still to be watched for
        self._set = False

    def watch(self, path: str) -> None:
        """Look at the functions of that file, too."""
        self.paths.add(path)
        # Only the main thread is interrupted, and only who has no use for this timer.
        if (
            not self._set
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
        ):
            self._set = True
            signal.signal(signal.SIGVTALRM, self.look)
            set_timer(TICK_S)
            os.register_at_fork(after_in_child=partial(set_timer, TICK_S))
            # The interpreter takes its handlers back before it ends: the signal would kill it.
            atexit.register(set_timer, 0)

    def look(self, signum: int, frame: FrameType | None) -> None:
        """Raises EndlessLoop in what was interrupted."""
        # They are kept until the next look: another call's frame is not to be had for one of them.
        calls = list(self._own_calls(frame))
        if not calls or calls[:1] != self._calls[:1]:
            self._unwatch()
            self._calls, self._looks, self._patience = calls, 0, PATIENCE
            return
        self._looks += 1
        # Functions that were here at every look: the innermost of them goes round.
        pairs = takewhile(lambda pair: pair[0] is pair[1], zip(calls, self._calls, strict=False))
        common = [call for call, _ in pairs]
        self._calls = common
        if self._watching:
            self._watching -= 1
            if self._points:
                self._unwatch()
                self._looks, self._patience = 0, 2 * self._patience
            elif not self._watching:
                sys.setprofile(None)
                raise EndlessLoop(_sentence(common[-1]))
        elif self._looks >= self._patience and sys.getprofile() is None:
            self._points, self._watching = 0, WATCHED
            sys.setprofile(self._called)

    def _own_calls(self, frame: FrameType | None) -> Iterator[FrameType]:
        """The functions of users' files on the stack, from the outermost."""
        stack = []
        while frame is not None:
            if frame.f_code.co_filename in self.paths:
                stack.append(frame)
            frame = frame.f_back
        return reversed(stack)

    def _called(self, frame: FrameType, event: str, arg: Any) -> None:
        if frame.f_code is _POINT:
            self._points += 1

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = 0
            sys.setprofile(None)


def set_timer(seconds: float) -> None:
    """Look every so many seconds of the processor from now on; 0: never."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)


def _sentence(frame: FrameType) -> str:
    code = frame.f_code
    return (
        f"{code.co_filename}, line {frame.f_lineno}, in {code.co_name}: it goes round without a"
        " scheduling point, so that no other task can ever run; a loop that tries again says"
        ' self.sim.retry("cpu_relax") where the kernel calls cpu_relax() or cond_resched()'
    )


WATCHDOG = Watchdog()
"""That of this process."""
