"""Where docs/findings.md has its tokens from: `python -m septum.scenarios.findings [FILE]`.

A token stands for a schedule of this version of the model. When a scenario or a scheduling point
changes, this looks the schedules up again and writes them into the file.
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from septum.errors import InputError
from septum.scenarios.run import load_scenario, run_scenario
from septum.sim import ListSchedule, RoundRobin, Schedule, decode_token

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from septum.scenarios.outcome import ScenarioOutcome

PREEMPT_WITHIN = 120
NEAR = 5


class Finding(msgspec.Struct, frozen=True):
    """A token of the file: the section that it is in, the scenario that shows it, and a part of
    what it shows. `near`: about so many points lie before a first preemption and between that and
    a second one, where one does not show it."""

    id: str
    scenario: str
    shows: str
    near: tuple[int, int] = (0, 0)


FINDINGS = (
    Finding("F1", "hugetlb-fault-race", "KVM_RUN failed: -ENOMEM"),
    Finding("F2", "finding-attributes-enomem", "mapping-in-folio"),
    Finding("F3", "finding-folio-split-enomem", "all-or-nothing"),
    Finding("F4", "finding-demote-busy-dpamt", "TDH_MEM_PAGE_DEMOTE failed"),
    Finding("F5", "folio-1g-convert-4k", "TDH_PHYMEM_PAGE_WBINVD failed"),
    Finding("F6", "finding-attributes-late", "private-unreachable"),
    Finding("F6", "finding-attributes-late-accept", "lost the guest's ACCEPT"),
    Finding("F6", "finding-attributes-late-shared", "leaf of the shared EPT"),
    Finding("F7", "finding-spinning-on-folio", "Spinning on folio"),
    Finding("F8", "odd-slot-offset", "VM_BUG_ON"),
    Finding("F9", "finding-fresh-folio-enomem", "private-unreachable"),
    Finding("F9", "finding-fresh-folio-race", "is retried"),
    Finding("F10", "finding-private-again", "precise-zap"),
    Finding("F11", "finding-fault-meets-leaf", "is retried"),
    Finding("F12", "finding-folio-lock", "waits for folio lock"),
    Finding("F13", "finding-duplicate-metadata", "duplicate metadata"),
    Finding("F14", "finding-stale-page", "read page 5 in b: 0x22"),
    Finding("F15", "finding-punch-pinned", "all-or-nothing"),
    Finding("F16", "finding-demote-meets-pamt-add", "TDH_MEM_PAGE_DEMOTE failed", (48, 34)),
    Finding("F17", "finding-demote-meets-pamt-add", "TDH_MEM_PAGE_AUG failed", (51, 42)),
    Finding("F18", "finding-demote-meets-pamt-remove", "TDH_PHYMEM_PAMT_REMOVE failed", (51, 32)),
    Finding("F19", "finding-slot-without-binding", "use after free"),
    Finding("F20", "finding-finalize-meets-zap", "TDH_MEM_RANGE_BLOCK failed", (272, 75)),
    Finding("F21", "memory-failure-then-convert", "progress"),
    Finding("F22", "finding-fresh-folio-twice", "split by two tasks", (11, 12)),
    Finding("F23", "finding-failure-against-hole", "waits for folio lock"),
    Finding("F23", "finding-failure-against-split", "host.mce waits for invalidate_lock"),
    Finding("F24", "finding-zap-meets-split", "TDH_PHYMEM_PAGE_WBINVD failed", (22, 8)),
    Finding("F24", "finding-zap-meets-hole", "TDH_PHYMEM_PAGE_WBINVD failed", (21, 8)),
)


def _schedules(near: tuple[int, int]) -> Iterator[Schedule]:
    """One task after the other, then with a single preemption, earliest first, then round-robin,
    whose story is longest; or with two preemptions, `near` these places."""
    if any(near):
        for first, second in itertools.product(*(range(at - NEAR, at + NEAR) for at in near)):
            yield ListSchedule([0] * first + [1] + [0] * second + [1])
        return
    for first in (0, 1):
        yield ListSchedule([first])
    for after in range(PREEMPT_WITHIN):
        for first in (0, 1):
            yield ListSchedule([first] + [0] * after + [1])
    yield RoundRobin()


def shown(outcome: ScenarioOutcome) -> list[str]:
    """What a finding's `shows` is looked for in: broken promises, why VMMs gave up, results."""
    texts = [f"{found.promise}: {found.text}" for found in outcome.findings]
    return texts + outcome.ended + [f"{done.op}: {done.result}" for done in outcome.results]


def token_of(finding: Finding) -> str:
    """The token of the first simple schedule that shows the finding, and nothing that its scenario
    does not say. What the run breaks before is ignored in it, so that the story is of the finding.
    Raises InputError when none does."""
    for schedule in _schedules(finding.near):
        outcome = run_scenario(finding.scenario, schedule=schedule)
        if outcome.ok and any(finding.shows in text for text in shown(outcome)):
            _, _, made = decode_token(outcome.token)
            scenario = load_scenario(finding.scenario).asked(ignore=_before(finding, outcome))
            return run_scenario(scenario, schedule=made).token
    raise InputError(f"{finding.id}: no simple schedule of {finding.scenario} shows it any more")


def _before(finding: Finding, outcome: ScenarioOutcome) -> tuple[str, ...]:
    """The promises that break before the finding, as `--ignore` has them; none where no promise
    tells of it. Of its own promise what is not it."""
    texts = [(found.promise, f"{found.promise}: {found.text}") for found in outcome.findings]
    its = next((promise for promise, text in texts if finding.shows in text), "")
    first = next((at for at, (_, text) in enumerate(texts) if finding.shows in text), 0)
    return tuple(
        dict.fromkeys(text if promise == its else f"{promise}: " for promise, text in texts[:first])
    )


def with_tokens(text: str) -> str:
    """`text` with the tokens of each section renewed, in the order of FINDINGS."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    for number, part in enumerate(parts):
        tokens = iter([token_of(f) for f in FINDINGS if part.startswith(f"## {f.id}:")])
        parts[number] = re.sub(
            r"septum1\.[\w-]+", lambda old, tokens=tokens: next(tokens, old.group()), part
        )
    return "".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Rewrite the file."""
    path = Path(arguments[0] if arguments else "docs/findings.md")
    path.write_text(with_tokens(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
