"""A user's own design: `PATH.py:Class` runs like one of the tree, and mistakes are sentences."""

import json
import signal
import sys
from pathlib import Path

import pytest
from processes import septum

from septum.abi.tdvf_build import synthetic_tdvf
from septum.cli.main import run_command
from septum.designs import find_design
from septum.designs.own import blame, own_source
from septum.errors import InputError
from septum.explore import Options, Strategy, explore
from septum.explore.replay import find_subject

HEAD = """\
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdp_mmu_split import TdpMmuSplit
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.module import Module
"""

NO_TRACK = (
    HEAD
    + '''
class NoTrack(KvmTdxUnit):
    """No TDH.MEM.TRACK, no kick."""

    __slots__ = ()

    def tdx_track(self, kvm):
        return


class Loud(Module):
    """A module that is v3's."""

    __slots__ = ()

    def seamcall(self, *args):
        return super().seamcall(*args)


class Both:
    """Two units and a module."""

    module = Loud
    tdx = NoTrack

    class Split(TdpMmu):
        __slots__ = ()

        def trace_kvm_mmu_split_huge_page(self, it, spte, errno):
            super().trace_kvm_mmu_split_huge_page(it, spte, errno)
'''
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(source: str, name: str = "A") -> str:
    """What is said of `mine.py:name` when mine.py is `source`."""
    Path("mine.py").write_text(source)
    with pytest.raises(InputError) as caught:
        find_design(f"mine.py:{name}")
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_unit_goes_into_the_slot_of_its_base_and_all_else_is_v3(folder: Path) -> None:
    (folder / "mine.py").write_text(NO_TRACK)
    v3, mine = find_design("v3").units(), find_design("mine.py:NoTrack")
    assert mine.units().tdx.__name__ == "NoTrack"
    assert mine.units().tdp_mmu is v3.tdp_mmu
    assert mine.summary == "No TDH.MEM.TRACK, no kick."
    assert mine.kind == "user"


def test_a_class_that_names_several_is_all_of_them(folder: Path) -> None:
    (folder / "mine.py").write_text(NO_TRACK)
    design = find_design("mine.py:Both")
    units = design.units()
    assert [units.tdx.__name__, units.tdp_mmu.__name__] == ["NoTrack", "Split"]
    assert design.module_class().__name__ == "Loud"


def unit(body: str, base: str = "KvmTdxUnit") -> str:
    """A file with the class A of `body`."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{HEAD}\nclass A({base}):\n{lines}"


TRACK = "def tdx_track(self, kvm):\n    return"
MISTAKES = {
    "syntax": ("import os\nfoo(\n", "mine.py does not import: line 2: SyntaxError"),
    "name": ("\n\nfoo()\n", "mine.py does not import: line 3: NameError"),
    "exit": ("import sys\nsys.exit(0)\n", "mine.py does not import: line 2: SystemExit: 0"),
    "interrupt": ("\nraise KeyboardInterrupt\n", "not import: line 2: KeyboardInterrupt"),
    "no-class": (f"{HEAD}\nclass B(TdpMmu): pass\n", "has no class 'A'; there is B"),
    "imported-class": (f"{HEAD}\nA = TdpMmu\n", "has no class 'A'; there is no class in it"),
    "not-a-unit": ("class A: pass\n", "is not a unit class; derive it from one of KvmMmu"),
    "part": (unit("__slots__ = ()", "TdpMmuSplit"), "derive it from TdpMmu"),
    "two": (unit("__slots__ = ()", "TdpMmu, KvmTdxUnit"), "units of 2 files"),
    "no-slots": (unit(TRACK), "A needs the line `__slots__ = ()`"),
    "nothing": (unit("__slots__ = ()"), "overrides no function of its base"),
    "typo": (unit("__slots__ = ()\ndef tdx_trak(self, kvm): pass"), "did you mean tdx_track?"),
    "signature": (unit("__slots__ = ()\ndef tdx_track(self): pass"), "line 8: A.tdx_track cannot"),
    "twice": (
        unit(f"__slots__ = ()\n{TRACK}").replace("class A", "class B")
        + "class C(KvmTdxUnit):\n    __slots__ = ()\nclass A:\n    one = B\n    two = C\n",
        "B and C both replace KvmTdxUnit",
    ),
    "no-function": (unit("__slots__ = ()\ntdx_track = None"), "write `def tdx_track(...)`"),
    "new": (
        unit(f"__slots__ = ()\ndef __new__(cls, *args):\n    return 5\n{TRACK}"),
        "A.__new__ would decide what is made of a unit; leave it out",
    ),
    "base": ("class A:\n    base = 3\n", "A.base must be the name of a design"),
    "no-base": (
        f"{HEAD}\nclass A:\n    base = 'nosuch'\n    tdp_mmu = TdpMmu\n",
        "mine.py: A.base: no design is called 'nosuch'",
    ),
    "property": (
        unit("__slots__ = ()\n@property\ndef tdx_track(self):\n    return 3"),
        "A.tdx_track is a property, and what it overrides is a function",
    ),
    "yield": (
        unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    yield"),
        "line 8: A.tdx_track has a `yield`, so that a call of it does nothing",
    ),
    "async": (unit("__slots__ = ()\nasync def tdx_track(self, kvm): pass"), "is `async`, so that"),
    "clock": (
        unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    from time import sleep\n    sleep(1)"),
        "line 9: sleep of time does something else in every run",
    ),
    "threads": (
        unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    from threading import Thread"),
        "line 9: Thread of threading does something else in every run",
    ),
    "process": (
        "import os\n" + unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    os._exit(0)"),
        "line 10: os is about the process that runs the model, and not the model",
    ),
    "address": (
        unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    return id(kvm) > id(self)"),
        "line 9: id(): where an object is in memory differs from process to process",
    ),
    "hash": (
        unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    return hash('kvm') & 1"),
        "line 9: hash(): what it says of a text or an object differs",
    ),
    "its end": (
        unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    from os import _exit\n    _exit(0)"),
        "line 9: _exit of os is about the process that runs",
    ),
    "its end, imported before": (
        "from os import _exit\n" + unit("__slots__ = ()\ndef tdx_track(self, kvm): _exit(0)"),
        "line 9: _exit of posix is about the process that runs",
    ),
    "counted": (
        unit(
            "__slots__ = ()\ndef tdx_track(self, kvm):\n    for _ in range(3):\n"
            "        while kvm:\n            self.sim.retry('cpu_relax')\n"
            "        self.sim.retry('cpu_relax')"
        ),
        "line 12: sim.retry() says that nothing comes of another round",
    ),
    "counted down, in a field": (
        unit(
            "__slots__ = ()\ndef tdx_track(self, kvm):\n    while kvm.tries > 0:\n"
            "        kvm.tries = kvm.tries - 1\n        self.sim.retry('cpu_relax')"
        ),
        "line 11: sim.retry() says that nothing comes of another round",
    ),
    "dice": (
        unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    import random"),
        "line 9: random does something else in every run",
    ),
}


RESULTS = {
    "no return": ("x = 1", "may come to its end without a `return`, and"),
    "one way without": ("if args:\n    return 1", "may come to its end without"),
    "a loop that ends": ("while True:\n    break", "may come to its end without"),
    "an empty one": ("if args:\n    return\nreturn 0", "returns nothing in line 10, and"),
    "None": ("return None", "returns nothing in line 9, and"),
    "text": ("return 'no'", "returns 'no' in line 9, and what it overrides returns int"),
    "two numbers": ("return 0, 0", "returns (0, 0) in line 9, and"),
    "a number": ("return 0", ""),
    "what it does": ("return len(args)", ""),
    "both ways": ("if args:\n    return 1\nelse:\n    raise ValueError", ""),
    "a loop without end": ("while True:\n    if args:\n        return 1", ""),
    "a function in it": ("def no():\n    return None\nreturn 0", ""),
    "tried": ("try:\n    return 1\nexcept KeyError:\n    return 2", ""),
    "tried and left": ("try:\n    return 1\nexcept KeyError:\n    pass", "may come to its end"),
    "locked": ("with args[0]:\n    return 1", ""),
    "cases": ("match args:\n    case []:\n        return 1\n    case _:\n        return 2", ""),
    "too few cases": ("match args:\n    case []:\n        return 1", "may come to its end"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_what_an_override_surely_does_not_return_is_told(case: str, folder: Path) -> None:
    """A C compiler would: a function that returns int, and a body that does not."""
    lines, words = RESULTS[case]
    body = "".join(f"    {line}\n" for line in lines.splitlines())
    source = unit(f"__slots__ = ()\ndef tdx_sept_split_private_spte(self, *args):\n{body}")
    if not words:
        Path("mine.py").write_text(source)
        assert find_design("mine.py:A").kind == "user"
        return
    told = error_of(source)
    assert words in told and "line 8: A.tdx_sept_split_private_spte " in told


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_file_is_a_sentence_with_its_place(case: str, folder: Path) -> None:
    source, words = MISTAKES[case]
    assert words in error_of(source)


def test_a_retry_that_is_counted_in_a_variable_is_followed_until_it_gives_up(folder: Path) -> None:
    """Another round comes to nothing, and the last is the last."""
    body = """\
__slots__ = ()
def tdh_do_no_vcpus(self, tdh_func, kvm, *args):
    left = 3
    ret = tdh_func(*args)
    while ret[0] & 0xFFFFFFFF00000000 == 0x8000020000000000 and left:
        left = self.again(left)
        ret = tdh_func(*args)
    return ret
def again(self, left):
    self.sim.retry("cpu_relax")
    return left - 1
"""
    Path("mine.py").write_text(unit(body))
    subject = find_subject("accept-against-block", "mine.py:A")
    options = Options(strategy=Strategy.EXHAUSTIVE, preemptions=1, workers=1, shrink=False)
    (found,) = explore(subject, options).counterexamples
    assert "TDH_MEM_RANGE_BLOCK failed: 0x8000020000000001" in found.finding.text


def test_a_helper_that_resembles_a_kernel_function_is_no_typo_when_it_is_called(
    folder: Path,
) -> None:
    Path("mine.py").write_text(
        unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    self.tdx_track1(kvm)\n")
        + "    def tdx_track1(self, kvm):\n        super().tdx_track(kvm)\n"
    )
    assert find_design("mine.py:A").units().tdx.__name__ == "A"


def test_a_missing_file_or_design_says_what_there_is(folder: Path) -> None:
    with pytest.raises(InputError, match=r"none\.py: the file cannot be read"):
        find_design("none.py:A")
    with pytest.raises(InputError, match=r"did you mean v3\?.*PATH\.py:Class"):
        find_design("v33")


@pytest.mark.parametrize("name", ["Both.Split", "Both.tdx", "Made", "NoTrack"])
def test_a_class_is_found_again_by_the_name_of_the_design(name: str, folder: Path) -> None:
    """In another class, by another name, out of a function."""
    made = "\ndef make():\n    class Local(NoTrack):\n        __slots__ = ()\n    return Local\n"
    (folder / "mine.py").write_text(f"{NO_TRACK}{made}\nMade = make()\n")
    design = find_design(f"mine.py:{name}")
    assert design.name == f"mine.py:{name}"
    assert find_design(design.reference).name == design.name


@pytest.mark.parametrize("name", ["Both.", "Both.module.seamcall", "Both.Splt", ".Both", "Both..x"])
def test_a_class_in_another_that_is_not_there(name: str, folder: Path) -> None:
    (folder / "mine.py").write_text(NO_TRACK)
    with pytest.raises(InputError, match=f"has no class '{name}'; there is NoTrack, Loud, Both"):
        find_design(f"mine.py:{name}")


def test_no_file_is_blamed_for_an_error_that_is_not_its_own(folder: Path) -> None:
    (folder / "mine.py").write_text(NO_TRACK)
    find_design("mine.py:NoTrack")
    try:
        raise ValueError("another")
    except ValueError as error:
        assert blame(error) == ""


def test_explore_breaks_it_and_the_token_knows_the_file(tmp_path: Path) -> None:
    """The verdict, its token, and the token of a file that has changed or gone since."""
    mine = tmp_path / "mine.py"
    mine.write_text(NO_TRACK)
    args = ("explore", "convert-against-fault", "--design", "mine.py:NoTrack", "--report", "out")
    done = septum(*args, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("BROKEN: convert-against-fault on mine.py:NoTrack")
    text = (tmp_path / "out" / "convert-against-fault.json").read_text()
    token = next(word for word in text.split('"') if word.startswith("septum1."))
    again = septum("replay", token, cwd=tmp_path)
    assert again.returncode == 1, again.stderr
    assert "(mine.py:NoTrack, list)" in again.stdout
    mine.write_text(NO_TRACK + "\n")
    changed = septum("replay", token, cwd=tmp_path)
    assert changed.returncode == 2
    assert "mine.py is not the file that the token was made with" in changed.stderr
    mine.unlink()
    gone = septum("replay", token, cwd=tmp_path)
    assert gone.returncode == 2
    assert "the token was made with a design in it" in gone.stderr


def test_a_boot_and_a_scenario_run_on_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NO_TRACK)
    (tmp_path / "own.fd").write_bytes(synthetic_tdvf())
    small = ("--firmware", "own.fd", "--memory", "512M", "--vcpus", "2", "--check", "end")
    boot = septum("run", "--design", "mine.py:NoTrack", *small, "--json", cwd=tmp_path)
    assert boot.returncode == 1, boot.stderr
    assert json.loads(boot.stdout)["design"] == "mine.py:NoTrack"
    one = septum("run", "convert-one-page", "--design", "mine.py:Both", cwd=tmp_path)
    assert one.returncode == 1, one.stderr
    assert "(mine.py:Both, round-robin)" in one.stdout


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_design_that_raises_is_told_by_its_line(workers: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        unit("__slots__ = ()\ndef tdx_track(self, kvm):\n    kvm.nothing()")
    )
    args = ("explore", "convert-one-page", "--design", "mine.py:A", "--workers", workers)
    done = septum(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("septum: mine.py, line 9, in tdx_track: AttributeError: ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_result_that_is_forgotten_is_told_by_the_function_that_should_give_it(
    workers: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has returned when something goes wrong: no function of the file is on the stack."""
    lines = ("def tdh_do_no_vcpus(self, *args):", "    return self.put(*args)")
    forgets = ("def put(self, *args):", "    super().tdh_do_no_vcpus(*args)")
    source = unit("\n".join(("__slots__ = ()", *lines, *forgets)))
    # Another class of the file has that function, too, and has nothing to do with it.
    Path("mine.py").write_text(source + source.partition("\n\n")[2].replace("class A", "class Z"))
    command = ("explore", "convert-one-page", "--design", "mine.py:A", "--workers", workers)
    monkeypatch.setattr(sys, "argv", ["septum", *command])
    assert run_command() == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("septum: mine.py, line 8, in tdh_do_no_vcpus: ")
    assert "calls it, and then fails (TypeError: cannot unpack non-iterable NoneType" in line


def test_a_unit_that_is_not_whole_is_told_where_it_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = ("def __init__(self, *args):", "    super().__init__(*args)", "    self.sim = None")
    Path("mine.py").write_text(unit("\n".join(("__slots__ = ()", *lines, *TRACK.splitlines()))))
    monkeypatch.setattr(sys, "argv", ["septum", "run", "convert-one-page", "--design", "mine.py:A"])
    assert run_command() == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("septum: mine.py:A: the model raises AttributeError: ")
    assert "at `if self.sim.tracing" in line


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_a_file_is_read_in_the_encoding_that_it_says(encoding: str, folder: Path) -> None:
    said = f"# -*- coding: {encoding} -*-\n" if encoding == "latin-1" else ""
    Path("mine.py").write_bytes((said + NO_TRACK + "# für\n").encode(encoding))
    design = find_design("mine.py:NoTrack")
    source = own_source(design)
    assert source.endswith("# für\n") and "\ufeff" not in source


@pytest.mark.parametrize("doc", ["5", "''", "'  '", "None"])
def test_a_design_without_a_word_of_its_own_has_one(doc: str, folder: Path) -> None:
    Path("mine.py").write_text(unit(f"__slots__ = ()\n__doc__ = {doc}\n{TRACK}"))
    assert find_design("mine.py:A").summary == "a design of your own"


LEAVES = {
    "exit": ("sys.exit(0)", "SystemExit: 0"),
    "exit with a word": ("sys.exit('bye')", "SystemExit: bye"),
    "generator": ("raise GeneratorExit", "GeneratorExit"),
    "greenlet": ("raise greenlet.GreenletExit", "GreenletExit"),
    "base": ("raise BaseException", "BaseException"),
    "as by Ctrl-C": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "own": ("raise type('Foo', (BaseException,), {})(3)", "Foo(3)"),
    "pipe": ("raise BrokenPipeError", "BrokenPipeError"),
}


@pytest.mark.parametrize("case", LEAVES)
@pytest.mark.parametrize(
    "command",
    [
        ("run", "convert-one-page", "--design", "mine.py:A"),
        ("explore", "convert-one-page", "--design", "mine.py:A", "--workers", "1"),
        ("explore", "convert-one-page", "--design", "mine.py:A", "--workers", "2"),
    ],
    ids=lambda words: "-".join(words[::4]),
)
def test_a_design_that_leaves_ends_no_command_without_a_word(
    case: str,
    command: tuple[str, ...],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Who reads the exit code alone would take 0 for a scenario that held."""
    line, words = LEAVES[case]
    source = unit(f"__slots__ = ()\ndef tdx_track(self, kvm):\n    {line}")
    Path("mine.py").write_text(f"import greenlet, sys\n{source}")
    monkeypatch.setattr(sys, "argv", ["septum", *command])
    assert run_command() == 2
    told = capfd.readouterr()
    assert not told.out
    assert told.err == (
        f"septum: mine.py, line 10, in tdx_track: {words}; a design that raises has no verdict\n"
    )


@pytest.mark.parametrize("command", ["run", "explore"])
def test_ctrl_c_while_a_design_is_at_work_is_an_interrupt(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Who was started in the background of a shell inherits that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    line = "signal.raise_signal(signal.SIGINT)"
    source = unit(f"__slots__ = ()\ndef tdx_track(self, kvm):\n    {line}")
    Path("mine.py").write_text(f"import signal\n{source}")
    words = [command, "convert-one-page", "--design", "mine.py:A"]
    monkeypatch.setattr(sys, "argv", ["septum", *words])
    try:
        assert run_command() == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "septum: interrupted\n"


def test_a_design_that_leaves_while_it_is_built_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing runs yet that a scheduler could look after."""
    Path("mine.py").write_text(
        unit(f"__slots__ = ()\ndef __init__(self, *args):\n    exit(0)\n{TRACK}")
    )
    monkeypatch.setattr(sys, "argv", ["septum", "run", "convert-one-page", "--design", "mine.py:A"])
    assert run_command() == 2
    assert "mine.py, line 9, in __init__: SystemExit: 0;" in capfd.readouterr().err


def test_the_list_of_designs_is_grouped_and_fits(tmp_path: Path) -> None:
    done = septum("designs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Bases: ")
    assert max(map(len, lines)) <= 80
    base = septum("designs", "--kind", "base", "--json", cwd=tmp_path)
    assert '"schema": "septum.designs/1"' in base.stdout
    wrong = septum("designs", "--kind", "best", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "choose from base, ablation, proposal, seeded-bug" in wrong.stderr
