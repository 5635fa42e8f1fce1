"""The search as a whole: verdicts, determinism over workers, shrinking, tokens, the command."""

import json

import pytest

from septum.cli.run import decode_run, replay_token
from septum.errors import InputError
from septum.explore import Options, Outcome, Strategy, api, explore
from septum.explore.command import explore_command
from septum.explore.replay import find_subject, replay_answers
from septum.explore.runs.run import VERIFY_ALWAYS, Run, Runner, StateMissed
from septum.explore.runs.steering import Replaying, Steering
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import Witness
from septum.explore.toybox import (
    DEADLOCK,
    FAILING,
    LIVELOCK,
    LOCKED_UPDATE,
    LOST_UPDATE,
    RARE,
    TOYS,
)
from septum.explore.toys import Toy
from septum.explore.wanted import Wanted
from septum.sim import Finding, decode_token


@pytest.mark.parametrize("strategy", [Strategy.EXHAUSTIVE, Strategy.PCT, Strategy.RANDOM])
@pytest.mark.parametrize("toy", [LOST_UPDATE, DEADLOCK, RARE], ids=lambda toy: toy.name)
def test_finds(toy: Toy, strategy: Strategy) -> None:
    """Each strategy finds the known bugs, and shrinks them to at most two preemptions."""
    verdict = explore(toy, Options(strategy=strategy, schedules=2000))
    assert verdict.outcome is Outcome.BROKEN
    assert verdict.counterexamples[0].preemptions <= 2


def test_holds_is_complete() -> None:
    """What is right is held to be so, and completely, also without a bound."""
    for preemptions in (2, None):
        options = Options(strategy=Strategy.EXHAUSTIVE, preemptions=preemptions)
        verdict = explore(LOCKED_UPDATE, options)
        assert verdict.outcome is Outcome.HELD and verdict.complete
        assert verdict.exit_code() == 0


def test_budget_is_undetermined() -> None:
    """A budget that runs out is no verdict."""
    options = Options(strategy=Strategy.EXHAUSTIVE, preemptions=None, schedules=3)
    verdict = explore(LOCKED_UPDATE, options)
    assert verdict.outcome is Outcome.UNDETERMINED and verdict.exit_code() == 3
    assert "budget" in verdict.why


def test_missing_witness_is_undetermined() -> None:
    """Silence about a scenario that never got where it should is no verdict."""
    toy = Toy("w", LOCKED_UPDATE.programs, witnesses=[Witness("a call", ("call:TDH.",))])
    verdict = explore(toy, Options(strategy=Strategy.EXHAUSTIVE))
    assert verdict.outcome is Outcome.UNDETERMINED
    assert verdict.missing_witnesses == ["a call"]


def test_failures_are_bounded() -> None:
    """The lock that an error path forgets is found with one failure, and not with none."""
    assert explore(FAILING, Options(failures=0)).outcome is Outcome.HELD
    verdict = explore(FAILING, Options(failures=1, strategy=Strategy.EXHAUSTIVE))
    assert verdict.outcome is Outcome.BROKEN
    assert verdict.counterexamples[0].failures == 1


