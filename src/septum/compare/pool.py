"""Tasks on all cores: each in a process of its own, so that none can change what another finds."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, TypeVar

import msgspec

from septum.errors import EndlessLoop, InputError, NotBegun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.process import BaseProcess

T = TypeVar("T")
GRACE_S = 20.0
"""How long an interrupted task may take to hand in what it has found."""


class Unanswered(str):
    """Why a task came to no answer, in a sentence: its process was killed, most often because
    memory was short."""

    __slots__ = ()


class Stuck(Unanswered):
    """Or: its host does not come to where the scenario begins."""

    __slots__ = ()


class _Reply(msgspec.Struct):
    """`result` is the encoded answer; `mistake` what the user must mend, `defect` a traceback,
    `killed` how the process ended that did not come to any, `stuck` why nothing could begin.
    Without one of them the task was interrupted before it had something to say."""

    result: bytes = b""
    killed: str = ""
    stuck: str = ""
    mistake: str = ""
    defect: str = ""


_ENCODE = msgspec.msgpack.Encoder()
_REPLY = msgspec.msgpack.Decoder(_Reply)


class Pool:
    """Does tasks; `interrupted` says that Ctrl-C ended it before all were done."""

    __slots__ = ("_running", "interrupted", "workers")

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.interrupted = False
        self._running: dict[Connection, tuple[int, BaseProcess]] = {}

    def run(
        self,
        tasks: Sequence[Callable[[], T]],
        result_type: type[T],
        told: Callable[[int], None],
    ) -> list[T | str | None]:
        """The answers in the order of the tasks: a result, the traceback of a task that raised,
        Unanswered, or None for one that was not done. `told` is called with the number of each that
        ends.

        Raises InputError when a task did.
        """
        answers: list[T | str | None] = [None] * len(tasks)
        decode = msgspec.msgpack.Decoder(result_type).decode
        left = list(range(len(tasks)))[::-1]
        deadline = 0.0
        try:
            while left or self._running:
                try:
                    while left and len(self._running) < self.workers:
                        number = left.pop()
                        self._start(number, tasks[number])
                    patience = max(0.0, deadline - time.monotonic()) if deadline else None
                    for number, reply in self._ended(patience):
                        answers[number] = _answer(reply, decode)
                        if answers[number] is not None:
                            told(number)
                    if deadline and time.monotonic() >= deadline:
                        break
                except KeyboardInterrupt:
                    if self.interrupted:
                        break
                    # No more tasks; those under way hand in what they have.
                    self.interrupted = True
                    left.clear()
                    deadline = time.monotonic() + GRACE_S
                    for _, process in self._running.values():
                        process.terminate()
        finally:
            self._stop()
        return answers

    def _start(self, number: int, task: Callable[[], object]) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, task), daemon=True)
        process.start()
        theirs.close()
        self._running[ours] = number, process

    def _ended(self, patience: float | None) -> list[tuple[int, _Reply]]:
        """(number, reply) of tasks that have ended; waits for one."""
        replies = []
        for ready in wait(list(self._running), patience):
            assert isinstance(ready, Connection)
            number, process = self._running[ready]
            try:
                reply = _REPLY.decode(ready.recv_bytes())
            except EOFError:
                process.join()
                reply = _Reply() if self.interrupted else _died(process.exitcode or 0)
            del self._running[ready]
            ready.close()
            process.join()
            replies.append((number, reply))
        return replies

    def _stop(self) -> None:
        for connection, (_, process) in self._running.items():
            connection.close()
            process.kill()
            process.join()
        self._running.clear()


def _answer(reply: _Reply, decode: Callable[[bytes], T]) -> T | str | None:
    """What `Pool.run` answers for a task. Raises InputError for the user's mistake."""
    if reply.mistake:
        raise InputError(reply.mistake)
    if reply.killed:
        return Unanswered(reply.killed)
    if reply.stuck:
        return Stuck(reply.stuck)
    if reply.defect:
        return reply.defect
    return decode(reply.result) if reply.result else None


def _died(code: int) -> _Reply:
    """The reply for a process that ended with this exit code before it sent one."""
    if code >= 0:
        return _Reply(defect=f"the process ended by itself, exit code {code}")
    name = signal.Signals(-code).name
    hint = "; if memory is short, give fewer --workers" if -code == signal.SIGKILL else ""
    return _Reply(killed=f"its process was killed by {name}{hint}")


def _work(connection: Connection, task: Callable[[], object]) -> None:
    """Run one task in its process. Ctrl-C is left to the parent, which reports it once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        reply = _Reply(result=_ENCODE.encode(task()))
    except NotBegun as error:
        reply = _Reply(stuck=str(error))
    except (InputError, EndlessLoop) as error:
        reply = _Reply(mistake=str(error))
    except KeyboardInterrupt:
        reply = _Reply()
    except BaseException as error:  # as a design may raise any
        from septum.designs.own import blame

        reply = _Reply(mistake=blame(error))
        if not reply.mistake:
            reply = _Reply(defect=traceback.format_exc())
    connection.send_bytes(_ENCODE.encode(reply))
