"""What a frame that waits for a call holds, by its bytecode: which of its variables matter, and
whether there is more than they tell.

A frame may hold what no variable names: the iterator of a loop, the first operands of an
expression. Names of modules, variables, methods about to be called and locks taken by `with` are
told by the place and by variables; so is a loop over a range of plain numbers, and one over what a
variable names and nothing in the loop looks at, where its elements can be told from each other.
Anything else is hidden. A variable matters where some path leads to a place that looks at it before
it is set.

Exception handlers are not followed. What stands in one is taken to be hidden, and variables that
one looks at to matter everywhere.
"""

from __future__ import annotations

import dis
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container
    from types import CodeType


_Loop = tuple[str, str]
"""Variables: of what is gone through, and of the element that is at hand."""


class Place:
    """A place in the code where a frame waits. `live`: the variables that matter; `loops`: what is
    gone through there, one element after the other, and where these are put: both tell how far that
    is, where each can be told from the others."""

    __slots__ = ("hides", "live", "loops")

    def __init__(
        self, hides: bool, live: frozenset[str], loops: frozenset[_Loop] = frozenset()
    ) -> None:
        self.hides = hides
        self.live = live
        self.loops = loops


_places: dict[CodeType, dict[int, Place]] = {}


def place(code: CodeType, lasti: int) -> Place:
    """The place at the offset `lasti` of `code`."""
    known = _places.get(code)
    if known is None:
        known = _places[code] = _analyse(code)
    found = known.get(lasti)
    if found is None:
        at = lasti
        while at > 0 and at not in known:
            at -= 2  # caches follow the instruction that they belong to
        found = known[lasti] = known.get(at) or Place(True, frozenset(_all_names(code)))
    return found


_CONSTANT, _PLAIN, _CALLEE, _EXIT, _RANGE, _LOOP, _PATH, _OTHER = range(8)
"""What stands on a frame's stack: a constant, or what a module names; a variable; a method of a
path, to be called; what ends a `with` of a path; what a loop over a range of plain numbers counts
with, where its variable tells; what a loop goes through a list or tuple with, where its variable
may; the value of an attribute; anything else. The last two are not told by variables."""

_Entry = tuple[int, frozenset[str]]
"""(what it is, the variables that tell it)."""

_NOTHING: frozenset[str] = frozenset()
_HIDDEN: _Entry = (_OTHER, _NOTHING)

_CONSTANTS = frozenset(("LOAD_CONST", "LOAD_GLOBAL", "LOAD_SMALL_INT", "PUSH_NULL"))
_NAMES = frozenset(
    (
        *("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF"),
        *("LOAD_CLASSDEREF", "LOAD_CLOSURE"),
    )
)
_IN_RANGES = frozenset(
    (
        *("LOAD_GLOBAL", "LOAD_CONST", "LOAD_FAST", "LOAD_SMALL_INT", "LOAD_FAST_BORROW", "CACHE"),
        *("LOAD_FAST_LOAD_FAST", "BINARY_OP", "PUSH_NULL", "PRECALL", "CALL", "NOP"),
    )
)
_STILL = frozenset(
    ("NOP", "RESUME", "KW_NAMES", "EXTENDED_ARG", "CACHE", "COPY_FREE_VARS", "MAKE_CELL")
)
_ENDS = frozenset(("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"))
_JUMPS = frozenset(("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"))
_MAKES = ("FORMAT_", "UNARY_", "BUILD_", "UNPACK_", "MAKE_FUNCTION", "TO_BOOL", "CONVERT_VALUE")
"""Where the stack is no lower after one of these, it took what was on top, or (BUILD_) nothing."""
_TAKES = ("POP_", "STORE_", "DELETE_", "END_FOR")


def _analyse(code: CodeType) -> dict[int, Place]:
    rows = list(dis.get_instructions(code))
    at_offset = {row.offset: k for k, row in enumerate(rows)}
    following = [_following(rows, k, at_offset) for k in range(len(rows))]
    stacks = _stacks(rows, following)
    live = _live(code, rows, following, stacks.keys())
    found: dict[int, Place] = {}
    for k, row in enumerate(rows):
        hides, told, loops = stacks.get(k, (True, _NOTHING, frozenset[_Loop]()))
        found[row.offset] = Place(hides, told | live[k], loops)
    return found


