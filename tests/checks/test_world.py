"""Whole worlds: an honest host keeps every promise, and broken ones are caught by the right one.

Each broken host is a small subclass of one unit of the v3 host, as a design would be.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from septum.abi.tdvf import parse_tdvf
from septum.abi.tdvf_build import build_tdvf, edk2_sections
from septum.checks import Checker, observed_units, pace
from septum.guest.script import Accept, AcceptRange, Barrier, Convert, ScriptGuest, Verify, Write
from septum.guest.tdcpu import make_guest_cpus
from septum.linux.host import v3_units
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.x86.tdx import TdxArch
from septum.sim import RandomSchedule, RoundRobin, RunStopped
from septum.vmm.layout import q35_layout
from septum.vmm.qemu import STOP_SHUTDOWN, VmmConfig
from septum.vmm.world import World, recipe_for

FIRMWARE = parse_tdvf(build_tdvf(edk2_sections(0x20000, 0x8000), 0x20000), "small")
M2 = 2 << 20
PAGE = 4096
BASE = 256 << 20

# Accept, write, convert inside a 2 MB page, read back; then a whole frame there and back.
SCRIPT = (
    [
        AcceptRange(BASE, 3 * M2),
        Write(BASE, 3 * 512),
        Barrier(),
        Convert(BASE + M2 + 5 * PAGE, 3 * PAGE),
        Barrier(),
        Verify(BASE, 3 * 512),
        Convert(BASE + 2 * M2, M2),
        Convert(BASE + 2 * M2, M2, shared=False),
        AcceptRange(BASE + 2 * M2, M2),
        Write(BASE + 2 * M2, 512),
        Accept(BASE + 4 * M2),
        Write(BASE + 4 * M2),
        Verify(BASE, 4 * 512 + 1),
    ],
    [
        AcceptRange(BASE + 8 * M2, M2),
        Write(BASE + 8 * M2, 512),
        Barrier(),
        Barrier(),
        Verify(BASE + 8 * M2, 512),
    ],
)


class FailOnce(RoundRobin):
    """Round-robin, with the `nth` occurrence of one choice point coming out the other way."""

    def __init__(self, name, nth=1):
        super().__init__()
        self.name = name
        self.left = nth

    def choose(self, name, n):
        if name == self.name:
            self.left -= 1
            return int(self.left == 0)
        return 0


def run(script=SCRIPT, promises=None, mode="quiet", schedule=None, backing="thp", **parts):
    """Run `script` on a host with `parts` (units by name, or fields of the recipe) replaced."""
    units = {k: v for k, v in parts.items() if isinstance(v, type)}
    options = {k: v for k, v in parts.items() if k not in units}
    layout = q35_layout(options.pop("memory", 512 << 20), FIRMWARE)
    world = World(
        recipe_for(layout.memory_bytes, len(script), backing, **options),
        units=observed_units(replace(v3_units(), **units)),
        schedule=schedule,
    )
    guest = ScriptGuest(script)
    cpus = make_guest_cpus(world.machine, guest)
    vmm = world.add_vm(layout, [cpu.context for cpu in cpus], VmmConfig(backing=backing))
    vmm.on_report = lambda code: vmm.stop(STOP_SHUTDOWN)
    checker = Checker(world, promises, mode, guests=[guest])
    checker.start()
    assert checker.told
    try:
        world.run()
    except RunStopped:
        return {f.promise for f in world.sim.findings}, world
    results = checker.finish()
    return {name for name, result in results.items() if result == "broken"}, world


HONEST = {
    "thp": {},
    "random": {"schedule": RandomSchedule(3)},
    "attributes in guest_memfd": {"vm_memory_attributes": False},
    "hugetlb 2M": {"backing": "hugetlb-2m", "vm_memory_attributes": False},
    "Dynamic PAMT and erratum": {"dynamic_pamt": True, "x86_bug_tdx_pw_mce": True},
    "without huge pages": {"tdx_huge_page": False},
}


@pytest.mark.parametrize("which", HONEST)
def test_an_honest_host_keeps_every_promise(which):
    broken, world = run(**HONEST[which])
    assert [f.text for f in world.sim.findings] == []
    assert broken == set()


def test_at_every_step_too():
    broken, world = run(mode="every-step")
    assert [f.text for f in world.sim.findings] == []
    assert broken == set()


def test_what_is_being_closed_is_not_lost(monkeypatch):
    """A VM is gone before the memory of its guest_memfd is, step by step."""
    monkeypatch.setattr(pace, "STEPS_PER_ACTIVE_LOOK", 1)
    broken, world = run(mode="every-step")
    assert [f.text for f in world.sim.findings] == []
    assert broken == set()


def test_the_checks_do_not_change_the_run():
    answers = []
    for promises in ([], None):
        _, world = run(promises=promises, schedule=RandomSchedule(7))
        answers.append((world.sim.answers, world.sim.now_ns(), world.module.counts))
    assert answers[0] == answers[1]


class DoesNotSplit(KvmMmu):
    """v3 without patch 11: a zap takes the whole leaf."""

    __slots__ = ()

    def kvm_split_cross_boundary_leafs(self, kvm, rng, shared):
        return 0


def test_zap_without_split():
    broken, world = run(mmu=DoesNotSplit)
    assert {"precise-zap", "accept-once", "guest-data"} <= broken
    first = world.sim.findings[0]
    assert first.promise == "precise-zap"
    assert "lost the guest's ACCEPT" in first.text


class SplitsTheMirrorOnly(KvmTdxUnit):
    """The split hook says 0 and does nothing."""

    __slots__ = ()

    def split_external_spte(self, kvm, gfn, level, old_mirror_spte, new_external_spt, shared):
        return 0


@pytest.mark.parametrize("mode", ["quiet", "every-step"])
def test_a_split_of_the_mirror_alone(mode):
    broken, _ = run(tdx=SplitsTheMirrorOnly, mode=mode)
    assert "mirror" in broken


class DoesNotTrack(KvmTdxUnit):
    """REMOVE and DEMOTE without TRACK and kick."""

    __slots__ = ()

    def tdx_track(self, kvm):
        pass


def test_a_stale_translation(monkeypatch):
    """The real module would refuse; one that forgot to check lets the translation live."""
    for name in ("mem_page", "mem_demote"):
        monkeypatch.setattr(f"septum.module.{name}.check_tracking", lambda *args: 0)
    touch = [Barrier(), Barrier(), Barrier()]
    script = (
        [AcceptRange(BASE, M2), Write(BASE, 512), Barrier(), Barrier(), Convert(BASE, PAGE)],
        [Barrier(), Write(BASE, 512), *touch],
    )
    broken, world = run(script, tdx=DoesNotTrack)
    assert "tlb" in broken
    assert any("can still use its 2M translation" in f.text for f in world.sim.findings)


class IgnoresTheAcceptLevel(KvmTdxUnit):
    """v3 without patch 13."""

    __slots__ = ()

    def tdx_honor_guest_accept_level(self, vcpu, gfn):
        return 0


def test_an_endless_ept_violation():
    script = ([Accept(BASE)],)
    broken, world = run(script, promises=["progress"], tdx=IgnoresTheAcceptLevel)
    assert broken == {"progress"}
    assert "nothing changes: the S-EPT has PENDING" in world.sim.findings[-1].text


class NeverPuts(TdxArch):
    """Dynamic PAMT references are never dropped."""

    __slots__ = ()

    def tdx_pamt_put(self, page):
        pass


def test_leaked_pamt_pairs():
    broken, _ = run(x86_tdx=NeverPuts, dynamic_pamt=True)
    assert {"pamt", "teardown"} <= broken


class DoesNotFlushAfter(TdxArch):
    """No TDH.PHYMEM.PAGE.WBINVD after REMOVE."""

    __slots__ = ()

    def tdh_phymem_page_wbinvd_hkid(self, hkid, folio, start_idx, npages):
        return 0


def test_lines_of_the_td_left_in_the_cache():
    broken, _ = run(x86_tdx=DoesNotFlushAfter)
    assert "cache" in broken


class KeepsTheKey(KvmTdxUnit):
    """The key id is never given back to the kernel."""

    __slots__ = ()

    def tdx_hkid_free(self, kvm_tdx):
        kvm_tdx.hkid = -1


def test_a_lost_key_id():
    broken, _ = run(tdx=KeepsTheKey)
    assert broken == {"teardown"}


def test_a_conversion_that_fails_after_its_zap():
    """v3 as posted, with FIXUP 2: the folio is split after the zap, and that can fail."""
    script = ([AcceptRange(BASE, M2), Write(BASE, 512), Convert(BASE + PAGE, PAGE)],)
    broken, world = run(
        script,
        backing="hugetlb-2m",
        vm_memory_attributes=False,
        schedule=FailOnce("alloc:gmem_split_entries"),
    )
    assert "all-or-nothing" in broken
    assert any("failed (-12)" in f.text for f in world.sim.findings)
