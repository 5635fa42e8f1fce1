"""A host whose MMU is real and whose TDX side only records what it is asked to do."""

from __future__ import annotations

import pytest

from septum.abi.errno import EOPNOTSUPP
from septum.abi.kvm import (
    KVM_MEM_GUEST_MEMFD,
    KVM_REQ_VM_DEAD,
    KVM_X86_TDX_VM,
    PFERR_GUEST_FINAL_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_WRITE_MASK,
    PG_LEVEL_2M,
)
from septum.abi.spte import spte_to_pfn
from septum.linux.host import Host, HostParams, HostUnits
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.types import (
    Folio,
    GmemInode,
    Kvm,
    KvmArch,
    KvmMemorySlot,
    KvmTdx,
    KvmVcpu,
)
from septum.linux.mm import Mm
from septum.linux.ranges import range_get, range_has
from septum.linux.srcu import Srcu
from septum.linux.unit import Unit
from septum.machine import Machine, MachineConfig, Tdmr
from septum.sim import Mutex, RwLock, Schedule, Sim, SpinLock, WaitQueue

SHARED_BIT = 1 << (47 - 12)
GUEST_PFN = 0x40000  # PFN of GFN 0


class NamedChoices(Schedule):
    """Answers the choice points in `wanted`: name -> outcomes in order, then 0. Never switches."""

    def __init__(self) -> None:
        self.wanted: dict[str, list[int]] = {}

    def pick(self, n: int, forced: bool) -> int:
        return 0

    def choose(self, name: str, n: int) -> int:
        outcomes = self.wanted.get(name)
        return outcomes.pop(0) if outcomes else 0

    def spec(self) -> tuple[str, int]:
        return ("named", 0)


class FakeTdx(Unit):
    """vmx/tdx.c as a list of calls, and the S-EPT as a dictionary (gfn, level) -> pfn."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.calls: list[tuple[object, ...]] = []
        self.sept: dict[tuple[int, int], int] = {}
        self.ret: dict[str, list[int]] = {}
        self.max_level = PG_LEVEL_2M
        self.split_cache = 4
        self.split_cache_min = 0
        self.hooks: dict[str, object] = {}

    def _call(self, name: str, *args: object) -> int:
        self.calls.append((name, *args))
        hook = self.hooks.get(name)
        if hook is not None:
            hook(*args)  # type: ignore[operator]
        results = self.ret.get(name)
        return results.pop(0) if results else 0

    def link_external_spt(self, kvm: Kvm, gfn: int, level: int, external_spt: int) -> int:
        return self._call("link", gfn, level)

    def set_external_spte(self, kvm: Kvm, gfn: int, level: int, mirror_spte: int) -> int:
        ret = self._call("set", gfn, level)
        if not ret:
            self.sept[gfn, level] = spte_to_pfn(mirror_spte)
        return ret

    def split_external_spte(
        self, kvm: Kvm, gfn: int, level: int, old: int, new_spt: int, shared: bool
    ) -> int:
        ret = self._call("split", gfn, level, shared)
        if shared:
            return -EOPNOTSUPP
        if not ret:
            pfn = self.sept.pop((gfn, level))
            for i in range(512):
                self.sept[gfn + i, level - 1] = pfn + i
        return ret

    def remove_external_spte(self, kvm: Kvm, gfn: int, level: int, mirror_spte: int) -> None:
        self._call("remove", gfn, level)
        self.sept.pop((gfn, level), None)

    def free_external_spt(self, kvm: Kvm, gfn: int, level: int, external_spt: int) -> int:
        return self._call("free", gfn, level)

    def gmem_max_mapping_level(self, kvm: Kvm, pfn: int, is_private: bool) -> int:
        return self.max_level if is_private else 0

    def topup_external_fault_cache(self, vcpu: KvmVcpu, cnt: int) -> int:
        return self._call("topup_fault")

    def alloc_external_fault_cache(self, vcpu: KvmVcpu) -> int | None:
        return self.host.mm.alloc_page("fake_external_spt", atomic=True)

    def free_external_fault_cache(self, vcpu: KvmVcpu) -> None:
        self._call("free_fault_cache")

    def need_topup_external_per_vm_split_cache(self, kvm: Kvm, level: int) -> bool:
        return self.split_cache < self.split_cache_min

    def topup_external_per_vm_split_cache(self, kvm: Kvm, level: int) -> int:
        ret = self._call("topup_split", kvm.mmu_lock.held())
        if not ret:
            self.split_cache = self.split_cache_min
        return ret

    def free_external_per_vm_split_cache(self, kvm: Kvm) -> None:
        self._call("free_split_cache")

    def tdx_load_mmu_pgd(self, vcpu: KvmVcpu, root_hpa: int, pgd_level: int) -> None:
        self._call("load_mmu_pgd")

    def tdx_flush_tlb_current(self, vcpu: KvmVcpu) -> None:
        """Nothing."""


class FakeGmem(Unit):
    """guest_memfd: one folio of `order` behind every GFN."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.order = 9
        self.folio = Folio(0, 0)  # type: ignore[arg-type]

    def kvm_gmem_get_pfn(
        self, kvm: Kvm, slot: KvmMemorySlot, gfn: int
    ) -> tuple[int, int, Folio | None, int]:
        self.folio.refcount += 1
        return 0, GUEST_PFN + gfn, self.folio, self.order

    def filemap_invalidate_lock_held(self, inode: GmemInode) -> bool:
        return inode.invalidate_lock.held()


