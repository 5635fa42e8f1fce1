"""The pytest plugin: the examples of docs/pytest.md, files, errors, and what it must not do."""

import re
from pathlib import Path

import pytest
from processes import forked

import septum.explore.testing  # noqa: F401  (what the plugin imports at its first test)

pytest_plugins = ["pytester"]

DOC = Path(__file__).resolve().parents[2] / "docs" / "pytest.md"
PLUGIN = (
    "-p",
    "pytest_septum",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-p",
    "no:hypothesispytest",
)
SCENARIO = """\
summary = "A guest accepts a page and uses it."
source = "tests"

[guest]
vcpu0 = ["accept 4K page 0", "write page 0", "verify page 0"]
"""


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """pytest in a process of its own, which has all that this one has imported."""
    code, out, err = forked(lambda: int(pytest.main([*PLUGIN, *args])), pytester.path)
    return pytest.RunResult(code, out.splitlines(), err.splitlines(), 0.0)


def test_the_examples_of_the_document(pytester: pytest.Pytester) -> None:
    """Every test passes but the one of which the document says that it fails."""
    pytester.makepyfile("\n\n".join(re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)))
    done = run(pytester, "-v")
    done.assert_outcomes(passed=3, failed=1)
    done.stdout.fnmatch_lines(
        [
            "*test_conversion_splits[[]v3] PASSED*",
            "*test_conversion_splits[[]v3-without-08] FAILED*",
            "BROKEN: promise no-bug in scenario*",
            "Cause: KVM_BUG_ON*",
            "Again: *septum replay*",
        ]
    )
    assert "Traceback" not in done.stdout.str()
    assert "pytest_septum" not in done.stdout.str()


def test_scenario_files_on_several_designs(pytester: pytest.Pytester) -> None:
    (pytester.path / "mine.toml").write_text(SCENARIO)
    (pytester.path / "wrong.toml").write_text('summary = "x"\n[guest\n')
    options = ("--septum-strategy", "exhaustive", "--septum-preemptions", "1", "-v")
    designs = ("--septum-designs", "v3,v3-without-09")
    done = run(pytester, "mine.toml", "wrong.toml", *designs, *options)
    done.assert_outcomes(passed=2, failed=2)
    done.stdout.fnmatch_lines(["*mine.toml::v3 PASSED*", "*mine.toml::v3-without-09 PASSED*"])
    done.stdout.fnmatch_lines(["septum: *wrong.toml*at line 2*"])
    assert "another exception" not in done.stdout.str()


def test_a_folder_with_scenarios_is_left_alone(pytester: pytest.Pytester) -> None:
    (pytester.path / "mine.toml").write_text(SCENARIO)
    (pytester.path / "other.toml").write_text("[tool]\nx = 1\n")
    assert run(pytester, ".").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert run(pytester, "other.toml").ret == pytest.ExitCode.USAGE_ERROR


def test_what_is_wrong_is_one_sentence(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.septum("nonsense")
        def test_unknown(): pass

        @pytest.mark.septum("accept-level-b", preemption=1)
        def test_misspelt(): pass

        @pytest.mark.septum("hugetlb-fault-race", schedules=1)
        def test_without_an_answer(septum_explore):
            septum_explore()
        """
    )
    done = run(pytester)
    done.assert_outcomes(failed=3)
    done.stdout.fnmatch_lines(
        [
            "septum: no scenario is called 'nonsense'*",
            "septum: unknown preemption;*",
            "UNDETERMINED*",
        ]
    )


def test_other_test_runs_do_not_notice(pytester: pytest.Pytester) -> None:
    """Nothing of Septum, and nothing that it depends on, is imported for a test of others."""
    pytester.makepyfile(
        """
        import sys

        def test_lean():
            loaded = {name.partition(".")[0] for name in sys.modules}
            assert "pytest_septum" in loaded
            assert not loaded & {"septum", "greenlet", "msgspec", "typer"}
        """
    )
    pytester.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=1)


LEAVES = """\
import sys
from septum.linux.kvm.tdx import KvmTdxUnit


class Leaves(KvmTdxUnit):
    __slots__ = ()

    def tdx_track(self, kvm):
        sys.exit(0)
"""


def test_a_design_that_leaves_fails_its_test_and_no_other(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mine=LEAVES)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.septum("convert-one-page", designs=["mine.py:Leaves", "v3"])
        def test_it():
            pass
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*septum: mine.py, line 9, in tdx_track: SystemExit: 0;*"])
    result.stdout.no_fnmatch_line("*Traceback*")


WRONG = {
    'preemptions="2"': "preemptions='2': give a whole number, as in preemptions=2",
    "failures=True": "failures=True: give a whole number",
    'seed="x"': "seed='x': give a whole number",
    "seed=1.5": "seed=1.5: give a whole number",
    'time_s="x"': "time_s='x': give a number of seconds, as in time_s=60",
    "strategy=5": "strategy=5: give its name",
    "fail=5": "fail=5: give a list of names, as in fail=*",
    'fail="alloc:nosuch"': "--fail 'alloc:nosuch' is no choice point of the model*",
    '"busy-once"': "'busy-once' stands after the scenario; one test is of one scenario*",
    'designs="nosuch"': "no design is called 'nosuch'*",
}
"""What a marker may say that cannot be meant, and what is said of it."""


def test_what_cannot_be_meant_is_one_sentence(pytester: pytest.Pytester) -> None:
    tests = [
        f'@pytest.mark.septum("accept-level-b", {text})\ndef test_{number}(): pass\n'
        for number, text in enumerate(WRONG)
    ]
    pytester.makepyfile("import pytest\n\n" + "\n".join(tests))
    done = run(pytester)
    done.assert_outcomes(failed=len(WRONG))
    for sentence in WRONG.values():
        done.stdout.fnmatch_lines([f"septum: {sentence}".replace("['", "[[]'") + "*"])
    assert "Traceback" not in done.stdout.str() and "Error:" not in done.stdout.str()


@pytest.mark.parametrize("number", ["5", "[5]", "'x' * 300"])
def test_a_scenario_that_is_none_is_one_sentence(number: str, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.septum({number})\ndef test_it(): pass\n"
        f"def test_call(septum_explore): septum_explore({number})\n"
    )
    done = run(pytester)
    done.assert_outcomes(failed=2)
    assert done.stdout.str().count("\nseptum: ") == 2
    assert "Traceback" not in done.stdout.str()


def test_a_test_of_no_design_is_not_skipped(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        'import pytest\n@pytest.mark.septum("accept-level-b", designs=[])\ndef test_it(): pass\n'
    )
    for options in ((), ("--septum-designs", ",")):
        done = run(pytester, *options)
        done.assert_outcomes(errors=1)
        done.stdout.fnmatch_lines(["septum: designs=*: the test would be of nothing; name a desi*"])


def test_one_name_may_stand_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.septum(
            "accept-level-b", designs="v3-without-09", fail="need_resched", preemptions=0
        )
        def test_it(septum_design):
            assert septum_design == "v3-without-09"
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_a_file_that_no_reader_can_take_is_one_sentence(pytester: pytest.Pytester) -> None:
    (pytester.path / "deep.toml").write_text("x = " + "[" * 20_000)
    done = run(pytester, "deep.toml")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["septum: *deep.toml: this is not TOML*nested too deeply*"])
