"""What is known to break is told, wherever in a run it breaks, and in whichever run it was seen."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from septum.cli.exits import guarded
from septum.cli.main import app

LEAK = """\
from septum.linux.kvm.main import KvmMain


class Leak(KvmMain):
    __slots__ = ()

    def kvm_vm_ioctl_set_memory_attributes(self, kvm, address, size, attributes):
        self.host.mm.alloc_page("leak")
        return super().kvm_vm_ioctl_set_memory_attributes(kvm, address, size, attributes)
"""
SCENARIO = """\
summary = "A page becomes shared."
[vm]
ve = true
[kernel]
attributes = "vm"
[guest]
vcpu0 = ["touch page 0 => any"]
[host]
convert = ["set-attributes page 1 to shared"]
[expect]
may-break = [{foreseen}]
"""


@pytest.mark.parametrize("strategy", ["auto", "exhaustive", "random"])
@pytest.mark.parametrize("how", ["foreseen", "ignored"])
def test_what_breaks_when_vms_are_taken_down_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, how: str
) -> None:
    """Ends that are alike are taken down once in a process, first by runs in which a search gets
    ready, which tell nothing."""
    monkeypatch.chdir(tmp_path)
    Path("leak.py").write_text(LEAK)
    foreseen = '"teardown"' if how == "foreseen" else ""
    Path("leak.toml").write_text(SCENARIO.format(foreseen=foreseen))
    words = ["explore", "leak.toml", "--design", "leak.py:Leak", "--strategy", strategy]
    words += ["--preemptions", "1", "--schedules", "60", "--workers", "1"]
    if how == "ignored":
        words += ["--ignore", "teardown: "]
    result = CliRunner().invoke(app, words)
    assert "of leak were never freed" in " ".join(result.output.split())
    assert "HELD" not in result.output


def cli(*words: str) -> int:
    """The exit code of a command."""
    return guarded(lambda: app(list(words), standalone_mode=True))


def test_when_promises_were_looked_at_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the default may have seen too little: not where something broke, and not of toys."""
    said = (
        "promises were looked at when the programs had ended; --check every-step looks at each step"
    )
    fast = ("--preemptions", "0", "--no-watch")
    for words, told in (
        (("convert-one-page",), True),
        (("convert-one-page", "--schedules", "1", "--strategy", "random"), True),
        (("convert-one-page", "--check", "every-step"), False),
        (("convert-one-page", "--check", "quiet"), False),
        (("toy:locked-update",), False),
        (("convert-against-fault", "--design", "bug-no-kick", "--preemptions", "1"), False),
    ):
        cli("explore", *fast, *words)
        assert (said in " ".join(capsys.readouterr().out.split())) == told, words


def test_what_a_scenario_excuses_is_not_told_apart_of_another_design(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It speaks of v3."""
    words = ("explore", "finding-attributes-late", "--preemptions", "1", "--no-watch")
    for design, told in (("v3", False), ("v3-f2-repaired", True)):
        assert cli(*words, "--design", design) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert out.startswith("AS FORESEEN")
        said = f"whether {design} adds a cause of its own is not told apart: search a scenario with"
        assert (said in out) == told
