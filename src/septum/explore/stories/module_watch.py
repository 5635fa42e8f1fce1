"""What the module and KVM have at an event that no event tells: who holds which lock of the module,
who left host priority, which vCPU is in the TD in which epoch, KVM's invalidations.

Lock words name no holder. Between two events one task runs, so that it took or dropped what has
changed since the last one.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from septum.abi.leaves import GPA_LEAVES, TDH_PHYMEM_PAMT_REMOVE, seamcall_name, tdcall_name
from septum.abi.sept import HP, LOCK, PS, RWX_HW
from septum.abi.spte import SPTE_BASE_ADDR_MASK, is_last_spte, is_shadow_present_pte
from septum.abi.status import TDX_TD_ASSOCIATED_PAGES_EXIST
from septum.abi.types import PAGE_SHIFT, PTRS_PER_TABLE
from septum.checks.text import pages_text
from septum.checks.view import VmView
from septum.module.dispatch import SEAMCALLS, TDCALLS
from septum.module.events import SeamcallEvent, TdcallEvent
from septum.module.locks import EX, PLAIN_EX, PLAIN_READER, READER
from septum.module.locks import HP as LOCK_HP
from septum.module.pamt import PT_NDA, PT_TDR
from septum.module.state import NO_LP, TD_TEARDOWN, VCPU_ACTIVE
from septum.module.vp_enter import enter

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator
    from types import CodeType, FrameType

    from septum.machine import TablePage
    from septum.module.state import Td
    from septum.sim import Event
    from septum.vmm.world import World


class ModuleLock(NamedTuple):
    """A lock of a TD: `kind` is tdr, op_state, tree, epoch or entry; of an S-EPT entry with its TDX
    level and first GFN."""

    tdr_pfn: int
    kind: str
    level: int = 0
    gfn: int = 0


class Held(msgspec.Struct, frozen=True):
    """`task` has it; `since` is the index of the first event after it was taken."""

    task: str
    since: int
    exclusive: bool = False


class InTd(msgspec.Struct, frozen=True):
    """A vCPU in its TD, on logical processor `cpu`, in the epoch that it entered in."""

    vcpu: int
    cpu: int
    epoch: int


class TdLook(msgspec.Struct, frozen=True):
    """A TD: TD_EPOCH, the REFCOUNTs of even and odd epochs, the vCPUs that are inside, and with
    which logical processor vCPUs are associated: (vCPU, cpu)."""

    epoch: int
    refcount: tuple[int, int]
    inside: tuple[InTd, ...]
    associated: tuple[tuple[int, int], ...] = ()


class VmLook(msgspec.Struct, frozen=True):
    """A VM of KVM: its TDR page, mmu_invalidate_seq, how many invalidations are under way, how many
    pages its split cache for Dynamic PAMT has, the GFNs [start, end) that the invalidations under
    way are of, and the shared bit of its GFNs."""

    tdr_pfn: int
    seq: int
    in_progress: int
    split_cache: int = 0
    invalid: tuple[int, int] = (0, 0)
    direct_bits: int = 0


class ModuleLook(msgspec.Struct, frozen=True):
    """Module and KVM right after an event.

    Of a module call that failed: `calls` is which call of the module other tasks are in; of a
    TDH.PHYMEM.PAMT.REMOVE that failed `in_use` are the 4 KB pages in use in its frame; of a
    TDH.PHYMEM.PAGE.RECLAIM of a TDR that failed `owned` are the TD's other pages, with their type:
    (PFN, PT); of one that takes a GPA `mirror_level` is the KVM level of the entry where the walk
    of the mirror page table to it ends, 0 when there is no mirror.
    """

    tds: dict[int, TdLook]
    vms: dict[str, VmLook]
    held: dict[ModuleLock, tuple[Held, ...]]
    priority: dict[ModuleLock, Held]
    calls: dict[str, str]
    in_use: tuple[int, ...]
    mirror_level: int = 0
    owned: tuple[tuple[int, int], ...] = ()


def invalidation_changes(old: ModuleLook | None, new: ModuleLook | None) -> Iterator[str]:
    """A line for each VM whose invalidations began or ended in between, old -> new; of what both
    began and ended the sequence number is left. Nothing where nobody could look."""
    if old is None or new is None:
        return
    for name, after in new.vms.items():
        before = old.vms.get(name, after)
        of = f" of {name}" if len(new.vms) > 1 else ""
        if before.in_progress != after.in_progress:
            gfns = f", of {pages_text(*after.invalid)}" if after.in_progress else ""
            yield (
                f"mmu_invalidate_in_progress{of}: {before.in_progress} -> {after.in_progress}{gfns}"
            )
        if before.seq != after.seq:
            yield f"mmu_invalidate_seq{of}: {before.seq} -> {after.seq}"


class Word(NamedTuple):
    """What a lock word says."""

    exclusive: bool
    readers: int
    priority: bool


FREE = Word(False, 0, False)


@cache
def _call_names() -> dict[CodeType, str]:
    names = {function.__code__: seamcall_name(leaf) for leaf, function in SEAMCALLS.items()}
    names |= {function.__code__: tdcall_name(leaf) for leaf, function in TDCALLS.items()}
    return names | {enter.__code__: seamcall_name(0)}


def call_under_way() -> str:
    """The call of the module that the running task is in: "TDH.MEM.PAGE.DEMOTE"; "" for none."""
    names = _call_names()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = names.get(frame.f_code)
        if name is not None:
            return name
        frame = frame.f_back
    return ""


class ModuleWatcher:
    """Looks at the module of a world after each event of a run."""

    __slots__ = ("_entries", "_held", "_names", "_priority", "_tables", "_words", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self._names = _call_names()
        self._words: dict[ModuleLock, Word] = {}
        self._held: dict[ModuleLock, tuple[Held, ...]] = {}
        self._priority: dict[ModuleLock, Held] = {}
        self._tables: dict[int, tuple[int, list[tuple[TablePage, int, int]]]] = {}
        self._entries: dict[int, tuple[array[int], dict[int, Word]]] = {}

    def begin(self) -> ModuleLook:
        """The run begins: whoever holds what there is now is not known."""
        self._words = dict(self._read())
        return self._look(None)

    def after(self, event: Event, at: int) -> ModuleLook:
        """The look right after `event`, the one of index `at`. To be called of every event."""
        words = dict(self._read())
        for lock in words.keys() | self._words.keys():
            old, new = self._words.get(lock, FREE), words.get(lock, FREE)
            if old != new:
                self._change(lock, old, new, event.task, at)
        self._words = words
        failed = isinstance(event, SeamcallEvent | TdcallEvent) and event.status
        return self._look(event if failed else None)

    def _look(self, failed: Event | None) -> ModuleLook:
        """What there is now; `failed`: after a call of the module that failed."""
        world = self.world
        return ModuleLook(
            tds={pfn: _td_look(world, td) for pfn, td in world.module.tds.items()},
            vms={
                f"vm{number}": VmLook(
                    kvm.tdx.tdr_page or -1,
                    kvm.mmu_invalidate_seq,
                    kvm.mmu_invalidate_in_progress,
                    kvm.tdx.prealloc_split_cache.cnt,
                    (kvm.mmu_invalidate_range_start, kvm.mmu_invalidate_range_end),
                    kvm.arch.gfn_direct_bits,
                )
                for number, kvm in world.host.kvms.items()
            },
            held={lock: held for lock, held in self._held.items() if held},
            priority=dict(self._priority),
            calls=dict(self._calls()) if failed is not None else {},
            in_use=self._in_use(failed) if failed is not None else (),
            mirror_level=self._mirror_level(failed) if failed is not None else 0,
            owned=tuple(self._owned(failed)) if failed is not None else (),
        )

    def _change(self, lock: ModuleLock, old: Word, new: Word, task: str, at: int) -> None:
        """`task` made `new` of `old`. While a lock is held exclusively its readers are what failed
        attempts left."""
        held = list(self._held.get(lock, ()))
        if old.exclusive and not new.exclusive:
            held.clear()
        if new.exclusive and not old.exclusive:
            held = [Held(task, at, True)]
        elif not new.exclusive:
            more = new.readers - (0 if old.exclusive else old.readers)
            held += [Held(task, at)] * more
            for _ in range(min(-more, len(held))):
                mine = [one for one in held if one.task == task]
                held.remove(mine[-1] if mine else held[0])
        self._held[lock] = tuple(held)
        if new.priority and not old.priority:
            self._priority[lock] = Held(task, at)
        elif not new.priority:
            self._priority.pop(lock, None)

    def _read(self) -> Iterator[tuple[ModuleLock, Word]]:
        """Every lock of every TD that is not free."""
        for pfn, td in self.world.module.tds.items():
            hp_locks = (("tdr", td.p4k), ("op_state", td.op_state_lock), ("tree", td.sept_lock))
            for kind, owner in hp_locks:
                word = owner.lock
                if word:
                    said = Word(bool(word & EX), word // READER, bool(word & LOCK_HP))
                    yield ModuleLock(pfn, kind), said
            word = td.epoch_lock.word
            if word:
                said = Word(bool(word & PLAIN_EX), word // PLAIN_READER, False)
                yield ModuleLock(pfn, "epoch"), said
            for page, level, gfn in self._sept_tables(td):
                for index, said in self._entry_words(page).items():
                    yield ModuleLock(pfn, "entry", level, gfn + (index << 9 * level)), said

    def _sept_tables(self, td: Td) -> list[tuple[TablePage, int, int]]:
        """The S-EPT's table pages: TDX level of their entries, first GFN."""
        root = td.root
        if root is None or td.lifecycle == TD_TEARDOWN:
            return []
        known = self._tables.get(td.tdr_pfn)
        if known is None or known[0] != root.writes.nr:
            tables = list(self._walk(root, td.root_level, 0))
            known = self._tables[td.tdr_pfn] = (root.writes.nr, tables)
        return known[1]

    def _walk(self, page: TablePage, level: int, gfn: int) -> Iterator[tuple[TablePage, int, int]]:
        yield page, level, gfn
        if not level:
            return
        module = self.world.module
        for index, entry in enumerate(page.values()):
            # A blocked table stays below its entry: nobody reaches its locks.
            if entry & RWX_HW and not entry & PS:
                below = module.tables[(entry & module.pfn_mask) >> 12]
                yield from self._walk(below, level - 1, gfn + (index << 9 * level))

    def _entry_words(self, page: TablePage) -> dict[int, Word]:
        """The entries of a table page that are locked or have host priority."""
        entries = page.entries
        if entries is None:
            return {}
        known = self._entries.get(page.pfn)
        if known is None or known[0] != entries:
            words = {
                index: Word(bool(entry & LOCK), 0, bool(entry & HP))
                for index, entry in enumerate(entries)
                if entry & (LOCK | HP)
            }
            known = self._entries[page.pfn] = (entries[:], words)
        return known[1]

    def _calls(self) -> Iterator[tuple[str, str]]:
        """Which call of the module each task stands in that does not run now."""
        for task in self.world.sim.tasks:
            if task is self.world.sim.current or task.glet is None:
                continue
            frame = task.glet.gr_frame
            while frame is not None:
                name = self._names.get(frame.f_code)
                if name is not None:
                    yield task.name, name
                    break
                frame = frame.f_back

    def _in_use(self, event: Event) -> tuple[int, ...]:
        """The 4 KB pages in use (PFNs) in the frame of a TDH.PHYMEM.PAMT.REMOVE."""
        if not isinstance(event, SeamcallEvent) or event.leaf != TDH_PHYMEM_PAMT_REMOVE:
            return ()
        leaf = self.world.module.pamt.entry_2m(event.rcx >> 21 << 21)
        if leaf is None:
            return ()
        first = leaf.hpa >> 12
        return tuple(
            first + index for index in range(PTRS_PER_TABLE) if leaf.child_type(index) != PT_NDA
        )

    def _owned(self, event: Event) -> Iterator[tuple[int, int]]:
        """The pages that keep a TDR from being reclaimed."""
        if not isinstance(event, SeamcallEvent) or event.status != TDX_TD_ASSOCIATED_PAGES_EXIST:
            return
        tdr = event.rcx >> PAGE_SHIFT
        pamt = self.world.module.pamt
        for leaf in pamt.entries_2m():
            for hpa in range(leaf.hpa, leaf.hpa + (PTRS_PER_TABLE << PAGE_SHIFT), 1 << PAGE_SHIFT):
                level, pt, owner, _ = pamt.lookup(hpa) or (0, PT_NDA, 0, 0)
                if owner == tdr and pt not in (PT_NDA, PT_TDR):
                    yield hpa >> PAGE_SHIFT, pt
                    if level:
                        break

    def _mirror_level(self, event: Event) -> int:
        if not isinstance(event, SeamcallEvent) or event.leaf not in GPA_LEAVES:
            return 0
        tables = self.world.machine.tables
        for kvm in self.world.host.kvms.values():
            root = VmView(self.world, kvm, None).mirror_root()
            if kvm.tdx.tdr_page != event.rdx >> PAGE_SHIFT or root is None:
                continue
            page, level = root.spt, root.level
            while True:
                spte = page.entry(event.rcx >> PAGE_SHIFT + 9 * (level - 1) & PTRS_PER_TABLE - 1)
                if not is_shadow_present_pte(spte) or is_last_spte(spte, level):
                    return level
                page, level = tables[(spte & SPTE_BASE_ADDR_MASK) >> PAGE_SHIFT], level - 1
        return 0


def _td_look(world: World, td: Td) -> TdLook:
    inside = tuple(
        InTd(vcpu.index, vcpu.lp.id, vcpu.vcpu_epoch)
        for vcpu in world.module.vcpus.values()
        if vcpu.td is td and vcpu.state == VCPU_ACTIVE and vcpu.lp is not None
    )
    associated = tuple(
        (vcpu.index, vcpu.assoc_lp)
        for vcpu in world.module.vcpus.values()
        if vcpu.td is td and vcpu.assoc_lp != NO_LP
    )
    return TdLook(td.td_epoch, (td.refcount[0], td.refcount[1]), inside, associated)
