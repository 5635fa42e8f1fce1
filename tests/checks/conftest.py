"""A world put together by hand: tables, frames and records as an honest run would leave them.

Each test breaks one thing in it and sees the promise catch it. Nothing of the kernel model runs.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.sept import (
    BLOCKED,
    FREE_ENTRY,
    MAPPED_ENTRY,
    NL_MAPPED_ENTRY,
    PENDING_ENTRY,
    RWX,
)
from septum.abi.spte import SHADOW_NONPRESENT_VALUE, make_nonleaf_spte, make_spte
from septum.checks import Checker
from septum.checks.operation import Aim, Operation, vm_spans
from septum.guest.memory import GuestMemory
from septum.linux.host import HostParams
from septum.linux.kvm.types import (
    Folio,
    GmemFile,
    GmemInode,
    Kvm,
    KvmArch,
    KvmMemorySlot,
    KvmMmuPage,
    KvmTdx,
)
from septum.linux.mm import Mm
from septum.linux.ranges import range_store
from septum.linux.srcu import Srcu
from septum.machine import Machine, MachineConfig, Tdmr
from septum.module import Module
from septum.module.pamt import PT_EPT, PT_PAMT, PT_REG, PT_TDR
from septum.module.state import (
    HKID_ASSIGNED,
    OP_STATE_RUNNABLE,
    TD_KEYS_CONFIGURED,
    VCPU_ACTIVE,
    Td,
    Vcpu,
)
from septum.sim import Mutex, RwLock, RwSem, Sim, SpinLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from septum.abi.types import Pfn

WRONG_NUMBER = re.compile(
    r"\b1 (pages|frames|allocations|invalidations)\b|\b1 of its 4 KB pages are\b"
    r"|\(1 page\)[^;(]* (are|their)\b"
)
"""One page are, 1 frames."""
PAGES = (0, 1, 512)
TABLES_FROM = 0x100  # page tables and control pages
GUEST_FROM = 0x40000  # PFN that backs GFN 0


class TinyWorld:
    """One TD with one slot of `nr_pages`, all private, backed by 2 MB folios from GUEST_FROM on."""

    def __init__(self, nr_pages: int = 4096, *, dynamic_pamt: bool = False) -> None:
        self.sim = Sim()
        tdmr = Tdmr(0, 1 << 40)
        config = MachineConfig(num_lps=2, tdmrs=(tdmr,), dynamic_pamt=dynamic_pamt)
        self.machine = Machine(self.sim, config)
        self.module = Module(self.machine)
        self.machine.seam = self.module
        self.host = SimpleNamespace(
            sim=self.sim,
            machine=self.machine,
            kvms={},
            page_private={},
            params=HostParams(),
            main=SimpleNamespace(kvm_get_running_vcpu=lambda: None),
            gmem=None,
            x86=None,
            mmu=None,
            tdp_mmu=None,
            x86_tdx=SimpleNamespace(
                state=SimpleNamespace(keyid_ida=set(), pamt_refcounts={}),
                pages_counted_ahead=list,
            ),
        )
        self.host.mm = Mm(self.host)  # type: ignore[arg-type]
        self.memory = GuestMemory()
        self.guests = [SimpleNamespace(memory=self.memory)]
        self.next_pfn = TABLES_FROM
        self.td = self._make_td()
        self.kvm = self._make_kvm()
        self.slot = KvmMemorySlot(1, 0, nr_pages, 4, 0)  # type: ignore[arg-type]
        self.inode = self._make_gmem(nr_pages)

    # Construction

    def _page(self) -> Pfn:
        self.next_pfn += 1
        return self.next_pfn  # type: ignore[return-value]

    def _own(self, pfn: int, kind: int) -> None:
        leaf = self.module.pamt.entry_2m(pfn << 12)
        assert leaf is not None
        if self.module.pamt.dynamic and leaf.pt != PT_PAMT:
            leaf.pt = PT_PAMT
            leaf.set_pages(self._page() << 12, self._page() << 12)
        leaf.child(pfn & 511)
        self.module.pamt.take(leaf, pfn << 12, kind, self.td_pfn)

    def _make_td(self) -> Td:
        tdr = self._page()
        self.td_pfn = tdr
        self._own(tdr, PT_TDR)
        leaf = self.module.pamt.entry_2m(tdr << 12)
        assert leaf is not None
        hkid = 33
        td = Td(tdr << 12, hkid, hkid << self.machine.config.hkid_shift, leaf)
        td.lifecycle = TD_KEYS_CONFIGURED
        td.op_state = OP_STATE_RUNNABLE
        td.root = self.machine.alloc_table(self._page(), FREE_ENTRY)
        self._own(td.root.pfn, PT_EPT)
        self.module.tds[tdr] = td
        self.module.kot.entries[hkid].state = HKID_ASSIGNED
        self.host.x86_tdx.state.keyid_ida.add(hkid)
        return td

    def _make_kvm(self) -> Kvm:
        sim = self.sim
        arch = KvmArch(5)
        tdx = KvmTdx(SpinLock(sim, "prealloc_split_cache_lock"))
        tdx.tdr_page = self.td_pfn  # type: ignore[assignment]
        tdx.hkid = self.td.hkid
        kvm = Kvm(
            self.host,  # type: ignore[arg-type]
            0,
            arch,
            tdx,
            Mutex(sim, "kvm0.lock"),
            Mutex(sim, "kvm0.slots_lock"),
            Mutex(sim, "kvm0.slots_arch_lock"),
            RwLock(sim, "kvm0.mmu_lock"),
            Srcu(sim, "kvm0"),
        )
        spt = self.machine.alloc_table(self._page(), SHADOW_NONPRESENT_VALUE)
        root = KvmMmuPage(spt, 4, 0, True)
        arch.tdp_mmu_roots = [root]
        arch.mirror_root = root
        self.host.page_private[spt.pfn] = root
        self.host.kvms[0] = kvm
        return kvm

    def _make_gmem(self, nr_pages: int) -> GmemInode:
        inode = GmemInode(nr_pages << 12, 0, 9, RwSem(self.sim, "invalidate_lock"))
        gmem = GmemFile(self.kvm, inode)
        inode.file_list.append(gmem)
        gmem.bindings.append((0, nr_pages, self.slot))
        self.slot.gmem_file = gmem
        self.kvm.memslots[1] = self.slot
        for index in range(0, nr_pages, 512):
            inode.folios[index] = Folio(GUEST_FROM + index, 9)  # type: ignore[arg-type]
        range_store(inode.attributes, 0, nr_pages, KVM_MEMORY_ATTRIBUTE_PRIVATE)
        return inode

    # Mapping

    def tables_for(self, gfn: int, level: int) -> tuple[object, object, int]:
        """(S-EPT table, mirror table, index) of the entry of KVM level `level`, made if missing."""
        sept = self.td.root
        assert sept is not None
        sp = self.kvm.arch.tdp_mmu_roots[0]
        at = 4
        while at > level:
            index = gfn >> 9 * (at - 1) & 511
            spte = sp.spt.entry(index)
            if spte == SHADOW_NONPRESENT_VALUE:
                self.link(sept, sp, index, at, gfn)
                spte = sp.spt.entry(index)
            sp = self.host.page_private[spte >> 12 & (1 << 40) - 1]
            sept = self.machine.tables[sp.external_spt]
            at -= 1
        return sept, sp.spt, gfn >> 9 * (level - 1) & 511

    def link(self, sept, sp, index: int, level: int, gfn: int) -> KvmMmuPage:  # type: ignore[no-untyped-def]
        """A new table on both sides below entry `index` of level `level`."""
        spt = self.machine.alloc_table(self._page(), SHADOW_NONPRESENT_VALUE)
        child = KvmMmuPage(spt, level - 1, gfn >> 9 * (level - 1) << 9 * (level - 1), True)
        external = self.machine.alloc_table(self._page(), FREE_ENTRY)
        child.external_spt = external.pfn  # type: ignore[assignment]
        self._own(external.pfn, PT_EPT)
        self.host.page_private[spt.pfn] = child
        sp.spt.set_entry(index, make_nonleaf_spte(spt.pfn))
        sept.set_entry(index, NL_MAPPED_ENTRY | external.pfn << 12 | self.td.hkid_bits)
        self.kvm.arch.tdp_mmu_pages += 1
        return child

    def set_sept(self, gfn: int, level: int, entry: int) -> None:
        """Write the S-EPT entry only."""
        sept, _, index = self.tables_for(gfn, level)
        sept.set_entry(index, entry)  # type: ignore[attr-defined]

    def set_mirror(self, gfn: int, level: int, spte: int) -> None:
        """Write the mirror entry only."""
        _, spt, index = self.tables_for(gfn, level)
        spt.set_entry(index, spte)  # type: ignore[attr-defined]

    def pfn_of(self, gfn: int) -> int:
        """The frame that guest_memfd has for `gfn`."""
        return GUEST_FROM + gfn

    def leaf(self, pfn: int, *, pending: bool = False, blocked: bool = False) -> int:
        """An S-EPT leaf entry."""
        entry = (PENDING_ENTRY if pending else MAPPED_ENTRY) | pfn << 12 | self.td.hkid_bits
        if blocked:
            entry = entry & ~RWX | BLOCKED
        return entry

    def map(self, gfn: int, level: int, *, pending: bool = False, pfn: int = -1) -> None:
        """Map one private page everywhere, as a fault and an accept would have."""
        pfn = self.pfn_of(gfn) if pfn < 0 else pfn
        self.set_sept(gfn, level, self.leaf(pfn, pending=pending))
        self.set_mirror(gfn, level, make_spte(pfn, level, False, True))
        name = "pages_4k" if level == 1 else "pages_2m"
        self.kvm.stat.add(name)
        pamt_leaf = self.module.pamt.entry_2m(pfn << 12)
        assert pamt_leaf is not None
        if level == 2:
            pamt_leaf.pt, pamt_leaf.owner = PT_REG, self.td_pfn
        else:
            self._own(pfn, PT_REG)
        if not pending:
            self.machine.mem.fill(pfn, PAGES[level], self.td.hkid, 0)

    def unmap(self, gfn: int, level: int) -> None:
        """Take one leaf away everywhere."""
        self.set_sept(gfn, level, FREE_ENTRY)
        self.set_mirror(gfn, level, SHADOW_NONPRESENT_VALUE)
        self.kvm.stat.add("pages_4k" if level == 1 else "pages_2m", -1)

    def split(self, gfn: int) -> None:
        """Split the 2 MB leaf at `gfn` everywhere, as DEMOTE does."""
        sept, spt, index = self.tables_for(gfn, 2)
        entry = sept.entry(index)  # type: ignore[attr-defined]
        spte = spt.entry(index)  # type: ignore[attr-defined]
        parent = self.host.page_private[spt.pfn]  # type: ignore[attr-defined]
        child = self.link(sept, parent, index, 2, gfn)
        self.machine.tables[child.external_spt].fill(entry, 4096)  # type: ignore[index]
        child.spt.fill(spte & ~0x80, 4096)
        self.kvm.stat.add("pages_2m", -1)
        self.kvm.stat.add("pages_4k", 512)

    def enter(self, lp: int = 0) -> Vcpu:
        """A vCPU runs on logical processor `lp`."""
        vcpu = Vcpu(self._page() << 12, self.td)
        vcpu.state = VCPU_ACTIVE
        vcpu.assoc_lp = lp
        vcpu.vcpu_epoch = self.td.td_epoch
        vcpu.lp = self.machine.lps[lp]
        self.machine.lps[lp].guest = vcpu
        self.module.vcpus[vcpu.tdvpr_pfn] = vcpu
        return vcpu

    def checker(self, promises: Iterable[str] | None = None) -> Checker:
        """A checker that has begun."""
        checker = Checker(self, promises)  # type: ignore[arg-type]
        checker.start()
        return checker

    def begin(
        self, checker: Checker, name: str, start: int, end: int, aim: Aim = Aim.TAKE
    ) -> Operation:
        """User space begins to ask for something."""
        return checker.operation_begin(name, vm_spans(self.kvm, [(start, end)]), aim)

    def quiet(self, checker: Checker, start: int, end: int) -> None:
        """A quiet point at which [start, end) is looked at."""
        checker.quiet_point("test", vm_spans(self.kvm, [(start, end)]))

    def found(self, name: str) -> list[str]:
        """What the promise `name` finds at the end of all."""
        self.checker([name]).finish()
        return self.texts()

    def texts(self) -> list[str]:
        """What was found, in words whose number is right."""
        texts = [f"{f.promise}: {f.text}" for f in self.sim.findings]
        assert not [text for text in texts if WRONG_NUMBER.search(text)]
        return texts


@pytest.fixture
def tiny() -> Callable[..., TinyWorld]:
    """Makes worlds."""
    return TinyWorld


@pytest.fixture
def two_frames(tiny: Callable[..., TinyWorld]) -> TinyWorld:
    """A world of two 2 MB leaves, of which the guest has not accepted the second."""
    world = tiny()
    world.map(0, 2)
    world.map(0x200, 2, pending=True)
    return world
