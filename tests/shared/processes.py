"""The command as a user has it: in a process of its own. It has all that this one has imported, so
that a start costs nothing, and is ended when it does not end."""

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from septum.cli.main import run_command

MEMORY_MAX_BYTES = 4 << 30
SECONDS_MAX = 60


def septum(*args: str, cwd: Path) -> "CompletedProcess[str]":
    """What `septum` with these words prints in that folder, and how it ends. TimeoutError when it
    does not."""

    def command() -> int:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
        os.environ.update(NO_COLOR="1", COLUMNS="80")
        sys.argv = ["septum", *args]
        return run_command()

    return CompletedProcess(args, *forked(command, cwd))


def forked(call: Callable[[], int], cwd: Path) -> tuple[int, str, str]:
    """What `call` returns in a fork of this process in that folder, and what it prints: (exit code,
    stdout, stderr). TimeoutError when it does not end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            _become(call, cwd, out.fileno(), err.fileno())
        code = _awaited(pid)
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode())
    return code, told[0], told[1]


def _become(call: Callable[[], int], cwd: Path, out: int, err: int) -> None:
    """Be that call, and end."""
    code = 70  # of no command
    try:
        os.chdir(cwd)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
        code = call()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _awaited(pid: int) -> int:
    until = time.monotonic() + SECONDS_MAX
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} did not end")
