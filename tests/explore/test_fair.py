"""What has no end, and what is only long or badly scheduled: a run is called endless when it goes
on though every task has its turn, and random schedules keep nobody waiting."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from septum.explore import Options, Strategy, explore
from septum.explore.replay import find_subject
from septum.explore.runs.run import Run, Runner, StateMissed
from septum.explore.runs.sampling import Length, Measuring, Pct
from septum.explore.runs.steering import Replaying
from septum.explore.states.stand import Stand
from septum.explore.subject import Subject
from septum.explore.toybox import LIVELOCK
from septum.explore.toys import Toy
from septum.explore.verdict import Outcome
from septum.explore.workers.search import Job, Searcher
from septum.sim.state import Part, Snapshot

# t0 sleeps until cell 2 is set, t1 wakes it again and again until then, t2 sets it: a vCPU that
# retries, the ioctl that waits for the readers of an SRCU, and the vCPU that is the reader.
WAITING = Toy(
    "waiting",
    [
        (("wait", 2, 1),),
        (("wake", 1), ("unless", 2, 1, -1)),
        (("point",), ("point",), ("write", 2, 1), ("wake", 3)),
    ],
)
# A task goes round while another gets on, step by step.
LONG = Toy("long", [(("inc", 0),) * 200, (("retry", 0, 200),)])
SHORT = Options(preemptions=None, spin_points=20, max_points=300)


def pct_runs(toy: Subject, options: Options, count: int) -> list[tuple[Run, int]]:
    """Runs of PCT, and how many decisions each took."""
    runner = Runner(toy, options)
    runner.verify_every = 1
    measuring = Measuring()
    runner.run(measuring)
    length = measuring.length()
    runs = []
    for number in range(count):
        steering = Pct(options, number, length)
        runs.append((runner.run(steering), steering.decisions))
    return runs


def unfair(self: Pct, ring: object, at: int) -> bool:
    """Nobody is helped who waits."""
    return False


def test_pct_lets_nobody_wait_for_ever() -> None:
    """Whatever the priorities are, the task for whom the others wait gets its turn."""
    for run, decisions in pct_runs(WAITING, SHORT, 200):
        assert run.finding is None
        assert decisions < SHORT.max_points and run.fair_from == len(run.answers)


def test_unfair_priorities_would_be_a_false_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that help some runs go on until tasks take turns, and then end; where tasks did not
    take turns either, they would be called endless."""
    monkeypatch.setattr(Pct, "_raise_who_waits", unfair)
    runs = pct_runs(WAITING, SHORT, 200)
    assert all(run.finding is None for run, _ in runs)
    assert any(decisions > SHORT.max_points for _, decisions in runs)
    monkeypatch.setattr("septum.explore.runs.steering.FAIR_TIMES", 0)
    found = [run.finding for run, _ in pct_runs(WAITING, SHORT, 200) if run.finding is not None]
    assert found and all("no end" in finding.text for finding in found)


@pytest.mark.parametrize("strategy", [Strategy.PCT, Strategy.RANDOM, Strategy.EXHAUSTIVE])
def test_a_livelock_is_still_one(strategy: Strategy) -> None:
    """Tasks that wait for what nobody does go on though each has its turn; the finding says so,
    and repeats from its answers."""
    options = Options(strategy=strategy, schedules=50, spin_points=20, max_points=300)
    example = explore(LIVELOCK, options).counterexamples[0]
    assert example.finding.promise == "progress"
    assert "no end after 1500 scheduling decisions, the last 1200 in turns" in example.finding.text
    again = Runner(LIVELOCK, options).run(Replaying(list(example.answers)))
    assert again.finding == example.finding
    assert len(example.answers) <= options.max_points


@pytest.mark.parametrize("strategy", [Strategy.PCT, Strategy.RANDOM])
def test_a_long_run_is_no_endless_one(strategy: Strategy) -> None:
    """More decisions than a run has as a rule, while one task goes round: it has an end."""
    options = Options(strategy=strategy, schedules=20, spin_points=20, max_points=300)
    verdict = explore(LONG, options)
    assert not verdict.counterexamples
    assert verdict.steps > 20 * 400


def test_what_was_not_searched_to_its_end_is_not_complete() -> None:
    """Beyond so many decisions only one way of going on is looked at."""
    for max_points, complete in ((2000, True), (300, False)):
        options = Options(preemptions=0, spin_points=5000, max_points=max_points)
        toy = Toy("late", [(("inc", 0),) * 200, (("inc", 0),) * 2])
        searcher = Searcher(toy, options)
        try:
            result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
        finally:
            searcher.close()
        assert result.complete is complete and not result.found
        assert ("300 decisions" in result.note) is not complete


