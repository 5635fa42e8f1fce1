"""What operations come to tells states apart only where the scenario is not content with it."""

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from judging import REFERENCE, Searched, searched, without_results

from septum.explore.tracking import special
from septum.scenarios.record import Record, Result
from septum.sim import Sim, WaitQueue

pytestmark = pytest.mark.usefixtures("few_runs")

ALL = 100_000
"""More schedules than the scenario has."""

READS = """
summary = "Two vCPUs share a page: one writes, the other reads, before that or after it."
setup = ["host: set-attributes page 1 to shared", "vcpu0: write 0x33 shared page 1"]

[vm]
ve = true

[guest]
vcpu0 = ["write 0x44 shared page 1", "write 0x55 shared page 1"]
vcpu1 = ["read shared page 1 => {right}"]

[kernel]
attributes = "vm"
"""


def reads(path: Path, right: str, *, limit: int = 0, results: bool = False) -> Searched:
    """All within one preemption, by either judge; `right` must come of the read."""
    path /= "reads.toml"
    path.write_text(READS.format(right=right))
    found = searched(str(path), 1, limit=limit, results=results)
    assert found is not None
    return found


def test_what_is_right_in_any_case_tells_no_states_apart(tmp_path: Path) -> None:
    """What comes of the reference's operations is nothing that goes on. Where two searches are
    compared by it, it counts."""
    reference = tmp_path / "reference.toml"
    reference.write_text(REFERENCE)
    compared, alone = (searched(str(reference), 0, results=results) for results in (True, False))
    assert compared is not None and alone is not None
    assert alone.states < compared.states
    assert alone.told == without_results(compared.told)
    assert len(compared.told.ends) > 15
    right = [reads(tmp_path, text).told.found for text in ("any", "0x33 or 0x44 or 0x55")]
    assert right == [frozenset(), frozenset()]


@pytest.mark.parametrize("right", ["0x33", "0x44", "0x55 or 0x33"])
def test_what_is_wrong_is_found(right: str, tmp_path: Path) -> None:
    """Each wrong result, by both judges, though the runs end in the same state."""
    fast, plain = reads(tmp_path, right), reads(tmp_path, right, limit=ALL)
    assert len(fast.told.found) == 3 - len(right.split(" or "))
    assert fast.told == plain.told


def test_without_what_is_wrong_it_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that takes all results for alike misses it: the judges do not agree."""
    observers = special.observers

    def any_will_do(tracker: Any) -> Any:
        def wrap(method: Any) -> Any:
            return lambda *args: method(*args)

        return [
            (kind, name, wrap if (kind, name) == (Record, "end") else how)
            for kind, name, how in observers(tracker)
        ]

    monkeypatch.setattr(special, "observers", any_will_do)
    fast, plain = reads(tmp_path, "0x33"), reads(tmp_path, "0x33", limit=ALL)
    assert len(fast.told.found) < len(plain.told.found)


STOPS = """
summary = "A vCPU stops at a page that is shared, in its second operation or in its third."
setup = ["vcpu0: accept 4K page 0", "host: set-attributes page 1 to shared"]

[vm]
on-fault = "stop"

[guest]
vcpu0 = ["touch page 0", "choose: touch page 0 => any | touch page 1 => ok", "touch page 1 => any"]
"""


def test_what_never_ends_is_not_taken_for_what_need_not(tmp_path: Path) -> None:
    """Both stand at the same page when their task has ended; something must come of one."""
    path = tmp_path / "stops.toml"
    path.write_text(STOPS)
    fast, plain = searched(str(path), 1, results=False), searched(str(path), 1, limit=ALL)
    assert fast and plain
    assert fast.told.found == plain.told.found != frozenset()


def test_who_was_wrong_first_does_not_matter() -> None:
    """Ends of runs that differ in that alone are one end, of which one sentence is told first."""
    wrong = [Result(f"vcpu{n}", "touch page 0", "#VE", False, ("ok",)) for n in range(3)]
    told = set()
    for results in permutations(wrong):
        record = Record(WaitQueue(Sim(), "nothing"))
        record.results += results
        told.add(tuple(record.unmet()))
    assert len(told) == 1
