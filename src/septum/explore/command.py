"""`septum explore`: what the command line calls."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

import msgspec

from septum.codes import BROKEN, INTERRUPTED, OK, UNDETERMINED
from septum.designs.own import is_own, own_file, unsteady_text
from septum.designs.registry import V3
from septum.errors import InputError
from septum.explore.api import Search
from septum.explore.artefacts import Artefacts, names_of, stem_of
from septum.explore.covering.covered import coverage_lines, summary
from septum.explore.ktap import verdict_case
from septum.explore.replay import find_subject
from septum.explore.reproduce import command_lines
from septum.explore.runs.run import DidNotRepeat
from septum.explore.steady import check_steady
from septum.explore.stories.story import heading
from septum.explore.stories.telling import tell
from septum.explore.verdict import Outcome, Verdict, bounds_text
from septum.explore.wanted import Wanted
from septum.explore.watch import watching
from septum.outputs import ReportFolder, check_outputs
from septum.report.ktap import Case, ktap_lines
from septum.scenarios.blamed import left_behind
from septum.scenarios.run import scenario_file, undisturbed
from septum.sigterm import sigterm_interrupts
from septum.stdout import read_or_not
from septum.words import WIDTH, count_text, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from septum.explore.runs.run import Runner
    from septum.explore.subject import Options, Subject

SCHEMA = "septum-explore-1"
LATE = "promises were looked at when the programs had ended; --check every-step looks at each step"
_SEVERITY = (BROKEN, INTERRUPTED, UNDETERMINED, OK)


class ExploreReport(msgspec.Struct):
    """What --json prints."""

    schema: str
    verdicts: list[Verdict]


def explore_command(names: Sequence[str], wanted: Wanted) -> int:
    """Explore scenarios one after the other; returns the exit code of the worst verdict.

    Raises InputError before anything is searched: for unknown names and values, and for files that
    cannot be written.
    """
    asked = _asked(names, wanted)
    with sigterm_interrupts():
        return _explore(asked, wanted)


def _explore(asked: Sequence[tuple[str, Subject, Options]], wanted: Wanted) -> int:
    """Explore what was asked for, and tell it; returns the exit code."""
    artefacts = Artefacts(wanted.report, wanted.emit_test, wanted.page)
    verdicts: list[Verdict] = []
    cases: list[Case] = []
    codes = set()
    defects: list[Exception] = []
    try:
        for name, subject, options in asked:
            verdict, told = _searched(name, subject, options, wanted, defects)
            verdicts.append(verdict)
            cases.append(verdict_case(verdict, told))
            try:
                if not (wanted.as_json or wanted.ktap):
                    with read_or_not():
                        _print(verdict, told, wanted)
            finally:
                # A disk may be full: what was found is kept all the same.
                artefacts.add(verdict, told, name, wanted.check, options)
            if verdict.interrupted:
                break
    except KeyboardInterrupt:
        # What was found before is told all the same.
        print("septum: interrupted", file=sys.stderr)
        codes.add(INTERRUPTED)
    with read_or_not():
        if wanted.as_json:
            sys.stdout.buffer.write(msgspec.json.encode(ExploreReport(SCHEMA, verdicts)) + b"\n")
            sys.stdout.flush()
        if wanted.ktap:
            print("\n".join(ktap_lines(cases)))
    if artefacts.failed:
        raise InputError(artefacts.failed)
    if defects:
        raise defects[0]
    codes |= {verdict.exit_code() for verdict in verdicts}
    return next((code for code in _SEVERITY if code in codes), 0)


def _asked(names: Sequence[str], wanted: Wanted) -> list[tuple[str, Subject, Options]]:
    """What is to be searched, and how: (name as the user gave it, subject, options).

    Raises InputError for what cannot be meant, and for files that would be written over others.
    """
    if not all(text.strip() for text in wanted.ignore):
        raise InputError("--ignore '': that is a part of every finding; give more of its text")
    if wanted.as_json and wanted.ktap:
        raise InputError("--json and --ktap both write to stdout: give one of them")
    asked = []
    for name in names:
        subject = find_subject(name, wanted.design, wanted.check, wanted.fail, wanted.ignore)
        asked.append((name, subject, wanted.options(subject)))
    inputs = [*map(scenario_file, names), own_file(wanted.design)]
    stems = [stem_of(subject.name) for _, subject, _ in asked]
    check_outputs(
        [("--emit-test", wanted.emit_test)],
        inputs,
        ReportFolder(wanted.report, [name for stem in stems for name in names_of(stem)]),
    )
    return asked


def _print(verdict: Verdict, told: Sequence[Sequence[str]], wanted: Wanted) -> None:
    print("\n".join(verdict_lines(verdict, wanted.check)))
    for story in told:
        print()
        print("\n".join(story))
    if wanted.coverage:
        print()
        print("\n".join(coverage_lines(verdict)))


def _searched(
    name: str, subject: Subject, options: Options, wanted: Wanted, defects: list[Exception]
) -> tuple[Verdict, list[list[str]]]:
    """The verdict, and the stories of what broke, with `defects` of those that could not be told.
    Raises InputError for a user's design that does
    not do the same whenever its schedule is the same, or leaves what the model cannot read."""
    with left_behind(subject.design, undisturbed(name, wanted.check)):
        if is_own(subject.design):
            check_steady(subject, options)
        search = Search(subject, options)
        search.start()
        try:
            with watching(search.progress, wanted=wanted.watch):
                verdict = search.run()
            how = command_lines(name, verdict.design, wanted.check, options)
            return verdict, stories(verdict, search.runner, how, defects)
        except DidNotRepeat:
            if not is_own(subject.design):
                raise
            raise InputError(unsteady_text(subject.design)) from None


def verdict_lines(verdict: Verdict, check: str = "quiet") -> list[str]:
    """The verdict of a search that looked at promises as `check` says, in a few lines."""
    word = verdict.outcome.value.upper()
    if verdict.outcome is Outcome.HELD and verdict.foreseen:
        word = "AS FORESEEN"
    elif verdict.outcome is Outcome.BROKEN and not verdict.counterexamples:
        word = "NOT AS EXPECTED"
    on = f" on {verdict.design}" if verdict.design else ""
    counts = ", ".join(
        plural(count, noun)
        for count, noun in (
            (verdict.schedules, "schedule"),
            (verdict.states, "state"),
            (verdict.steps, "step"),
        )
    )
    said = [
        verdict.why,
        f"{bounds_text(verdict)}, by {verdict.strategy}",
        f"{counts} in {verdict.seconds:.1f} s",
    ]
    if verdict.drawn:
        drawn = ", ".join(f"{count_text(count)} by {name}" for name, count in verdict.drawn.items())
        said.append(f"random schedules: {drawn}")
    if verdict.outcome is not Outcome.BROKEN and verdict.design and check == "end":
        said.append(LATE)
    said += [f"breaks, as the scenario says of v3: {text}" for text in verdict.foreseen]
    if verdict.foreseen and verdict.design != V3.name:
        said.append(
            f"whether {verdict.design} adds a cause of its own is not told apart: search a scenario"
            " without that in its `may-break` and `broken`"
        )
    if verdict.unbroken:
        text = "did not break here, though the scenario says so of v3: "
        said.append(text + "; ".join(verdict.unbroken))
    said += [f"breaks, and is ignored: {text}" for text in verdict.ignored]
    # A search that ended with what it found was not there to reach all.
    ended_early = verdict.outcome is Outcome.BROKEN and not verdict.complete
    if verdict.missing_witnesses and not ended_early:
        said.append(f"never reached: {', '.join(verdict.missing_witnesses)}")
    if verdict.outcome is not Outcome.BROKEN and verdict.coverage:
        said.append(summary(verdict.coverage))
    lines = [f"{word}: {verdict.subject}{on} (seed {verdict.seed})"]
    for text in said:
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


def stories(
    verdict: Verdict, runner: Runner, how: list[str], defects: list[Exception] | None = None
) -> list[list[str]]:
    """The story of each counterexample, as lines of 80 columns, in the world of `runner`; `how`
    are the commands at its end (see `reproduce.command_lines`). `defects` are those of `tell`."""
    told = []
    for example in verdict.counterexamples:
        said = heading(example.finding, verdict.subject, verdict.design, verdict.seed)
        told.append([*tell(runner, example, said, defects=defects), "", *how])
    return told
