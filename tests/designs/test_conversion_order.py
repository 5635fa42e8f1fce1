"""What is about the conversion of huge folios leaves holes and other backings to v3."""

import pytest

from septum.scenarios.outcome import ScenarioOutcome
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import run_scenario

TEXT = """
summary = "Something happens to a whole accepted 2 MB page, or to one page of it."
setup = ["vcpu0: accept 2M frame 0", "vcpu0: write frame 0"]
[vm]
in-place = true
ve = true
backing = "{backing}"
[host]
vmm = ["{step} => any"]
[failures]
inject = [{failures}]
"""


def end_of(design: str, step: str, backing: str, failures: str = "") -> ScenarioOutcome:
    text = TEXT.format(backing=backing, step=step, failures=failures)
    return run_scenario(read_scenario("order", text, "order"), design)


@pytest.mark.parametrize("design", ["split-sept-first", "folio-split-2m-sept-first"])
@pytest.mark.parametrize("failures", ["", "'alloc:tdp_mmu_alloc_sp_for_split'"])
def test_a_hole_is_not_split_beyond_its_boundary(design: str, failures: str) -> None:
    """A whole huge page goes in one piece, and without memory for a split."""
    v3, now = (end_of(of, "punch frame 0", "hugetlb-2m", failures) for of in ("v3", design))
    assert now.held and now.results == v3.results and now.counts == v3.counts
    whole = "set-attributes frame 0 to shared"
    assert end_of(design, whole, "hugetlb-2m").counts["seamcall.TDH.MEM.PAGE.DEMOTE"] == 1


def test_what_is_not_split_is_not_unmapped_whole() -> None:
    """unmap-first rounds to the folio that guest_memfd splits; with THP it splits none."""
    page = "set-attributes page 1 to shared"
    v3, now = (end_of(of, page, "thp") for of in ("v3", "unmap-first"))
    assert v3.held and now.held and now.counts == v3.counts and now.pages == v3.pages
    assert not end_of("unmap-first", page, "hugetlb-2m").held
