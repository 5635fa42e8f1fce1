"""The promise `teardown`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks.pamt import FREE
from septum.checks.promise import Promise
from septum.checks.text import agree, level_text
from septum.machine.mem import CLEAN
from septum.module.pamt import PAGE_TYPE_NAMES, PT_NDA, PT_TDR
from septum.module.state import HKID_FREE

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from septum.checks.checker import Checker
    from septum.checks.operation import Operation
    from septum.checks.view import VmView
    from septum.module.pamt import Pamt, PamtEntry2M

Owned = tuple[int, int, int]
"""(HPA, KVM level, page type) of a page that a TD owns in the PAMT."""

_OWN = ("page is still its own,", "pages are still its own, the first one")


class Teardown(Promise):
    """A VM goes when its files are closed, and then every frame is free, reset, unencrypted by its
    key, and the HKID is back.

    On real hardware what is left is lost until reboot: memory that the host cannot use, key ids
    that no other TD can have, and dirty lines that hit the next owner of the frame.
    """

    __slots__ = ("_keys", "_last", "_reserved", "outstanding")
    name = "teardown"

    def __init__(self, checker: Checker) -> None:
        super().__init__(checker)
        self.outstanding: dict[int, tuple[int, str]] = {}
        self._last: VmView | None = None  # whose memory is still to be looked for
        self._keys: set[int] = set()  # not the VMs', or told of
        self._reserved: dict[int, int] = {}

    def start(self) -> None:
        """What is allocated before any VM exists is not the VMs'."""
        self.outstanding = self._outstanding()
        self._keys = set(self.checker.world.host.x86_tdx.state.keyid_ida)
        self._reserved = self._reservations()

    def gone(self, vm: VmView) -> None:
        """The module, the key, the caches, and (when it was the last VM) the allocator."""
        if vm.tdr_pfn >= 0:
            self._check_module(vm)
            self._check_key(vm)
        self._last = vm
        self._look_for_last()

    def operation_end(self, op: Operation) -> None:
        """What was being closed has been."""
        self._look_for_last()

    def _look_for_last(self) -> None:
        """The last close of a guest_memfd drops the last reference to the VM, and frees the memory
        after that."""
        vm = self._last
        if vm is None or self.checker.takes():
            return
        self._last = None
        if not self.checker.world.host.kvms and not any(self.checker.vms()):
            self._check_allocator(vm)
            self._check_keys(vm)
            self._check_reservations(vm)

    def exited(self) -> None:
        """A VM goes with the last of its files: the VM's, its vCPUs', and guest_memfds."""
        kvms = self.checker.world.host.kvms
        for vm in self.checker.vms():
            users = vm.kvm.users_count
            if kvms.get(vm.kvm.id) is vm.kvm:
                self.broken(
                    (vm.name, "VM"),
                    f"{vm.name} was not destroyed when all its files were closed: {users} "
                    f"{agree(users, 'reference to it is', 'references to it are')} left",
                )

    def _check_module(self, vm: VmView) -> None:
        world = self.checker.world
        td = world.module.tds.get(vm.tdr_pfn)
        if td is not None and td is not vm.own_td:
            # Another TD has the page. The module gives a TDR back when its TD has no page left.
            return
        if td is not None:
            self.broken(
                (vm.name, "TDR"),
                f"{vm.name} is gone, and its TDR page, PFN {vm.tdr_pfn:#x}, was never reclaimed",
            )
        self._check_reset_of_tdr(vm)
        left = list(owned_by(world.module.pamt, vm.tdr_pfn))
        if left:
            hpa, level, kind = left[0]
            self.broken(
                (vm.name, "pages"),
                f"{vm.name} is gone, and in the PAMT {len(left)} {agree(len(left), *_OWN)} "
                f"PFN {hpa >> 12:#x} ({level_text(level)}, "
                f"{PAGE_TYPE_NAMES.get(kind, kind)})",
            )

    def _check_reset_of_tdr(self, vm: VmView) -> None:
        """The TDR has the module's own key, which no TD gives back."""
        world = self.checker.world
        pfn = vm.tdr_pfn
        if (
            world.host.params.x86_bug_tdx_pw_mce
            and pfn not in world.host.mm.state.site_of
            and pfn not in world.module.tds
            and world.machine.mem.key_of(pfn) == world.module.global_hkid
        ):
            self.broken(
                (vm.name, "TDR", "reset"),
                f"{vm.name} is gone, and PFN {pfn:#x}, which was its TDR page, was not reset after "
                f"the module's HKID {world.module.global_hkid}",
            )

    def _check_key(self, vm: VmView) -> None:
        world = self.checker.world
        if vm.hkid < 0 or self._has_another(vm):
            return
        if vm.hkid in world.host.x86_tdx.state.keyid_ida:
            self._keys.add(vm.hkid)
            self.broken((vm.name, "HKID"), f"{vm.name} is gone, and the kernel lost HKID {vm.hkid}")
        entry = world.module.kot.entries.get(vm.hkid)
        if entry is not None and entry.state != HKID_FREE and vm.td is None:
            self.broken(
                (vm.name, "KOT"),
                f"{vm.name} is gone, and in the module HKID {vm.hkid} is in state {entry.state}, "
                "not free",
            )
        for first, nr, what in self._unclean(vm.hkid):
            self.broken(
                (vm.name, "lines", what),
                f"{vm.name} is gone, and {nr} {agree(nr, 'frame,', 'frames, the first one')} PFN "
                f"{first:#x}, {what} its HKID {vm.hkid}",
            )

    def _has_another(self, vm: VmView) -> bool:
        """Whether another VM has been given the HKID: what there is of it is that one's."""
        world = self.checker.world
        return any(
            td.hkid == vm.hkid and td is not vm.own_td for td in world.module.tds.values()
        ) or any(kvm.tdx.hkid == vm.hkid for kvm in world.host.kvms.values())

    def _unclean(self, hkid: int) -> Iterator[tuple[int, int, str]]:
        """(first PFN, number of frames, what is wrong), of frames that the VM has left behind."""
        world = self.checker.world
        must_reset = world.host.params.x86_bug_tdx_pw_mce
        dirty: list[int] = []
        keyed: list[int] = []
        for leaf in world.module.pamt.entries_2m():
            block = world.machine.mem.block(leaf.hpa >> 12)
            if block is None:
                continue
            first = leaf.hpa >> 12
            if block.dirty != CLEAN:
                dirty += _frames_with(block.dirty, first, hkid)
            if must_reset:
                keyed += _frames_with(block.key, first, hkid)
        if dirty:
            have = agree(len(dirty), "has", "have")
            yield dirty[0], len(dirty), f"still {have} dirty lines of"
        if keyed:
            were = agree(len(keyed), "was", "were")
            yield keyed[0], len(keyed), f"{were} not reset after"

    def _outstanding(self) -> dict[int, tuple[int, str]]:
        """What nobody freed, but where a page has failed: memory_failure() keeps that for good. Of
        a folio that was split it keeps the page."""
        mm = self.checker.world.host.mm
        failed = mm.state.poisoned
        found: dict[int, tuple[int, str]] = {}
        for pfn, nr, site in mm.outstanding():
            block = mm.state.split_blocks.get(pfn)
            if block is not None:
                end = pfn + (1 << block.order)
                nr -= sum(pfn <= bad < end and bad not in block.freed for bad in failed)
            elif any(pfn <= bad < pfn + nr for bad in failed):
                continue
            if nr:
                found[pfn] = nr, site
        return found

    def _check_allocator(self, vm: VmView) -> None:
        sites: dict[str, list[int]] = {}
        for pfn, (nr, site) in self._outstanding().items():
            if self.outstanding.get(pfn) != (nr, site):
                sites.setdefault(site, []).append(pfn)
        for site, pfns in sites.items():
            self.broken(
                ("allocator", site),
                f"{vm.name} was the last VM, and {len(pfns)} "
                f"{agree(len(pfns), 'allocation', 'allocations')} of {site} "
                f"{agree(len(pfns), 'was never freed,', 'were never freed, the first one')} "
                f"PFN {pfns[0]:#x}",
            )

    def _check_keys(self, vm: VmView) -> None:
        """Of an attempt at KVM_TDX_INIT_VM that failed, too."""
        lost = sorted(self.checker.world.host.x86_tdx.state.keyid_ida - self._keys)
        if lost:
            self.broken(
                ("keys",),
                f"{vm.name} was the last VM, and {len(lost)} {agree(len(lost), 'HKID', 'HKIDs')} "
                f"{agree(len(lost), 'was never freed,', 'were never freed, the first one')} "
                f"{lost[0]}",
            )

    def _reservations(self) -> dict[int, int]:
        """Huge pages of each order that are promised to guest_memfds."""
        pools = self.checker.world.host.mm.state.pools
        return {order: pool.resv_huge_pages for order, pool in pools.items()}

    def _check_reservations(self, vm: VmView) -> None:
        """A page that has failed never comes back, and what was reserved with it stays."""
        if self.checker.world.host.mm.state.poisoned:
            return
        for order, nr in self._reservations().items():
            left = nr - self._reserved.get(order, 0)
            if left:
                self.broken(
                    ("reserved", order),
                    f"{vm.name} was the last VM, and of the huge pages of order {order} {left} "
                    f"{agree(left, 'is', 'are')} still reserved for a guest_memfd",
                )


