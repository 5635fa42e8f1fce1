"""What changed from one state of a world to the next, in lines of old -> new."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from septum.scenarios.states import Pages
from septum.words import LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.scenarios.states import Holders, WorldState

Piece = tuple[int, int, str, str]
"""[first, end) GFNs, what was there, what is there."""


def changes(old: WorldState, new: WorldState, *, mirror: bool = True) -> list[str]:
    """The lines; `mirror` false leaves out the mirror page table. Locks are told by
    `lock_changes`."""
    lines: list[str] = []
    for name in dict.fromkeys((*old.vms, *new.vms)):
        before, after = old.vms.get(name), new.vms.get(name)
        if before is None or after is None:
            lines.append(f"{name}: {'made' if before is None else 'gone from vm_list'}")
            continue
        of = f" of {name}" if len(new.vms) > 1 else ""
        if before.td and after.td and before.td != after.td:
            lines.append(f"TD{of}: {before.td} -> {after.td}")
        if after.has_key:
            lines += _page_lines(f"S-EPT{of}", before.sept, after.sept)
        if mirror:
            lines += _page_lines(f"mirror{of}", before.mirror, after.mirror)
        if before.private != after.private:
            lines += _page_lines(
                f"attributes{of}", _private(before.private), _private(after.private), "shared"
            )
        if after.bugged and not before.bugged:
            lines.append(f"{name}: alive -> bugged")
    for cpu in sorted(old.tlbs.keys() | new.tlbs.keys()):
        lines += _page_lines(f"TLB of cpu{cpu}", old.tlbs.get(cpu, ()), new.tlbs.get(cpu, ()))
    for frame in sorted(old.pamt.keys() | new.pamt.keys()):
        before_text, after_text = (s.pamt.get(frame, "no pair, count 0") for s in (old, new))
        if before_text != after_text:
            lines.append(f"PAMT of PFN {frame:#x}+0x200: {before_text} -> {after_text}")
    return lines


def lock_changes(old: WorldState, new: WorldState, wanted: frozenset[str]) -> list[str]:
    """A line for each lock of `wanted` that changed hands."""
    return [
        f"{lock}: {_holders(old.locks.get(lock, ()))} -> {_holders(new.locks.get(lock, ()))}"
        for lock in sorted(wanted)
        if old.locks.get(lock, ()) != new.locks.get(lock, ())
    ]


def _holders(holders: Holders) -> str:
    return ", ".join(f"{task} ({mode})" for task, mode in dict.fromkeys(holders)) or "free"


def _private(ranges: tuple[tuple[int, int], ...]) -> tuple[Pages, ...]:
    return tuple(Pages(first, end, 0, "private", 0) for first, end in ranges)


def _page_lines(
    what: str, old: tuple[Pages, ...], new: tuple[Pages, ...], nothing: str = "none"
) -> Iterator[str]:
    if old == new:
        return
    for first, end, before, after in _merged(_pieces(old, new)):
        size = "" if end - first == 1 else f"+{end - first:#x}"
        yield f"{what} GFN {first:#x}{size}: {before or nothing} -> {after or nothing}"


def _pieces(old: tuple[Pages, ...], new: tuple[Pages, ...]) -> Iterator[Piece]:
    """Every stretch of GFNs where the two differ."""
    edges = sorted({edge for page in (*old, *new) for edge in (page.first_gfn, page.end_gfn)})
    for first, end in pairwise(edges):
        before, after = _at(old, first), _at(new, first)
        if _same(before, after):
            continue
        moved = before is not None and after is not None and _text(before) == _text(after)
        frame = first if moved else -1
        came = first if before is None else frame
        yield first, end, _text(before, frame), _text(after, came)


def text_at(pages: tuple[Pages, ...], gfn: int) -> str:
    """Level and state of what maps a GFN; "" for nothing."""
    return _text(_at(pages, gfn))


def _at(pages: tuple[Pages, ...], gfn: int) -> Pages | None:
    return next((page for page in pages if page.first_gfn <= gfn < page.end_gfn), None)


def _same(one: Pages | None, other: Pages | None) -> bool:
    if one is None or other is None:
        return one is other
    if (one.level, one.state) != (other.level, other.state):
        return False
    return one.pfn - one.first_gfn == other.pfn - other.first_gfn or one.level == 0


def _text(page: Pages | None, frame_of: int = -1) -> str:
    """Level and state; the frame of GFN `frame_of`, unless it is negative."""
    if page is None:
        return ""
    words = f"{LEVELS[page.level]} {page.state}" if page.level else page.state
    if frame_of >= 0 and page.pfn:
        words += f" at PFN {page.pfn + frame_of - page.first_gfn:#x}"
    return words


def _merged(pieces: Iterator[Piece]) -> Iterator[Piece]:
    last: Piece | None = None
    for piece in pieces:
        if last is not None and last[1] == piece[0] and last[2:] == piece[2:]:
            last = (last[0], piece[1], *last[2:])
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last
