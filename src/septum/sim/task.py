"""Tasks and coroutines on greenlets: the only module that switches stacks.

A Task is what the scheduler schedules (a thread of the host). A Coroutine is a second stack
inside a task (the guest that its vCPU thread runs): it is entered with `resume` and leaves with
`suspend`, and while it is on top it is what the task executes.
"""

from __future__ import annotations

import dis
import threading
from typing import TYPE_CHECKING, Protocol

import greenlet

if TYPE_CHECKING:
    from collections.abc import Callable


UNWINDING_MAX = 16
"""How often a function that is broken off may switch away while it unwinds; after that its stack is
given up."""


class LeftError(Exception):
    """A function on a stack raised SystemExit, KeyboardInterrupt or another exception that is no
    Exception. This is raised instead, as those would end the process or the stack silently, or look
    like the user's Ctrl-C. Its text names the exception."""


_ENDS = (SystemExit, GeneratorExit, greenlet.GreenletExit)


class BrokenOff(BaseException):
    """Unwinds the function that a stack runs, so that the stack can be used again."""


BREAK_OFF = object()
"""Passed by a switch to a stack that is to be broken off: the code that gets it raises BrokenOff.

`greenlet.throw` would do the same, by an exception of C++ that costs as much as ten switches.
"""


# greenlet's classes have no types here (see pyproject.toml).
class Stack(greenlet.greenlet):  # type: ignore[misc]
    """A stack that is used for one function after another, as making one costs more than ten
    switches. An exception that leaves a function ends the stack and is raised in its parent."""

    body: Callable[[], None] | None = None
    """What it runs next; None once that has begun."""
    busy = False
    """Whether it has something to run that has not ended."""

    def __init__(self) -> None:
        super().__init__(_serve)
        self.home = _idle.stacks
        # Python counts its depth of recursion on from where it is first switched to. So that is
        # done here, not deep within some other stack.
        self.switch()

    def give(self, body: Callable[[], None], parent: greenlet.greenlet) -> None:
        """What to run when it is switched to, and who goes on then."""
        self.body = body
        self.busy = True
        self.parent = parent

    def break_off(self) -> None:
        """End what it runs, where that stands; the caller goes on."""
        if self.body is not None:
            self.body = None
            self.busy = False
            return
        for _ in range(UNWINDING_MAX):
            if not self.busy or self.dead:
                return
            self.parent = greenlet.getcurrent()
            self.switch(BREAK_OFF)


def _serve() -> None:
    """The loop of a stack: wait for a function, run it, switch to the parent.

    While it waits nothing here refers to the stack, so that an unused one is freed.
    """
    while True:
        greenlet.getcurrent().parent.switch(None)
        stack = greenlet.getcurrent()
        body = stack.body
        stack.body = None
        del stack
        try:
            body()
        except BrokenOff:
            pass
        except BaseException as error:
            if _leaves(error):
                raise LeftError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
            raise
        del body
        greenlet.getcurrent().busy = False


def _leaves(error: BaseException) -> bool:
    """Whether code outside this package raised `error` to end the process or the stack. Greenlet
    raises such an exception, too, to end an unused stack: in this package, where it last switched.
    """
    if isinstance(error, KeyboardInterrupt):
        return is_raised(error)
    if type(error) is not BaseException and not isinstance(error, _ENDS):
        return False
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    name = where.tb_frame.f_globals.get("__name__", "") if where is not None else ""
    return not str(name).startswith(f"{__package__}.")


