"""KTAP, held to Documentation/dev-tools/ktap.rst by a parser written from it alone."""

import re
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from septum.cli.run import boot_case
from septum.cli.scenario import run_one
from septum.explore.command import explore_command
from septum.explore.wanted import Wanted
from septum.report.ktap import Case, ktap_lines
from septum.report.result import RunResult

RESULT = re.compile(
    r"(?P<result>ok|not ok) (?P<number>\d+)(?: (?P<name>[^#]*?))?(?: # ?(?P<said>.*))?"
)
DIRECTIVES = ("SKIP", "TODO", "XFAIL", "TIMEOUT", "ERROR")


class Result(NamedTuple):
    """A parsed test."""

    ok: bool
    name: str
    directive: str
    data: str
    diagnostics: list[str]
    subtests: list["Result"]


def parse(lines: list[str], indent: str = "") -> list[Result]:
    """The tests of one level; takes its lines off the front of `lines`. Raises ValueError."""
    if not lines or lines.pop(0) != f"{indent}KTAP version 1":
        raise ValueError("results begin with a version line")
    plan = re.fullmatch(rf"{indent}1\.\.(\d+)", lines.pop(0))
    if plan is None:
        raise ValueError("a plan follows the version")
    results: list[Result] = []
    diagnostics: list[str] = []
    subtests: list[Result] = []
    while len(results) < int(plan[1]):
        if not lines:
            raise ValueError("fewer results than planned")
        line = lines[0]
        if line == f"{indent}  KTAP version 1":
            subtests = parse(lines, indent + "  ")
            continue
        lines.pop(0)
        if not line.startswith(indent):
            raise ValueError(f"not indented: {line}")
        line = line.removeprefix(indent)
        if line.startswith("#"):
            diagnostics.append(line[2:])
            continue
        match = RESULT.fullmatch(line)
        if match is None:
            raise ValueError(f"no line of KTAP: {line}")
        if int(match["number"]) != len(results) + 1:
            raise ValueError("numbers begin with 1 and increase by 1")
        word, _, rest = (match["said"] or "").partition(" ")
        directive, data = (word, rest) if word in DIRECTIVES else ("", match["said"] or "")
        ok = match["result"] == "ok"
        if directive in ("TIMEOUT", "ERROR") and ok:
            raise ValueError(f"{directive} is not ok")
        if ok and not all(test.ok for test in subtests):
            raise ValueError("a test fails if any of its subtests fail")
        name = match["name"] or ""
        results.append(Result(ok, name, directive, data, diagnostics, subtests))
        diagnostics, subtests = [], []
    return results


def whole(text: str) -> list[Result]:
    lines = text.splitlines()
    results = parse(lines)
    assert lines == []
    return results


# From whole runs


def test_a_scenario_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_one(
        "accept-level-b", design="v3", schedule="round-robin", seed=0, check="quiet", trace=None,
        as_json=False, ktap=True,
    )  # fmt: skip
    (test,) = whole(capsys.readouterr().out)
    assert (code, test.ok, test.name) == (0, True, "accept-level-b:v3")
    names = [subtest.name for subtest in test.subtests]
    assert {"mirror", "guest-data", "expectations"} <= set(names)


def test_what_a_scenario_foresees_is_xfail(capsys: pytest.CaptureFixture[str]) -> None:
    run_one(
        "finding-demote-busy-dpamt", design="v3", schedule="round-robin", seed=0, check="quiet",
        trace=None, as_json=False, ktap=True,
    )  # fmt: skip
    (test,) = whole(capsys.readouterr().out)
    broken = {subtest.name: subtest for subtest in test.subtests if subtest.directive}
    assert {"no-bug", "mapping-in-folio", "teardown"} == set(broken)
    assert all(subtest.ok and subtest.directive == "XFAIL" for subtest in broken.values())
    assert "KVM_BUG_ON" in broken["no-bug"].data


