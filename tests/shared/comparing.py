"""`septum compare` in a process of its own, and what it answers."""

import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from processes import septum

MINE = '''\
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit


class NoTrack(KvmTdxUnit):
    """No TDH.MEM.TRACK, no kick."""

    __slots__ = ()

    def tdx_track(self, kvm):
        return


class Same(TdpMmu):
    """v3, said in other words."""

    __slots__ = ()

    def trace_kvm_mmu_split_huge_page(self, it, spte, errno):
        super().trace_kvm_mmu_split_huge_page(it, spte, errno)


class Raises(KvmTdxUnit):
    __slots__ = ()

    def tdx_track(self, kvm):
        raise ValueError("no")
'''

QUICK = ("--scenarios", "convert-one-page", "--preemptions", "1", "--no-cost")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "0", "NO_COLOR": "1", "COLUMNS": "80"}


def compare(*args: str, cwd: Path) -> "CompletedProcess[str]":
    """The command in a process of its own, in a folder with mine.py."""
    (cwd / "mine.py").write_text(MINE)
    return septum("compare", *args, cwd=cwd)


def rows(stdout: str) -> dict[str, dict[str, Any]]:
    return {row["design"]: row for row in json.loads(stdout)["rows"]}


def marks(row: dict[str, Any]) -> set[str]:
    return {cell["mark"] for cell in row["cells"].values()}
