"""The forks of a search: how they end, and what the terminal sees of it."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from typing import Any

import msgspec
import pytest

from septum.explore import Options, Strategy, explore
from septum.explore.api import Search
from septum.explore.command import explore_command
from septum.explore.subject import Built
from septum.explore.toybox import LOCKED_UPDATE, RARE, dice_toy
from septum.explore.toys import Toy
from septum.explore.verdict import Outcome, Verdict
from septum.explore.wanted import Wanted
from septum.explore.workers.parallel import Workers, _Team
from septum.explore.workers.search import Job, Searcher

JOB = Job(1, Strategy.RANDOM, count=1)


def test_a_worker_whose_result_nobody_takes_ends_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The search is over, and the pipe closed, while a worker is busy."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    team = _Team(RARE, Options(), RawArray("Q", 1), RawArray("i", 1), [theirs], [])
    ours.send_bytes(msgspec.msgpack.encode(JOB))
    ours.close()
    worker = context.Process(target=team.work, args=(0, []))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert capfd.readouterr().err == ""


class Watched:
    """A connection that is not closed before the workers have ended."""

    def __init__(self, connection: Connection, processes: list[Any]) -> None:
        self._connection = connection
        self._processes = processes

    def close(self) -> None:
        assert [process.exitcode for process in self._processes] == [-signal.SIGTERM] * 2
        self._connection.close()


def test_workers_end_before_their_pipes() -> None:
    options = Options(workers=2)
    workers = Workers(RARE, options, Searcher(RARE, options))
    workers.start()
    processes = list(workers._processes)
    watched: list[Any] = [Watched(ours, processes) for ours in workers._connections]
    workers._connections = watched
    workers.stop()
    assert not any(process.is_alive() for process in processes)


class Deadly:
    """A toy of which one worker (of `deaths`: so many) is ended by `death` at the start of a run
    that `strikes` chooses, by how far the worker is from the one who searches and by how many runs
    it has made."""

    def __init__(
        self,
        toy: Toy,
        strikes: Callable[[int, int], bool],
        death: Callable[[], None],
        deaths: int = 1,
    ) -> None:
        self._left = multiprocessing.Value("i", deaths)
        self._toy = toy
        self._strikes = strikes
        self._struck = 0  # from then on the worker has no memory left
        self._death = death
        self._searcher = os.getpid()
        self._runs: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._toy, name)

    def start(self, built: Built) -> None:
        me = os.getpid()
        runs = self._runs[me] = self._runs.get(me, 0) + 1
        far = 0 if me == self._searcher else 1 if os.getppid() == self._searcher else 2
        if self._strikes(far, runs):
            with self._left:
                strikes = self._left.value > 0
                self._left.value -= 1
            if strikes or self._struck == me:
                self._struck = me
                self._death()
        self._toy.start(built)


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def end_by_signal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup` has ignored
    os.kill(os.getpid(), signal.SIGHUP)


def exhaust_memory() -> None:
    raise MemoryError


def searched(strikes: Callable[[int, int], bool], death: Callable[[], None], **how: Any) -> Verdict:
    subject = Deadly(how.pop("toy"), strikes, death, how.pop("deaths", 1))
    options = Options(**{"workers": 2, "preemptions": 2, "shrink": False, **how})
    return explore(subject, options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("death", "words"),
    [
        (kill_me, "of 2 was killed by SIGKILL, so that"),
        (end_by_signal, "of 2 was killed by SIGHUP, so that"),
        (lambda: os._exit(3), "of 2 ended with exit code 3, so that"),
        (exhaust_memory, "of 2 ran out of memory, so that"),
    ],
)
@pytest.mark.parametrize("far", [1, 2])
def test_a_worker_that_ends_before_its_time(
    far: int, death: Callable[[], None], words: str
) -> None:
    """Of those that are forked first, and of those that the first of them forks: the rest of the
    round is searched, and the verdict says what was not."""
    verdict = searched(
        lambda is_far, runs: is_far == far and (far == 2 or runs > 300),
        death,
        toy=dice_toy(3, 3, 8),
        strategy=Strategy.EXHAUSTIVE if far == 2 else Strategy.RANDOM,
        keep_going=True,
        schedules=3000 if far == 1 else None,
    )
    assert verdict.schedules and not verdict.complete
    assert verdict.outcome in (Outcome.UNDETERMINED, Outcome.BROKEN)
    what = "a part of all with" if far == 2 else "random schedules was not searched"
    assert words in verdict.why and what in verdict.why
    assert ("give fewer --workers" in verdict.why) == (death in (kill_me, exhaust_memory))


def test_what_was_found_is_kept() -> None:
    """Both workers end, each after some runs; what they found before is told."""
    verdict = searched(
        lambda far, runs: far > 0 and runs > 300,
        kill_me,
        deaths=2,
        toy=RARE,
        strategy=Strategy.RANDOM,
        keep_going=True,
        schedules=5000,
    )
    assert "worker 1 of 2" in verdict.why and "worker 2 of 2" in verdict.why
    assert verdict.outcome is Outcome.BROKEN and verdict.exit_code() == 1


def test_the_first_worker_ends_where_it_was_to_fork() -> None:
    options = Options(workers=2)
    workers = Workers(RARE, options, Searcher(RARE, options))
    workers.start()
    workers._processes[0].kill()
    workers._processes[0].join()
    workers.spread()
    workers.stop()
    assert workers.lost == [
        "worker 1 of 2 was killed by SIGKILL; if memory is short, give fewer --workers"
    ]


def test_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    subject = Deadly(LOCKED_UPDATE, lambda far, runs: far == 1 and runs > 2, kill_me)
    monkeypatch.setattr("septum.explore.command.find_subject", lambda *words: subject)
    assert explore_command(["toy"], Wanted(workers=2, watch=False)) == 3
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("UNDETERMINED: toy:locked-update") and "was killed by SIGKILL" in out


UPDATES = Toy("updates", [(("read", 1), ("inc", 0))] * 3, bad=[1, 2])


def first_of(workers: int, order: Callable[[list[Job]], list[Job]]) -> list[int]:
    """The answers that a search within two preemptions ends with, of which several break."""
    options = Options(
        strategy=Strategy.EXHAUSTIVE, preemptions=2, workers=workers, shrink=False, seed=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "_longest_first", lambda _, jobs: order(jobs))
        (found,) = explore(UPDATES, options).counterexamples[:1]
    return found.answers


@pytest.mark.parametrize("seed", range(4))
def test_the_order_in_which_jobs_are_done_changes_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several find something, those of the highest numbers first: the lowest is the answer, however
    many workers there are. Those that wait when something is found are done then; it shows when
    they are not."""
    alone = first_of(1, lambda jobs: jobs)

    def shuffled(jobs: list[Job]) -> list[Job]:
        return random.Random(seed).sample(jobs, len(jobs))

    for order in (lambda jobs: jobs[::-1], shuffled):
        for workers in (2, 3):
            assert first_of(workers, order) == alone
    monkeypatch.setattr(Workers, "_before", lambda *_: iter(()))
    assert first_of(2, lambda jobs: jobs[::-1]) != alone
