"""A name in a scenario that nothing has is one sentence with its place, and the nearest that there
is: it would allow no failure, or be told as if the host had broken something."""

from pathlib import Path

import pytest

from septum.cli.exits import USAGE, guarded
from septum.designs import find_design
from septum.errors import InputError
from septum.explore.scenario import ScenarioSubject
from septum.scenarios.check import main
from septum.scenarios.model_names import model_names
from septum.scenarios.names import check_names
from septum.scenarios.reader import read_scenario
from septum.scenarios.results import may_come
from septum.scenarios.run import load_scenario, run_scenario, scenario_names
from septum.scenarios.scenario import Scenario

HEAD = 'summary = "s"\n[guest]\nvcpu0 = ["hlt"]\n'
TWO = 'summary = "s"\n[vm.a]\n[vm.b]\n[guest.a]\nvcpu0 = ["hlt"]\n'


def read(body: str, head: str = HEAD) -> Scenario:
    return read_scenario("f", head + body, "f.toml")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            '[failures]\nallow = ["alloc:tdp_mmu_aloc_sp_for_split*"]',
            (
                "f.toml, line 5: failures.allow: 'alloc:tdp_mmu_aloc_sp_for_split*' matches no"
                " choice point of the model; did you mean 'alloc:tdp_mmu_alloc_sp_for_split'?"
            ),
        ),
        (
            '[failures]\nallow = ["need_reshed"]',
            (
                "f.toml, line 5: failures.allow: 'need_reshed' is no choice point of the model; did"
                " you mean 'need_resched'?"
            ),
        ),
        (
            '[failures]\nallow = ["seamcall:TDH.MEM.PAGE.DEMOT=busy"]',
            (
                "f.toml, line 5: failures.allow: 'seamcall:TDH.MEM.PAGE.DEMOT' is no choice point"
                " of the model; did you mean 'seamcall:TDH.MEM.PAGE.DEMOTE'?"
            ),
        ),
        (
            # Not by a wrapper: it goes to the module as it is.
            '[failures]\nallow = ["seamcall:TDH.VP.ENTER"]',
            "is no choice point of the model; did you mean 'seamcall:TDH.VP.",
        ),
        (
            '[failures]\ninject = ["seamcall_interupted @2"]',
            (
                "f.toml, line 5: failures.inject: 'seamcall_interupted' is no choice point of the"
                " model; did you mean 'seamcall_interrupted'?"
            ),
        ),
        (
            '[failures]\nallow = ["luck"]',
            "failures.allow: 'luck' is no choice point of the model; docs/scenarios.md lists them",
        ),
        (
            "[expect]\ncounts = { splitts = 1 }",
            (
                "f.toml, line 5: expect.counts: nothing is counted as 'splitts'; did you mean"
                " 'splits'?"
            ),
        ),
        (
            '[expect]\ncounts = { "split.conversoin" = 1 }',
            "nothing is counted as 'split.conversoin'; did you mean 'split.conversion'?",
        ),
        (
            '[expect]\ncounts = { "seamcall.TDH.MEM.PAGE.DEMOT" = 1 }',
            "did you mean 'seamcall.TDH.MEM.PAGE.DEMOTE'?",
        ),
        ('[expect]\ncounts = { "fault.shard page 0" = 1 }', "is counted as 'fault.shard page 0'"),
        ('[expect]\ncounts = { "split.*" = 1 }', "nothing is counted as 'split.*'"),
        (
            '[expect]\nwitnesses = ["call:TDH.MEM.PAGE.DEMOT:"]',
            (
                "f.toml, line 5: expect.witnesses: no search reaches 'call:TDH.MEM.PAGE.DEMOT:', as"
                " 'TDH.MEM.PAGE.DEMOT' is no name; did you mean 'TDH.MEM.PAGE.DEMOTE'?"
            ),
        ),
        (
            '[expect]\nwitnesses = ["wait: or cal:TDH.MEM"]',
            "'cal' is no name; did you mean 'call'?",
        ),
        (
            '[expect]\nwitnesses = [""]',
            "f.toml, line 5: expect.witnesses: an empty one, or an",
        ),
        (
            '[expect]\nwitnesses = ["call:TDH.MEM.PAGE.DEMOTE: or "]',
            "is met by whatever a search reaches; write what it must reach, such as `call:TDH.MEM",
        ),
        ('[expect]\nwitnesses = ["cal:TDH.MEM.TRACK:"]', "'cal' is no name; did you mean 'call'?"),
        (
            '[expect]\nwitnesses = ["call:TDH.MEM.TRACK:TDX_SUCESS"]',
            "'TDX_SUCESS' is no name; did you mean 'TDX_SUCCESS'?",
        ),
        (
            '[expect]\nwitnesses = ["sept:MAPED:TDH.MEM.TRACK:"]',
            "'MAPED' is no name; did you mean 'MAPPED'?",
        ),
        (
            '[expect]\nwitnesses = ["error:kvm_mmu_faultin_pn:-EFAULT"]',
            "'kvm_mmu_faultin_pn' is no name; did you mean 'kvm_mmu_faultin_pfn'?",
        ),
        (
            '[expect]\nwitnesses = ["choice:need_reschd=1"]',
            "'need_reschd' is no name; did you mean 'need_resched'?",
        ),
        (
            '[expect]\nwitnesses = ["c"]',
            (
                "f.toml, line 5: expect.witnesses: 'c' in 'c' ends within a word; it could be call,"
                " choice, contend"
            ),
        ),
        (
            '[expect]\nwitnesses = ["call:TDH.MEM.TRACK:TDX_OP"]',
            "'TDX_OP' in 'call:TDH.MEM.TRACK:TDX_OP' ends within a word; it could be TDX_OPERAND_",
        ),
        (
            '[expect]\nwitnesses = ["wait: or error:kvm_gmem_conv"]',
            "ends within a word; it could be kvm_gmem_convert",
        ),
        (
            '[expect]\nwitnesses = ["choice:alloc:td"]',
            "'alloc:td' in 'choice:alloc:td' ends within a word; it could be alloc:td_params, ",
        ),
    ],
)
def test_mistakes(body: str, sentence: str) -> None:
    with pytest.raises(InputError) as info:
        check_names(read(body), find_design("v3"))
    assert sentence in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            'setup = ["vcpu0: accept 2M frame 0 => PAGE_SIZE_MISMTCH"]\n',
            (
                "line 2: setup: no operation of a guest comes to 'PAGE_SIZE_MISMTCH'; did you mean"
                " 'PAGE_SIZE_MISMATCH'?"
            ),
        ),
        (
            'setup = ["host: punch page 0 => ok or -ENOMEN"]\n',
            "line 2: setup: no operation of a VMM comes to '-ENOMEN'; did you mean '-ENOMEM'?",
        ),
        ('setup = ["vcpu0: touch page 0 => SIGBUS"]\n', "a guest comes to 'SIGBUS'"),
        ('setup = ["host: touch page 0 => #VE"]\n', "a VMM comes to '#VE'"),
        (
            'setup = ["host: touch page 0"]\n[expect]\npages = { "page 0" = "privat 4K" }\n',
            "line 4: expect.pages: a page cannot be 'privat 4K'; did you mean 'private 4K'?",
        ),
        (
            'setup = ["host: touch page 0"]\n[expect]\nmay-break = ["progres: it"]\n',
            "no promise is called 'progres'; did you mean 'progress'?",
        ),
    ],
)
def test_mistakes_that_no_design_can_excuse(body: str, sentence: str) -> None:
    with pytest.raises(InputError) as info:
        read(body, 'summary = "s"\n')
    assert sentence in str(info.value)


