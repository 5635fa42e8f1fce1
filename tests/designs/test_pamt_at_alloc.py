"""The cache of S-EPT pages that have their PAMT: an ordinary kvm_mmu_memory_cache."""

import pytest

from septum.designs.proposals.pamt_at_alloc import ControlPageTdx, ControlPageTdxArch
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import run_scenario

TEXT = """
summary = "A vCPU faults two frames in, with Dynamic PAMT."
[machine]
dynamic-pamt = true
[vm]
memory = "4M"
[guest]
vcpu0 = ["accept 2M frames 0-1"]
"""


def sizes_of(monkeypatch: pytest.MonkeyPatch, design: str) -> list[list[int]]:
    """Pages in the cache before and after each top-up."""
    sizes: list[list[int]] = []
    honest = ControlPageTdx.topup_external_fault_cache

    def recorded(self, vcpu, cnt=0):
        before = len(vcpu.mmu_external_spt_cache)
        ret = honest(self, vcpu, cnt)
        sizes.append([before, len(vcpu.mmu_external_spt_cache)])
        return ret

    with monkeypatch.context() as patch:
        patch.setattr(ControlPageTdx, "topup_external_fault_cache", recorded)
        assert run_scenario(read_scenario("cache", TEXT, "cache"), design).held
    return sizes


@pytest.mark.parametrize("design", ["pamt-at-alloc", "rfc-v5"])
def test_it_is_filled_when_it_is_low_and_then_up_to_its_capacity(
    design: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = sizes_of(monkeypatch, design)
    assert first == [0, 40]
    assert others and all(5 <= before == after < 40 for before, after in others[1:])


def test_a_failure_above_the_minimum_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sixth page is not to be had, and five are enough."""
    honest = ControlPageTdxArch.tdx_alloc_page
    asked: list[str] = []

    def the_sixth_fails(self, site):
        asked.append(site)
        sixth = site == "tdx_fault_cache.external_spt" and asked.count(site) == 6
        return None if sixth else honest(self, site)

    monkeypatch.setattr(ControlPageTdxArch, "tdx_alloc_page", the_sixth_fails)
    assert sizes_of(monkeypatch, "pamt-at-alloc")[0] == [0, 5]
