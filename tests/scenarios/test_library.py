"""Every scenario of the library comes out as it says, whatever the schedule, and the same twice.

`make scenarios` does this with 200 random schedules for each, here it is a few.
"""

import re
from pathlib import Path

import pytest

from septum.checks.modes import Mode
from septum.scenarios.check import Bounds, judge
from septum.scenarios.run import LIBRARY, load_scenario, scenario_names

NAMES = sorted(path.stem for path in LIBRARY.glob("*.toml"))
BOUNDS = Bounds(seeds=4, failing=2)
LONG = {"gmem-convert-rounds": Bounds(seeds=0, again=False)}
"""One vCPU that uses some thousand pages, one after the other, and nothing beside it. With a few
of its pages it is made again."""
SELFTESTS = (
    "tdx_vm_huge_page",
    "tdx_upm_test",
    "tdx_upm_parallel_test",
    "tdx_shared_mem_test",
    "tdx_gmem_private_and_shared_test",
    "private_mem_kvm_exits_test",
    "pre_fault_memory_test",
    "private_mem_conversions_test",
    "guest_memfd_conversions_test",
    "guest_memfd_test",
    "gmem_convert_fault_race",
    "set_memory_region_test",
)


TOO_LONG = {(name, "every-step") for name in LONG}


@pytest.mark.parametrize("name", NAMES)
def test_as_expected_and_the_same_twice(name: str) -> None:
    bounds = LONG.get(name, BOUNDS)
    verdict = judge(name, bounds)
    assert not verdict.problems, "\n".join(verdict.problems)
    assert verdict.only_one or verdict.nr_runs >= bounds.seeds


@pytest.mark.parametrize("name", LONG)
def test_a_long_one_with_few_pages_is_the_same_twice(name: str, tmp_path: Path) -> None:
    text = (LIBRARY / f"{name}.toml").read_text(encoding="utf-8")
    few = re.sub(r"\ball(?=\b.*\")", "pages 0-15", text)
    assert few.count("pages 0-15") > 5
    (tmp_path / "few.toml").write_text(few, encoding="utf-8")
    verdict = judge(str(tmp_path / "few.toml"), BOUNDS)
    assert not verdict.problems, "\n".join(verdict.problems)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        (name, check)
        for name in NAMES
        for check in ("end", "every-step")
        if (name, check) not in TOO_LONG
    ],
)
def test_as_expected_whenever_promises_are_looked_at(name: str, check: Mode) -> None:
    """When all is over, as searches do by default: VMs are gone by then, and others have what was
    theirs. Some of what breaks on the way is not seen any more. Or in the middle of everything."""
    verdict = judge(name, Bounds(seeds=1, failing=2, check=check, again=False))
    problems = [text for text in verdict.problems if "was not broken" not in text]
    assert not problems, "\n".join(problems)


def test_every_selftest_that_concerns_private_memory_is_there() -> None:
    sources = " ".join(load_scenario(name).document.source for name in NAMES)
    assert [name for name in SELFTESTS if name not in sources] == []


def test_every_scenario_has_one_line() -> None:
    names = scenario_names()
    assert sorted(names) == NAMES and len(names) >= 30
    assert all(len(line) <= 110 and "\n" not in line for line in names.values())


def test_what_the_documentation_says_is_covered_exists() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text(encoding="utf-8")
    _, _, tables = text.partition("## What the library covers")
    named = {
        word
        for line in tables.splitlines()
        if line.startswith("|")
        for word in re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+", line.split("|")[2])
    }
    assert len(named) >= 60
    assert named <= set(NAMES)
