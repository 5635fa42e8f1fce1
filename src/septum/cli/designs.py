"""`septum designs`: the hosts there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.cli.exits import OK
from septum.designs import KINDS, designs
from septum.designs.registry import V3
from septum.errors import InputError
from septum.json_text import json_text
from septum.words import wrap

if TYPE_CHECKING:
    from septum.designs import Design

SCHEMA = "septum.designs/1"
NAME_WIDTH = 28


class DesignRow(msgspec.Struct, frozen=True):
    """A design in --json. `patch` is 0 when it leaves no patch out; `module`: it has a TDX module
    of its own; `base` is the design that it changes."""

    name: str
    kind: str
    origin: str
    summary: str
    patch: int
    breaks: tuple[str, ...]
    scenarios: tuple[str, ...]
    module: bool
    base: str


class DesignList(msgspec.Struct, frozen=True):
    """What --json prints."""

    designs: list[DesignRow]
    schema: str = SCHEMA


def print_designs(kinds: list[str], *, as_json: bool) -> int:
    """List the designs of these kinds, all for none. Raises InputError for an unknown kind."""
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--kind {kind!r}: choose from {', '.join(KINDS)}")
    chosen = [design for design in designs().values() if not kinds or design.kind in kinds]
    if as_json:
        rows = DesignList([_row(design) for design in chosen])
        print(json_text(rows))
    else:
        print("\n".join(design_lines(chosen)))
    return OK


def design_lines(chosen: list[Design]) -> list[str]:
    """The list as text of 80 columns, by kind."""
    lines: list[str] = []
    for kind, heading in KINDS.items():
        of_kind = [design for design in chosen if design.kind == kind]
        if not of_kind:
            continue
        lines += [*([""] if lines else []), heading]
        for design in of_kind:
            lines += _entry(design)
    if not lines:
        lines.append("no design is of this kind")
    return lines


def _entry(design: Design) -> list[str]:
    indent = " " * NAME_WIDTH
    name = f"  {design.name}"
    lines = wrap(design.summary, indent, indent)
    if len(name) < NAME_WIDTH:
        lines[0] = f"{name:<{NAME_WIDTH}}{lines[0].strip()}"
    else:
        lines.insert(0, name)
    patch = f"without patch {design.patch}; " if design.patch else ""
    base = "" if design.base == V3.name else f"changes {design.base}; "
    return lines + wrap(f"{base}{patch}{design.origin}", indent, indent)


def _row(design: Design) -> DesignRow:
    return DesignRow(
        design.name,
        design.kind,
        design.origin,
        design.summary,
        design.patch,
        design.breaks,
        design.scenarios,
        design.module is not None,
        design.base,
    )
