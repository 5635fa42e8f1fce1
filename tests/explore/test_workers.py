"""The forks of a search: how they end, and what the terminal sees of it."""

import multiprocessing
import signal
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from typing import Any

import msgspec
import pytest

from septum.explore import Options, Strategy
from septum.explore.parallel import Workers, _Team
from septum.explore.search import Job, Searcher
from septum.explore.toybox import RARE

JOB = Job(1, Strategy.RANDOM, count=1)


def test_a_worker_whose_result_nobody_takes_ends_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The search is over, and the pipe closed, while a worker is busy."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    team = _Team(RARE, Options(), RawArray("Q", 1), [theirs], [])
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