def is_raised(error: BaseException) -> bool:
    """Whether a `raise` statement made `error`. The KeyboardInterrupt of a Ctrl-C comes out of any
    other instruction: Python looks for signals at calls and jumps."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    if where is None:
        return False
    return dis.opname[where.tb_frame.f_code.co_code[where.tb_lasti]] == "RAISE_VARARGS"


class _Idle(threading.local):
    """Stacks of tasks that have ended, for use by new ones. Only the thread that made a stack can
    use it."""

    def __init__(self) -> None:
        self.stacks: list[Stack] = []


_idle = _Idle()


class Named(Protocol):
    """A lock, as far as observers go. Who holds one that `spins` may not sleep."""

    name: str
    spins: bool


class Task:
    """One thread of control with its own virtual clock."""

    __slots__ = (
        "atomic",
        "blocked_on",
        "cpu",
        "daemon",
        "done",
        "glet",
        "held",
        "in_vain",
        "index",
        "name",
        "retried_at",
        "retrying",
        "stack",
        "time_ns",
    )

    def __init__(self, name: str, cpu: int, index: int, daemon: bool = False) -> None:
        self.name = name
        self.cpu = cpu  # logical processor the thread is pinned to
        self.index = index  # order of spawning; ties are broken by it
        self.daemon = daemon
        self.done = False
        self.atomic = 0  # > 0: a spinning lock is held, the task may not sleep
        self.held: list[tuple[Named, str]] = []  # (lock, "ex" or "sh") in order of acquisition
        self.blocked_on: str | None = None
        # `Sim.retry`: how many switches there had been at the last one; whether there has been
        # none since, so that what came to nothing will do so again.
        self.retried_at = -1
        self.in_vain = False
        self.retrying = False  # it stands at a scheduling point of `Sim.retry`
        self.time_ns = 0
        self.stack: Stack | None = None  # its own; None when it has ended
        # What goes on when it does: its own stack, or the guest's that it runs.
        self.glet: greenlet.greenlet | None = None

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def kill(self) -> None:
        """End it where it stands, and a guest that it runs. May raise what unwinding raises."""
        stack = self.stack
        if stack is None:
            return
        try:
            if isinstance(self.glet, Stack):
                self.glet.break_off()
            stack.break_off()
        finally:
            self.stack = self.glet = None
        if not stack.dead and not stack.busy:
            stack.home.append(stack)


class Coroutine:
    """A second stack within whichever task resumes it."""

    __slots__ = ("_begun", "_body", "_caller", "_stack", "_stays", "at_start", "finished", "name")

    def __init__(self, name: str, fn: Callable[[], None]) -> None:
        self.name = name
        self.finished = False
        # True during a suspension after which the program does what it does when it begins.
        self.at_start = False
        self._stays = False  # it is suspended there, and begins from there
        self._begun = False
        self._caller: greenlet.greenlet | None = None
        self._stack: Stack | None = None

        def body() -> None:
            fn()
            self.finished = True

        self._body = body

    def started(self) -> bool:
        """Whether it has ever been resumed."""
        return self._begun

    @property
    def glet(self) -> greenlet.greenlet:
        """The stack. Only after it has started."""
        assert self._stack is not None
        return self._stack

    def kill(self) -> None:
        """End it where it is suspended: its machine is switched off."""
        self._stays = False
        if self._stack is not None:
            self._stack.break_off()

    def rest(self) -> None:
        """To be called before `renew`: `kill` it, unless it is suspended `at_start`.

        Such a one is kept and begins from where it is: unwinding a stack costs as much as thirty
        switches.
        """
        if self._stays:
            return
        if self.at_start and self._stack is not None:
            frame = self._stack.gr_frame
            self._stays = frame is not None and frame.f_code is Coroutine.suspend.__code__
        if not self._stays:
            self.kill()

    def renew(self) -> None:
        """Make it begin from the start when it is resumed next. `rest` or `kill` was called."""
        stack = self._stack
        if stack is not None and (stack.busy or stack.dead) and not self._stays:
            self._stack = None
        self._begun = self.finished = self.at_start = False
        self._caller = None

    def resume(self, value: object = None) -> object:
        """Run until the coroutine suspends; returns what it passed to `suspend` (None: ended).

        Raises RuntimeError when it has already ended.
        """
        if self.finished:
            raise RuntimeError(f"coroutine {self.name} has ended")
        caller = greenlet.getcurrent()
        self._caller = caller
        stack = self._stack
        if not self._begun:
            self._begun = True
            if stack is None or stack.home is not _idle.stacks:
                stack = self._stack = Stack()
                self._stays = False
            if self._stays:
                self._stays = False
                stack.parent = caller
            else:
                stack.give(self._body, caller)
        else:
            assert stack is not None
            stack.parent = caller
        passed = stack.switch(value)
        if passed is BREAK_OFF:
            raise BrokenOff
        return passed

    def suspend(self, value: object = None) -> object:
        """Leave the coroutine, from within it; returns what the next `resume` passes."""
        caller = self._caller
        assert caller is not None
        assert greenlet.getcurrent() is self._stack, f"suspend() outside coroutine {self.name}"
        passed = caller.switch(value)
        if passed is BREAK_OFF:
            raise BrokenOff
        return passed


def start(task: Task, fn: Callable[[], None], hub: greenlet.greenlet) -> None:
    """Give `task` a stack that runs `fn` and returns to `hub` when it ends."""

    stacks = _idle.stacks
    stack = stacks.pop() if stacks else Stack()

    def body() -> None:
        fn()
        task.done = True
        task.stack = task.glet = None
        # No new task uses it before it has switched back to the hub.
        stacks.append(stack)

    stack.give(body, hub)
    task.stack = task.glet = stack


getcurrent: Callable[[], greenlet.greenlet] = greenlet.getcurrent
"""The stack that runs now."""
