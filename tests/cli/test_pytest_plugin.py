"""The pytest plugin: the examples of docs/pytest.md, files, errors, and what it must not do."""

import re
from pathlib import Path

import pytest

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
    """pytest in a process of its own, as a user has it."""
    return pytester.runpytest_subprocess(*PLUGIN, *args)


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
    run(pytester).assert_outcomes(passed=1)


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
