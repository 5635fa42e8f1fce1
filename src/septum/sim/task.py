"""Tasks and coroutines on greenlets: the only module that switches stacks.

A Task is what the scheduler schedules (a thread of the host). A Coroutine is a second stack
inside a task (the guest that its vCPU thread runs): it is entered with `resume` and leaves with
`suspend`, and while it is on top it is what the task executes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import greenlet

if TYPE_CHECKING:
    from collections.abc import Callable


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
        "index",
        "name",
        "time_ns",
    )

    def __init__(self, name: str, cpu: int, index: int, daemon: bool = False) -> None:
        self.name = name
        self.cpu = cpu  # logical processor the thread is pinned to
        self.index = index  # order of spawning; ties are broken by it
        self.daemon = daemon
        self.done = False
        self.atomic = 0  # > 0: a spinning lock is held, the task may not sleep
        self.held: list[tuple[object, str]] = []  # (lock, "ex" or "sh") in order of acquisition
        self.blocked_on: str | None = None
        self.time_ns = 0
        self.glet: greenlet.greenlet | None = None

    def __repr__(self) -> str:
        return f"<task {self.name}>"


class Coroutine:
    """A second stack within whichever task resumes it."""

    __slots__ = ("_caller", "_glet", "finished", "name")

    def __init__(self, name: str, fn: Callable[[], None]) -> None:
        self.name = name
        self.finished = False
        self._caller: greenlet.greenlet | None = None

        def body(first: object) -> object:
            fn()
            self.finished = True
            return None

        self._glet = greenlet.greenlet(body)

    def started(self) -> bool:
        """Whether it has ever been resumed."""
        return self.finished or bool(self._glet) or bool(self._glet.dead)

    def body(self) -> Callable[[object], object]:
        """What a stack for it runs; only before it has started."""
        run: Callable[[object], object] = self._glet.run
        return run

    @property
    def glet(self) -> greenlet.greenlet:
        """The stack."""
        return self._glet

    def kill(self) -> None:
        """End it where it is suspended, as when its machine is switched off."""
        if self._glet and not self._glet.dead:
            self._glet.parent = greenlet.getcurrent()
            self._glet.throw(greenlet.GreenletExit)

    def renew(self, body: Callable[[object], object]) -> None:
        """Begin anew: a new stack that will run `body`."""
        self._glet = greenlet.greenlet(body)
        self.finished = False
        self._caller = None

    def resume(self, value: object = None) -> object:
        """Run until the coroutine suspends; returns what it passed to `suspend` (None: ended).

        Raises RuntimeError when it has already ended.
        """
        if self.finished:
            raise RuntimeError(f"coroutine {self.name} has ended")
        caller = greenlet.getcurrent()
        self._caller = caller
        self._glet.parent = caller
        return self._glet.switch(value)

    def suspend(self, value: object = None) -> object:
        """Leave the coroutine, from within it; returns what the next `resume` passes."""
        caller = self._caller
        assert caller is not None
        assert greenlet.getcurrent() is self._glet, f"suspend() outside coroutine {self.name}"
        return caller.switch(value)


def start(task: Task, fn: Callable[[], None], hub: greenlet.greenlet) -> None:
    """Give `task` a stack that runs `fn` and returns to `hub` when it ends."""

    def body() -> None:
        fn()
        task.done = True

    task.glet = greenlet.greenlet(body, hub)


def getcurrent() -> greenlet.greenlet:
    """The stack that runs now."""
    return greenlet.getcurrent()