def test_what_there_is_can_be_named() -> None:
    check_names(
        read(
            '[failures]\nallow = ["seamcall:*=busy", "tdx_*"]\n[expect]\ncounts = { splits = 0,'
            ' "exits.memory_fault" = 0, "pf_fixed.private.2m" = 1, "fault.private page 3 8K" = 0}\n'
            'witnesses = ["call", "call:TDH.MEM", "wait:mmu_lock:ex", "choice:alloc:",'
            ' "tdcall:TDG.MEM.PAGE.ACCEPT:TDX_SUCCESS", "sept:FREE:TDH.MEM.PAGE.AUG:",'
            ' "error:kvm_gmem_convert:-ENOMEM", "wait: or sept:PENDING:TDG.MEM.PAGE.ACCEPT:exit"]\n'
        ),
        find_design("v3"),
    )
    counts = '[expect]\ncounts = { "a.splits" = 0, "seamcall.TDH.VP.ENTER" = ">= 1" }\n'
    check_names(read(counts, TWO), find_design("v3"))
    with pytest.raises(InputError, match=r"'splits'; did you mean '[ab]\.splits'"):
        check_names(read("[expect]\ncounts = { splits = 0 }\n", TWO), find_design("v3"))


@pytest.mark.parametrize("name", sorted(scenario_names())[::6])
def test_what_runs_say_is_known(name: str) -> None:
    """Results and counters are held to what runs make of them: here a new one must be known."""
    outcome = run_scenario(name)
    for result in outcome.results:
        guest = "vcpu" in result.actor
        assert may_come(result.result, guest) or result.result.startswith("never begun"), result
    scenario = load_scenario(name)
    counts = "".join(f'"{key}" = {value}\n' for key, value in outcome.counts.items())
    tables = "".join(f"[vm.{vm.name}]\n" for vm in scenario.vms) if len(scenario.vms) > 1 else ""
    text = f'summary = "s"\nsetup = ["host: wake vcpu0"]\n{tables}[expect.counts]\n{counts}'
    check_names(read_scenario("f", text, "f.toml"), find_design("v3"))


