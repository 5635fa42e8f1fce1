"""What a scenario says that no host could do, whatever its schedule: what there is none of is asked
for, or two things exclude each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.module import PROFILES
from septum.scenarios.places import wrong
from septum.scenarios.results import OK
from septum.scenarios.spelling import meant
from septum.scenarios.vmm import BIOS_GPA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.errors import InputError
    from septum.scenarios.ops import Op
    from septum.scenarios.scenario import Scenario, Vm


def check_sense(scenario: Scenario) -> None:
    """Raises InputError for the first of them."""
    _check_module(scenario)
    for vm in scenario.vms:
        _check_below_4g(scenario, vm)
        _check_image(scenario, vm)
        if vm.shape.shares_memory_with:
            _check_partner(scenario, vm, scenario.vm(vm.shape.shares_memory_with))
    _check_slots(scenario)
    _check_flags(scenario)
    _check_turns(scenario)


def _error(
    scenario: Scenario, what: str, near: str = "", *, key: str = "", table: str = ""
) -> InputError:
    return wrong(scenario.where, scenario.text, what, near, key=key, table=table)


def _table(scenario: Scenario, vm: Vm) -> str:
    return f"vm.{vm.name}" if len(scenario.vms) > 1 else "vm"


def _check_module(scenario: Scenario) -> None:
    module = scenario.document.machine.module
    if module not in PROFILES:
        raise _error(
            scenario,
            f"machine.module: {module!r} is no version of the module;"
            f" write one of {', '.join(PROFILES)}",
            key="module",
            table="machine",
        )


# VMs


def _check_below_4g(scenario: Scenario, vm: Vm) -> None:
    if vm.gpa <= BIOS_GPA < vm.gpa + vm.memory_bytes:
        at = _table(scenario, vm)
        raise _error(
            scenario,
            f"{at}.memory: {vm.shape.memory} from {vm.gpa:#x} on do not end below {BIOS_GPA:#x},"
            f' where the firmware is; write less, or at = "{1 << 32:#x}"',
            key="memory",
            table=at,
        )


def _check_image(scenario: Scenario, vm: Vm) -> None:
    """A page is added once."""
    taken: list[tuple[int, int, str]] = []
    for area, text in zip(vm.image, vm.shape.image, strict=True):
        first = area.gpa(vm.gpa)
        end = first + area.size(vm.memory_bytes)
        for other_first, other_end, other in taken:
            if first < other_end and other_first < end:
                at = _table(scenario, vm)
                raise _error(
                    scenario,
                    f"{at}.image: {text!r} has pages of {other!r}; name each page once",
                    key="image",
                    table=at,
                )
        taken.append((first, end, text))


def _check_partner(scenario: Scenario, vm: Vm, partner: Vm) -> None:
    at = _table(scenario, vm)
    of = f"[vm.{partner.name}]"
    if partner.shape.later and not vm.shape.later:
        raise _error(
            scenario,
            f"{at}.shares-memory-with: {partner.name!r} is built later, and has no memory before;"
            " let this VM be built later, too",
            key="shares-memory-with",
            table=at,
        )
    for key, mine, theirs in (
        ("in-place", vm.shape.in_place, partner.shape.in_place),
        ("init-shared", vm.shape.init_shared, partner.shape.init_shared),
    ):
        if mine != theirs:
            raise _error(
                scenario,
                f"{at}.shares-memory-with: the memory is that of {of}, and so is {key};"
                f" write {key} = {str(theirs).lower()} here, too",
                key="shares-memory-with",
                table=at,
            )
    if vm.memory_bytes > partner.memory_bytes:
        raise _error(
            scenario,
            f"{at}.memory: {vm.shape.memory} are more than {of} has, whose memory it is;"
            f" write at most {partner.shape.memory}",
            key="memory",
            table=at,
        )


# Operations


def _ops(scenario: Scenario) -> Iterator[tuple[str, Op]]:
    """All operations, also those of `choose:`, with who takes them."""
    taken = [(program.name, op) for program in scenario.programs for op in program.ops]
    taken += [(step.actor, step.op) for step in (*scenario.setup, *scenario.after)]
    for actor, op in taken:
        yield actor, op
        for each in op.alternatives:
            yield actor, each


def _check_slots(scenario: Scenario) -> None:
    for actor, op in _ops(scenario):
        if op.verb in ("delete", "create"):
            nr_slots = len(scenario.vm(op.vm).slots)
            if op.number >= nr_slots:
                there = "slot 0" if nr_slots == 1 else f"slot 0 to slot {nr_slots - 1}"
                raise _error(
                    scenario,
                    f"{actor}: `{op.text}`: the VM has {there}; name one of these, or cut its"
                    " memory into more `slots`",
                    op.text,
                )


def _check_flags(scenario: Scenario) -> None:
    """Who waits for what nobody signals waits for ever."""
    raised = {op.name for _, op in _ops(scenario) if op.verb == "signal"}
    for actor, op in _ops(scenario):
        if op.verb == "wait" and op.name not in raised:
            near = meant(op.name, raised, f"write `signal {op.name}` where it may go on")
            raise _error(
                scenario,
                f"{actor}: `{op.text}` waits for ever, as nobody signals {op.name!r}; {near}",
                op.text,
            )


def _check_turns(scenario: Scenario) -> None:
    """Who waits for what is signalled only after that waits for ever, whatever is chosen."""
    setup = [(step.actor, step.op) for step in scenario.setup]
    programs = [[(program.name, op) for op in program.ops] for program in scenario.programs]
    after = [(step.actor, step.op) for step in scenario.after]
    raised: set[str] = set()
    for lanes in ([setup], programs, [after]):
        stuck = _goes_on(lanes, raised)
        for actor, op in stuck[:1]:
            raise _error(
                scenario,
                f"{actor}: `{op.text}` waits for ever, as what it waits for is signalled only after"
                f" {_meanwhile(stuck, actor)}; signal it before",
                op.text,
            )


def _goes_on(lanes: list[list[tuple[str, Op]]], raised: set[str]) -> list[tuple[str, Op]]:
    """At which operation each lane that does not come to its end stays, with all flags raised on
    the way added to `raised`."""
    left = [lane[:] for lane in lanes]
    news = True
    while news:
        known = len(raised)
        for lane in left:
            while lane and _may_pass(lane[0][1], raised):
                raised.update(_signalled(lane.pop(0)[1]))
        news = len(raised) > known
    return [lane[0] for lane in left if lane]


def _may_pass(op: Op, raised: set[str]) -> bool:
    if op.alternatives:
        return any(_may_pass(each, raised) for each in op.alternatives)
    # A wait that may come to something else may end by what stops the VM.
    return op.verb != "wait" or op.name in raised or op.results != (OK,)


def _signalled(op: Op) -> set[str]:
    return {each.name for each in (op, *op.alternatives) if each.verb == "signal"}


def _meanwhile(stuck: list[tuple[str, Op]], actor: str) -> str:
    """What the signal comes after, of those that wait in a circle."""
    others = [f"`{op.text}` of {other}" for other, op in stuck if other != actor]
    return " or ".join(others) if others else "that"
