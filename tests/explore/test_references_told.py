"""Who keeps a folio that is never free again, who gave back what was not his, what a fault noticed,
and what a task holds where lockdep finds a lock missing."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from septum.cli.main import app

DESIGNS = """
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.x86.tdx import TdxArch


class LeakOnRetry(KvmMmu):
    __slots__ = ()
    def kvm_mmu_finish_page_fault(self, vcpu, fault, r):
        if r == 1:
            fault.refcounted_page = None
        super().kvm_mmu_finish_page_fault(vcpu, fault, r)


class PutTwice(KvmMmu):
    __slots__ = ()
    def is_page_fault_stale(self, vcpu, fault):
        stale = super().is_page_fault_stale(vcpu, fault)
        if stale and fault.refcounted_page is not None:
            self.host.mm.folio_put(fault.refcounted_page)
        return stale


class HoleKeepsLast(GuestMemfd):
    __slots__ = ()
    def _kvm_gmem_truncate_range(self, inode, start, nr_pages):
        super()._kvm_gmem_truncate_range(inode, start, nr_pages - 1)


class HoleTakesPage(GuestMemfd):
    __slots__ = ()
    def kvm_gmem_punch_hole(self, inode, offset, length):
        self.host.mm.alloc_page("hole")
        return super().kvm_gmem_punch_hole(inode, offset, length)


class TrackOtherVm(KvmTdxUnit):
    __slots__ = ()
    def tdx_track(self, kvm):
        super().tdx_track(self.host.kvms[min(self.host.kvms)])


class NoWbinvd(TdxArch):
    __slots__ = ()
    def tdh_phymem_page_wbinvd_hkid(self, hkid, folio, start_idx, npages):
        return 0
"""
HOLE = """
summary = "A hole in a small file."
source = "a test"
[vm]
memory = "16K"
backing = "4k"
[host]
punch = ["allocate pages 0-3", "punch pages 0-2"]
"""
"""A design that is broken when the file is closed breaks here in fifty steps."""


@pytest.fixture(scope="module")
def designs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("designs") / "mine.py"
    path.write_text(DESIGNS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hole(designs: Path) -> str:
    """The scenario in a file."""
    path = designs.with_name("hole.toml")
    path.write_text(HOLE, encoding="utf-8")
    return str(path)


def explored(designs: Path, name: str, scenario: str) -> str:
    """What a search prints, on one line, without the lanes."""
    words = ("--design", f"{designs}:{name}", "--no-watch", "--workers", "1")
    output = CliRunner().invoke(app, ["explore", scenario, *words]).output
    return " ".join(output.replace("|", " ").split())


def test_a_reference_that_a_fault_keeps(designs: Path) -> None:
    """The folio has left the page cache by then; and the fault that began again shows."""
    story = explored(designs, "LeakOnRetry", "convert-against-fault")
    assert "allocation of gmem_folio_2m was never freed, PFN 0x" in story
    stale = re.search(
        r"(\d+) \* the page fault meets an invalidation \[mmu_invalidate_retry_gfn_unsafe\]", story
    )
    why = re.search(
        r"Why: the folio at PFN 0x\w+ has 1 reference: 1 of vcpu0 since after step (\d+) ", story
    )
    assert stale is not None and why is not None
    assert int(why[1]) < int(stale[1])


def test_a_reference_that_was_not_his(designs: Path) -> None:
    story = explored(designs, "PutTwice", "convert-against-fault")
    assert "folio_put() of 0x" in story
    stale = re.search(r"(\d+) \* the page fault is found stale \[is_page_fault_stale\]", story)
    why = re.search(r"Why: vcpu0 gave back a reference of the page cache after step (\d+) ", story)
    assert stale is not None and why is not None
    assert int(why[1]) + 1 == int(stale[1])


def test_a_folio_whose_file_is_gone(designs: Path, hole: str) -> None:
    story = explored(designs, "HoleKeepsLast", hole)
    assert (
        "has 1 reference: 1 of the page cache of a file that is gone No passing schedule" in story
    )


def test_who_allocated_what_nobody_freed(designs: Path, hole: str) -> None:
    """No event tells of it."""
    story = explored(designs, "HoleTakesPage", hole)
    why = story.partition("Why: ")[2]
    assert re.search(r"host\.punch allocated PFN 0x\w+ after step \d+, and nobody freed it", why)


def test_since_when_a_frame_should_have_been_written_back(designs: Path) -> None:
    story = explored(designs, "NoWbinvd", "convert-aligned-2m-erratum")
    assert re.search(
        r"Why: PFN 0x\w+ is in no S-EPT since step \d+ \(TDH\.MEM\.PAGE\.REMOVE of vcpu0\), and no"
        r" TDH\.PHYMEM\.PAGE\.WBINVD of it has come since No passing",
        story,
    )


def test_what_is_locked_where_lockdep_wants_another_lock(designs: Path) -> None:
    story = explored(designs, "TrackOtherVm", "two-vms-straddling")
    assert "Cause: lockdep: mmu_lock not written (host.convert, tdh_do_no_vcpus)." in story
    assert "Why: host.convert holds invalidate_lock vm1.0 (ex), vm2 mmu_lock (ex) there" in story


def test_what_is_not_in_the_s_ept_may_be_mapped_as_shared(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'summary = "A page is shared."\nsource = "a test"\n'
        'setup = ["host: set-attributes page 5 to shared", "vcpu0: write shared page 5"]\n'
        '[vm]\nin-place = true\nve = true\n[guest]\nvcpu0 = ["read shared page 5 => 0x99"]\n',
        encoding="utf-8",
    )
    output = CliRunner().invoke(app, ["explore", str(path), "--no-watch", "--workers", "1"]).output
    story = " ".join(output.replace("|", " ").split())
    assert "0x200: 511 pages private, not mapped as private, in the TLB of cpu0" in story
    assert "1 * read shared page 5 (GFN 0x80005) -> 0x1, not 0x99" in story
