"""A search comes back in its time. The clock here goes by the runs that are made and the looks at
it, so that what these tests say does not depend on the machine."""

import json

import msgspec
import pytest

from septum.cli.exits import guarded
from septum.cli.main import app
from septum.explore import Counterexample, Options, Outcome, Strategy, Verdict, explore
from septum.explore.api import Search
from septum.explore.replay import replay_answers
from septum.explore.runs.run import OutOfTime, Run, Runner
from septum.explore.runs.sampling import Measuring
from septum.explore.runs.steering import CLOCK_EVERY, Replaying, Steering
from septum.explore.subject import Subject
from septum.explore.toybox import DEADLOCK, LOCKED_UPDATE, RARE
from septum.explore.toys import Toy
from septum.explore.workers.search import Job, Searcher

LATER = 1e6
SCENARIO = "slot-delete-against-fault"


class Clock:
    """Strikes after so many looks at it and runs; `runs` are those that were begun since."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, strikes: int) -> None:
        self.left = strikes
        self.runs = 0
        monkeypatch.setattr("septum.explore.budget.now", self.now)
        begin = Runner.begin

        def counted(runner, steering) -> None:  # type: ignore[no-untyped-def]
            self.runs += self.left < 0
            self.left -= 1
            begin(runner, steering)

        monkeypatch.setattr(Runner, "begin", counted)

    def now(self) -> float:
        self.left -= 1
        return 1.0 if self.left >= 0 else LATER


def cli(*words: str) -> int:
    """The exit code of a command."""
    return guarded(lambda: app(list(words), standalone_mode=True))


@pytest.mark.parametrize("strikes", [2, 9, 40, 150])
@pytest.mark.parametrize("strategy", ["auto", "exhaustive"])
def test_comes_back_when_the_time_has_come(
    strategy: str,
    strikes: int,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    """Wherever a search is when its time comes (learning how long runs are, what they share, in
    the middle of a run), it begins no other run, and says that it is not through."""
    clock = Clock(monkeypatch, strikes)
    bounds = ("--time", "60", "--workers", "1")  # a fork has a clock of its own
    code = cli("explore", SCENARIO, "--strategy", strategy, *bounds, "--json")
    (verdict,) = json.loads(capsysbinary.readouterr().out)["verdicts"]
    assert code == 3 and verdict["outcome"] == "undetermined"
    assert clock.left < 0, "the clock never struck: the test proves nothing"
    assert clock.runs == 0
    assert not verdict["complete"] and verdict["timed_out"]


def test_who_does_not_look_at_the_clock_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A search that gets ready without a look at the clock begins runs when its time has come."""
    calibrate = Searcher._calibrate

    def deaf(self: Searcher) -> None:
        self.runner.until = 0.0
        calibrate(self)

    monkeypatch.setattr(Searcher, "_calibrate", deaf)
    with pytest.raises(AssertionError, match="runs"):
        test_comes_back_when_the_time_has_come("auto", 2, monkeypatch, capsysbinary)


