"""KVM's structures, under the kernel's names, as plain state.

Functions live in the units (`mmu.py`, `tdp_mmu.py`, `tdx.py`, `guest_memfd.py`, `main.py`); here
is only what they read and write. Levels are KVM page-table levels (PG_LEVEL_4K = 1). The structures
of guest_memfd (`gmem_types`) and of folios (`septum.linux.mm.folio`) can be imported from here,
too.

Source: include/linux/kvm_host.h, arch/x86/include/asm/kvm_host.h, arch/x86/kvm/mmu/mmu_internal.h,
arch/x86/kvm/vmx/tdx.h, virt/kvm/guest_memfd.c at the base of the v3 series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MEMSLOT_INVALID, KVM_PFN_ERR_FAULT
from septum.linux.kvm.gmem_types import GmemFile as GmemFile
from septum.linux.kvm.gmem_types import GmemInode as GmemInode
from septum.linux.kvm.gmem_types import SplitFolio as SplitFolio
from septum.linux.mm.folio import Folio as Folio
from septum.machine import PiDesc
from septum.sim import WaitQueue

if TYPE_CHECKING:
    from septum.abi.types import Gfn, Pfn
    from septum.linux.host import Host
    from septum.linux.srcu import Srcu
    from septum.machine.tables import TablePage
    from septum.sim import Mutex, RwLock, SpinLock

# Which of a VM's page tables a range operation concerns: struct kvm_gfn_range.attr_filter.
KVM_FILTER_SHARED = 1 << 0
KVM_FILTER_PRIVATE = 1 << 1


class KvmMemorySlot:
    """struct kvm_memory_slot: `npages` pages of guest memory from `base_gfn`. `freed`: what it was
    in may be somebody else's memory."""

    __slots__ = (
        "base_gfn",
        "flags",
        "freed",
        "gmem_file",
        "gmem_pgoff",
        "id",
        "lpage_info",
        "npages",
        "userspace_addr",
    )

    def __init__(
        self, id: int, base_gfn: Gfn, npages: int, flags: int, userspace_addr: int
    ) -> None:
        self.id = id
        self.base_gfn = base_gfn
        self.npages = npages
        self.flags = flags
        self.userspace_addr = userspace_addr
        self.freed = False
        self.gmem_file: GmemFile | None = None
        self.gmem_pgoff = 0
        # lpage_info[level - 2][idx].disallow_lpage, levels 2M and 1G: why a huge page may not be
        # mapped there. Bit 31 KVM_LPAGE_MIXED_FLAG, bit 30 KVM_LPAGE_GUEST_INHIBIT_FLAG (patch 12),
        # 29:0 a count. A `dict` because nearly all are 0: an absent index is 0.
        self.lpage_info: list[dict[int, int]] = [{}, {}]

    @property
    def end_gfn(self) -> int:
        """First GFN after the slot."""
        return self.base_gfn + self.npages

    def invalidated(self) -> KvmMemorySlot:
        """The copy that kvm_invalidate_memslot() puts in its place: of the same memory, and
        KVM_MEMSLOT_INVALID. Who looked the slot up before does not see the flag."""
        flags = self.flags | KVM_MEMSLOT_INVALID
        invalid = KvmMemorySlot(self.id, self.base_gfn, self.npages, flags, self.userspace_addr)
        invalid.gmem_file = self.gmem_file
        invalid.gmem_pgoff = self.gmem_pgoff
        invalid.lpage_info = self.lpage_info
        return invalid


class KvmMmuPage:
    """struct kvm_mmu_page: one page-table page of the TDP MMU and what KVM knows about it."""

    __slots__ = (
        "external_spt",
        "gfn",
        "invalid",
        "is_mirror",
        "level",
        "nx_huge_page_disallowed",
        "root_count",
        "scheduled_root_to_zap",
        "spt",
    )

    def __init__(self, spt: TablePage, level: int, gfn: int, is_mirror: bool) -> None:
        self.spt = spt  # the (mirror) page table KVM itself reads
        self.level = level  # role.level: the level of the entries in `spt`
        self.gfn = gfn
        self.is_mirror = is_mirror  # role.is_mirror
        self.invalid = False  # role.invalid
        self.external_spt: Pfn | None = None  # the S-EPT page; it belongs to the TDX module
        self.root_count = 0  # tdp_mmu_root_count, of roots only
        self.scheduled_root_to_zap = False  # tdp_mmu_scheduled_root_to_zap, of roots only
        self.nx_huge_page_disallowed = False