def test_no_progress_is_a_finding() -> None:
    """Tasks that retry for ever are a finding, not a hang."""
    verdict = explore(LIVELOCK, Options(spin_points=10, max_points=300))
    assert verdict.counterexamples[0].finding.promise == "progress"


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_workers_agree(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict and the counterexample do not depend on the number of workers."""
    monkeypatch.setattr("septum.explore.runs.steering.ALONE_MAX", 10_000)
    verdicts = [
        explore(
            toy,
            Options(failures=1, workers=workers, spin_points=20, max_points=300),
        )
        for workers in (1, 3)
    ]
    assert len({verdict.outcome for verdict in verdicts}) == 1
    examples = [verdict.counterexamples for verdict in verdicts]
    assert examples[0] == examples[1]


def test_replays() -> None:
    """The token's answers break the same promise again; the passing neighbour breaks none."""
    example = explore(RARE, Options()).counterexamples[0]
    _, recipe, schedule = decode_token(example.token)
    assert recipe == RARE.recipe
    runner = Runner(RARE, Options())
    for answers in (example.answers, schedule.answers):  # type: ignore[attr-defined]
        assert runner.run(Replaying(list(answers))).finding == example.finding
    assert example.passing is not None
    assert runner.run(Replaying(example.passing)).finding is None
    assert replay_answers("toy:rare", "", example.answers) == example.finding


def test_shrinks() -> None:
    """A long random counterexample becomes the shortest: one preemption."""
    long = Toy("long", [(*((("read", 3),) * 12), *LOST_UPDATE.programs[0])] * 2, bad=[1])
    options = Options(strategy=Strategy.RANDOM, preemptions=None, schedules=500)
    example = explore(long, options).counterexamples[0]
    assert example.preemptions == 1


@pytest.mark.parametrize("after", [0, 1, 7])
def test_an_interrupt_while_it_shrinks_loses_nothing(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is told as far as it was shrunk."""
    whole = explore(RARE, Options()).counterexamples[0]
    shrinks = api.shrink

    def interrupted(runner: Runner, *args):  # type: ignore[no-untyped-def]
        left = iter(range(after))
        run = Runner.run

        def runs(self: Runner, steering: Steering):  # type: ignore[no-untyped-def]
            if next(left, None) is None:
                raise KeyboardInterrupt
            return run(self, steering)

        with monkeypatch.context() as patch:
            patch.setattr(Runner, "run", runs)
            return shrinks(runner, *args)

    monkeypatch.setattr(api, "shrink", interrupted)
    verdict = explore(RARE, Options())
    (example,) = verdict.counterexamples
    assert verdict.interrupted and verdict.exit_code() == 1
    assert example.late and not whole.late
    assert example.finding.promise == whole.finding.promise
    assert replay_answers("toy:rare", "", example.answers) == example.finding


def test_unshrunk_is_as_found() -> None:
    """Without shrinking the counterexample is the run that was found."""
    example = explore(RARE, Options(shrink=False)).counterexamples[0]
    assert example.steps == example.first_steps and example.passing is None


def test_command_text(capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The report keeps 80 columns and says the ten points; artefacts are written."""
    test = tmp_path / "test_it.py"
    code = explore_command(["toy:rare"], Wanted(report=tmp_path / "r", emit_test=test))
    out = capsys.readouterr().out
    assert code == 1
    assert all(len(line) <= 80 for line in out.splitlines())
    for word in ("BROKEN", "token: septum1.", "Cause:", "shortest", "nearest", "septum replay"):
        assert word in out
    assert (tmp_path / "r" / "toy-rare.json").exists()
    namespace: dict[str, object] = {}
    exec(test.read_text(), namespace)
    with pytest.raises(AssertionError):
        namespace["test_toy_rare_toy"]()  # type: ignore[operator]


def test_command_json(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """--json prints verdicts."""
    assert explore_command(["toy:locked-update"], Wanted(as_json=True)) == 0
    report = json.loads(capsysbinary.readouterr().out)
    assert report["schema"] == "septum-explore-1"
    assert report["verdicts"][0]["outcome"] == "held"


def test_bad_usage() -> None:
    """A user's mistake is one sentence."""
    with pytest.raises(InputError):
        find_subject("toy:no-such")
    with pytest.raises(InputError, match="--design 'v4': toy:rare has no host"):
        find_subject("toy:rare", "v4")
    with pytest.raises(InputError):
        Wanted(strategy="best").options(LOCKED_UPDATE)
    with pytest.raises(InputError):
        Wanted(workers=0).options(LOCKED_UPDATE)


class Endless(Toy):
    """A toy with one more task, which passes scheduling points for ever."""

    __slots__ = ()

    def start(self, built) -> None:  # type: ignore[no-untyped-def]
        super().start(built)
        sim = built.sim

        def turn() -> None:
            while True:
                sim.point("turn")

        sim.spawn("endless", turn)


@pytest.mark.parametrize("strategy", [Strategy.PCT, Strategy.RANDOM])
def test_nobody_goes_on_alone_for_ever(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that goes on when all others have ended is a finding, not a hang."""
    monkeypatch.setattr("septum.explore.runs.steering.ALONE_MAX", 300)
    toy = Endless("endless", LOCKED_UPDATE.programs)
    verdict = explore(toy, Options(strategy=strategy, schedules=5, shrink=False))
    assert verdict.counterexamples[0].finding.promise == "progress"


class Forgetful(Toy):
    """A toy whose 40th end says that something broke, whatever its schedule was."""

    __slots__ = ("ends",)

    def finish(self, built) -> None:  # type: ignore[no-untyped-def]
        super().finish(built)
        self.ends += 1
        if self.ends == 40:
            built.sim.find("toy", "left behind by another run", where="end")


def test_what_does_not_come_again_is_no_finding() -> None:
    """A random run's finding counts only when its schedule breaks the same again."""
    toy = Forgetful("forgetful", LOCKED_UPDATE.programs)
    toy.ends = 0
    verdict = explore(toy, Options(strategy=Strategy.RANDOM, schedules=100))
    assert toy.ends > 40 and not verdict.counterexamples


def test_what_a_scenario_foresees_it_foresees_of_v3() -> None:
    """v3 without patch 14 changes v3 with F2 repaired: what v3 may break there it may not."""
    found = Finding("mapping-in-folio", "a leaf beyond its folio", "", "host", 0)
    name = "attributes-enomem-repaired"
    assert find_subject(name, "v3", "quiet").expects(found)
    assert not find_subject(name, "v3-without-14", "quiet").expects(found)


class Failing(Steering):
    """Nobody is preempted; the failures named happen."""

    def __init__(self, *names: str) -> None:
        self.names = names
        super().__init__()

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        return 0

    def choose_value(self, name: str, n: int) -> int:
        return int(name in self.names)


def test_who_waited_when_a_run_ended_is_not_woken_in_the_next() -> None:
    """Early runs wait for nothing, so that nobody knows of the list of waiters. It is looked at
    when a run ends with somebody in it, as the next run takes them out."""
    waits = (("fail", 0, 2), ("unless", 3, 1, 2), ("wait", 0, 5))
    wakes = (("fail", 1, 2), ("unless", 3, 1, 2), ("wake", 0))
    runner = Runner(Toy("waiters", [waits, wakes]), Options())
    for _ in range(VERIFY_ALWAYS + 1):
        assert runner.run(Failing()).finding is None
    stuck = runner.run(Failing("fail:0")).finding
    assert stuck is not None and stuck.promise == "progress"
    with pytest.raises(StateMissed):
        runner.run(Failing("fail:1"))
    assert runner.run(Failing("fail:0")).finding == stuck
    assert runner.run(Failing("fail:1")).finding is None


def test_a_toys_token_replays_on_the_command_line(capsys, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Who wants a picture of it is told that there is none."""
    example = explore(RARE, Options()).counterexamples[0]
    assert replay_token(example.token, None, trace=None, json=False) == 1
    assert f"\n\nBROKEN: {RARE.name}\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="no pictures"):
        decode_run(example.token)
    with pytest.raises(InputError, match="no trace"):
        replay_token(example.token, None, trace=tmp_path / "t", json=False)


def test_a_run_after_one_that_took_the_vms_down_begins_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That changes what no other run does, which is put back at once. A run in what is left would
    break what none breaks; it would not count, and all since the last look would be made again."""
    findings = []
    run = Runner.run

    def noting(self: Runner, steering: Steering) -> Run:
        done = run(self, steering)
        findings.append(done.finding)
        return done

    monkeypatch.setattr(Runner, "run", noting)
    options = Options(strategy=Strategy.PLAIN, preemptions=1, failures=1)
    verdict = explore(ScenarioSubject("fault-against-fault", "v3", "end"), options)
    assert verdict.outcome is Outcome.HELD
    assert len(findings) > 200 and not any(findings)
