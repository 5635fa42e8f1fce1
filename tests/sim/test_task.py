"""Stacks are used again: what ran on one before leaves nothing that the next can tell."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from septum.explore import Options
from septum.explore.runs.run import Runner
from septum.explore.runs.steering import Replaying
from septum.explore.scenario import ScenarioSubject
from septum.sim import Coroutine, Sim, Task
from septum.sim.task import Stack


def _depth() -> int:
    """How many calls deeper this stack can go."""
    here: list[int] = []

    def call() -> None:
        here.append(0)
        call()

    with pytest.raises(RecursionError):
        call()
    return len(here)


class _World:
    """Two tasks, the second of which runs a guest; what happened, in order."""

    def __init__(self) -> None:
        self.sim = Sim()
        self.told: list[str] = []
        self.guest = Coroutine("guest", self._guest)
        self.tasks: list[Task] = []

    def _guest(self) -> None:
        try:
            for number in range(3):
                self.guest.suspend(number)
        finally:
            self.told.append("guest left")

    def _run(self, name: str, steps: int, how: str) -> None:
        try:
            for _ in range(steps):
                self.sim.point("step")
                if name == "second" and not self.guest.finished:
                    self.told.append(f"guest {self.guest.resume()}")
            if how == "raises":
                raise ValueError(name)
            if how == "waits":
                self.sim.block([], "what never comes")
            self.told.append(f"{name} ended")
        finally:
            self.told.append(f"{name} left")

    def run(self, steps: tuple[int, int], how: tuple[str, str]) -> list[str]:
        """One run and its end; everything begins anew."""
        self.told.clear()
        self.guest.renew()
        sim = self.sim
        sim.findings.clear()
        for name, nr, end in zip(("first", "second"), steps, how, strict=True):
            sim.spawn(name, lambda name=name, nr=nr, end=end: self._run(name, nr, end))
        try:
            sim.run()
        except ValueError as error:
            self.told.append(f"raised {error}")
        for task in sim.tasks:
            task.kill()
        self.guest.kill()
        sim.tasks.clear()
        # The next run has a scheduler that knows nothing of these tasks.
        self.sim = Sim()
        return list(self.told)


_HOW = st.sampled_from(("ends", "waits", "raises"))
_RUN = st.tuples(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.tuples(_HOW, _HOW))


@settings(max_examples=30, deadline=None)
@given(st.lists(_RUN, min_size=1, max_size=6))
def test_a_run_on_used_stacks_is_as_on_new_ones(
    runs: list[tuple[tuple[int, int], tuple[str, str]]],
) -> None:
    """However runs end (all tasks do, some wait for ever, one raises), the next is as in a world
    where nothing ran before; and everything that was under way is unwound, guests too."""
    used = _World()
    for steps, how in runs:
        told = used.run(steps, how)
        assert told == _World().run(steps, how)
        assert {"first left", "second left"} <= set(told) or "raises" in how
        assert ("guest left" in told) == any(line.startswith("guest ") for line in told)


def test_stacks_do_not_get_shorter() -> None:
    """A stack that was begun from within another one, again and again, could go less deep."""
    world = _World()
    world.run((3, 3), ("ends", "ends"))
    depths: list[int] = []
    for _ in range(20):
        world.run((3, 3), ("raises", "waits"))
        world.sim.spawn("deep", lambda: depths.append(_depth()))
        world.sim.run()
    assert depths[-1] >= depths[0] - 1 > sys.getrecursionlimit() // 2


def test_a_world_is_run_in_one_thread_and_then_in_another() -> None:
    """A stack cannot be used where it was not made."""
    world = _World()
    steps, how = (4, 4), ("ends", "waits")
    told = [world.run(steps, how)]
    thread = threading.Thread(target=lambda: told.append(world.run(steps, how)))
    thread.start()
    thread.join()
    told.append(world.run(steps, how))
    assert len(told) == 3
    assert told[0] == told[1] == told[2]


def _nr_stacks() -> int:
    gc.collect()
    return sum(isinstance(obj, Stack) for obj in gc.get_objects())


def test_stacks_do_not_pile_up() -> None:
    """Neither from run to run of a world that is put back, nor from world to world."""
    runner = Runner(ScenarioSubject("convert-one-page", "v3", "end"), Options(preemptions=None))
    for _ in range(3):
        runner.run(Replaying([]))
    before = _nr_stacks()
    stacks = [part.obj.glet for part in runner.snapshot.parts if isinstance(part.obj, Coroutine)]
    for answers in ([], [1], [0, 1, 1]) * 4:
        runner.run(Replaying(answers))
    assert _nr_stacks() == before
    for part, stack in zip(
        [p for p in runner.snapshot.parts if isinstance(p.obj, Coroutine)], stacks, strict=True
    ):
        assert part.obj.glet is stack
    world = _World()
    world.run((3, 3), ("ends", "ends"))
    before = _nr_stacks()
    del world
    assert _nr_stacks() == before - 1