class KvmGfnRange:
    """struct kvm_gfn_range: a GFN range of one slot handed to an unmap, split or age operation."""

    __slots__ = (
        "attr_filter",
        "attributes",
        "end",
        "may_block",
        "slot",
        "start",
    )

    def __init__(
        self,
        slot: KvmMemorySlot,
        start: int,
        end: int,
        attr_filter: int = 0,
        may_block: bool = True,
        attributes: int = 0,
    ) -> None:
        self.slot = slot
        self.start = start
        self.end = end
        self.attr_filter = attr_filter
        self.may_block = may_block
        self.attributes = attributes


class KvmPageFault:
    """struct kvm_page_fault: one fault on its way through the MMU."""

    __slots__ = (
        "addr",
        "error_code",
        "exec",
        "gfn",
        "goal_level",
        "huge_page_disallowed",
        "is_private",
        "map_writable",
        "max_level",
        "mmu_seq",
        "nx_huge_page_workaround_enabled",
        "pfn",
        "prefetch",
        "present",
        "refcounted_page",
        "req_level",
        "slot",
        "user",
        "write",
    )

    def __init__(self, addr: int, error_code: int, gfn: int, max_level: int) -> None:
        self.addr = addr
        self.error_code = error_code
        self.gfn = gfn
        self.max_level = max_level
        self.req_level = 1
        self.goal_level = 1
        self.exec = False
        self.write = False
        self.user = False
        self.present = False
        self.prefetch = False
        self.is_private = False
        self.huge_page_disallowed = False
        self.nx_huge_page_workaround_enabled = False
        self.map_writable = False
        self.mmu_seq = 0
        self.slot: KvmMemorySlot | None = None
        self.pfn: int = KVM_PFN_ERR_FAULT
        # The folio whose reference, taken by the lookup, is dropped when the fault is finished.
        self.refcounted_page: Folio | None = None


class KvmStats:
    """VM and vCPU statistics under their debugfs names, plus what Septum counts besides.

    `values` maps name -> count. Septum's own names have a dot, as in `split.<cause>`,
    `ept_violation.<cause>.<level>`, `pf_fixed.<kind>.<level>` and `mmu_lock_write.<function>`; or
    are `kick`, `ipi`, `vp_enter_busy`, `wait_for_sept_zap`, `fault_local_retry`. What each means is
    said in `septum.report.counters`.
    """

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def add(self, name: str, n: int = 1) -> None:
        """Add `n` to the counter `name`."""
        self.values[name] = self.values.get(name, 0) + n

    def get(self, name: str) -> int:
        """The counter `name`; 0 when it was never touched."""
        return self.values.get(name, 0)


class TdxPrealloc:
    """struct tdx_prealloc: pages allocated before a lock is taken. A VM has one for splits (Dynamic
    PAMT pages, patch 20), a vCPU one for faults (S-EPT pages, too, Dynamic PAMT v4 12/16).

    `shared`: several tasks use it; `changing`: one of them is within list_add() or list_del().
    """

    __slots__ = ("changing", "cnt", "page_list", "shared")

    def __init__(self, *, shared: bool = False) -> None:
        self.page_list: list[Pfn] = []
        self.cnt = 0
        self.shared = shared
        self.changing = False


class KvmTdx:
    """struct kvm_tdx: the TDX side of a VM."""

    __slots__ = (
        "attributes",
        "hkid",
        "page_add_src",
        "prealloc_split_cache",
        "prealloc_split_cache_lock",
        "state",
        "tdcs_pages",
        "tdr_page",
        "tsc_multiplier",
        "tsc_offset",
        "wait_for_sept_zap",
        "xfam",
        "zap_wq",
    )

    def __init__(self, prealloc_split_cache_lock: SpinLock) -> None:
        self.state = 0  # TD_STATE_UNINITIALIZED, INITIALIZED, RUNNABLE
        self.hkid = -1
        self.tdr_page: Pfn | None = None
        self.tdcs_pages: list[Pfn] = []
        self.attributes = 0
        self.xfam = 0
        self.tsc_offset = 0
        self.tsc_multiplier = 0
        self.wait_for_sept_zap = False
        # vCPUs that go round in KVM_RUN until wait_for_sept_zap is clear.
        self.zap_wq = WaitQueue(prealloc_split_cache_lock.sim, "wait_for_sept_zap")
        self.page_add_src: Pfn | None = None
        self.prealloc_split_cache = TdxPrealloc(shared=True)
        self.prealloc_split_cache_lock = prealloc_split_cache_lock


