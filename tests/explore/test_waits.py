"""Who waits for ever, and for whom: the story says who has what, since which step."""

from pathlib import Path

import pytest
from hosts import KEEPS
from typer.testing import CliRunner

from septum.cli.main import app

PLAIN = "[vm]\nin-place = true\n"
IN_PLACE = "[vm]\nin-place = true\nve = true\n"
HOSTS = f'''{KEEPS}
from septum.linux.kvm.guest_memfd import GuestMemfd


class NoCheck(GuestMemfd):
    """Nobody looks at references before a conversion."""

    __slots__ = ()

    def kvm_gmem_has_safe_refcount(self, inode, start, nr_pages):
        return -1


class Reads(KvmMain):
    """KVM_SET_USER_MEMORY_REGION2 does not leave kvm->srcu."""

    __slots__ = ()

    def kvm_vm_ioctl_set_memory_region(self, kvm, mem):
        ret = super().kvm_vm_ioctl_set_memory_region(kvm, mem)
        kvm.srcu.read_lock()
        return ret
'''
FAULT = """
setup = ["host: allocate frame 0", "host: set-attributes page 1 to shared"]
[guest]
vcpu0 = ["touch page 0 => #VE"]
[host]
convert = ["set-attributes page 1 to private"]
"""
BOTH_FAULT = """
setup = ["host: set-attributes page 1 to shared"]
[guest]
vcpu0 = ["touch page 0 => #VE"]
vcpu1 = ["touch page 2 => #VE"]
"""
FAILED = """
setup = ["vcpu0: accept 2M frame 0", "host: fail page 3"]
[host]
convert = ["set-attributes page 5 to shared"]
"""
FAILS = """
setup = ["vcpu0: accept 2M frame 0"]
[host]
convert = ["fail page 3 => any", "set-attributes page 5 to shared"]
"""
PINNED = """
setup = ["host: set-attributes frame 0 to shared", "host: touch page 4"]
[host]
pin = ["touch page 5 => any", "pin page 4 => any"]
convert = ["set-attributes frame 0 to private => any"]
"""
KEPT_FOR_GOOD = (
    "513 references: 512 of the page cache, 1 that memory_failure() keeps for good: {since}"
)
FLAGS = """
[guest]
vcpu0 = ["wait y"]
[host]
first = ["choose: wait x | interrupt vcpu0", "signal z"]
second = ["wait z", "signal x", "signal y"]
"""


@pytest.fixture
def explored(tmp_path: Path):  # type: ignore[no-untyped-def]
    """The story of a scenario of that text, on one line."""
    (tmp_path / "hosts.py").write_text(HOSTS, encoding="utf-8")

    def explore(text: str, *words: str, design: str = "v3", vm: str = IN_PLACE) -> str:
        path = tmp_path / "mine.toml"
        head, _, tables = text.partition("\n[")
        path.write_text(f'summary = "s"{head}\n{vm}[{tables}', encoding="utf-8")
        host = design if design == "v3" else f"{tmp_path}/hosts.py:{design}"
        args = ["explore", str(path), "--design", host, "--no-watch", "--workers", "1", *words]
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 1, result.output
        return " ".join(result.output.split())

    return explore


@pytest.mark.parametrize(
    ("text", "design", "ignored", "references"),
    [
        (
            FAULT,
            "v3",
            "nothing",
            "2 references: 1 of the page cache, 1 of vcpu0 since after step 3",
        ),
        (FAILED, "v3", "poisoned", KEPT_FOR_GOOD.format(since="since before step 1")),
        (FAILS, "v3", "no-bug: ", KEPT_FOR_GOOD.format(since="host.convert since after step 1")),
        (
            PINNED,
            "NoCheck",
            "nothing",
            "1 of GUP, which has it pinned: host.pin since after step 2",
        ),
    ],
    ids=["fault", "failed", "fails", "pinned"],
)
def test_who_refers_to_a_folio(explored, text, design, ignored, references) -> None:  # type: ignore[no-untyped-def]
    """Where a task spins for its references, and where it waits for them for ever."""
    story = explored(text, "--ignore", ignored, design=design)
    assert f"{references} " in story.partition("Why: ")[2]


