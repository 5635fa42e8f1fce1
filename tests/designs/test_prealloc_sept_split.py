"""prealloc-sept-split: a split of the S-EPT has its memory before mmu_lock is taken."""

import pytest

from septum.designs import Design, designs, on_v3
from septum.designs.proposals import prealloc_sept_split as design
from septum.scenarios.outcome import ScenarioOutcome
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import RandomRun, run_scenario

NAME = "prealloc-sept-split"

SHORT = """
summary = "There is no memory for a split, and nothing to split: the guest has mapped nothing."
[vm]
in-place = true
[host]
convert = ["set-attributes {pages} to shared => any"]
[failures]
inject = ["alloc:tdp_mmu_alloc_sp_for_split"]
"""


def converted(pages: str, name: str) -> str:
    scenario = read_scenario("short", SHORT.format(pages=pages), "short")
    return run_scenario(scenario, name).results[0].result


def test_memory_is_wanted_where_nothing_is_mapped() -> None:
    """What it costs to know ahead only how much a range could take."""
    assert converted("page 1", "v3") == "ok"
    assert converted("page 1", NAME) == "-ENOMEM at page 1"
    assert converted("frame 0", NAME) == "ok"


TWO_AT_ONCE = """
summary = "A conversion and two ACCEPTs split at once."
setup = ["vcpu0: accept frame 0", "host: prefault frame 1", "host: prefault frame 2"]
[machine]
dynamic-pamt = true
[vm]
memory = "6M"
in-place = true
[guest]
vcpu0 = ["accept 4K page 5 of frame 1"]
vcpu1 = ["accept 4K page 5 of frame 2"]
[host]
convert = ["set-attributes page 1 to shared"]
[expect]
counts = { splits = 3 }
"""


def two_at_once(seed: int, name: str = NAME) -> ScenarioOutcome:
    scenario = read_scenario("two-at-once", TWO_AT_ONCE, "two-at-once")
    return run_scenario(scenario, name, RandomRun(seed))


@pytest.mark.parametrize("seed", range(4))
def test_each_task_has_its_own(seed: int) -> None:
    outcome = two_at_once(seed)
    assert outcome.held and not outcome.unmet, (outcome.unmet, outcome.findings)


class OneForAll(design.PreallocSplitTdpMmu):
    """The memory of all tasks in one place: what a per-VM cache without a lock would be."""

    __slots__ = ()

    def split_memory_get(self, kvm, splits):
        ret = super().split_memory_get(kvm, splits)
        self.at_hand[-1] = self.at_hand.pop(self.sim.current.index)
        return ret

    def split_memory_put(self):
        self.at_hand[self.sim.current.index] = self.at_hand.pop(-1)
        super().split_memory_put()

    def split_memory(self):
        return self.at_hand[-1]


def test_a_cache_of_all_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    units = on_v3(
        mmu=design.HeadTailMmu,
        tdp_mmu=OneForAll,
        tdx=design.PreallocSplitTdx,
        gmem=design.PreallocSplitGuestMemfd,
        main=design.PreallocSplitMain,
    )
    monkeypatch.setitem(designs(), "one-for-all", Design("one-for-all", "a test", "", units))
    broken = 0
    for seed in range(12):
        try:
            broken += not two_at_once(seed, "one-for-all").held
        except (IndexError, KeyError):
            broken += 1
    assert broken