def _following(
    rows: list[dis.Instruction], k: int, at_offset: dict[int, int]
) -> list[tuple[int, bool]]:
    """(row, whether by a jump) that may follow row `k`."""
    row = rows[k]
    found: list[tuple[int, bool]] = []
    if row.opcode in dis.hasjrel or row.opcode in dis.hasjabs:
        found.append((at_offset[row.argval], True))
    if row.opname not in _ENDS and row.opname not in _JUMPS and k + 1 < len(rows):
        found.append((k + 1, False))
    return found


def _stacks(
    rows: list[dis.Instruction], following: list[list[tuple[int, bool]]]
) -> dict[int, tuple[bool, frozenset[str], frozenset[_Loop]]]:
    """For each row that is reached: whether, while it waits for a call, more is on the stack below
    than variables tell; the variables that tell the rest; the loops that are not through."""
    iterators = _ranges(rows)
    loops = _loops(rows)
    iterators.update({k: (_LOOP, frozenset(names)) for k, names in loops.items()})
    before: dict[int, tuple[_Entry, ...]] = {0: ()}
    work = [0]
    while work:
        k = work.pop()
        for to, after in _leads_to(rows[k], before[k], following[k], iterators.get(k)):
            old = before.get(to, after)
            # Where two ways meet, what is told in two ways is not told.
            now = tuple([a if a == b else _HIDDEN for a, b in zip(old, after, strict=True)])
            if to >= 0 and before.get(to) != now:
                before[to] = now
                work.append(to)
    found: dict[int, tuple[bool, frozenset[str], frozenset[_Loop]]] = {}
    for k, stack in before.items():
        rest: list[_Entry] = []
        for _, after in _leads_to(rows[k], stack, following[k], iterators.get(k)):
            rest += after if rows[k].opname.startswith(_TAKES) else after[:-1]
        pending = [told for kind, told in rest if kind == _LOOP]
        found[k] = (
            any(kind >= _PATH for kind, _ in rest),
            _NOTHING.union(*[told for kind, told in rest if kind != _LOOP]),
            frozenset([loop for loop in loops.values() if frozenset(loop) in pending]),
        )
    return found


def _leads_to(
    row: dis.Instruction,
    stack: tuple[_Entry, ...],
    following: list[tuple[int, bool]],
    iterator: _Entry | None,
) -> list[tuple[int, tuple[_Entry, ...]]]:
    """(row that may follow, or -1; the stack after it). `iterator`: what it puts there."""
    argument = row.arg if row.opcode >= dis.HAVE_ARGUMENT else None
    found: list[tuple[int, tuple[_Entry, ...]]] = []
    for to, jump in following or [(-1, False)]:
        after = _after(row, stack, dis.stack_effect(row.opcode, argument, jump=jump))
        if iterator is not None:
            after = (*after[:-1], iterator)
        found.append((to, after))
    return found


def _live(
    code: CodeType,
    rows: list[dis.Instruction],
    following: list[list[tuple[int, bool]]],
    reached: Container[int],
) -> list[set[str]]:
    """For each row: the variables that are looked at after it before they are set."""
    always = set(code.co_cellvars) | set(code.co_freevars)
    if "__class__" in code.co_freevars and code.co_varnames:
        always.add(code.co_varnames[0])  # super() looks at it
    looks = [_looks_at(row) for row in rows]
    for k in range(len(rows)):
        if k not in reached:
            always |= looks[k]
    before: list[set[str]] = [set() for _ in rows]
    after: list[set[str]] = [set(always) for _ in rows]
    changed = True
    while changed:
        changed = False
        for k in range(len(rows) - 1, -1, -1):
            out = after[k]
            size = len(out)
            for to, _ in following[k]:
                out |= before[to]
            row = rows[k]
            gone = set() if "LOAD" in row.opname else _sets(row)
            now = (out - gone) | looks[k]
            if len(out) != size or now != before[k]:
                before[k] = now
                changed = True
    return after


def _looks_at(row: dis.Instruction) -> set[str]:
    """The variables that an instruction looks at."""
    if "FAST" not in row.opname or "LOAD" not in row.opname:
        return set()
    return set(row.argval) if isinstance(row.argval, tuple) else {row.argval}


