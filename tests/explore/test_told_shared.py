"""Stories of the shared alias, and of invalidations: what begins each step, who mapped the page as
shared, which invalidation had ended when a fault went on."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from septum.cli.main import app
from septum.explore.stories.module_watch import ModuleLook, VmLook, invalidation_changes

SHARED = """
summary = "A page that is shared becomes private."
setup = ["host: set-attributes page 1 to shared"]
[guest]
vcpu0 = ["write 0x11 shared page 1"]
[host]
convert = ["set-attributes page 1 to private => ok or -EAGAIN at page 1"]
"""
IN_PLACE = '[vm]\nin-place = true\nbacking = "4k"\n'


def told(*words: str) -> str:
    """The output of a command, on one line."""
    return " ".join(CliRunner().invoke(app, [*words]).output.split())


@pytest.fixture(scope="module")
def of_kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The story of a host that leaves the page in the shared EPT."""
    path: Path = tmp_path_factory.mktemp("shared") / "mine.toml"
    path.write_text(SHARED, encoding="utf-8")
    words = ("--design", "bug-shared-stays-mapped", "--no-watch", "--workers", "1")
    return told("explore", str(path), *words)


@pytest.fixture(scope="module")
def of_late(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The story of finding F6, the other way round."""
    path: Path = tmp_path_factory.mktemp("late") / "mine.toml"
    path.write_text(SHARED + IN_PLACE, encoding="utf-8")
    return told("explore", str(path), "--no-watch", "--workers", "1")


def test_what_the_guest_does_begins_a_step(of_kept: str) -> None:
    """A write is no call of the module: without it, the first that shows is the exit."""
    write = of_kept.index("write 0x11 shared page 1 (GFN 0x80001) ")
    assert write < of_kept.index("kvm_exit EPT_VIOLATION")
    # A kernel function is entered by it later: it is the guest's.
    assert not of_kept[write:].startswith("write 0x11 shared page 1 (GFN 0x80001) [")


def test_a_page_that_stays_mapped_as_shared_says_since_when(of_kept: str) -> None:
    why = of_kept.partition("Why: ")[2]
    assert why.startswith("GFN 0x80001 is mapped as shared since step 10 (vcpu0), and private")
    assert "the fault began" not in why  # it was mapped when it was shared still


def test_what_a_tlb_alone_has_is_not_mapped_any_more(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SHARED, encoding="utf-8")
    words = ("--design", "bug-shared-not-flushed", "--check", "quiet", "--no-watch")
    why = told("explore", str(path), *words, "--workers", "1").partition("Why: ")[2]
    assert "GFN 0x80001 is not mapped as shared since step" in why


def test_a_fault_that_maps_as_shared_too_late_says_when_it_began(of_late: str) -> None:
    why = of_late.partition("Why: ")[2]
    assert "GFN 0x80001 is mapped as shared since step 15 (vcpu0), and private since step 7" in why
    assert "the fault began before that, at step 5; mmu_invalidate_seq is 2 as then" in why


def test_that_an_invalidation_has_ended_shows(of_late: str) -> None:
    ended = of_late.index("~ mmu_invalidate_seq: 1 -> 2")
    assert ended < of_late.index(">>", of_late.index("~ mmu_invalidate_seq"))
    assert ended < of_late.index("~ attributes GFN 0x80001: shared -> private")


def look(*vms: VmLook) -> ModuleLook:
    return ModuleLook({}, {f"vm{at}": vm for at, vm in enumerate(vms, 1)}, {}, {}, {}, ())


def test_invalidations_are_told_by_what_kvm_counts() -> None:
    idle, open_ = VmLook(0, 3, 0), VmLook(0, 3, 1, invalid=(0x200, 0x400))
    ended = VmLook(0, 4, 0, invalid=(0x200, 0x400))
    assert list(invalidation_changes(look(idle), look(open_))) == [
        "mmu_invalidate_in_progress: 0 -> 1, of GFNs [0x200, 0x400) (512 pages)"
    ]
    assert list(invalidation_changes(look(open_), look(ended))) == [
        "mmu_invalidate_in_progress: 1 -> 0",
        "mmu_invalidate_seq: 3 -> 4",
    ]
    assert list(invalidation_changes(look(idle), look(ended))) == ["mmu_invalidate_seq: 3 -> 4"]
    assert list(invalidation_changes(look(idle, idle), look(idle, ended))) == [
        "mmu_invalidate_seq of vm2: 3 -> 4"
    ]
    both = list(invalidation_changes(look(*[idle] * 9), look(*[ended] * 9)))
    assert both == [f"mmu_invalidate_seq of vm{at}: 3 -> 4" for at in range(1, 10)]
    assert list(invalidation_changes(None, look(ended))) == []
    assert list(invalidation_changes(look(idle), look(idle))) == []
