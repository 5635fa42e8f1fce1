"""The command as a user has it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def septum(*args: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own."""
    env = {**os.environ, "PYTHONHASHSEED": "0", "NO_COLOR": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "septum", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