def _all_names(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames + code.co_cellvars + code.co_freevars


def _ranges(rows: list[dis.Instruction]) -> dict[int, _Entry]:
    """Where an iterator is taken of a range whose ends are told by variables that do not change
    after, for a loop that puts its numbers into a variable: all of these."""
    found: dict[int, _Entry] = {}
    for k, row in enumerate(rows):
        if row.opname != "GET_ITER" or rows[k + 2].opname != "STORE_FAST":
            continue
        at = k - 1
        names: set[str] = set()
        while at >= 0 and rows[at].opname in _IN_RANGES and rows[at].argval != "range":
            names |= _looks_at(rows[at])
            at -= 1
        if at < 0 or rows[at].opname != "LOAD_GLOBAL":
            continue
        if not any(_sets(later) & names for later in rows[k:]):
            found[k] = (_RANGE, frozenset((*names, rows[k + 2].argval)))
    return found


def _loops(rows: list[dis.Instruction]) -> dict[int, _Loop]:
    """Where an iterator is taken of what a variable names, for a loop that puts the elements into
    another one, and neither sets one of the two nor looks at the first: these."""
    found: dict[int, _Loop] = {}
    at_offset = {row.offset: k for k, row in enumerate(rows)}
    for k, row in enumerate(rows):
        if row.opname != "GET_ITER" or k + 2 >= len(rows):
            continue
        named, taken, put = rows[k - 1], rows[k + 1], rows[k + 2]
        if named.opname not in ("LOAD_FAST", "LOAD_FAST_BORROW") or put.opname != "STORE_FAST":
            continue
        within = rows[k + 3 : at_offset[taken.argval]]
        uses = {name for inner in within for name in _sets(inner) | _looks_at(inner)}
        sets = {name for inner in within for name in _sets(inner)}
        if named.argval not in uses and put.argval not in sets:
            found[k] = (named.argval, put.argval)
    return found


def _sets(row: dis.Instruction) -> set[str]:
    """The variables that an instruction sets."""
    if "FAST" not in row.opname or not ("STORE" in row.opname or "DELETE" in row.opname):
        return set()
    return set(row.argval) if isinstance(row.argval, tuple) else {row.argval}


def _after(row: dis.Instruction, stack: tuple[_Entry, ...], effect: int) -> tuple[_Entry, ...]:
    """What is on the stack after an instruction that changes its height by `effect`."""
    name = row.opname
    height = len(stack) + effect
    if name in _CONSTANTS:
        return (*stack, *[(_CONSTANT, _NOTHING)] * effect)
    if name in _NAMES:
        return (*stack, (_PLAIN, frozenset((row.argval,))))
    if name.startswith("LOAD_FAST") and isinstance(row.argval, tuple):
        return (*stack, *[(_PLAIN, frozenset((one,))) for one in row.argval])
    if name == "FOR_ITER":
        return (*stack, _HIDDEN) if effect > 0 else stack[:height]
    if name in _STILL or name in _JUMPS:
        return stack
    if name in ("LOAD_ATTR", "LOAD_METHOD"):
        of, told = stack[-1]
        if of == _OTHER:
            return (*stack[:-1], *[_HIDDEN] * (effect + 1))
        kind = _CALLEE if effect else _CONSTANT if of == _CONSTANT else _PATH
        return (*stack[:-1], *[(kind, told)] * (effect + 1))
    if name == "BEFORE_WITH":
        of, told = stack[-1]
        return (*stack[:-1], (_EXIT, told) if of <= _PATH else _HIDDEN, _HIDDEN)
    if name == "COPY":
        return (*stack, stack[-(row.arg or 1)])
    if name == "SWAP":
        at = -(row.arg or 1)
        return (*stack[:at], stack[-1], *stack[at + 1 : -1], stack[at])
    if name.startswith("JUMP_IF_"):
        return stack[:height]
    if name.startswith(_MAKES) and effect >= 0:
        taken = 0 if name.startswith("BUILD_") and effect > 0 else 1
        return (*stack[: len(stack) - taken], *[_HIDDEN] * (effect + taken))
    if name.startswith(("STORE_FAST", "STORE_DEREF")):
        # What is on the stack of a variable is no more what the variable tells. (Of two that one
        # instruction names, one may only be looked at.)
        put = {row.argval} if isinstance(row.argval, str) else {*row.argval}
        below = [
            _HIDDEN if kind not in (_RANGE, _LOOP) and not put.isdisjoint(told) else (kind, told)
            for kind, told in stack[: len(stack) - 1]
        ]
        return (*below[:height], *[_HIDDEN] * (height - len(below)))
    if effect < 0 and name.startswith(_TAKES):
        return stack[:height]
    if effect < 0 or name == "GET_ITER":
        # What an instruction takes is on top, and what it gives is one value at most.
        return (*stack[: max(0, height - 1)], *[_HIDDEN] * min(1, height))
    kept = max(0, len(stack) - 2)
    return (*stack[:kept], *[_HIDDEN] * (height - kept))
