"""Jobs on all cores, with an answer that does not depend on how many there are.

Each worker is a fork with a world of its own. Jobs have numbers, and are handed out as they come;
when one has found something, those of lower numbers are still done, and the lowest is the answer.

For the random search each fork builds its world. The exhaustive search is begun by the first of
them; the others are then forked anew from it, so that they know what it has learned, and tell each
other what they learn (Exchange).

A worker that the system ends takes its job with it: the others finish theirs, and what the search
says then is that this part was not searched.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawArray
from typing import IO, TYPE_CHECKING, cast

import msgspec

from septum.errors import EndlessLoop, InputError
from septum.explore.bounds import searched_text
from septum.explore.subject import Strategy
from septum.explore.workers.exchange import make_files
from septum.explore.workers.search import Job, JobResult, Searcher
from septum.words import plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from ctypes import Array, c_int, c_ulonglong
    from multiprocessing.process import BaseProcess

    from septum.explore.subject import Options, Subject

CORES_MAX = 16
"""So many processes are started where nobody says how many."""
LOOK_S, LOOKS = 1.0, 100
"""So long, and so often, it is looked how a worker ended that is not there any more."""

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
    refused: str = ""
    """What is to be said to the user, whose design cannot be searched."""
    out_of_memory: bool = False


_REPLY = msgspec.msgpack.Decoder(_Reply)


class SearchDefect(Exception):
    """A worker failed: the model raised, or the explorer did."""


class Workers:
    """Does jobs, by itself (one worker) or with forks."""

    __slots__ = (
        "_connections",
        "_counts",
        "_ended",
        "_gone",
        "_local",
        "_options",
        "_processes",
        "_spread",
        "_subject",
        "interrupted",
        "lost",
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
        # How those ended that the first worker has forked, as it saw it (`_noted`); 0: not yet.
        self._ended = RawArray("i", max(1, options.workers))
        self._gone: list[Connection] = []
        self.interrupted = False
        self.lost: list[str] = []
        """Of each worker that ended before its time, a sentence; then nothing more is begun."""

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
        team = _Team(
            self._subject, self._options, self._counts, self._ended, ends, make_files(count)
        )
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
        if len(self._connections) < 2 or self._spread or self.interrupted or self.lost:
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
            self._lose(first)

    def stop(self) -> None:
        """End the forks."""
        # Before the pipes are closed: who is at work would find nobody to hand its result to.
        for index, process_id in enumerate(self._spread, 1):
            if self._ended[index]:
                continue  # the number may be another's by now
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
        """Results in the order of the jobs' numbers, up to the first that found something. By
        itself a process does `jobs` as they come: then that is to be their order."""
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
        idle = [each for each in self._connections[::-1] if each not in self._gone]
        busy: dict[Connection, Job] = {}
        first_found: int | None = None
        waiting = next(jobs, None)
        while True:
            while idle and waiting is not None:
                connection = idle.pop()
                try:
                    connection.send_bytes(_ENCODE.encode(waiting))
                except OSError:
                    self._lose(connection)
                    continue
                busy[connection] = waiting
                waiting = next(jobs, None)
            if not busy or (
                first_found is not None
                and waiting is None
                and all(job.number > first_found for job in busy.values())
            ):
                return
            for ready, ended in self._wait(busy).items():
                result = self._result_of(busy.pop(ready), ready, ended)
                if result is None:
                    continue
                if not ended:
                    idle.append(ready)
                results[result.number] = result
                told(result)
                if result.found and stop_at_first:
                    lowest = result.number if first_found is None else first_found
                    first_found = min(lowest, result.number)
                    jobs = self._before(first_found, waiting, jobs)
                    waiting = next(jobs, None)

    def _result_of(self, job: Job, ready: Connection, ended: bool) -> JobResult | None:
        """What a worker says of its job; None: nothing, and it is lost. Raises InputError for the
        user's mistake, and SearchDefect."""
        reply = _reply_of(ready, ended)
        if reply is None or reply.out_of_memory:
            self._lose(ready, job, "ran out of memory" if reply else "")
            return None
        if ended:
            self._lose(ready)
        if reply.refused:
            raise InputError(reply.refused)
        if reply.result is None:
            raise SearchDefect(reply.error)
        return reply.result

    @staticmethod
    def _before(number: int, waiting: Job | None, jobs: Iterator[Job]) -> Iterator[Job]:
        """Of the jobs that wait those of lower numbers than `number`. Of random schedules there may
        be jobs without end, by their numbers."""
        if waiting is None or waiting.strategy in (Strategy.PCT, Strategy.RANDOM):
            return iter(())
        return iter([job for job in (waiting, *jobs) if job.number < number])

    def _wait(self, busy: Iterable[Connection]) -> dict[Connection, bool]:
        """Those of `busy` that have a reply, or whose worker has ended: then true."""
        # Of the first worker and of those that it has not forked: that the pipe has no other end
        # any more is seen late, as the first was given all ends.
        ends = {
            process.sentinel: connection
            for process, connection in zip(self._processes, self._connections, strict=False)
            if connection in busy
        }
        # All that are waited for are pipes, or ends of processes.
        ready = cast("list[Connection | int]", wait([*busy, *ends]))
        found = {each: False for each in ready if not isinstance(each, int)}
        return found | {ends[each]: True for each in ready if isinstance(each, int)}

    def _lose(self, connection: Connection, job: Job | None = None, how: str = "") -> None:
        """The worker is not there any more, nor, with it, what `job` would have searched."""
        self._gone.append(connection)
        index = self._connections.index(connection)
        how = how or _ending_text(self._ending(index))
        words = [f"worker {index + 1} of {len(self._connections)} {how}"]
        if job is not None:
            words.append(f", so that {_part_text(job)} was not searched")
        if how in _SHORT_OF_MEMORY:
            words.append("; if memory is short, give fewer --workers")
        self.lost.append("".join(words))

    def _ending(self, index: int) -> int | None:
        """How the worker of that number ended: its exit code, or minus a signal."""
        if index < len(self._processes):
            process = self._processes[index]
            process.join(LOOK_S)
            return process.exitcode
        # Its parent is told a moment later than those who wait at its pipe.
        for _ in range(LOOKS):
            noted: int = self._ended[index]
            if noted:
                return _exit_code(noted)
            time.sleep(LOOK_S / LOOKS)
        return None


