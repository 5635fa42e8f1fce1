"""Who reads SRCU, who refers to a folio and who has it locked: of that no event tells.

What changed between two events, or an event and the end of a task, was changed by that task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.linux.kvm.gmem_types import GmemInode
    from septum.linux.mm.folio import Folio
    from septum.vmm.world import World

K = TypeVar("K")


class Hold(NamedTuple):
    """`task` has it since before the event of index `at`; -1: since before the first."""

    task: str
    at: int


UNKNOWN = Hold("", -1)


class FolioHeld(msgspec.Struct, frozen=True):
    """A folio of a guest_memfd, from its page `index` on, with more references than the page
    cache's: `tasks` look it up or fault it in; `mapped` are of host page tables, `pins` of GUP,
    with the index of the page; `poisoned` is that of memory_failure(). `cached`: it is in the page
    cache still."""

    pfn: int
    refcount: int
    nr_pages: int
    tasks: tuple[Hold, ...]
    mapped: tuple[tuple[int, Hold], ...]
    pins: tuple[tuple[int, Hold], ...]
    poisoned: Hold | None
    index: int = 0
    cached: bool = True


class Held(msgspec.Struct, frozen=True):
    """At the end of a run: SRCU by name, folios; by PFN, folios that are locked, and who unlocked
    those that are not any more, and since when they are not. `left` are folios that have left the
    page cache, or whose file is gone, and are not free; of those that `robbed` names somebody gave
    back a reference of the page cache. `taken`: who allocated the page that the finding is of."""

    srcu: dict[str, tuple[Hold, ...]] = {}
    folios: tuple[FolioHeld, ...] = ()
    left: tuple[FolioHeld, ...] = ()
    robbed: dict[int, Hold] = {}
    taken: Hold | None = None
    locked: dict[int, Hold] = {}
    unlocked: dict[int, Hold] = {}


class Holders:
    """Looks at each event of a run."""

    __slots__ = (
        "_indexes",
        "_known",
        "_locked",
        "_mapped",
        "_pins",
        "_poisoned",
        "_refs",
        "_robbed",
        "_srcu",
        "_taken",
        "_unlocked",
        "_world",
        "leaked_pfn",
    )

    def __init__(self, world: World) -> None:
        self._world = world
        self.leaked_pfn = -1  # of the page that nobody frees
        self._forget()

    def _forget(self) -> None:
        self._srcu: dict[str, list[Hold]] = {}
        self._taken: Hold | None = None
        self._refs: dict[Folio, list[Hold]] = {}
        self._indexes: dict[Folio, int] = {}
        self._known: list[GmemInode] = []
        self._robbed: dict[int, Hold] = {}
        self._locked: dict[Folio, Hold] = {}
        self._unlocked: dict[int, Hold] = {}
        self._mapped: dict[tuple[GmemInode, int], Hold] = {}
        self._pins: dict[tuple[GmemInode, int], Hold] = {}
        self._poisoned: dict[int, Hold] = {}

    def begin(self) -> None:
        """The run begins: who did what there is now is not known."""
        self._forget()
        self._look(UNKNOWN)

    def look(self, task: str, at: int) -> None:
        """What changed since the last look, `task` did, before the event of index `at`. To be
        called of every event, and where a task has ended or waits."""
        self._look(Hold(task, at))

    def end(self, task: str, at: int) -> Held:
        """The run has ended, in `task`, after so many events."""
        self._look(Hold(task, at))
        return Held(
            {name: tuple(holds) for name, holds in self._srcu.items() if holds},
            tuple(self._folios(self._inodes())),
            tuple(self._left()),
            self._robbed,
            self._taken,
            {folio.pfn: hold for folio, hold in self._locked.items()},
            self._unlocked,
        )

    def folios_of(self, inode: GmemInode, task: str, at: int) -> tuple[FolioHeld, ...]:
        """Its folios that somebody refers to, while `task` runs, after so many events."""
        self._look(Hold(task, at))
        return tuple(self._folios([inode]))

    def _inodes(self) -> Iterator[GmemInode]:
        seen: list[GmemInode] = []
        for kvm in self._world.host.kvms.values():
            for file in kvm.gmem_files:
                if file.inode not in seen:
                    seen.append(file.inode)
                    yield file.inode

    def _look(self, now: Hold) -> None:
        mm = self._world.host.mm.state
        if self.leaked_pfn not in mm.site_of and self.leaked_pfn not in mm.folios:
            self._taken = None
        elif self._taken is None:
            self._taken = now
        for kvm in self._world.host.kvms.values():
            readers = [task.name for task in kvm.srcu.readers]
            _follow(self._srcu.setdefault(kvm.srcu.name, []), readers, now)
        mapped: list[tuple[GmemInode, int]] = []
        pins: list[tuple[GmemInode, int]] = []
        locked: list[Folio] = []
        cached: set[Folio] = set()
        self._known += [inode for inode in self._inodes() if inode not in self._known]
        for inode in self._known:
            mapped += [(inode, index) for index in sorted(inode.user_mapped)]
            pins += [(inode, index) for index in inode.pins]
            for index, folio in inode.folios.items():
                cached.add(folio)
                self._indexes[folio] = index
                if folio.refcount < folio.nr_pages:
                    self._robbed.setdefault(folio.pfn, now)
                _count(self._refs.setdefault(folio, []), folio.refcount - folio.nr_pages, now)
                if folio.locked:
                    locked.append(folio)
        for folio in [folio for folio in self._refs if folio not in cached]:
            _count(self._refs[folio], folio.refcount, now)
            if not folio.refcount:
                del self._refs[folio]
        _keep(self._mapped, mapped, now)
        _keep(self._pins, pins, now)
        for folio in self._locked:
            if folio not in locked:
                self._unlocked[folio.pfn] = now
        _keep(self._locked, locked, now)
        _keep(self._poisoned, self._world.host.mm.state.poisoned, now)

    def _left(self) -> Iterator[FolioHeld]:
        """Folios that are not free, and that nobody finds any more."""
        mm = self._world.host.mm.state
        there = list(self._inodes())
        lost = {id(folio) for inode in there for folio in inode.folios.values()}
        for folio, holds in self._refs.items():
            now = mm.folios.get(folio.pfn) or mm.small_folios.get(folio.pfn)
            if now is not folio or id(folio) in lost:
                continue
            index = self._indexes[folio]
            cached = any(inode.folios.get(index) is folio for inode in self._known)
            yield FolioHeld(
                folio.pfn,
                folio.refcount,
                folio.nr_pages,
                tuple(holds),
                (),
                (),
                None,
                index,
                cached,
            )

    def _folios(self, inodes: Iterable[GmemInode]) -> Iterator[FolioHeld]:
        for inode in inodes:
            for first, folio in inode.folios.items():
                holds = list(self._refs[folio])
                if not holds:
                    continue
                pages = range(first, first + folio.nr_pages)
                mapped = [(i, h) for (of, i), h in self._mapped.items() if of is inode]
                pins = [
                    (i, h)
                    for (of, i), h in self._pins.items()
                    if of is inode
                    for _ in range(inode.pins[i])
                ]
                mapped = [(i, h) for i, h in mapped if i in pages]
                pins = [(i, h) for i, h in pins if i in pages]
                poisoned = self._poisoned.get(folio.pfn)
                theirs = [*(h for _, h in mapped), *(h for _, h in pins)]
                for hold in [*theirs, *([poisoned] if poisoned is not None else [])]:
                    if holds:
                        holds.remove(hold if hold in holds else holds[0])
                yield FolioHeld(
                    folio.pfn,
                    folio.refcount,
                    folio.nr_pages,
                    tuple(holds),
                    tuple(mapped),
                    tuple(pins),
                    poisoned,
                    first,
                )


def _follow(holds: list[Hold], names: list[str], now: Hold) -> None:
    """`holds` are those of the tasks `names` now, who may be there more than once."""
    left = list(names)
    for hold in list(holds):
        if hold.task in left:
            left.remove(hold.task)
        elif hold.task or len(holds) > len(names):
            holds.remove(hold)
    holds += [Hold(name, now.at) for name in left]


def _count(holds: list[Hold], nr: int, now: Hold) -> None:
    """There are `nr` now."""
    nr = max(nr, 0)  # not in the page cache yet, or any more
    holds += [now] * (nr - len(holds))
    for _ in range(len(holds) - nr):
        mine = [hold for hold in holds if hold.task == now.task]
        holds.remove(mine[-1] if mine else holds[0])


def _keep(holds: dict[K, Hold], keys: Iterable[K], now: Hold) -> None:
    """`keys` are there now."""
    there = list(keys)
    for key in list(holds):
        if key not in there:
            del holds[key]
    for key in there:
        holds.setdefault(key, now)