# t1's bug shows when t0 is through with its long loop before t1 begins.
LATE = Toy("late", [(*((("read", 3),) * 300), ("write", 1, 1)), (("check", 1, 1),)])


def test_a_long_loop_costs_no_guarantee(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that takes one order of two tasks is found by one in 2 n schedules, however often one
    of them stands where it stood; not if each schedule made it yield."""
    options = Options(preemptions=None, depth=0)
    broken = [run for run, _ in pct_runs(LATE, options, 100) if run.finding is not None]
    assert len(broken) >= 100 // (2 * 2) // 2  # half of what is to be expected
    make = Pct.__init__

    def never_strict(self: Pct, options: Options, number: int, length: Length) -> None:
        make(self, options, number, length)
        self._strict_until = 0

    monkeypatch.setattr(Pct, "__init__", never_strict)
    assert all(run.finding is None for run, _ in pct_runs(LATE, options, 100))


def test_a_slot_whose_pages_go_one_by_one_has_an_end() -> None:
    """A vCPU that faults again and again while 512 pages are zapped, each with a kick, makes runs
    of more than 20,000 decisions, one in eight: no livelock."""
    options = Options()
    runner = Runner(find_subject("upm-parallel-slot", "v3", "end"), options)
    runner.verify_every = 1
    measuring = Measuring()
    runner.run(measuring)
    for number in range(130, 400):
        steering = Pct(options, number, measuring.length())
        run = runner.run(steering)
        assert run.finding is None and not run.cut
        if steering.decisions > options.max_points:
            return
    raise AssertionError("no run was long: the test proves nothing")


def test_a_run_is_believed_longer_when_nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no longer than at first once something was; what was missed is always told in the end."""
    runner = Runner(LONG, Options(preemptions=None))
    looked: list[int] = []
    real = Snapshot.verify

    def verify(snapshot: Snapshot) -> list[Part]:
        looked.append(runner.nr_runs)
        return real(snapshot)

    monkeypatch.setattr(Snapshot, "verify", verify)
    state = runner.built.world
    for _ in range(2000):
        runner.run(Replaying([]))
    gaps = [after - before for before, after in pairwise(looked[8:])]
    assert gaps[:4] == [64, 128, 256, 512] and set(gaps[4:]) == {512}
    state.table[5] = 5  # behind the back of all that is known to change
    with pytest.raises(StateMissed):
        for _ in range(600):
            runner.run(Replaying([]))
    assert 5 not in state.table
    looked.clear()
    for _ in range(200):
        runner.run(Replaying([]))
    assert looked[1] - looked[0] == 128 and looked[0] - runner.nr_runs + 200 <= 64
    state.log.append(1)
    with pytest.raises(StateMissed):
        runner.settle()


GIVES_UP = Toy(
    "gives-up",
    [
        (("persist", 1, 2), ("write", 0, 7)),
        (("write", 2, 3), ("write", 2, 5), ("write", 1, 1), ("write", 0, 3)),
    ],
)


@pytest.mark.parametrize("preemptions", [1, 2])
def test_who_gives_up_after_so_many_rounds_is_followed_until_it_does(
    preemptions: int, notices: Callable[..., None]
) -> None:
    """Each round is one that came to nothing, and another number."""

    def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Stand, "counted", lambda self: 1)

    notices(GIVES_UP, uncounted, preemptions)


BUSY_GUESTS = """
summary = "Two vCPUs use one page: the ACCEPT of one is BUSY while that of the other is under way."
source = "TDG.MEM.PAGE.ACCEPT"
setup = ["host: prefault page 0"]

[vm]
ve = true
backing = "4k"

[guest]
vcpu0 = ["use 4K page 0"]
vcpu1 = ["use 4K page 0"]

[expect]
witnesses = ["tdcall:TDG.MEM.PAGE.ACCEPT:TDX_OPERAND_BUSY"]
"""


@pytest.mark.parametrize("counts", [False, True])
def test_a_guest_that_is_busy_is_let_on_before_it_gives_up(
    counts: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It tries a hundred times, and nobody is preempted in a SEAMCALL for so long. Where its rounds
    count as those of a host do, it gives up."""

    def counted(self: Stand) -> int:
        return hash(tuple([frame.counts for frames in self.stacks for frame in frames])) or 1

    if counts:
        monkeypatch.setattr(Stand, "counted", counted)
    path = tmp_path / "busy-guests.toml"
    path.write_text(BUSY_GUESTS, encoding="utf-8")
    verdict = explore(
        find_subject(str(path), "v3"), Options(strategy=Strategy.EXHAUSTIVE, preemptions=1)
    )
    assert verdict.outcome is (Outcome.BROKEN if counts else Outcome.HELD)
