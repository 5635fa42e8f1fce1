"""The operations of a scenario's programs, and the words they are written in.

An operation is a line such as `accept 2M frame 0 => ok or OPERAND_BUSY`: what is done, and after
`=>` the results that are right; without it the result must be `ok`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from septum.guest.cpu import LEVEL_1G, LEVEL_2M, LEVEL_4K
from septum.scenarios.area import HOW, Area, parse_area
from septum.scenarios.results import ANY, OK, TDX, may_come, words
from septum.scenarios.spelling import meant

if TYPE_CHECKING:
    from collections.abc import Callable

VCPUS_MAX = 8
TOKEN_MAX = (1 << 64) - 1
"""What a page holds in the model is one word."""
LEVELS = {"4K": LEVEL_4K, "2M": LEVEL_2M, "1G": LEVEL_1G}


class OpError(ValueError):
    """A line that is no operation: what is wrong and what would be right, without a full stop."""


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One operation. `text` is the line without its results, `results` what is right: () is any.

    `verb` says what is done; the other fields are its operands, as far as it has any.
    """

    text: str
    verb: str
    results: tuple[str, ...] = (OK,)
    area: Area = Area(0, 0)
    level: int = -1
    to_private: bool = False
    shared: bool = False
    token: int = -1
    name: str = ""
    number: int = -1
    vm: str = ""
    alternatives: tuple[Op, ...] = ()


GUEST_VERBS = (
    "accept",
    "use",
    "write",
    "read",
    "touch",
    "verify",
    "convert",
    "hlt",
    "signal",
    "wait",
    "choose:",
)
HOST_VERBS = (
    "convert",
    "set-attributes",
    "punch",
    "allocate",
    "prefault",
    "delete",
    "create",
    "close",
    "fail",
    "pin",
    "unpin",
    "write",
    "read",
    "touch",
    "discard",
    "wake",
    "interrupt",
    "destroy",
    "build",
    "signal",
    "wait",
    "choose:",
)


def _area(text: str) -> Area:
    area = parse_area(text)
    if area is None:
        raise OpError(f"{text!r} names no pages; {HOW}")
    return area


def _split_results(line: str, *, guest: bool) -> tuple[str, tuple[str, ...]]:
    what, arrow, results = line.partition("=>")
    if not arrow:
        return what.strip(), (OK,)
    right = tuple(part.strip() for part in results.split(" or "))
    if not all(right):
        raise OpError("nothing stands after `=>`; write what is right there, such as `=> ok`")
    for word in right:
        if not may_come(word, guest):
            who = "a guest" if guest else "a VMM"
            raise OpError(
                f"no operation of {who} comes to {word!r};"
                f" {meant(word, words(guest), 'docs/scenarios.md lists the results')}"
            )
    return what.strip(), () if ANY in right else right


def _match(pattern: str, what: str, like: str) -> re.Match[str]:
    match = re.fullmatch(pattern, what)
    if match is None:
        raise OpError(f"{what!r} is not understood; write it like `{like}`")
    return match


def _choose(what: str, parse: Callable[[str], Op]) -> tuple[Op, ...]:
    parts = [part.strip() for part in what.removeprefix("choose:").split("|")]
    if any(part.startswith("choose:") for part in parts):
        raise OpError("`choose:` cannot be nested; write all alternatives behind one `choose:`")
    if len(parts) < 2 or not all(parts):
        raise OpError("`choose:` needs alternatives; write `choose: touch page 0 | touch page 1`")
    return tuple(parse(part) for part in parts)


def _token(text: str | None) -> int:
    value = int(text, 16) if text else -1
    if value > TOKEN_MAX:
        raise OpError(f"{text} has more than 64 bits; write at most {TOKEN_MAX:#x}")
    return value


def _vcpu(text: str) -> int:
    if int(text) >= VCPUS_MAX:
        raise OpError(f"there is no vcpu{text}; name one of vcpu0 to vcpu{VCPUS_MAX - 1}")
    return int(text)


def _flag(what: str, verb: str) -> str:
    return _match(rf"{verb} ([\w-]+)", what, f"{verb} ready")[1]


_VALUE = r"(?: (0x[0-9a-fA-F]+))?"
_INDEX = r"(0|[1-9][0-9]{0,5})"


def _access(what: str, verb: str) -> dict[str, object]:
    """`write [0x11] [shared] AREA` and its like."""
    match = _match(rf"{verb}{_VALUE}( shared)? (.+)", what, f"{verb} page 3")
    value = _token(match[1])
    if value >= 0 and verb in ("touch", "use"):
        raise OpError(f"`{verb}` takes no value; leave {match[1]} out")
    # A read without expected value may see anything.
    return {"token": value, "shared": bool(match[2]), "area": _area(match[3])}


