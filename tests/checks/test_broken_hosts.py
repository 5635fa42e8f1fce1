"""Hosts that are broken on purpose, as designs on top of v3, run whole scenarios and are caught.

Each promise here is broken by a host that a person could have written, not by poked state.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from septum.designs import Design, designs
from septum.linux.host import v3_units
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.scenarios.run import run_scenario


class NoTrack(KvmTdxUnit):
    """Blocks and demotes without a new epoch in between."""

    def tdx_track(self, kvm):
        """Nothing."""


class NoZapOnConversion(GuestMemfd):
    """Lets memory become shared while guests still have it mapped as private."""

    def kvm_gmem_zap(self, inode, start, end):
        """Nothing."""


class AllocatesUnderMmuLock(TdpMmu):
    """Allocates with waiting while it holds mmu_lock."""

    def kvm_tdp_mmu_unmap_gfn_range(self, kvm, rng, flush):
        page = self.host.mm.alloc_page("under_mmu_lock")
        if page is not None:
            self.host.mm.free_page(page)
        return super().kvm_tdp_mmu_unmap_gfn_range(kvm, rng, flush)


CASES = [
    ("no-track", {"tdx": NoTrack}, "convert-one-page", "no-bug"),
    ("no-zap", {"gmem": NoZapOnConversion}, "private-mem-punch-all", "mapping-in-folio"),
    ("no-zap", {"gmem": NoZapOnConversion}, "gmem-private-and-shared-4k", "private-unreachable"),
    ("sleeps", {"tdp_mmu": AllocatesUnderMmuLock}, "convert-one-page", "locking"),
]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Adds a design for the length of a test."""

    def add(name: str, units: dict[str, type]) -> None:
        design = Design(name, "a test", "broken", lambda: replace(v3_units(), **units))
        monkeypatch.setitem(designs(), name, design)

    return add


@pytest.mark.parametrize(
    "name,units,scenario,promise", CASES, ids=[f"{c[0]}-{c[3]}" for c in CASES]
)
def test_a_broken_host_is_caught(register, name, units, scenario, promise):
    register(name, units)
    broken = {finding.promise for finding in run_scenario(scenario, name).findings}
    assert promise in broken
    honest = {finding.promise for finding in run_scenario(scenario, "v3").findings}
    assert promise not in honest