class KvmArch:
    """struct kvm_arch, as far as memory is concerned."""

    __slots__ = (
        "direct_root",
        "gfn_direct_bits",
        "has_private_mem",
        "has_protected_state",
        "hypercall_exit_enabled",
        "irqchip_split",
        "mirror_root",
        "pre_fault_allowed",
        "root_level",
        "shadow_mmio_value",
        "tdp_mmu_pages",
        "tdp_mmu_pages_lock",
        "tdp_mmu_roots",
        "vm_type",
    )

    def __init__(self, vm_type: int) -> None:
        self.vm_type = vm_type
        self.has_private_mem = False
        self.has_protected_state = False
        self.irqchip_split = False
        self.hypercall_exit_enabled = 0  # bits by hypercall number: KVM_CAP_EXIT_HYPERCALL
        self.pre_fault_allowed = False
        self.gfn_direct_bits = 0  # the shared bit, as a GFN bit
        self.root_level = 4
        self.shadow_mmio_value = 0
        # Every root that is not freed yet, newest first. Set up by kvm_mmu_init_tdp_mmu().
        self.tdp_mmu_roots: list[KvmMmuPage] = []
        self.tdp_mmu_pages = 0  # page tables linked below the roots
        self.tdp_mmu_pages_lock: SpinLock | None = None
        # The valid root of each kind; None before the first vCPU loads its MMU. A vCPU has its own
        # references in KvmVcpu.mmu_root and mmu_mirror_root.
        self.direct_root: KvmMmuPage | None = None
        self.mirror_root: KvmMmuPage | None = None


class Kvm:
    """struct kvm."""

    __slots__ = (
        "arch",
        "created_vcpus",
        "gmem_files",
        "host",
        "id",
        "lock",
        "max_vcpus",
        "mem_attr_array",
        "memslots",
        "mmu_invalidate_in_progress",
        "mmu_invalidate_range_end",
        "mmu_invalidate_range_start",
        "mmu_invalidate_seq",
        "mmu_lock",
        "mn_active_invalidate_count",
        "mn_memslots_update",
        "slots_arch_lock",
        "slots_lock",
        "srcu",
        "stat",
        "tdx",
        "users_count",
        "vcpus",
        "vm_bugged",
        "vm_dead",
    )

    def __init__(
        self,
        host: Host,
        id: int,
        arch: KvmArch,
        tdx: KvmTdx,
        lock: Mutex,
        slots_lock: Mutex,
        slots_arch_lock: Mutex,
        mmu_lock: RwLock,
        srcu: Srcu,
    ) -> None:
        self.host = host
        self.id = id
        self.arch = arch
        self.tdx = tdx
        self.lock = lock
        self.slots_lock = slots_lock
        self.slots_arch_lock = slots_arch_lock
        self.mmu_lock = mmu_lock
        self.srcu = srcu
        self.vcpus: list[KvmVcpu] = []
        self.created_vcpus = 0
        self.max_vcpus = 0
        self.memslots: dict[int, KvmMemorySlot] = {}  # by id
        self.gmem_files: list[GmemFile] = []
        # Per-VM memory attributes (vm_memory_attributes=Y): sorted, non-overlapping
        # [start_gfn, end_gfn, attributes) ranges; a GFN in no range has attributes 0.
        self.mem_attr_array: list[tuple[int, int, int]] = []
        self.mmu_invalidate_seq = 0
        self.mmu_invalidate_in_progress = 0
        self.mmu_invalidate_range_start = 0
        self.mmu_invalidate_range_end = 0
        # MMU notifiers' invalidations under way, and who waits for them to change the slots.
        self.mn_active_invalidate_count = 0
        self.mn_memslots_update = WaitQueue(lock.sim, f"MMU notifiers of vm{id}")
        self.users_count = 1
        self.vm_bugged = False
        self.vm_dead = False
        self.stat = KvmStats()


