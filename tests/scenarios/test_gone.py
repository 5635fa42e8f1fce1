"""What a VMM asks for of a VM that is not there is an error, and no end of the program."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from septum.scenarios.bench import ScenarioBench
from septum.scenarios.run import RandomRun, load_scenario

if TYPE_CHECKING:
    from pathlib import Path

OPERATIONS = (
    "set-attributes page 0 to shared",
    "convert page 0 to shared",
    "punch page 0",
    "allocate page 0",
    "prefault page 0",
    "fail page 0",
    "delete slot 0",
    "create slot 0",
    "close memory",
    "close vm",
    "destroy vm",
    "interrupt vcpu0",
    "wake vcpu0",
    "touch page 0",
    "discard page 0",
)
OF_VCPUS = ("prefault page 0", "interrupt vcpu0", "wake vcpu0")
"""A VM that is built later has no vCPU that a program may name."""
ATTRIBUTES = ("vm", "guest_memfd")
SEEDS = 12


def outcomes(tmp_path: Path, text: str, seeds: int = 1):  # type: ignore[no-untyped-def]
    """Of a scenario, under random schedules."""
    path = tmp_path / "gone.toml"
    path.write_text(text, encoding="utf-8")
    bench = ScenarioBench(load_scenario(str(path)), check="end")
    return [bench.run(RandomRun(seed)) for seed in range(seeds)]


def scenario(attributes: str, *threads: str, later: bool = False) -> str:
    """Threads of a VMM with one VM; `later`: it is not built yet."""
    programs = "\n".join(f"t{number} = {ops}" for number, ops in enumerate(threads))
    vm = "later = true" if later else "ve = true"
    guest = "" if later else '[guest]\nvcpu0 = ["use 4K page 1 => any"]'
    return (
        f'summary = "A VM that is not there."\n[kernel]\nattributes = "{attributes}"\n[vm]\n'
        f'backing = "4k"\non-fault = "stop"\nvcpus = 1\n{vm}\n{guest}\n[host]\n{programs}\n'
    )


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_on_a_vm_that_is_gone_is_an_error(tmp_path, operation, attributes) -> None:
    text = scenario(attributes, f'["destroy vm", "{operation} => any"]')
    (outcome,) = outcomes(tmp_path, text)
    assert not outcome.findings
    result = next(r.result for r in outcome.results if r.op.startswith(operation))
    if not operation.startswith(("close vm", "destroy")):
        assert result in ("-EBADF", "-ESRCH", "SIGBUS")


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("operation", [op for op in OPERATIONS if op not in OF_VCPUS])
def test_so_is_one_on_a_vm_that_is_not_built(tmp_path, operation, attributes) -> None:
    text = scenario(attributes, f'["{operation} => any"]', later=True)
    for outcome in outcomes(tmp_path, text):
        assert not outcome.findings


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize(
    "end", [["destroy vm"], ["close vm"], ["close memory"], ["close memory", "close vm"]]
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_ends_while_it_is_used_ends_when_the_call_is_over(
    tmp_path, operation, end, attributes
) -> None:
    """A call that is under way holds the file that it was made on: nothing breaks, and nothing is
    left."""
    ends = [f"{each} => any" for each in end]
    text = scenario(attributes, json.dumps([f"{operation} => any"]), json.dumps(ends))
    for outcome in outcomes(tmp_path, text, SEEDS):
        assert not outcome.findings, outcome.token


def test_a_vm_that_is_killed_while_it_is_built_is_not_left_behind(tmp_path) -> None:
    text = scenario("guest_memfd", '["build vm => any"]', '["destroy vm"]', later=True)
    results = set()
    for outcome in outcomes(tmp_path, text, 40):
        assert not outcome.findings, outcome.token
        results.add(next(r.result for r in outcome.results if r.op.startswith("build vm")))
    assert "-EINTR" in results
