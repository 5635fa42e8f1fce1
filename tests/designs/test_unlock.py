"""What a design does behind an unlock is met by others there; v3 has no point behind one."""

from __future__ import annotations

import pytest

from septum.designs import designs
from septum.designs.registry import Design, on_v3
from septum.explore import Options, explore
from septum.explore.scenario import ScenarioSubject
from septum.explore.verdict import Outcome
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.scenarios.run import LIBRARY
from septum.sim import Sim


class InhibitAfterUnlock(KvmTdxUnit):
    """The flag that keeps 2 MB pages from coming back is set behind mmu_lock."""

    def _tdx_split_and_inhibit(self, vcpu, slot, gfn, level):
        lock = vcpu.kvm.mmu_lock
        lock.write_lock()
        ret = self._tdx_split_for_accept(vcpu, slot, gfn, level)
        lock.write_unlock()
        if not ret:
            self._tdx_inhibit_above(slot, gfn, level)
        return ret


class UnlocksInBase(GuestMemfd):
    """The unlock is in v3's code, which the design called."""

    def kvm_gmem_punch_hole(self, inode, offset, length):
        start, end = offset >> 12, (offset + length) >> 12
        self.filemap_invalidate_lock(inode, start, end)
        self.kvm_gmem_invalidate_begin(inode, start, end)
        self.kvm_gmem_zap(inode, start, end)
        self._kvm_gmem_punch_failed(inode, start, end)
        return self.merge_truncate_range(inode, start, end - start, True)


PUNCH = """
summary = "A hole is punched in pages that a vCPU faults on."
[vm]
memory = "2M"
backing = "4k"
ve = true
[guest]
vcpu0 = ["touch page 5 => any"]
[host]
punch = ["punch pages 5-6"]
"""


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ((LIBRARY / "accept-4k-against-2m.toml").read_text(), {"tdx": InhibitAfterUnlock}),
        (PUNCH, {"gmem": UnlocksInBase}),
    ],
    ids=["accept", "punch"],
)
def test_work_that_is_moved_behind_an_unlock_is_met_there(text, units, monkeypatch, tmp_path):
    monkeypatch.setitem(designs(), "moved", Design("moved", "", "", on_v3(**units)))
    path = tmp_path / "moved.toml"
    path.write_text(text)

    def outcome() -> Outcome:
        options = Options(preemptions=1, shrink=False)
        return explore(ScenarioSubject(str(path), "moved", "end"), options).outcome

    assert outcome() is Outcome.BROKEN
    monkeypatch.setattr(Sim, "released", lambda self, lock: None)
    assert outcome() is Outcome.HELD


def test_v3_is_no_design_of_its_own():
    assert not designs()["v3"].units().design_files()
    assert designs()["pfn-wrappers"].units().design_files()
