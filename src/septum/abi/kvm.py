"""KVM's numbers: page levels, fault error codes, fault results, requests, the user ABI.

Source: include/uapi/linux/kvm.h, include/linux/kvm_host.h, arch/x86/include/asm/kvm_host.h,
arch/x86/kvm/mmu/mmu_internal.h.
"""

# enum pg_level. A TDX level is one less.
PG_LEVEL_NONE = 0
PG_LEVEL_4K = 1
PG_LEVEL_2M = 2
PG_LEVEL_1G = 3
PG_LEVEL_512G = 4
PG_LEVEL_256T = 5
PG_LEVEL_NUM = 6
KVM_MAX_HUGEPAGE_LEVEL = PG_LEVEL_1G
PT64_ROOT_4LEVEL = 4
PT64_ROOT_5LEVEL = 5
PT64_ROOT_MAX_LEVEL = PT64_ROOT_5LEVEL

# KVM_PAGES_PER_HPAGE(level), indexed by level; index 0 is unused.
PAGES_PER_HPAGE = (0, 1, 512, 512**2, 512**3, 512**4)
# KVM_HPAGE_GFN_SHIFT(level)
HPAGE_GFN_SHIFT = (0, 0, 9, 18, 27, 36)
LEVEL_NAMES = ("none", "4k", "2m", "1g", "512g", "256t")


def kvm_hpage_size(level: int) -> int:
    """KVM_HPAGE_SIZE(level): bytes that an entry of `level` maps."""
    return PAGES_PER_HPAGE[level] << 12


def gfn_round_for_level(gfn: int, level: int) -> int:
    """gfn_round_for_level(): first GFN of the `level` page that contains `gfn`."""
    return gfn & -PAGES_PER_HPAGE[level]


# RET_PF_*: what a fault came to. CONTINUE is internal to the MMU.
RET_PF_CONTINUE = 0
RET_PF_RETRY = 1
RET_PF_EMULATE = 2
RET_PF_WRITE_PROTECTED = 3
RET_PF_INVALID = 4
RET_PF_FIXED = 5
RET_PF_SPURIOUS = 6
RET_PF_NAMES = (
    "CONTINUE",
    "RETRY",
    "EMULATE",
    "WRITE_PROTECTED",
    "INVALID",
    "FIXED",
    "SPURIOUS",
)

# Page fault error code, with KVM's synthetic bits.
PFERR_PRESENT_MASK = 1 << 0
PFERR_WRITE_MASK = 1 << 1
PFERR_USER_MASK = 1 << 2
PFERR_RSVD_MASK = 1 << 3
PFERR_FETCH_MASK = 1 << 4
PFERR_GUEST_FINAL_MASK = 1 << 32
PFERR_GUEST_PAGE_MASK = 1 << 33
PFERR_IMPLICIT_ACCESS = 1 << 48
PFERR_PRIVATE_ACCESS = 1 << 49

# Access bits: ACC_ALL is all a TDP mapping ever asks for.
ACC_EXEC_MASK = 1
ACC_WRITE_MASK = 2
ACC_USER_MASK = 4
ACC_ALL = ACC_EXEC_MASK | ACC_WRITE_MASK | ACC_USER_MASK

# PFNs that are not page frames.
KVM_PFN_ERR_MASK = 0x7FF << 52
KVM_PFN_ERR_FAULT = KVM_PFN_ERR_MASK
KVM_PFN_ERR_HWPOISON = KVM_PFN_ERR_MASK + 1
KVM_PFN_ERR_RO_FAULT = KVM_PFN_ERR_MASK + 2
KVM_PFN_ERR_SIGPENDING = KVM_PFN_ERR_MASK + 3
KVM_PFN_NOSLOT = 1 << 63
KVM_PFN_ERR_NOSLOT_MASK = 0xFFF << 52

INVALID_GPA = (1 << 64) - 1

# Requests to a vCPU.
KVM_REQ_TLB_FLUSH = 0
KVM_REQ_VM_DEAD = 1
KVM_REQ_UNBLOCK = 2
KVM_REQ_OUTSIDE_GUEST_MODE = 7  # MODEL: the kernel gives it no number, only flags
KVM_REQ_MMU_FREE_OBSOLETE_ROOTS = 8 + 31

# The user ABI.
KVM_EXIT_UNKNOWN = 0
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_MEMORY_FAULT = 39
KVM_EXIT_TDX = 40
KVM_EXIT_NAMES = {
    KVM_EXIT_UNKNOWN: "unknown",
    KVM_EXIT_IO: "io",
    KVM_EXIT_HYPERCALL: "hypercall",
    KVM_EXIT_SHUTDOWN: "shutdown",
    KVM_EXIT_FAIL_ENTRY: "fail_entry",
    KVM_EXIT_INTR: "intr",
    KVM_EXIT_INTERNAL_ERROR: "internal_error",
    KVM_EXIT_SYSTEM_EVENT: "system_event",
    KVM_EXIT_MEMORY_FAULT: "memory_fault",
    KVM_EXIT_MMIO: "mmio",
    KVM_EXIT_TDX: "tdx",
}

KVM_SET_MEMORY_ATTRIBUTES = 0xD2
KVM_CREATE_GUEST_MEMFD = 0xD4
KVM_PRE_FAULT_MEMORY = 0xD5

KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3
KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3
KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
KVM_MEM_GUEST_MEMFD = 1 << 2
KVM_MEMSLOT_INVALID = 1 << 16
KVM_MEMSLOT_GMEM_ONLY = 1 << 17  # shared memory comes from guest_memfd too

GUEST_MEMFD_FLAG_MMAP = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED = 1 << 1

KVM_X86_DEFAULT_VM = 0
KVM_X86_TDX_VM = 5

KVM_HC_MAP_GPA_RANGE = 12
KVM_MAP_GPA_RANGE_ENCRYPTED = 1 << 4

# lpage_info[].disallow_lpage: two flags above a count.
KVM_LPAGE_MIXED_FLAG = 1 << 31
KVM_LPAGE_GUEST_INHIBIT_FLAG = 1 << 30  # patch 12

# enum kvm_tdp_mmu_root_types
KVM_INVALID_ROOTS = 1 << 0
KVM_DIRECT_ROOTS = 1 << 1
KVM_MIRROR_ROOTS = 1 << 2
KVM_VALID_ROOTS = KVM_DIRECT_ROOTS | KVM_MIRROR_ROOTS
KVM_ALL_ROOTS = KVM_VALID_ROOTS | KVM_INVALID_ROOTS