class Longer(Toy):
    """A toy of which one task goes on alone for a long time."""

    __slots__ = ()

    def start(self, built) -> None:  # type: ignore[no-untyped-def]
        super().start(built)
        sim = built.sim

        def turn() -> None:
            for _ in range(200_000):
                sim.point("turn")

        sim.spawn("long", turn)


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_run_is_broken_off(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is looked at within a run: where a schedule is asked, and where a task goes on
    alone and none is."""
    programs = [(("retry", 0, 1),)] * (tasks - 1)
    runner = Runner(Longer("longer", programs), Options(max_points=100_000))
    Clock(monkeypatch, 2)
    runner.until = 2.0
    with pytest.raises(OutOfTime):
        runner.run(Measuring())
    assert runner.built.sim.nr_points <= 4 * CLOCK_EVERY


def test_a_finding_is_told_as_far_as_it_was_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrinking has a time of its own. What there is when it ends is a finding, and said to be
    unfinished."""
    options = Options(strategy=Strategy.RANDOM, preemptions=None, time_s=60.0)
    best = explore(RARE, options).counterexamples[0]
    take = Search._examples
    sizes = []
    for strikes in (1, 10, 30, 10_000):

        def late(self: Search, strikes: int = strikes) -> list[Counterexample]:
            Clock(monkeypatch, strikes + 1)
            return take(self)

        monkeypatch.setattr(Search, "_examples", late)
        monkeypatch.setattr("septum.explore.budget.now", lambda: 1.0)
        example = explore(RARE, options).counterexamples[0]
        assert example.late is (strikes < 10_000)
        assert replay_answers("toy:rare", "", example.answers) == example.finding
        sizes.append((example.preemptions, example.steps))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == (best.preemptions, best.steps)


def test_an_unfinished_story_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No time at all for shrinking: the story is of the run as it was found."""
    monkeypatch.setattr("septum.explore.budget.SHRINK_LEAST_S", -1.0)
    monkeypatch.setattr("septum.explore.budget.SHRINK_MOST_S", -1.0)
    assert cli("explore", "toy:rare", "--time", "60", "--no-watch") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "The shortest schedule found before the time for shrinking ended" in said


@pytest.mark.parametrize("toy", [LOCKED_UPDATE, RARE, DEADLOCK], ids=lambda toy: toy.name)
@pytest.mark.parametrize("strategy", [Strategy.AUTO, Strategy.EXHAUSTIVE, Strategy.PCT])
def test_a_time_that_never_comes_changes_nothing(toy: Subject, strategy: Strategy) -> None:
    """The same seed gives the same verdict, whatever the time is that is not used up."""
    options = Options(strategy=strategy, schedules=100)
    bare = explore(toy, options)
    timed = explore(toy, msgspec.structs.replace(options, time_s=LATER))

    def untimed(verdict: Verdict) -> Verdict:
        return msgspec.structs.replace(verdict, seconds=0.0)

    assert untimed(bare) == untimed(timed)


def test_nothing_to_decide_is_one_run() -> None:
    """A task alone has one schedule: that is all there is to search, and it is complete."""
    verdict = explore(Toy("alone", [LOCKED_UPDATE.programs[0]]), Options())
    assert verdict.outcome is Outcome.HELD and verdict.complete and verdict.schedules == 1
    broken = explore(Toy("alone", [LOCKED_UPDATE.programs[0]], bad=[1]), Options())
    assert broken.outcome is Outcome.BROKEN


def test_replaying_looks_at_the_clock_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A story is told to its end, however late it is."""
    Clock(monkeypatch, 0)
    assert Runner(RARE, Options()).run(Replaying([])).finding is None


def test_time_that_comes_between_two_searches_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is under way then; all the same the verdict says why there is no more of it."""
    level = Search._level
    late = []

    def ends_late(self: Search, preemptions: int, failures: int) -> bool:
        complete = level(self, preemptions, failures)
        late.append(preemptions)
        return complete

    monkeypatch.setattr(Search, "_level", ends_late)
    monkeypatch.setattr(Search, "_out_of_time", lambda self: late == [0, 1])
    verdict = explore(LOCKED_UPDATE, Options(strategy=Strategy.EXHAUSTIVE))
    assert not verdict.complete
    assert verdict.why == (
        "a budget ran out before the search of all with 2 preemptions, 0 failures;"
        " complete: all with 1 preemption, 0 failures"
    )
    late.clear()
    monkeypatch.setattr(Search, "_out_of_time", lambda self: False)
    verdict = explore(LOCKED_UPDATE, Options(strategy=Strategy.EXHAUSTIVE))
    assert verdict.complete
    assert verdict.why == "complete: all with 2 preemptions, 0 failures"


@pytest.mark.parametrize("strategy", [Strategy.RANDOM, Strategy.PLAIN])
@pytest.mark.parametrize("missed", [False, True])
def test_runs_that_do_not_count_are_not_told_of(
    strategy: Strategy, missed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time comes after runs in a world that was not put back, as it turns out."""
    searcher = Searcher(RARE, Options(preemptions=2, keep_going=True))
    runner = searcher.runner
    run, before = Runner.run, runner.nr_runs
    late: list[bool] = []

    def timed(self: Runner, steering: Steering) -> Run:
        if missed and self.nr_runs == before + 20:
            self.built.world.table[5] = 5  # behind the back of all that is known to change
        if self.nr_runs == before + 30 and not late:
            late.append(True)
            raise OutOfTime
        return run(self, steering)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", timed)
        result = searcher.do(Job(1, strategy, count=100, preemptions=2))
    searcher.close()
    assert not result.complete
    # What is found is repeated, which is a run, too.
    assert result.schedules == 0 if missed else result.schedules > 20