OWN_DESIGN = '''
from septum.linux.kvm.guest_memfd import GuestMemfd

SITE = "my_site"


class Mine(GuestMemfd):
    """Fails where it likes."""

    __slots__ = ()

    def kvm_gmem_fallocate(self, f, mode, offset, length):
        self.host.mm.fails(SITE)
        self.host.mm.fails("my_other_site")
        self.sim.choose("my_choice")
        return super().kvm_gmem_fallocate(f, mode, offset, length)
'''


def test_a_design_has_choice_points_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN_DESIGN)
    own = f"{path}:Mine"
    scenario = read('[failures]\nallow = ["alloc:my_other_site", "my_choice"]\n')
    assert ScenarioSubject(scenario, own).may_fail
    with pytest.raises(InputError, match="'my_choic' is no choice point"):
        ScenarioSubject(read('[failures]\nallow = ["my_choic"]\n'), own)
    with pytest.raises(InputError, match="'alloc:my_other_site' is no choice point"):
        ScenarioSubject(scenario)
    assert "alloc:my_other_site" not in model_names().choices


@pytest.mark.parametrize("command", ["run", "explore"])
def test_from_the_command_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from septum.cli.main import app

    path = tmp_path / "f.toml"
    path.write_text(HEAD + '[failures]\nallow = ["need_reshed"]\n')
    assert guarded(lambda: app([command, str(path)], standalone_mode=True)) == USAGE
    err = capsys.readouterr().err
    assert err == (
        f"septum: {path}, line 5: failures.allow: 'need_reshed' is no choice point of the model;"
        " did you mean 'need_resched'?\n"
    )


def test_from_the_judge_of_all_scenarios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "f.toml"
    path.write_text(HEAD + "[expect]\ncounts = { splitts = 0 }\n")
    assert main([str(path)]) == USAGE
    assert "nothing is counted as 'splitts'; did you mean 'splits'?" in capsys.readouterr().err


def test_an_override_hands_on_what_it_is_given() -> None:
    """What names a counter in the function that it overrides: it is followed once, and not for
    ever."""
    own = (
        "class X(TdpMmu):\n"
        "  def _mmu_lock(self, kvm, shared, caller):\n"
        "    super()._mmu_lock(kvm, shared, caller)\n"
    )
    assert model_names(own) == model_names()