class FakeMain(Unit):
    """kvm_main.c, as little as the MMU needs."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.flushes = 0
        self.bugs: list[str] = []

    def kvm_bug_on(self, kvm: Kvm, cond: bool, text: str) -> bool:
        if cond:
            self.bugs.append(text)
            kvm.vm_bugged = kvm.vm_dead = True
            self.kvm_make_all_cpus_request(kvm, KVM_REQ_VM_DEAD)
        return cond

    def current_cause(self) -> str:
        return "conversion"

    def kvm_make_all_cpus_request(self, kvm: Kvm, req: int) -> None:
        for vcpu in kvm.vcpus:
            vcpu.requests.add(req)

    def kvm_test_request(self, req: int, vcpu: KvmVcpu) -> bool:
        return req in vcpu.requests

    def kvm_flush_remote_tlbs(self, kvm: Kvm) -> None:
        self.flushes += 1

    def kvm_mem_is_private(self, kvm: Kvm, gfn: int) -> bool:
        return range_get(kvm.mem_attr_array, gfn) != 0

    def kvm_get_vm_memory_attributes(self, kvm: Kvm, gfn: int) -> int:
        return range_get(kvm.mem_attr_array, gfn)

    def kvm_range_has_vm_memory_attributes(
        self, kvm: Kvm, start: int, end: int, mask: int, attrs: int
    ) -> bool:
        return range_has(kvm.mem_attr_array, start, end, mask, attrs)

    def gfn_to_memslot(self, kvm: Kvm, gfn: int) -> KvmMemorySlot | None:
        for slot in kvm.memslots.values():
            if slot.base_gfn <= gfn < slot.end_gfn:
                return slot
        return None

    def kvm_faultin_pfn(
        self, kvm: Kvm, slot: KvmMemorySlot, gfn: int
    ) -> tuple[int, bool, Folio | None]:
        return 2 * GUEST_PFN + gfn, True, None


class World:
    """A VM of 1 GB, all private, with one vCPU whose MMU is loaded."""

    def __init__(self, tdp_mmu: type[TdpMmu] = TdpMmu, npages: int = 1 << 18) -> None:
        self.choices = NamedChoices()
        self.sim = Sim(self.choices)
        machine = Machine(self.sim, MachineConfig(tdmrs=(Tdmr(1 << 30, 8 << 30),)))
        units = HostUnits(  # type: ignore[arg-type]
            mmu=KvmMmu,
            tdp_mmu=tdp_mmu,
            tdx=FakeTdx,
            gmem=FakeGmem,
            main=FakeMain,
            x86=Unit,
            x86_tdx=Unit,
            mm=Mm,
        )
        self.host = Host(machine, units, HostParams())
        self.mmu = self.host.mmu
        self.tdp_mmu = self.host.tdp_mmu
        self.tdx: FakeTdx = self.host.tdx  # type: ignore[assignment]
        self.gmem: FakeGmem = self.host.gmem  # type: ignore[assignment]
        self.main: FakeMain = self.host.main  # type: ignore[assignment]
        sim = self.sim
        arch = KvmArch(KVM_X86_TDX_VM)
        arch.has_private_mem = arch.has_protected_state = True
        arch.gfn_direct_bits = SHARED_BIT
        arch.pre_fault_allowed = True
        self.kvm = Kvm(
            self.host,
            0,
            arch,
            KvmTdx(SpinLock(sim, "split_cache")),
            Mutex(sim, "lock"),
            Mutex(sim, "slots_lock"),
            Mutex(sim, "slots_arch_lock"),
            RwLock(sim, "mmu_lock"),
            Srcu(sim, "srcu"),
        )
        self.mmu.kvm_mmu_init_vm(self.kvm)
        self.slot = KvmMemorySlot(0, 0, npages, KVM_MEM_GUEST_MEMFD, 0)  # type: ignore[arg-type]
        self.slot.gmem_file = object()  # type: ignore[assignment]
        self.kvm.memslots[0] = self.slot
        self.mmu.kvm_alloc_memslot_metadata(self.kvm, self.slot)
        self.kvm.mem_attr_array = [(0, 1 << 30, 8)]
        self.vcpu = KvmVcpu(self.kvm, 0, 0, Mutex(sim, "vcpu0"), WaitQueue(sim, "vcpu0"))
        self.kvm.vcpus.append(self.vcpu)
        self.kvm.created_vcpus = 1
        self.free_pages = self.host.mm.nr_free_pages
        assert self.mmu.kvm_mmu_reload(self.vcpu) == 0

    def fault(self, gfn: int, private: bool = True) -> int:
        """An EPT violation by a write."""
        error_code = PFERR_WRITE_MASK | PFERR_GUEST_FINAL_MASK
        gpa = gfn << 12
        if private:
            error_code |= PFERR_PRIVATE_ACCESS
        else:
            gpa |= SHARED_BIT << 12
        return self.mmu.kvm_mmu_page_fault(self.vcpu, gpa, error_code)

    def mirror(self) -> dict[tuple[int, int], int]:
        """The leaves of the mirror root: (gfn, level) -> pfn."""
        return self._leaves(self.kvm.arch.mirror_root.spt, 4, 0)  # type: ignore[union-attr]

    def shared(self) -> dict[tuple[int, int], int]:
        """The leaves of the direct root; GFNs carry the shared bit."""
        return self._leaves(self.kvm.arch.direct_root.spt, 4, 0)  # type: ignore[union-attr]

    def _leaves(self, table: object, level: int, base: int) -> dict[tuple[int, int], int]:
        found: dict[tuple[int, int], int] = {}
        for i in range(512):
            spte = table.entry(i)  # type: ignore[attr-defined]
            gfn = base + (i << 9 * (level - 1))
            if not spte & 1 << 11:
                continue
            if level == 1 or spte & 1 << 7:
                found[gfn, level] = spte_to_pfn(spte)
            else:
                child = self.host.machine.tables[spte_to_pfn(spte)]
                found |= self._leaves(child, level - 1, gfn)
        return found

    def names(self) -> list[str]:
        """The names of the hooks called, topups left out."""
        return [str(c[0]) for c in self.tdx.calls if c[0] not in ("topup_fault", "load_mmu_pgd")]


@pytest.fixture
def world() -> World:
    """A VM whose private memory is backed by 2 MB folios."""
    return World()


@pytest.fixture
def make_world() -> type[World]:
    """To build one with other parts."""
    return World
