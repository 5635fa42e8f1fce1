"""Guests that wait when a run has ended are not unwound: the next run begins where they wait, and
must be as one of guests that are made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import tdvmcall
from septum.explore import Options
from septum.explore.runs.run import Runner, StateMissed
from septum.explore.runs.sampling import Length, RandomWalk
from septum.explore.scenario import ScenarioSubject
from septum.guest.tdcpu import TdGuestCpu
from septum.sim import Coroutine

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

NR_RUNS = 240


class Count:
    """How often a guest stayed where it was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nr = 0
        rest = Coroutine.rest

        def counting(coroutine: Coroutine) -> None:
            rest(coroutine)
            self.nr += coroutine._stays

        monkeypatch.setattr(Coroutine, "rest", counting)


class Broken(RandomWalk):
    """A walk of which every other is cut somewhere."""

    __slots__ = ("cut_at",)

    def __init__(self, options: Options, number: int) -> None:
        self.cut_at = number // 2 % 60 if number % 4 > 1 else 1000
        super().__init__(options, number, Length(40))

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        if self.decisions > self.cut_at:
            self.stop()
        return super().pick_task(n, forced, spins)


def runs(seed: int) -> Iterator[tuple[object, ...]]:
    """What random runs of a scenario came to, in which vCPUs are kicked."""
    options = Options(preemptions=None, seed=seed)
    runner = Runner(ScenarioSubject("convert-against-write", "v3", "end"), options)
    for number in range(NR_RUNS):
        events: list[object] = []
        runner.sink = events.append
        while True:
            events.clear()
            try:
                run = runner.run(Broken(options, number))
            except StateMissed:
                continue
            break
        yield run.answers[:], run.finding, runner.built.sim.nr_points, list(map(repr, events))


def test_a_guest_that_waits_goes_on_as_one_that_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answers, events and times of every run are the same."""
    count = Count(monkeypatch)
    left = list(runs(3))
    assert count.nr > NR_RUNS // 2
    monkeypatch.setattr(Coroutine, "rest", Coroutine.kill)
    assert left == list(runs(3))


def test_one_that_an_interrupt_took_from_there_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guest has not reported yet it must be unwound: the comparison notices."""

    def too_early(cpu: TdGuestCpu, code: int) -> None:
        cpu.context.coroutine.at_start = True
        cpu.outl(tdvmcall.PORT_DEBUG_EXIT, code)
        cpu.context.coroutine.at_start = False

    monkeypatch.setattr(TdGuestCpu, "report_and_begin", too_early)
    left = list(runs(3))
    monkeypatch.setattr(Coroutine, "rest", Coroutine.kill)
    assert left != list(runs(3))
