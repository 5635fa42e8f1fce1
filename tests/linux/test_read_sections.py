"""Read sections of RCU and SRCU: who may sleep in them, who must leave them, who waits for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from septum.designs import Design, designs
from septum.linux.host import v3_units
from septum.linux.kvm.main import KvmMain
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.x86 import KvmX86
from septum.linux.rcu import Rcu, ReadSection
from septum.linux.srcu import Srcu
from septum.scenarios.bench import ScenarioBench
from septum.scenarios.run import load_scenario
from septum.sim import Mutex, RoundRobin, Sim, WaitQueue


def texts_of(body: Callable[[Sim], None]) -> list[str]:
    """What is found while a task runs `body`."""
    sim = Sim(RoundRobin())
    sim.spawn("t", lambda: body(sim))
    sim.run()
    return [finding.text for finding in sim.findings]


@pytest.mark.parametrize("kind", [Rcu, Srcu])
def test_who_ends_has_left_it(kind: type[ReadSection]) -> None:
    def stays(sim: Sim) -> None:
        section = kind(sim, "section")
        section.enter()
        section.enter()
        assert section.held()
        assert section.leave()
        assert section.held()

    assert texts_of(stays) == ["t has ended and still holds section"]


@pytest.mark.parametrize("kind", [Rcu, Srcu])
def test_nobody_leaves_what_he_is_not_in(kind: type[ReadSection]) -> None:
    def leaves(sim: Sim) -> None:
        assert not kind(sim, "section").leave()

    assert texts_of(leaves) == ["lockdep: t leaves section without having entered it"]


def test_nobody_sleeps_in_rcu() -> None:
    def sleeps(sim: Sim) -> None:
        rcu = Rcu(sim, "rcu_read_lock")
        rcu.enter()
        with Mutex(sim, "m"):
            pass
        rcu.leave()
        with Mutex(sim, "m"):
            pass

    assert texts_of(sleeps) == ["mutex_lock(m) may sleep, in atomic context (held: rcu_read_lock)"]


def test_srcu_may_sleep() -> None:
    def sleeps(sim: Sim) -> None:
        srcu = Srcu(sim, "srcu")
        idx = srcu.read_lock()
        with Mutex(sim, "m"):
            pass
        srcu.read_unlock(idx)

    assert texts_of(sleeps) == []


def test_nobody_unlocks_srcu_that_he_does_not_read() -> None:
    """Who waits for readers would wait for ever, or not wait for one that is left."""
    counts = []

    def leaves(sim: Sim) -> None:
        srcu = Srcu(sim, "section")
        srcu.read_unlock(0)
        counts.extend(srcu.nr_readers)

    assert texts_of(leaves) == ["lockdep: t leaves section without having entered it"]
    assert counts == [0, 0]


@pytest.mark.parametrize("left", [0, 1, 2])
def test_who_waits_for_readers_waits_for_all_of_them(left: int) -> None:
    """And not for those that come after."""
    sim = Sim(RoundRobin())
    srcu = Srcu(sim, "section")
    gate = WaitQueue(sim, "gate")
    seen: list[int] = []

    def reads(at: int) -> None:
        idx = srcu.read_lock()
        gate.wait_event(lambda: srcu.wq.active() and left > at)
        srcu.read_unlock(idx)

    def waits() -> None:
        sim.point("after the readers")
        seen.append(sum(srcu.nr_readers))
        srcu.synchronize()
        seen.append(sum(srcu.nr_readers))

    def opens() -> None:
        for _ in range(20):
            sim.point("until the updater waits")
        for _ in range(2):
            gate.wake_up_all()
            sim.point("one after the other")

    for at in range(2):
        sim.spawn(f"reader{at}", lambda at=at: reads(at))  # type: ignore[misc]
    sim.spawn("updater", waits)
    sim.spawn("opener", opens)
    sim.run()
    assert len(srcu.readers) == 2 - left
    assert seen == ([2, 0] if left == 2 else [2])
    waiting = "updater waits for synchronize_srcu(section)"
    assert [waiting in finding.text for finding in sim.findings] == [True] * (left < 2)


def test_who_reads_srcu_does_not_wait_for_its_readers() -> None:
    def waits(sim: Sim) -> None:
        srcu = Srcu(sim, "section")
        srcu.read_lock()
        srcu.synchronize()

    text, forever = texts_of(waits)
    assert text == (
        "lockdep: Illegal synchronize_srcu() in same-type SRCU (or in RCU) read-side critical"
        " section: t is a reader of section"
    )
    assert "t waits for synchronize_srcu(section)" in forever


def test_nobody_waits_for_readers_in_atomic_context() -> None:
    def waits(sim: Sim) -> None:
        rcu = Rcu(sim, "rcu_read_lock")
        rcu.enter()
        Srcu(sim, "section").synchronize()
        rcu.leave()

    text = texts_of(waits)[0]
    assert text == "synchronize_srcu(section) may sleep, in atomic context (held: rcu_read_lock)"


class PrefaultStaysInSrcu(KvmMain):
    """KVM_PRE_FAULT_MEMORY returns in the read section."""

    def _pre_fault_memory(self, vcpu, gpa, size, flags):  # type: ignore[no-untyped-def]
        vcpu.kvm.srcu.read_lock()
        return super()._pre_fault_memory(vcpu, gpa, size, flags)


class GuestRunsInSrcu(KvmX86):
    """The guest runs in the read section, and deletion of a slot waits for it."""

    def kvm_vcpu_srcu_read_unlock(self, vcpu):  # type: ignore[no-untyped-def]
        if vcpu.mode == 0:
            super().kvm_vcpu_srcu_read_unlock(vcpu)


class StaysLoaded(KvmMain):
    """vcpu_put() is forgotten."""

    def vcpu_put(self, vcpu):  # type: ignore[no-untyped-def]
        """Nothing."""


class SplitsOutsideOfRcu(TdpMmu):
    """Walks change tables without a read section."""

    def rcu_read_lock(self) -> None:
        pass

    def rcu_read_unlock(self) -> None:
        pass


@pytest.mark.parametrize(
    ("parts", "scenario", "text"),
    [
        ({"main": PrefaultStaysInSrcu}, "prefault-by-thread", "still holds vm1 srcu"),
        (
            {"main": StaysLoaded},
            "prefault-by-thread",
            "KVM_PRE_FAULT_MEMORY and has vm1 vcpu0 loaded",
        ),
        ({"x86": GuestRunsInSrcu}, "convert-one-page", "illegal vCPU srcu_idx LOCK"),
        ({"tdp_mmu": SplitsOutsideOfRcu}, "convert-one-page", "suspicious RCU usage"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_host_that_gets_it_wrong(
    parts: dict[str, type], scenario: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = replace(v3_units(), **parts)
    monkeypatch.setitem(designs(), "broken", Design("broken", "", "", lambda: units))
    bench = ScenarioBench(load_scenario(scenario), "broken")
    assert any(text in finding.text for finding in bench.run(RoundRobin()).findings)


def test_what_forbids_to_sleep_is_named_and_not_all_that_is_held() -> None:
    """Who has a mutex may take another: the section beside it is the cause."""

    def sleeps(sim: Sim) -> None:
        rcu = Rcu(sim, "rcu_read_lock")
        with Mutex(sim, "m"):
            rcu.enter()
            with Mutex(sim, "o"):
                pass
            rcu.leave()

    assert texts_of(sleeps) == ["mutex_lock(o) may sleep, in atomic context (held: rcu_read_lock)"]