def owned_by(pamt: Pamt, tdr_pfn: int) -> Iterator[Owned]:
    """Pages that the PAMT says belong to the TD, its TDR included, by address."""
    seen_1g = -1
    for leaf in pamt.entries_2m():
        top = leaf.parent
        if top.hpa != seen_1g:
            seen_1g = top.hpa
            if top.pt != PT_NDA and top.owner == tdr_pfn:
                yield top.hpa, 3, top.pt
        if top.pt == PT_NDA:
            yield from _owned_in(leaf, tdr_pfn)


def _owned_in(leaf: PamtEntry2M, tdr_pfn: int) -> Iterator[Owned]:
    """Those in one 2 MB frame."""
    if leaf.pt not in FREE:
        if leaf.owner == tdr_pfn:
            yield leaf.hpa, 2, leaf.pt
        return
    if leaf.child_pt not in FREE and leaf.child_owner == tdr_pfn:
        for index in range(512):
            if index not in leaf.children:
                yield leaf.hpa + (index << 12), 1, leaf.child_pt
    for index, child in sorted(leaf.children.items()):
        hpa = leaf.hpa + (index << 12)
        is_tdr = child.pt == PT_TDR and hpa >> 12 == tdr_pfn  # which belongs to nobody
        if is_tdr or (child.pt not in FREE and child.owner == tdr_pfn):
            yield hpa, 1, child.pt


def _frames_with(values: int | array[int], first_pfn: int, hkid: int) -> list[int]:
    """The frames of a 2 MB block from `first_pfn` on whose value is `hkid`. One number is that of
    all 512."""
    if isinstance(values, int):
        return list(range(first_pfn, first_pfn + 512)) if values == hkid else []
    return [first_pfn + i for i, value in enumerate(values) if value == hkid]
