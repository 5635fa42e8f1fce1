"""The kill table: is each check of the module missed when it is gone?

`python -m septum.conform.mutate` turns the checks off one by one (`mutants`) and asks every judge:
the facts' tables, single refusals, the recorded transcripts where there are any, and a short fuzz
run with the invariants.
Exit code 1 when a check's absence goes unnoticed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from typing import TYPE_CHECKING

import msgspec

from septum.conform.fuzz import fuzz_module
from septum.conform.judges import (
    agrees_with_transcripts,
    load_transcripts,
    refusals_hold,
    tables_hold,
)
from septum.conform.mutants import Applied, Mutant, all_mutants
from septum.conform.transcript import find_transcripts
from septum.json_text import json_text

if TYPE_CHECKING:
    from types import FrameType

COLUMNS = ("tables", "refusals", "transcripts", "fuzz")
"""Of the table."""
JUDGES = COLUMNS
"""Who is asked."""
FUZZ_CALLS = 20_000
FUZZ_SEED = 1
TIME_LIMIT_S = 60

_FATAL = "nothing makes TDR.FATAL true in this model"
_SAME = "the operand's own check refuses the same values with the same status"
EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("common", "check_state", "td.fatal"): _FATAL,
    ("mng", "tdh_mng_addcx", "td.fatal"): _FATAL,
    ("mng", "tdh_mng_key_config", "td.fatal"): _FATAL,
    ("mem_demote", "tdh_mem_page_demote", "rdx & TDR_FLAGS_RESERVED"): _SAME,
    ("mem_sept", "tdh_mem_sept_add", "rdx & TDR_FLAGS_RESERVED"): _SAME,
    ("vp_enter", "enter", "rcx & VCPU_FLAGS_RESERVED"): _SAME,
    ("mng_init", "_xfam_valid", "avx3[0] and (not xfam & XFAM_AVX)"): (
        "the modelled processors have no AVX-512, so XFAM was refused before"
    ),
    ("mr", "tdh_mr_extend", "entry & STATE_MASK != STATE_MAPPED"): (
        "only entry states of migration get there"
    ),
}
"""(file, function, test) -> why turning this check off changes nothing that can be seen."""


class Verdict(msgspec.Struct, frozen=True):
    """One mutant and who noticed: judge -> what it saw first (empty: nothing)."""

    file: str
    line: int
    function: str
    test: str
    noticed: dict[str, str]
    equivalent: str = ""

    @property
    def killed(self) -> bool:
        """Some judge noticed."""
        return any(self.noticed.values())


class _TimeUp(Exception):
    """A judge ran for too long: the mutant hangs."""


def _time_up(_signal: int, _frame: FrameType | None) -> None:
    raise _TimeUp


def judge_fuzz() -> str:
    """The first thing that a short fuzz run finds broken."""
    report = fuzz_module(FUZZ_CALLS, FUZZ_SEED, sweep_every=200)
    return report.broken[0] if report.broken else ""


def judge(mutant: Mutant, judges: tuple[str, ...], *, first_only: bool) -> Verdict:
    """Ask each judge about the module with `mutant` applied."""
    functions = {
        "tables": tables_hold,
        "refusals": refusals_hold,
        "transcripts": agrees_with_transcripts,
        "fuzz": judge_fuzz,
    }
    noticed: dict[str, str] = {}
    with Applied(mutant):
        for name in judges:
            signal.signal(signal.SIGALRM, _time_up)
            signal.alarm(TIME_LIMIT_S)
            try:
                noticed[name] = functions[name]()
            except Exception as error:
                noticed[name] = f"{type(error).__name__}: {error}"
            finally:
                signal.alarm(0)
            if first_only and noticed[name]:
                break
    key = mutant.file, mutant.function, mutant.test
    return Verdict(
        mutant.file, mutant.line, mutant.function, mutant.test, noticed, EQUIVALENT.get(key, "")
    )


def _judge_one(work: tuple[Mutant, tuple[str, ...], bool]) -> Verdict:
    mutant, judges, first_only = work
    return judge(mutant, judges, first_only=first_only)


def render_kill_table(verdicts: list[Verdict]) -> str:
    """The table as text of at most 80 columns."""
    lines = [f"{'check turned off':48}{'tables':>7}{'refuse':>8}{'record':>8}{'fuzz':>7}"]
    for verdict in verdicts:
        where = f"{verdict.file}.py:{verdict.line} {verdict.function}"
        marks = [
            "-" if name not in verdict.noticed else "x" if verdict.noticed[name] else "."
            for name in COLUMNS
        ]
        lines.append(f"{where[:47]:48}{marks[0]:>7}{marks[1]:>8}{marks[2]:>8}{marks[3]:>7}")
        lines.append(f"    {verdict.test[:72]}")
        if not verdict.killed:
            lines.append(f"    SURVIVES{': ' + verdict.equivalent if verdict.equivalent else ''}")
    killed = sum(v.killed for v in verdicts)
    explained = sum(not v.killed and bool(v.equivalent) for v in verdicts)
    lines += [
        "",
        "x noticed, . not noticed, - not asked",
        f"{killed} of {len(verdicts)} noticed; {explained} of the rest cannot be noticed",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="septum.conform.mutate", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--every", type=int, default=1, help="only every Nth check")
    parser.add_argument("--only", default="", help="only checks whose file or function has this")
    parser.add_argument("--first", action="store_true", help="stop at the first judge that notices")
    parser.add_argument("--json", action="store_true", help="the verdicts as JSON on stdout")
    options = parser.parse_args(argv)
    files = find_transcripts(os.environ)
    load_transcripts(files)
    judges = JUDGES if files else tuple(j for j in JUDGES if j != "transcripts")
    mutants = [m for m in all_mutants() if options.only in f"{m.file}.{m.function}"]
    work = [(m, judges, options.first) for m in mutants[:: options.every]]
    verdicts = []
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for done, verdict in enumerate(pool.imap(_judge_one, work), 1):
            verdicts.append(verdict)
            print(f"\r{done} of {len(work)} checks", end="", file=sys.stderr)
    print(file=sys.stderr)
    if options.json:
        print(json_text(verdicts))
    else:
        print(render_kill_table(verdicts), end="")
    return 0 if all(v.killed or v.equivalent for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