def parse_guest_op(line: str) -> Op:
    """An operation of a vCPU's program. Raises OpError."""
    line = line.strip()
    if line.startswith("choose:"):
        return Op(text=line, verb="choose:", alternatives=_choose(line, parse_guest_op))
    what, results = _split_results(line, guest=True)
    verb = what.split(" ", 1)[0] if what else ""
    fields: dict[str, object] = {}
    if verb == "accept":
        match = _match(r"accept(?: (4K|2M|1G))? (.+)", what, "accept 2M frame 0")
        fields = {"level": LEVELS[match[1]] if match[1] else -1, "area": _area(match[2])}
    elif verb == "use":
        match = _match(r"use (4K|2M) (.+)", what, "use 2M frame 0")
        fields = {"level": LEVELS[match[1]], "area": _area(match[2])}
    elif verb in ("write", "read", "touch", "verify"):
        fields = _access(what, verb)
    elif verb == "convert":
        match = _match(r"convert (.+) to (private|shared)", what, "convert page 3 to shared")
        fields = {"area": _area(match[1]), "to_private": match[2] == "private"}
    elif verb in ("signal", "wait"):
        fields = {"name": _flag(what, verb)}
    elif what != "hlt":
        raise OpError(
            f"{verb!r} is nothing that a guest does; it can {', '.join(GUEST_VERBS[:-1])} and"
            " choose:"
        )
    if verb == "read" and "=>" not in line:
        results = ()
    # The fields were checked one by one while they were read.
    return Op(text=what, verb=verb, results=results, **fields)  # type: ignore[arg-type]


def _host_range(what: str, verb: str) -> dict[str, object]:
    match = _match(rf"{verb} (.+) to (private|shared)", what, f"{verb} page 3 to shared")
    return {"area": _area(match[1]), "to_private": match[2] == "private"}


def _host_fields(what: str, verb: str) -> dict[str, object]:
    if verb in ("convert", "set-attributes"):
        return _host_range(what, verb)
    if verb in ("punch", "allocate", "fail", "pin", "unpin", "discard"):
        return {"area": _area(_match(rf"{verb} (.+)", what, f"{verb} page 3")[1])}
    if verb == "prefault":
        match = _match(rf"prefault (.+?)(?: by vcpu{_INDEX})?", what, "prefault frame 0 by vcpu1")
        return {"area": _area(match[1]), "number": _vcpu(match[2] or "0")}
    if verb in ("delete", "create"):
        match = _match(rf"{verb} (plain )?slot {_INDEX}", what, f"{verb} slot 0")
        return {"number": int(match[2]), "shared": bool(match[1])}
    if verb in ("write", "read", "touch"):
        return _access(what, verb)
    if verb in ("wake", "interrupt"):
        return {"number": _vcpu(_match(rf"{verb} vcpu{_INDEX}", what, f"{verb} vcpu0")[1])}
    if verb in ("signal", "wait"):
        return {"name": _flag(what, verb)}
    if what in ("close memory", "close vm", "destroy vm", "build vm"):
        return {"name": what.partition(" ")[2]}
    raise OpError(
        f"{what!r} is nothing that a VMM does here; it can {', '.join(HOST_VERBS[:-1])} and choose:"
    )


def parse_host_op(line: str) -> Op:
    """An operation of a VMM's thread; `in NAME` at its end names one of several VMs. Raises
    OpError."""
    line = line.strip()
    if line.startswith("choose:"):
        return Op(text=line, verb="choose:", alternatives=_choose(line, parse_host_op))
    what, results = _split_results(line, guest=False)
    verb = what.split(" ", 1)[0] if what else ""
    match = re.fullmatch(r"(.+) in (\w+)", what)
    bare, vm = (match[1], match[2]) if match is not None else (what, "")
    fields = _host_fields(bare, verb)
    if verb == "read" and "=>" not in line:
        results = ()
    # The fields were checked one by one while they were read.
    return Op(text=what, verb=verb, results=results, vm=vm, **fields)  # type: ignore[arg-type]


def result_fits(op: Op, result: str) -> bool:
    """Whether `result` is one of those that the scenario calls right."""
    rights = op.results
    return not rights or result in rights or any(_same(right, result) for right in rights)


def _same(right: str, result: str) -> bool:
    if right.startswith("0x"):
        try:
            return int(right, 16) == int(result, 0)
        except ValueError:
            return False
    return right.removeprefix(TDX) == result
