"""The promise `locking`."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from septum.checks.promise import Promise
from septum.sim import Memo

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.checks.checker import Checker
    from septum.sim import Task
    from septum.sim.task import Named

# Which lock is taken inside which, as documented for KVM (Documentation/virt/kvm/locking.rst) and
# by the series. Lock classes: names without numbers.
DOCUMENTED_ORDER = (
    "vm# lock",
    "vm# vcpu# mutex",
    "vm# slots_lock",
    "invalidate_lock vm#.#",
    "vm# mmu_lock",
    "vm# prealloc_split_cache_lock",
    "pamt_lock",
)
# synchronize_srcu(&kvm->srcu) is called inside them (locking.rst), so that who reads may not take
# them. A reader itself waits for nobody.
SYNCHRONIZED_INSIDE = ("vm# lock", "vm# vcpu# mutex", "vm# slots_lock")


class Locking(Promise):
    """Lock order has no cycle; nothing sleeps or allocates with waiting under a spinning lock;
    documented assertions hold; who returns to user space holds no lock, and has no vCPU loaded.

    On real hardware the first is a deadlock under load, the second "BUG: scheduling while atomic",
    the third a race that lockdep would have named, and the last a lock that is never free again, or
    a preempt notifier that stays in the task's list.
    """

    # Sleeping in atomic context and lockdep assertions are reported where they happen: by the
    # primitives and by the functions that assert. Here the order is watched, as lockdep does: what
    # one run did in one order and another path in the other is a deadlock in wait, even though
    # this run went well. Try-locks do not wait, so that nothing points to them.

    __slots__ = ("_after", "_classes", "_inside", "_previous")
    name = "locking"
    consequences: ClassVar[dict[str, str]] = {
        ".* may sleep, in atomic context .held: rcu_read_lock": "On real hardware the kernel prints"
        " that a sleeping function was called from invalid context; where it does sleep it is"
        ' "Voluntary context switch within RCU read-side critical section!", and without'
        " PREEMPT_RCU what the section keeps may be freed in it.",
        ".* may sleep, in atomic context": "On real hardware the kernel prints that a sleeping"
        " function was called from invalid context; where it does sleep it is"
        ' "BUG: scheduling while atomic", and who spins for the lock hangs.',
        "lockdep: ": "On real hardware it is a race: lockdep warns of it where it is on, elsewhere"
        " anything may come of it.",
        ".* takes .* twice|.* read-locks .* while writing": "On real hardware the task waits for"
        " itself: a soft lockup, and whoever wants the lock hangs, too.",
        ".* read-locks .* twice": "On real hardware lockdep warns of possible recursive locking: a"
        " writer that comes in between waits for the first read, and the second read for the"
        " writer, both for ever.",
        ".* releases .*, which it does not hold": "On real hardware lockdep prints"
        ' "WARNING: bad unlock balance detected!"; where it is off, the lock of somebody else is'
        " free, or nobody can ever take it.",
        ".* takes .* while it holds ": "On real hardware it is a deadlock under load: two tasks"
        " wait for each other for ever.",
        ".* has .* loaded": "On real hardware the vCPU's preempt notifier stays in the task's list,"
        " which is corrupted when a vCPU is loaded again; and kvm_get_running_vcpu() names a vCPU"
        " that does not run, whose caches others then use.",
        ".* still holds .*rcu_read_lock|.* still holds .*srcu": "On real hardware lockdep prints"
        ' "lock held when returning to user space!"; no grace period ends any more: who waits for'
        " one waits for ever, and what it should free stays.",
        ".* still holds ": "On real hardware lockdep prints"
        ' "lock held when returning to user space!"; whoever wants the lock waits for ever.',
    }

    def __init__(self, checker: Checker) -> None:
        super().__init__(checker)
        # Lock class -> classes that were taken while it was held -> where that was first.
        self._after: dict[str, dict[str, str]] = {}
        self._classes = Memo[str, str](lambda name: re.sub(r"\d+", "#", name))
        # By name: names of locks that were held when it was taken.
        self._inside: dict[str, set[str]] = {}
        self._previous: Callable[[Task, Named, str], None] | None = None
        for outer, inner in pairwise(DOCUMENTED_ORDER):
            self._after.setdefault(outer, {})[inner] = "documented"
        for outer in SYNCHRONIZED_INSIDE:
            self._after.setdefault(outer, {})["vm# srcu"] = "documented"

    def start(self) -> None:
        """Be told of every lock that is taken inside another."""
        sim = self.checker.world.sim
        self._previous = sim.lock_observer
        sim.lock_observer = self._observe

    def returned(self, name: str) -> None:
        """Back in user space no lock is held, no SRCU is read, and no vCPU is loaded."""
        world = self.checker.world
        task = world.sim.current
        # Of this task alone: that others have one loaded tells no two states apart.
        vcpu = world.host.main.kvm_get_running_vcpu()
        if vcpu is not None:
            loaded = f"vm{vcpu.kvm.id} vcpu{vcpu.vcpu_id}"
            self.broken(
                ("loaded", task.name), f"{task.name} has ended {name} and has {loaded} loaded"
            )
        if not task.held:
            return
        kept = ", ".join(lock.name for lock, _ in task.held)
        self.broken(("kept", kept), f"{task.name} has ended {name} and still holds {kept}")

    def finish(self) -> None:
        """No more."""
        sim = self.checker.world.sim
        if sim.lock_observer == self._observe:
            sim.lock_observer = self._previous

    def _observe(self, task: Task, lock: Named, op: str) -> None:
        if self._previous is not None:
            self._previous(task, lock, op)
        if op != "lock":
            return
        inner = lock.name
        known = self._inside.get(inner)
        if known is None:
            known = self._inside[inner] = set()
        for outer, _ in task.held:
            if outer.name not in known:
                known.add(outer.name)
                self._take_inside(task, self._classes[outer.name], self._classes[inner])

    def _take_inside(self, task: Task, outer: str, inner: str) -> None:
        """The first lock of a name that was taken while one of another was held."""
        if outer == inner or inner in self._after.get(outer, ()):
            return
        path = self._path(inner, outer)
        self._after.setdefault(outer, {})[inner] = task.name
        if path:
            self._cycle(task, outer, inner, path)

    def _path(self, start: str, goal: str) -> list[str]:
        """Classes from `start` to `goal` by what was taken inside what; empty: there is no way."""
        came_from: dict[str, str] = {start: ""}
        todo = [start]
        for at in todo:
            if at == goal:
                path = [at]
                while came_from[path[-1]]:
                    path.append(came_from[path[-1]])
                return path[::-1]
            for after in self._after.get(at, ()):
                if after not in came_from:
                    came_from[after] = at
                    todo.append(after)
        return []

    def _cycle(self, task: Task, outer: str, inner: str, path: list[str]) -> None:
        steps = ", ".join(f"{b} inside {a} ({self._after[a][b]})" for a, b in pairwise(path))
        self.broken(
            (outer, inner),
            f"{task.name} takes {inner} while it holds {outer}, and elsewhere the order is: "
            f"{steps}",
        )
