"""Jobs on all cores, with an answer that does not depend on how many there are.

Each worker is a fork with a world of its own. Jobs are handed out in order; when one has found
something, those before it are still finished, and the first in order is the answer.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawArray
from typing import TYPE_CHECKING

import msgspec

from septum.explore.search import Job, JobResult, Searcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ctypes import Array, c_ulonglong
    from multiprocessing.process import BaseProcess

    from septum.explore.subject import Options, Subject

COUNT_EVERY_S = 0.25
_ENCODE = msgspec.msgpack.Encoder()
_JOB = msgspec.msgpack.Decoder(Job)


class _Reply(msgspec.Struct):
    result: JobResult | None = None
    error: str = ""


_REPLY = msgspec.msgpack.Decoder(_Reply)


class SearchDefect(Exception):
    """A worker failed: the model raised, or the explorer did."""


class Workers:
    """Does jobs, by itself (one worker) or with forks."""

    __slots__ = (
        "_connections",
        "_counts",
        "_local",
        "_options",
        "_processes",
        "_subject",
        "interrupted",
    )

    def __init__(self, subject: Subject, options: Options, local: Searcher) -> None:
        self._subject = subject
        self._options = options
        self._local = local
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        # Runs that each fork has made, written by itself every COUNT_EVERY_S.
        self._counts = RawArray("Q", max(1, options.workers))
        self.interrupted = False

    def nr_runs(self) -> int:
        """Runs made so far, also by jobs that go on."""
        return sum(self._counts) if self._connections else self._local.runner.nr_runs

    def start(self) -> None:
        """Fork, when more than one worker is wanted."""
        context = multiprocessing.get_context("fork")
        self._local.close()
        for index in range(self._options.workers if self._options.workers > 1 else 0):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work,
                args=(theirs, self._subject, self._options, self._counts, index),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def stop(self) -> None:
        """End the forks."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.terminate()
            process.join()
        self._processes.clear()
        self._connections.clear()

    def do(
        self, jobs: Iterator[Job], told: Callable[[JobResult], None], stop_at_first: bool
    ) -> list[JobResult]:
        """Results in the order of jobs, up to the first that found something."""
        results: dict[int, JobResult] = {}
        try:
            if self._connections:
                self._do_parallel(jobs, results, told, stop_at_first)
            else:
                for job in jobs:
                    result = results[job.number] = self._local.do(job)
                    told(result)
                    if result.found and stop_at_first:
                        break
        except KeyboardInterrupt:
            self.interrupted = True
        return _in_order(results, stop_at_first)

    def _do_parallel(
        self,
        jobs: Iterator[Job],
        results: dict[int, JobResult],
        told: Callable[[JobResult], None],
        stop_at_first: bool,
    ) -> None:
        idle = list(self._connections)
        busy: dict[Connection, int] = {}
        first_found: int | None = None
        more = True
        while True:
            while idle and more:
                job = next(jobs, None)
                if job is None or first_found is not None:
                    more = False
                    break
                connection = idle.pop()
                connection.send_bytes(_ENCODE.encode(job))
                busy[connection] = job.number
            if not any(first_found is None or number < first_found for number in busy.values()):
                return
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                reply = _REPLY.decode(ready.recv_bytes())
                del busy[ready]
                idle.append(ready)
                if reply.result is None:
                    raise SearchDefect(reply.error)
                result = reply.result
                results[result.number] = result
                told(result)
                if result.found and stop_at_first:
                    lowest = result.number if first_found is None else first_found
                    first_found = min(lowest, result.number)


def _in_order(results: dict[int, JobResult], stop_at_first: bool) -> list[JobResult]:
    ordered = [results[number] for number in sorted(results)]
    if stop_at_first:
        for at, result in enumerate(ordered):
            if result.found:
                return ordered[: at + 1]
    return ordered


def _count(counts: Array[c_ulonglong], index: int, searcher: Searcher) -> None:
    while True:
        counts[index] = searcher.runner.nr_runs
        time.sleep(COUNT_EVERY_S)


def _work(
    connection: Connection,
    subject: Subject,
    options: Options,
    counts: Array[c_ulonglong],
    index: int,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    searcher: Searcher | None = None
    while True:
        try:
            job = _JOB.decode(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            if searcher is None:
                searcher = Searcher(subject, options, job.until)
                args = (counts, index, searcher)
                threading.Thread(target=_count, args=args, daemon=True).start()
            reply = _Reply(searcher.do(job))
        except Exception:
            reply = _Reply(error=traceback.format_exc())
        connection.send_bytes(_ENCODE.encode(reply))
