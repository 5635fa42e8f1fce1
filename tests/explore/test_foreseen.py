"""What is known to break is told, wherever in a run it breaks, and in whichever run it was seen."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

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
