"""Jobs on all cores, with an answer that does not depend on how many there are.

Each worker is a fork with a world of its own. Jobs are handed out in order; when one has found
something, those before it are still finished, and the first in order is the answer.

For the random search each fork builds its world. The exhaustive search is begun by the first of
them; the others are then forked anew from it, so that they know what it has learned, and tell each
other what they learn (Exchange).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawArray
from typing import IO, TYPE_CHECKING

import msgspec

from septum.errors import InputError
from septum.explore.exchange import make_files
from septum.explore.search import Job, JobResult, Searcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ctypes import Array, c_ulonglong
    from multiprocessing.process import BaseProcess

    from septum.explore.subject import Options, Subject

CORES_MAX = 16
"""So many processes are started where nobody says how many."""

_ENCODE = msgspec.msgpack.Encoder()
_JOB = msgspec.msgpack.Decoder(Job)
_PIDS = msgspec.msgpack.Decoder(list[int])
_SPREAD = b"spread"


def cores() -> int:
    """The processors that this process may run on, CORES_MAX at most."""
    may_run_on = getattr(os, "sched_getaffinity", None)  # not every system has it
    return min(CORES_MAX, len(may_run_on(0)) if may_run_on else os.cpu_count() or 1)


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
        "_spread",
        "_subject",
        "interrupted",
    )

    def __init__(self, subject: Subject, options: Options, local: Searcher) -> None:
        self._subject = subject
        self._options = options
        self._local = local
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._spread: list[int] = []  # processes that the first worker has forked
        # Runs that each fork has made, written by itself.
        self._counts = RawArray("Q", max(1, options.workers))
        self.interrupted = False

    def nr_runs(self) -> int:
        """Runs made so far, also by jobs that go on."""
        return sum(self._counts) if self._connections else self._local.runner.nr_runs

    def start(self) -> None:
        """Fork, when more than one worker is wanted. Raises InputError where that cannot be."""
        self._local.close()
        count = self._options.workers if self._options.workers > 1 else 0
        try:
            self._fork(count)
        except OSError as error:
            self.stop()
            raise InputError(
                f"--workers {count}: so many processes cannot be started here ({error.strerror});"
                " give fewer"
            ) from None

    def _fork(self, count: int) -> None:
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe() for _ in range(count)]
        ends = [theirs for _, theirs in pipes]
        team = _Team(self._subject, self._options, self._counts, ends, make_files(count))
        self._connections = [ours for ours, _ in pipes]
        for index in range(count):
            args = (index, self._connections)
            process = context.Process(target=team.work, args=args, daemon=True)
            process.start()
            self._processes.append(process)
        for theirs in ends:
            theirs.close()

    def spread(self) -> None:
        """The exhaustive search has been begun, by the first worker: let all know what it does."""
        if len(self._connections) < 2 or self._spread or self.interrupted:
            return
        for process in self._processes[1:]:
            process.terminate()
            process.join()
        del self._processes[1:]
        first = self._connections[0]
        try:
            first.send_bytes(_SPREAD)
            self._spread = _PIDS.decode(first.recv_bytes())
        except KeyboardInterrupt:
            self.interrupted = True
        except (EOFError, OSError):
            raise SearchDefect("a worker is gone") from None

    def stop(self) -> None:
        """End the forks."""
        # Before the pipes are closed: who is at work would find nobody to hand its result to.
        for process_id in self._spread:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        self._spread.clear()
        for process in self._processes:
            process.terminate()
            process.join()
        self._processes.clear()
        for connection in self._connections:
            connection.close()
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
        idle = self._connections[::-1]
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


class _Team:
    """What each worker has. `ends` are the workers' ends of all connections, `files` what they
    tell each other by."""

    __slots__ = ("_counts", "_ends", "_files", "_index", "_options", "_searcher", "_subject")

    def __init__(
        self,
        subject: Subject,
        options: Options,
        counts: Array[c_ulonglong],
        ends: list[Connection],
        files: list[IO[bytes]],
    ) -> None:
        self._subject = subject
        self._options = options
        self._counts = counts
        self._ends = ends
        self._files = files
        self._index = 0
        self._searcher: Searcher | None = None

    def work(self, index: int, others: list[Connection]) -> None:
        """Do what comes by the connection of number `index`, until nobody is at its other end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for other in others:
            other.close()  # a copy: who waits must see that the one who asks is gone
        self._index = index
        while True:
            try:
                message = self._ends[self._index].recv_bytes()
            except (EOFError, OSError):
                return
            if message == _SPREAD:
                self._fork()
                continue
            try:
                reply = _Reply(self._do(_JOB.decode(message)))
            except Exception:
                reply = _Reply(error=traceback.format_exc())
            self._send(reply)

    def _send(self, message: object) -> None:
        """If nobody is at the other end any more, `work` sees it when it waits for the next job."""
        with suppress(OSError):
            self._ends[self._index].send_bytes(_ENCODE.encode(message))

    def _do(self, job: Job) -> JobResult:
        if self._searcher is None:
            self._searcher = Searcher(self._subject, self._options, job.until)
        self._searcher.told_runs = self._tell_runs
        return self._searcher.do(job)

    def _tell_runs(self, count: int) -> None:
        self._counts[self._index] = count

    def _fork(self) -> None:
        """Become as many as there are connections."""
        forked: list[int] = []
        for index in range(1, len(self._ends)):
            process_id = os.fork()
            if not process_id:
                self._index = index
                break
            forked.append(process_id)
        if self._searcher is not None:
            self._searcher.exchange_by(self._files, self._index)
        if not self._index:
            self._send(forked)
