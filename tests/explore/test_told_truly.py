"""What a story says besides its steps is true of the run: what was injected, accepted, asked."""

from pathlib import Path

from typer.testing import CliRunner

from septum.cli.main import app


def told(*words: str) -> str:
    """The output of a command, on one line."""
    return " ".join(CliRunner().invoke(app, [*words]).output.split())


def explored(folder: Path, text: str, *words: str) -> str:
    """The search of a scenario of that text."""
    path = folder / "mine.toml"
    path.write_text(f'summary = "A scenario."\n{text}', encoding="utf-8")
    return told("explore", str(path), "--no-watch", "--workers", "1", *words)


def test_what_the_scenario_injects_is_counted_and_is_not_the_schedules() -> None:
    story = told("report", "finding-demote-busy-dpamt")
    assert "0 preemptions, 0 injected failures; 1 that the scenario injects. >>" in story
    assert "as the VM's split cache has no page, and a pair is 2" in story
    assert "and step 7 (TDH.MEM.PAGE.DEMOTE of host.convert) took a pair" in story


def test_a_page_that_nobody_accepted(tmp_path: Path) -> None:
    story = explored(tmp_path, '[guest]\nvcpu0 = ["touch page 1"]\n')
    assert (
        "Why: GFN 0x80001 is pending since step 7 (TDH.MEM.PAGE.AUG of vcpu0), and no step accepts"
        " it No passing" in story
    )


def test_a_page_that_was_not_accepted_because_its_frame_is_not_alike(tmp_path: Path) -> None:
    story = explored(
        tmp_path,
        'setup = ["host: set-attributes page 5 to shared"]\n'
        '[guest]\nvcpu0 = ["accept 2M frame 0 => any", "write page 3"]\n',
    )
    assert "GFN 0x80003 is pending since step" in story
    assert "and the guest has not accepted it: step" in story
    assert "(TDG.MEM.PAGE.ACCEPT of vcpu0) returned TDX_PAGE_SIZE_MISMATCH|1 No passing" in story


def test_of_two_vms_on_one_file_what_was_asked_is_told_once() -> None:
    story = told("explore", "two-vms-straddling", "--design", "bug-split-first-vm-only")
    assert "(asked: KVM_SET_MEMORY_ATTRIBUTES2 [0x801f4, 0x80258))" in story
