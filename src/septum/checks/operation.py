"""What user space asks of the host, as the checks see it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from septum.checks.intervals import Intervals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from septum.linux.kvm.types import GmemFile, GmemInode, Kvm

Spans = dict[int, Intervals]
"""By id of the VM, the GFNs that are concerned."""


class Aim(Enum):
    """What becomes of the memory that an operation names."""

    NEITHER = "private stays private, and shared shared"
    TAKE = "what is private goes: a hole, a slot, a file, a page that failed"
    TO_SHARED = "it becomes shared, and what was private goes"
    TO_PRIVATE = "it becomes private, and what was shared is unmapped"
    TO_PRIVATE_AFRESH = "it becomes private, and all that is mapped there is unmapped first"


_TAKE = (Aim.TAKE, Aim.TO_SHARED)
_GIVE = (Aim.TO_PRIVATE, Aim.TO_PRIVATE_AFRESH)


class Operation:
    """One request of user space: an ioctl, fallocate, close, or a memory failure that it sees.

    `spans` are the GFNs that it names, `aim` says what for. `kept` are the GFNs that must be as
    before when it fails; an operation whose contract lets it stop half-way sets it to the rest.
    `ret` is None while it is under way. `named` says anew which GFNs it names, where slots may get
    memory that it is about. `takes`: it asks for private memory to go; `gives`: it makes memory
    private, where it is not yet.
    """

    __slots__ = ("aim", "gives", "kept", "name", "named", "number", "ret", "spans", "takes")

    def __init__(
        self,
        number: int,
        name: str,
        spans: Spans,
        aim: Aim,
        named: Callable[[], Spans] | None = None,
    ) -> None:
        self.number = number
        self.name = name
        self.spans = spans
        self.named = named
        self.aim = aim
        self.takes = aim in _TAKE
        self.gives = aim in _GIVE
        self.kept = spans
        self.ret: int | None = None

    def on(self, vm_id: int) -> Intervals:
        """The GFNs of one VM that it names."""
        return self.spans.get(vm_id, _NOTHING)

    def grow(self) -> Spans:
        """A slot was given memory: the GFNs that it names and did not before. They are none of
        those that it must keep."""
        more: Spans = {}
        for vm_id, spans in (self.named() if self.named is not None else {}).items():
            fresh = spans.minus(self.on(vm_id))
            if fresh:
                more[vm_id] = fresh
                self.spans = {**self.spans, vm_id: self.on(vm_id).union(fresh)}
        return more

    def done(self, vm_id: int) -> Intervals:
        """Those for which it did what it was asked; it has ended."""
        named = self.on(vm_id)
        return named.minus(self.kept.get(vm_id, _NOTHING)) if self.ret else named

    def __repr__(self) -> str:
        # Of two VMs on one file the same GFNs.
        parts = dict.fromkeys(
            f"[{start:#x}, {end:#x})" for spans in self.spans.values() for start, end in spans
        )
        to_private = " to private" * self.gives
        return f"{self.name} {', '.join(parts)}".rstrip() + to_private


_NOTHING = Intervals()


def vm_spans(kvm: Kvm, ranges: Iterable[tuple[int, int]]) -> Spans:
    """GFNs of one VM."""
    return {kvm.id: Intervals(ranges)}


def gmem_spans(inode: GmemInode, start: int, end: int, only: GmemFile | None = None) -> Spans:
    """The GFNs, in every VM, of the indexes [start, end) of a guest_memfd."""
    ranges: dict[int, list[tuple[int, int]]] = {}
    for f in inode.file_list:
        if only is not None and f is not only:
            continue
        for first, last, slot in f.bindings:
            low, high = max(first, start), min(last, end)
            if low < high:
                offset = slot.base_gfn - slot.gmem_pgoff
                ranges.setdefault(f.kvm.id, []).append((low + offset, high + offset))
    return {number: Intervals(spans) for number, spans in ranges.items()}