def test_a_folio_lock_that_nobody_has(explored) -> None:  # type: ignore[no-untyped-def]
    """And whose waiter nobody woke (F12)."""
    others = ("no-bug", "mapping-in-folio", "private-unreachable", "is retried", "expectation")
    story = explored(BOTH_FAULT, *(word for other in others for word in ("--ignore", other)))
    assert (
        "vcpu0 waits for the folio lock of pfn 0x100000, which nobody has: vcpu1 gave it up after"
        " step 8, and woke nobody"
    ) in story.partition("Why: ")[2]


def test_who_reads_srcu() -> None:
    words = ["slot-delete-against-prefault", "--design", "bug-prefaults-going-slot", "--no-watch"]
    story = " ".join(CliRunner().invoke(app, ["explore", *words]).output.split())
    assert "host.vmm waits for readers of vm1 srcu: host.prefault since after step 2" in story


def test_threads_of_a_vmm_that_wait_for_each_other(explored) -> None:  # type: ignore[no-untyped-def]
    story = explored(FLAGS)
    assert (
        "no task can go on: vcpu0 waits for guest memory to change (cpu0 spins); host.first waits"
        " for another thread of the VMM (futex); host.second waits for another thread of the VMM"
        " (futex)"
    ) in story
    assert (
        "Why: vcpu0 waits for flag y, which host.second would raise, and is in `wait z` host.first"
        " waits for flag x, which host.second would raise, and is in `wait z` host.second waits"
        " for flag z, which host.first would raise, and is in `wait x` In the nearest" in story
    )


def test_what_is_ignored_the_scenario_does_not_foresee(explored) -> None:  # type: ignore[no-untyped-def]
    story = explored(FAILED, "--ignore", "a poisoned folio is split")
    assert "breaks, and is ignored: no-bug: WARN: a poisoned folio is split 3 XX" in story


def test_what_a_setup_keeps(explored) -> None:  # type: ignore[no-untyped-def]
    """Its steps are told, and since which of them the task has what it waits for."""
    kept = "main has vm1 slots_lock since after step 16 [kvm_vm_ioctl_set_memory_region]"
    story = explored(FLAGS, design="Keeps")
    assert "Broken by the setup, while VM vm is built, before the programs begin." in story
    assert "1 * VM vm is built | 3 quiet steps" in story
    assert "TDH.MNG.CREATE" in story and "scheduling points" not in story.partition("Broken by")[2]
    assert f"17 XX * promise locking is broken Why: {kept} No schedule passes" in story
    story = explored(FLAGS, "--ignore", "locking: ", design="Keeps")
    assert f"promise progress is broken Why: main waits for itself: {kept} No schedule" in story
    story = explored(FLAGS, design="Reads")
    assert "Why: main has vm1 srcu since after step 16 No schedule passes" in story


def test_of_a_setup_the_step_that_breaks_is_told(explored) -> None:  # type: ignore[no-untyped-def]
    """The steps before it are those that led there."""
    steps = '"vcpu0: accept 4K page 7", "vcpu0: use 4K page 0"'
    story = explored(f'\nsetup = [{steps}]\n[guest]\nvcpu0 = ["hlt"]\n', vm=PLAIN)
    assert "Broken by the setup, in `vcpu0: use 4K page 0`, before the programs begin." in story
    assert "When it begins, after `vcpu0: accept 4K page 7`: GFN 0x80000+0x200: private" in story
    assert "1 * `vcpu0: use 4K page 0`" in story
    assert "GFN 0x80000 is pending since step 4 (TDH.MEM.PAGE.AUG of vcpu0)" in story