def _reply_of(connection: Connection, ended: bool) -> _Reply | None:
    """What the worker says; None when it has ended without a word, or in the middle of one."""
    try:
        if ended:
            os.set_blocking(connection.fileno(), False)
        return _REPLY.decode(connection.recv_bytes())
    except (EOFError, OSError):
        return None


def _noted(exit_code: int) -> int:
    """An exit code, or minus a signal, as a number that is not 0."""
    return exit_code if exit_code < 0 else exit_code + 1


def _exit_code(noted: int) -> int:
    """What was `_noted`."""
    return noted if noted < 0 else noted - 1


def _ending_text(code: int | None) -> str:
    if code is None or code == 0:
        return "ended before its time"
    if code > 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


_SHORT_OF_MEMORY = ("ran out of memory", _ending_text(-signal.SIGKILL))


def _part_text(job: Job) -> str:
    """What a job searches."""
    if job.strategy in (Strategy.EXHAUSTIVE, Strategy.PLAIN):
        return f"a part of {searched_text(job.preemptions, job.failures)}"
    return plural(job.count, "random schedule")


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

    __slots__ = (
        "_counts",
        "_ended",
        "_ends",
        "_files",
        "_forked",
        "_index",
        "_options",
        "_searcher",
        "_subject",
    )

    def __init__(
        self,
        subject: Subject,
        options: Options,
        counts: Array[c_ulonglong],
        ended: Array[c_int],
        ends: list[Connection],
        files: list[IO[bytes]],
    ) -> None:
        self._subject = subject
        self._options = options
        self._counts = counts
        self._ended = ended
        self._ends = ends
        self._forked: list[int] = []
        self._files = files
        self._index = 0
        self._searcher: Searcher | None = None

    def work(self, index: int, others: list[Connection]) -> None:
        """Do what comes by the connection of number `index`, until nobody is at its other end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which the one who asks may take for Ctrl-C
        for other in others:
            other.close()  # a copy: who waits must see that the one who asks is gone
        self._index = index
        if index:
            self._keep_own_end()  # only the first worker forks
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
            except (InputError, EndlessLoop) as error:
                reply = _Reply(refused=str(error))
            except MemoryError:
                self._searcher = None  # which gives back most of it
                reply = _Reply(out_of_memory=True)
            except BaseException:  # as a design may raise any
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
        signal.signal(signal.SIGCHLD, self._note_endings)
        for index in range(1, len(self._ends)):
            process_id = os.fork()
            if not process_id:
                self._index = index
                self._forked.clear()
                break
            self._forked.append(process_id)
        self._keep_own_end()
        if self._searcher is not None:
            self._searcher.exchange_by(self._files, self._index)
        if not self._index:
            self._send(self._forked)

    def _keep_own_end(self) -> None:
        """Close the copies of the others' ends: who waits must see that a worker is gone."""
        for index, end in enumerate(self._ends):
            if index != self._index:
                end.close()

    def _note_endings(self, signum: int, frame: object) -> None:
        """A process that this one has forked may have ended: say how, for the one who asks."""
        for index, process_id in enumerate(self._forked, 1):
            if self._ended[index]:
                continue
            ended, status = os.waitpid(process_id, os.WNOHANG)
            if ended:
                self._ended[index] = _noted(os.waitstatus_to_exitcode(status))
