"""range-locks: who waits for whom, and what a range must cover."""

from collections import Counter

import pytest

from septum.designs.proposals.range_locks import RangeLocks
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import RandomRun, run_scenario
from septum.sim import RoundRobin, Sim

BESIDE = """
summary = "A vCPU accepts in a folio of its own while two threads convert others."
setup = ["vcpu0: accept 2M frames 0-3", "vcpu0: write frames 0-3"]
[vm]
memory = "16M"
in-place = true
[host]
one = ["set-attributes pages 1-1023 to shared"]
two = ["set-attributes pages 1025-2046 to shared"]
[guest]
vcpu1 = ["accept 2M frame 5", "write frame 5"]
[expect]
pages = { "frame 5" = "private 2M", "page 0" = "private 4K", "page 1024" = "private 4K" }
"""


def waited_ns(design: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """For which locks vcpu1 waited, over a few schedules."""
    waited: Counter[str] = Counter()
    honest = Sim.block

    def block(self, waiters, reason):
        task = self.current
        began = task.time_ns
        honest(self, waiters, reason)
        if task.name == "vcpu1":
            waited[reason.split()[0 if "invalidate" in reason else -1]] += task.time_ns - began

    scenario = read_scenario("beside", BESIDE, "beside")
    with monkeypatch.context() as patch:
        patch.setattr(Sim, "block", block)
        for seed in range(6):
            outcome = run_scenario(scenario, design, RandomRun(seed))
            assert outcome.held and not outcome.unmet, (outcome.findings, outcome.unmet)
    return waited


def test_a_fault_waits_for_mmu_lock_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    v3, now = (waited_ns(design, monkeypatch) for design in ("v3", "range-locks"))
    assert v3["invalidate_lock"] > 0 and not now["invalidate_lock"]
    assert now["mmu_lock"] > v3["invalidate_lock"] // 2


def test_a_page_that_fails_is_mapped_until_its_range_is_free_again() -> None:
    """Promises ask who has the lock of the file: here, any of its ranges."""
    end = run_scenario("memory-failure-then-hole", "range-locks", RandomRun(1), check="every-step")
    assert end.held, end.findings


def test_two_in_one_folio_exclude_each_other_unless_the_range_is_exact() -> None:
    ends = {
        design: [run_scenario("convert-both-ways", design, RandomRun(seed)) for seed in range(10)]
        for design in ("v3", "range-locks", "range-locks-exact")
    }
    assert all(end.held for design in ("v3", "range-locks") for end in ends[design])
    texts = {finding.text for end in ends["range-locks-exact"] for finding in end.findings}
    assert any("is in the S-EPT as 2M memory and is shared" in text for text in texts), texts


def order_of(*requests: tuple[int, int, bool]) -> list[int]:
    """Who gets its range when, of tasks that ask in this order and hold it for a while."""
    sim = Sim(RoundRobin())
    locks = RangeLocks(sim, "ranges")
    got: list[int] = []

    def task(at: int, start: int, end: int, write: bool) -> None:
        locks.lock(start, end, write)
        got.append(at)
        for _ in range(8):
            sim.point("hold")
        locks.unlock()
        got.append(~at)

    for at, (start, end, write) in enumerate(requests):
        sim.spawn(f"t{at}", lambda at=at, r=(start, end, write): task(at, *r))
    sim.run()
    assert not locks.ranges
    return got


@pytest.mark.parametrize(
    ("requests", "at_once"),
    [
        (((0, 4, True), (4, 8, True)), True),
        (((0, 5, True), (4, 8, True)), False),
        (((0, 5, False), (4, 8, True)), False),
        (((0, 5, False), (4, 8, False)), True),
    ],
)
def test_ranges_exclude_each_other(
    requests: tuple[tuple[int, int, bool], ...], at_once: bool
) -> None:
    got = order_of(*requests)
    assert (got.index(1) < got.index(~0)) == at_once, got


def test_readers_do_not_overtake_a_writer() -> None:
    """The third could share with the first, were the second not before it."""
    got = order_of((0, 4, False), (0, 8, True), (2, 3, False))
    assert got.index(1) < got.index(2), got
