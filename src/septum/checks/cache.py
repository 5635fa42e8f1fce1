"""The promise `cache`."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from septum.checks.pamt import children_of
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN, MEMO_MAX
from septum.checks.teardown import owned_by
from septum.machine.mem import CLEAN
from septum.module.pamt import PAGE_TYPE_NAMES, PT_NDA, PT_REG, PT_RSVD

if TYPE_CHECKING:
    from array import array

    from septum.checks.checker import Checker
    from septum.checks.sept import LeafRun
    from septum.checks.view import VmView
    from septum.module.pamt import PamtEntry2M

_HOST = (PT_NDA, PT_RSVD)


class CacheLines(Promise):
    """No dirty line of one key is written back over a page of another; frames are reset before
    reuse, and not free while the module has them.

    On real hardware the line is evicted some time later and corrupts the page of its new owner,
    who reads garbage or takes a machine check long after the mistake.
    """

    __slots__ = ("_judged",)
    name = "cache"
    thorough = True
    consequences: ClassVar[dict[str, str]] = {
        ".* is free, and the module still has it": "On real hardware the kernel gives the page to"
        " somebody else, whose writes break the integrity of what the module keeps there, or who"
        " takes a machine check.",
    }

    def __init__(self, checker: Checker) -> None:
        super().__init__(checker)
        # By VM, what was judged last: leaves, changes of memory, HKID. It is not judged again.
        self._judged: dict[str, tuple[list[LeafRun], int, int]] = {}

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """The frames of the TD have no dirty lines of another key: they were flushed before."""
        mem = vm.world.machine.mem
        runs = vm.runs(first_gfn, end_gfn)
        judged = (runs, mem.nr_changes, vm.hkid)
        if judged == self._judged.get(vm.name):
            return
        self._judged[vm.name] = judged
        for gfn, nr, _, _, pfn in runs:
            at = pfn
            end = pfn + nr
            while at < end:
                block = mem.block(at)
                nr_here = min(end - at, 512 - (at & 511))
                if block is not None:
                    index = at & 511
                    wrong = _first_other(block.dirty, index, nr_here, vm.hkid)
                    if wrong >= 0:
                        self._foreign(vm, gfn + at - pfn + wrong, at + wrong)
                        return
                at += nr_here

    def _foreign(self, vm: VmView, gfn: int, pfn: int) -> None:
        key = vm.world.machine.mem.dirty_of(pfn)
        self.broken(
            (vm.name, "foreign", pfn >> 9),
            f"{vm.name}: PFN {pfn:#x} is the TD's at GFN {gfn:#x} (HKID {vm.hkid}), and the cache "
            f"still has dirty lines of it with HKID {key}",
        )

    def gone(self, vm: VmView) -> None:
        """Control pages and S-EPT pages that the module did not give back leak. Pages of the guest
        are guest_memfd's."""
        if vm.tdr_pfn < 0:
            return
        site_of = vm.world.host.mm.state.site_of
        for hpa, _, kind in owned_by(vm.world.module.pamt, vm.tdr_pfn):
            if kind != PT_REG and hpa >> 12 not in site_of:
                self.broken(
                    (vm.name, "given away", kind),
                    f"{vm.name} is gone, and PFN {hpa >> 12:#x} of it "
                    f"({PAGE_TYPE_NAMES.get(kind, kind)}) is free, and the module still has it",
                )

    def look_machine(self) -> None:
        """Frames that no TD has and that hold no PAMT have no dirty line of a private key, and on
        parts with the partial-write erratum were reset. When no task is in between."""
        checker = self.checker
        if not checker.at_rest():
            return
        world = checker.world
        hkid_min = world.machine.config.private_hkid_min
        must_reset = world.host.params.x86_bug_tdx_pw_mce
        for leaf in world.module.pamt.entries_2m():
            if leaf.pt == PT_REG or leaf.parent.pt not in _HOST:
                continue
            block = world.machine.mem.block(leaf.hpa >> 12)
            if block is None:
                continue
            if block.dirty != CLEAN:
                self._check_free(leaf, block.dirty, hkid_min, "has dirty lines of")
            if must_reset:
                self._check_free(leaf, block.key, hkid_min, "was not reset after")

    def _check_free(
        self, leaf: PamtEntry2M, keys: int | array[int], hkid_min: int, what: str
    ) -> None:
        # MODEL: PAMT.REMOVE and PROMOTE give pages back without flushing the lines of the module's
        # own key, and no kernel flushes them; whether hardware minds is not known: not judged.
        if isinstance(keys, int) and keys < hkid_min:
            return
        index = _first_of_host(
            keys if isinstance(keys, int) else keys.tobytes(),
            (hkid_min, self.checker.world.machine.config.global_hkid),
            leaf.bitmap,
            leaf.child_pt,
            *children_of(leaf),
        )
        if index < 0:
            return
        key = keys if isinstance(keys, int) else keys[index]
        self.broken(
            ("free", key, what),
            f"PFN {(leaf.hpa >> 12) + index:#x} belongs to no TD, and {what} HKID {key}",
        )


@lru_cache(MEMO_MAX)
def _first_of_host(
    keys: int | bytes,
    private: tuple[int, int],
    bitmap: int,
    child_pt: int,
    indexes: tuple[int, ...],
    pts: tuple[int, ...],
) -> int:
    """The first of the 512 frames of a 2 MB block that has a private key and belongs to no TD; -1.

    `private`: the first private HKID, and the module's own, which does not count. `bitmap`: frames
    that hold PAMT. `child_pt` is the type of the frames that are not in `indexes`, whose types are
    `pts`. A function of its arguments: the same come again and again.
    """
    hkid_min, global_hkid = private
    each = (keys,) * 512 if isinstance(keys, int) else memoryview(keys).cast("h")
    types = dict(zip(indexes, pts, strict=True))
    for index, key in enumerate(each):
        if key < hkid_min or key == global_hkid or bitmap >> index & 1:
            continue
        if types.get(index, child_pt) in _HOST:
            return index
    return -1


def _first_other(keys: int | array[int], index: int, nr: int, hkid: int) -> int:
    """Offset of the first of `nr` frames from `index` with dirty lines of another key; -1."""
    if isinstance(keys, int):
        return -1 if keys in (CLEAN, hkid) else 0
    part = keys[index : index + nr]
    if part.count(hkid) + part.count(CLEAN) == nr:
        return -1
    return next(i for i in range(nr) if part[i] not in (CLEAN, hkid))
