"""What the model does not keep, because nobody looks at it any more, tells no states apart."""

from pathlib import Path

import pytest

from septum.abi.leaves import TDG_VP_VEINFO_GET
from septum.abi.regs import Regs
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import Options, Strategy
from septum.explore.workers.search import Job, JobResult, Searcher
from septum.machine import LogicalProcessor
from septum.module.dispatch import TDCALLS
from septum.module.module import Module
from septum.module.state import Td, Vcpu
from septum.module.tdg import tdg_vp_veinfo_get

pytestmark = pytest.mark.usefixtures("few_runs")

RACE = """
summary = "A vCPU that touches either page of a 2 MB page of which the second is converted."
setup = ["host: allocate frame 0"]

[vm]
ve = true

[guest]
vcpu0 = ["choose: touch page 0 => any | touch page 1 => any"]

[kernel]
attributes = "vm"

[host]
convert = ["set-attributes page 1 to shared"]
"""


TWICE = RACE.replace('=> any"]', '=> any", "touch page 0 => any"]')
"""And another page after it."""


@pytest.fixture
def race(tmp_path: Path) -> str:
    """The scenario in a file."""
    path = tmp_path / "race.toml"
    path.write_text(RACE)
    return str(path)


def searched(race: str, preemptions: int) -> JobResult:
    """All within so many preemptions."""
    searcher = Searcher(ScenarioSubject(race, "v3", "end"), Options(failures=0))
    try:
        return searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=preemptions))
    finally:
        searcher.close()


def test_the_epoch_of_who_has_no_translations(race: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vCPU that left before TRACK and one that entered after it are alike when neither has
    anything to flush."""
    forgets = searched(race, 2)

    def keeps(self: Module, lp: LogicalProcessor, td: Td, vcpu: Vcpu) -> None:
        td.refcount[vcpu.vcpu_epoch & 1] -= 1

    monkeypatch.setattr(Module, "leave_epoch", keeps)
    remembers = searched(race, 2)
    assert forgets.complete and remembers.complete
    assert not forgets.found and not remembers.found
    assert forgets.states < remembers.states


def test_what_a_ve_was_about_once_the_guest_has_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vCPU goes on alike whichever page it took a #VE of before."""
    path = tmp_path / "twice.toml"
    path.write_text(TWICE)
    forgets = searched(str(path), 1)

    def keeps(m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, version: int) -> object:
        about = vcpu.ve_info.gpa
        result = tdg_vp_veinfo_get(m, lp, vcpu, regs, version)
        vcpu.ve_info.gpa = about
        return result

    monkeypatch.setitem(TDCALLS, TDG_VP_VEINFO_GET, keeps)
    remembers = searched(str(path), 1)
    assert forgets.complete and remembers.complete
    assert not forgets.found and not remembers.found
    assert forgets.states < remembers.states
