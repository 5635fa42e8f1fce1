"""What is counted in a run of a scenario, and how its pages are, by the names of `[expect]`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.leaves import seamcall_name
from septum.checks.sept import BLOCKED_STATE, PENDING_STATE
from septum.checks.view import VmView
from septum.scenarios.memory_map import total_stats
from septum.words import LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from septum.scenarios.record import Record
    from septum.scenarios.vmm import ScenarioVmm
    from septum.vmm.world import World

_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})|>= ?([0-9]{1,18})")


def count_all(world: World, vmms: Mapping[str, ScenarioVmm], record: Record) -> dict[str, int]:
    """Every counter, by name.

    KVM's statistics (VM and vCPUs together; with the VM's name before it when there are several),
    `splits` for all `split.*`, `exits.NAME` of user exits, `fault.KIND page N` of
    KVM_EXIT_MEMORY_FAULT, `seamcall.LEAF` of successful calls.
    """
    values: dict[str, int] = {}
    for name, vmm in vmms.items():
        prefix = f"{name}." if len(vmms) > 1 else ""
        for key, value in vmm.exits.items():
            values[f"{prefix}exits.{key}"] = value
        if vmm.kvm is None:
            continue
        stats = total_stats(vmm.kvm)
        stats["splits"] = sum(value for key, value in stats.items() if key.startswith("split."))
        for key, value in stats.items():
            values[prefix + key] = value
    for (leaf, status), count in sorted(world.module.counts.items()):
        if not status:
            values[f"seamcall.{seamcall_name(leaf)}"] = count
    for what, count in record.faults.items():
        values[f"fault.{what}"] = count
    return values


def difference(now: dict[str, int], first: dict[str, int]) -> dict[str, int]:
    """What changed between two countings, by name."""
    return {
        name: now[name] - first.get(name, 0)
        for name in sorted(now)
        if now[name] != first.get(name, 0)
    }


def count_fits(right: int | str, value: int) -> bool:
    """Whether `value` is what the scenario says: a number, `1..3` or `>= 1`."""
    if isinstance(right, int):
        return value == right
    low, high = _bounds(right)
    return low <= value and (high is None or value <= high)


def _bounds(text: str) -> tuple[int, int | None]:
    """The least and the most; ValueError for what is neither `1..3` nor `>= 1`."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no range")
    low, high, at_least = match.groups()
    return int(at_least or low), int(high) if high else None


def may_fit(name: str, right: int | str) -> bool:
    """Whether the counter `name` can be what the scenario says. Mapped pages alone can become fewer
    than they were when the VMs were finalized."""
    if isinstance(right, int):
        return right >= 0 or name.rpartition(".")[2].startswith("pages_")
    try:
        low, high = _bounds(right)
    except ValueError:
        return False
    return high is None or low <= high


def pages_state(world: World, vmm: ScenarioVmm, first_gfn: int, end_gfn: int) -> str:
    """How the pages [first_gfn, end_gfn) are: `private 2M`, `pending 4K`, `shared`, `unmapped`;
    several, by page, when they differ."""
    if vmm.kvm is None:
        return "gone"
    view = VmView(world, vmm.kvm, None)
    states: dict[str, int] = {}
    for gfn in range(first_gfn, end_gfn):
        state = _page_state(view, gfn)
        states[state] = states.get(state, 0) + 1
    if len(states) == 1:
        return next(iter(states))
    return ", ".join(f"{nr} {state}" for state, nr in states.items())


def _page_state(view: VmView, gfn: int) -> str:
    slot = view.slot_at(gfn)
    private = slot is None or view.attributes(slot, gfn)[0] & KVM_MEMORY_ATTRIBUTE_PRIVATE
    runs = list(view.runs(gfn, gfn + 1))
    if not runs:
        return "unmapped" if private else "shared"
    _, _, level, state, _ = runs[0]
    kind = "pending" if state & PENDING_STATE else "private"
    if state & BLOCKED_STATE:
        kind = f"blocked {kind}"
    return f"{kind} {LEVELS[level]}" + ("" if private else " though shared")
