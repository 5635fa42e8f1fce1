"""The names in a scenario that the model gives: choice points, counters, what a search reaches.

A misspelt one would allow no failure, or look as if the host were wrong. A design may have choice
points and counters of its own, so that a scenario is held to the names of the design that it runs
on.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_EXIT_NAMES
from septum.abi.leaves import SEAMCALL_NAMES, TDCALL_NAMES
from septum.abi.sept import STATE_NAMES
from septum.abi.status import STATUS_NAMES
from septum.designs.own import own_source
from septum.errors import InputError
from septum.scenarios.failures import BUSY_ONLY
from septum.scenarios.model_names import ANYTHING, ModelNames, model_names
from septum.scenarios.places import wrong
from septum.scenarios.spelling import meant
from septum.sim import ALTERNATIVE
from septum.words import begins

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from septum.designs.registry import Design
    from septum.scenarios.scenario import Scenario

SEE = "docs/scenarios.md lists them"
REACHED = ("call", "sept", "choice", "error", "race", "tdcall", "wait", "contend")
"""What a witness begins with."""
LONGER_SHOWN = 4
"""So many of the words are told that one may have been meant to be."""
RACES = {
    "mmu_invalidate_retry_gfn_unsafe": "mmu",
    "is_page_fault_stale": "mmu",
    "is_frozen_spte": "tdp_mmu",
}
"""What KVM notices by that somebody came in between, and the unit of the host that it is in. None
passes a scheduling point."""
_FAULT = re.compile(r"fault\.(private|shared) page -?\d+( \d+K)?")
_COUNTED_OF_VM = (
    "splits",
    "mmu_lock_read",
    "mmu_lock_write",
    "exits.failed conversion",
    *(f"exits.{why}" for why in KVM_EXIT_NAMES.values()),
)
"""What `counts.count_all` and the VMM count beside KVM's statistics."""
_LEAVES = tuple(SEAMCALL_NAMES.values())
_STATES = tuple(STATE_NAMES.values())
_STATUSES = tuple(STATUS_NAMES.values())
_TDCALLS = tuple(TDCALL_NAMES.values())
_ENDED = (*_STATUSES, "exit", "interrupted", "event")
"""How TDCALLs end."""


def check_names(scenario: Scenario, design: Design) -> None:
    """Raises InputError for the first name that nothing in a run on `design` can have."""
    failures = scenario.document.failures
    expect = scenario.expect
    if not (scenario.may_fail or scenario.injections or expect.counts or expect.witnesses):
        return
    names = model_names(own_source(design))
    for pattern in scenario.also_fail:
        why = _no_choice(names, pattern)
        if why:
            raise InputError(f"--fail {why}")
    for pattern in failures.allow:
        _check_choice(scenario, names, "allow", pattern)
    for injection in scenario.injections:
        _check_choice(scenario, names, "inject", injection.name)
    for name in expect.counts:
        _check_count(scenario, names, name)
    for text in expect.witnesses:
        for one in text.split(" or "):
            _check_witness(scenario, names, one)


def _error(scenario: Scenario, near: str, what: str, *, key: str = "") -> InputError:
    return wrong(scenario.where, scenario.text, what, near, key=key)


def _exists(name: str, known: Iterable[str]) -> bool:
    """`name` may have `*`, and so may what is known."""
    return any(fnmatchcase(each, name) or fnmatchcase(name, each) for each in known)


def _check_choice(scenario: Scenario, names: ModelNames, key: str, pattern: str) -> None:
    why = _no_choice(names, pattern)
    if why:
        raise _error(scenario, pattern, f"failures.{key}: {why}")


def _no_choice(names: ModelNames, pattern: str) -> str:
    """What is wrong with a name of choice points; "" for nothing."""
    name = pattern.removesuffix(BUSY_ONLY)
    if _exists(name, names.choices):
        return ""
    what = "matches no choice point" if ANYTHING in name else "is no choice point"
    return f"{name!r} {what} of the model; {meant(name, names.choices, SEE)}"


def _check_count(scenario: Scenario, names: ModelNames, name: str) -> None:
    of_vm = [*names.counters, *_COUNTED_OF_VM]
    if len(scenario.vms) > 1:
        of_vm = [f"{vm.name}.{counter}" for vm in scenario.vms for counter in of_vm]
    known = [*of_vm, *(f"seamcall.{leaf}" for leaf in _LEAVES)]
    if any(fnmatchcase(name, each) for each in known) or _FAULT.fullmatch(name):
        return
    near = meant(name, known, "docs/scenarios.md says what is counted")
    what = f"expect.counts: nothing is counted as {name!r}; {near}"
    raise _error(scenario, "", what, key=name)


def _check_witness(scenario: Scenario, names: ModelNames, text: str) -> None:
    """The items are those of `septum.explore.covering.coverage`; a witness is how one begins, in
    whole words."""
    if not text.strip():
        raise _error(
            scenario,
            "",
            "expect.witnesses: an empty one, or an empty side of ` or `, is met by whatever a"
            " search reaches; write what it must reach, such as `call:TDH.MEM.PAGE.DEMOTE:`",
            key="witnesses",
        )
    kind, _, rest = text.partition(":")
    if kind == "choice":
        name, equals, _ = rest.partition("=")
        known = [*names.choices, ALTERNATIVE]
        if name.startswith(ALTERNATIVE) or any(fnmatchcase(name, each) for each in known):
            return
        if equals:
            raise _no_witness(scenario, text, name, known, SEE)
        _check_beginning(scenario, text, name, known, SEE)
        return
    parts = _parts_of(kind, names)
    for number, (part, possible) in enumerate(zip(text.split(":"), parts, strict=False)):
        otherwise = f"there is {', '.join(possible[:6])}"
        if text.count(":") == number:
            _check_beginning(scenario, text, part, possible, otherwise)
        elif part not in possible:
            raise _no_witness(scenario, text, part, possible, otherwise)


def _parts_of(kind: str, names: ModelNames) -> tuple[tuple[str, ...], ...]:
    """What may stand between the colons of a witness; of locks and tasks, anything."""
    errors = [error.split(":") for error in sorted(names.errors)]
    parts = {
        "call": (_LEAVES, _STATUSES),
        "sept": (_STATES, (*_LEAVES, *_TDCALLS), _ENDED),
        "tdcall": (_TDCALLS, _ENDED),
        "error": tuple(zip(*errors, strict=True)),
        "race": (tuple(RACES),),
    }
    return (REACHED, *parts.get(kind, ()))


def _check_beginning(
    scenario: Scenario, text: str, part: str, known: Collection[str], otherwise: str
) -> None:
    """The last part of a witness: what begins with half a word of it may be anything."""
    if any(begins(each, part) for each in known):
        return
    longer = sorted({each for each in known if each.startswith(part)})
    if not longer:
        raise _no_witness(scenario, text, part, known, otherwise)
    more = ", ..." if len(longer) > LONGER_SHOWN else ""
    raise _error(
        scenario,
        text,
        f"expect.witnesses: {part!r} in {text!r} ends within a word; it could be"
        f" {', '.join(longer[:LONGER_SHOWN])}{more}",
    )


def _no_witness(
    scenario: Scenario, text: str, part: str, known: Iterable[str], otherwise: str
) -> InputError:
    near = meant(part, known, otherwise)
    return _error(
        scenario,
        text,
        f"expect.witnesses: no search reaches {text!r}, as {part!r} is no name; {near}",
    )