def test_a_search_that_finds_and_one_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    code = explore_command(["convert-one-page"], Wanted(design="v3-without-08", ktap=True))
    (test,) = whole(capsys.readouterr().out)
    assert (code, test.ok) == (1, False)
    (broken,) = [subtest for subtest in test.subtests if not subtest.ok]
    assert broken.name == "no-bug"
    # The search ended with that: of the others it says nothing.
    others = [subtest for subtest in test.subtests if subtest is not broken]
    assert others and {(s.directive, s.data) for s in others} == {
        ("SKIP", "not looked at after that")
    }
    assert any("Cause: " in line for line in broken.diagnostics)
    wanted = Wanted(strategy="exhaustive", preemptions=0, ktap=True)
    assert explore_command(["accept-level-b"], wanted) == 0
    (test,) = whole(capsys.readouterr().out)
    assert test.ok
    assert all(subtest.ok and not subtest.directive for subtest in test.subtests)


def test_what_a_search_breaks_as_foreseen_is_xfail(capsys: pytest.CaptureFixture[str]) -> None:
    assert explore_command(["finding-attributes-late"], Wanted(preemptions=1, ktap=True)) == 0
    (test,) = whole(capsys.readouterr().out)
    broken = {subtest.name: subtest for subtest in test.subtests if subtest.directive}
    assert set(broken) == {"mapping-in-folio", "private-unreachable"}
    assert all(subtest.ok and subtest.directive == "XFAIL" for subtest in broken.values())
    assert "the 4K leaf" in broken["mapping-in-folio"].data


def test_a_search_without_an_answer_is_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = Wanted(schedules=1, strategy="random", ktap=True)
    assert explore_command(["hugetlb-fault-race"], wanted) == 3
    (test,) = whole(capsys.readouterr().out)
    assert (test.ok, test.directive) == (False, "TIMEOUT")


def test_a_boot(held: RunResult, broken: RunResult) -> None:
    (test,) = whole("\n".join(ktap_lines([boot_case(held)])))
    assert test.ok and len(test.subtests) == len(held.promises)
    assert any("septum replay septum1." in line for line in test.diagnostics)
    (test,) = whole("\n".join(ktap_lines([boot_case(broken)])))
    assert not test.ok
    assert {t.name for t in test.subtests if not t.ok} == {
        promise.name for promise in broken.promises if promise.nr_broken
    }


# Any tree of tests

WORDS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20)
# What is said of a test begins with no word that says more than that.
SAID = WORDS.filter(lambda text: not text.strip().startswith(DIRECTIVES))
LEAVES = st.builds(Case, WORDS, st.booleans(), st.just(""), SAID, st.lists(WORDS, max_size=2))
CASES = st.recursive(
    st.lists(LEAVES, min_size=1, max_size=3),
    lambda below: st.lists(
        st.builds(Case, WORDS, st.booleans(), subtests=below), min_size=1, max_size=3
    ),
    max_leaves=12,
)


@given(CASES)
def test_any_tree_reads_back(cases: list[Case]) -> None:
    assert shape_of_results(whole("\n".join(ktap_lines(cases)))) == shape(cases)


def shape(cases: list[Case]) -> list[object]:
    return [
        (case.passed, " ".join(case.name.replace("#", "").split()), shape(list(case.subtests)))
        for case in cases
    ]


def shape_of_results(results: list[Result]) -> list[object]:
    return [(test.ok, test.name.strip(), shape_of_results(test.subtests)) for test in results]


@pytest.mark.parametrize(
    "text",
    [
        "1..1\nok 1 a",
        "KTAP version 1\n1..2\nok 1 a",
        "KTAP version 1\n1..1\nok 2 a",
        "KTAP version 1\n1..1\nok 1 a # TIMEOUT",
        "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  not ok 1 b\nok 1 a",
        "KTAP version 1\n1..1\npassed 1 a",
    ],
)
def test_the_parser_refuses_what_the_specification_does(text: str) -> None:
    with pytest.raises(ValueError, match=r"version|plan|increase|TIMEOUT|subtests|no line"):
        whole(text)
