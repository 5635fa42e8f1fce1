"""The benchmark's mix is made of calls that all succeed, at both sizes. No test times it."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from septum.abi.leaves import seamcall_name

BENCH = Path(__file__).parents[2] / "bench" / "module.py"


@pytest.mark.parametrize("dynamic_pamt", [False, True])
def test_the_mix_succeeds(dynamic_pamt: bool) -> None:
    spec = importlib.util.spec_from_file_location("bench_module", BENCH)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    seamcall, calls = bench.prepare(dynamic_pamt)
    names = Counter((seamcall_name(regs.rax), regs.rcx & 1) for regs in calls)
    for regs in calls:
        seamcall(0, regs)
        assert regs.rax == 0
    for leaf in ("PAGE.AUG", "RANGE.BLOCK", "PAGE.REMOVE"):
        assert names[f"TDH.MEM.{leaf}", 0] and names[f"TDH.MEM.{leaf}", 1]
    assert names["TDH.MEM.PAGE.DEMOTE", 1] and names["TDH.MEM.TRACK", 0]