class KvmRun:
    """struct kvm_run: why KVM_RUN came back, for user space."""

    __slots__ = (
        "data",
        "exit_reason",
        "flags",
        "gpa",
        "hypercall",
        "io",
        "ret",
        "size_bytes",
        "text",
    )

    def __init__(self) -> None:
        self.exit_reason = 0
        self.gpa = 0
        self.size_bytes = 0
        self.flags = 0
        self.hypercall: tuple[int, int, int, int] = (0, 0, 0, 0)  # nr, args[0..2]
        self.ret = 0  # user space's answer to a hypercall
        self.io: tuple[int, int, int, int] = (0, 0, 0, 0)  # port, bytes, is write, value
        self.data: list[int] = []  # system_event.data, tdx.*
        self.text = ""


class VcpuTdx:
    """struct vcpu_tdx: the TDX side of a vCPU."""

    __slots__ = (
        "exit_gpa",
        "exit_qual",
        "exit_reason",
        "ext_exit_qual",
        "map_gpa_end",
        "map_gpa_next",
        "prealloc",
        "state",
        "tdcx_pages",
        "tdvpr_page",
        "vp_enter_regs",
        "vp_enter_ret",
    )

    def __init__(self) -> None:
        self.state = 0  # VCPU_TD_STATE_UNINITIALIZED, INITIALIZED
        self.tdvpr_page: Pfn | None = None
        self.tdcx_pages: list[Pfn] = []
        self.vp_enter_ret = 0
        self.vp_enter_regs: object = None  # septum.abi.regs.Regs of the last VP.ENTER
        self.exit_reason = 0  # vt->exit_reason.full
        self.exit_gpa = 0
        self.exit_qual = 0
        self.ext_exit_qual = 0
        self.map_gpa_next = 0
        self.map_gpa_end = 0
        self.prealloc = TdxPrealloc()  # pages preallocated for a fault, PAMT pages too


OUTSIDE_GUEST_MODE = 0
IN_GUEST_MODE = 1
EXITING_GUEST_MODE = 2


class KvmVcpu:
    """struct kvm_vcpu."""

    __slots__ = (
        "complete_userspace_io",
        "cpu",
        "kvm",
        "mmu_external_spt_cache",
        "mmu_mirror_root",
        "mmu_page_header_cache",
        "mmu_root",
        "mmu_shadow_page_cache",
        "mode",
        "mp_state",
        "mutex",
        "pi_desc",
        "requests",
        "run",
        "signal_pending",
        "srcu_idx",
        "stat",
        "tdx",
        "vcpu_id",
        "wq",
    )

    def __init__(self, kvm: Kvm, vcpu_id: int, cpu: int, mutex: Mutex, wq: WaitQueue) -> None:
        self.kvm = kvm
        self.vcpu_id = vcpu_id
        self.cpu = cpu  # logical processor it was last loaded on; -1: none
        self.mutex = mutex
        self.wq = wq  # the halted vCPU waits here
        self.mode = OUTSIDE_GUEST_MODE
        self.requests: set[int] = set()
        self.signal_pending = False
        self.run = KvmRun()
        self.tdx = VcpuTdx()
        self.mp_state = 0  # KVM_MP_STATE_*: runnable, uninitialized, ..., halted
        self.pi_desc = PiDesc()  # interrupts that are not in the guest's virtual APIC yet
        self.complete_userspace_io = 0  # which completion runs at the next KVM_RUN; 0: none
        self.srcu_idx = 0
        self.stat = KvmStats()
        # Memory caches filled by mmu_topup_memory_caches: page-table pages as PFNs, headers as
        # a count.
        self.mmu_shadow_page_cache: list[Pfn] = []
        self.mmu_external_spt_cache: list[Pfn] = []
        self.mmu_page_header_cache = 0
        # arch.mmu->root.hpa and ->mirror_root_hpa; None is INVALID_PAGE.
        self.mmu_root: KvmMmuPage | None = None
        self.mmu_mirror_root: KvmMmuPage | None = None
