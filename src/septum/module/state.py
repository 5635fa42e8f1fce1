"""What the module keeps: TDs (TDR and TDCS), virtual CPUs (TDVPS), keys (KOT), per-LP state.

Slotted classes of ints, owned by `Module`; TDs and vCPUs are found by page number.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from septum.module.locks import HpLock, PlainLock

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor, TablePage
    from septum.module.pamt import PamtEntry, PamtEntry2M

# TDR.LIFECYCLE_STATE
TD_HKID_ASSIGNED = 0
TD_KEYS_CONFIGURED = 1
TD_BLOCKED = 2
TD_TEARDOWN = 3

# TDCS.OP_STATE
OP_STATE_UNINITIALIZED = 0
OP_STATE_INITIALIZED = 1
OP_STATE_RUNNABLE = 2
OP_STATE_NAMES = {0: "UNINITIALIZED", 1: "INITIALIZED", 2: "RUNNABLE"}

MIN_TDCS_PAGES = 6
MAX_TDCS_PAGES = 9
SEPT_ROOT_PAGE_INDEX = 3
MIN_TDVPS_PAGES = 6
MAX_TDVPS_PAGES = 15
MAX_VCPUS_PER_TD = 576

# TDVPS.VCPU_STATE
VCPU_UNINITIALIZED = 0
VCPU_READY = 2
VCPU_ACTIVE = 4
VCPU_DISABLED = 8

# TDVPS.LAST_TD_EXIT
LAST_EXIT_ASYNC_FAULT = 0
LAST_EXIT_ASYNC_TRAP = 1
LAST_EXIT_TDVMCALL = 2

NO_LP = -1

# KOT entry states
HKID_FREE = 0
HKID_ASSIGNED = 1
HKID_FLUSHED = 2
HKID_RESERVED = 3

HP_LOCK_TIMEOUT_NS = 1_000_000_000
STEPPING_EPF_THRESHOLD = 6
EPF_GPA_LIST_SIZE = 32


class MeasurementHash:
    """A running SHA-384 that can be copied with the world it belongs to."""

    __slots__ = ("_hash", "nr_bytes")

    def __init__(self) -> None:
        self._hash = hashlib.sha384()
        self.nr_bytes = 0

    def update(self, data: bytes) -> None:
        """Extend the measurement."""
        # In place of the old one, which whoever goes back to an earlier state puts back.
        running = self._hash.copy()
        running.update(data)
        self._hash = running
        self.nr_bytes += len(data)

    def digest(self) -> bytes:
        """The 48 bytes so far."""
        return self._hash.digest()

    def __deepcopy__(self, memo: object) -> MeasurementHash:
        twin = MeasurementHash.__new__(MeasurementHash)
        twin._hash = self._hash.copy()
        twin.nr_bytes = self.nr_bytes
        return twin


class Td:
    """A TD: what its TDR and TDCS pages hold. Addresses are HPAs without HKID.

    `p1g`, `p2m`, `p4k` are the PAMT entries above and of the TDR page, which cannot change while
    the page is a TDR.
    """

    __slots__ = (
        "attributes",
        "chldcnt",
        "config_flags",
        "epoch_lock",
        "fatal",
        "gpa_bad",
        "gpaw",
        "hkid",
        "hkid_bits",
        "lifecycle",
        "max_vcpus",
        "mrconfigid",
        "mrowner",
        "mrownerconfig",
        "mrtd",
        "mrtd_hash",
        "notify_ept_faults",
        "num_assoc_vcpus",
        "num_vcpus",
        "op_state",
        "op_state_lock",
        "p1g",
        "p2m",
        "p4k",
        "pending_ve_disable",
        "pkg_config_bitmap",
        "refcount",
        "root",
        "root_level",
        "rtmr",
        "sept_lock",
        "td_epoch",
        "tdcx",
        "tdr_hpa",
        "tdr_pfn",
        "tsc_frequency",
        "tsc_multiplier",
        "tsc_offset",
        "virt_maxpa",
        "x2apic_ids",
        "xfam",
    )

    def __init__(self, tdr_hpa: int, hkid: int, hkid_bits: int, p2m: PamtEntry2M) -> None:
        self.tdr_hpa = tdr_hpa
        self.tdr_pfn = tdr_hpa >> 12
        self.hkid = hkid
        self.hkid_bits = hkid_bits  # the HKID, at its place in an HPA
        self.p2m = p2m
        self.p1g = p2m.parent
        self.p4k: PamtEntry = p2m.children[tdr_hpa >> 12 & 511]
        # TDR
        self.fatal = False
        self.lifecycle = TD_HKID_ASSIGNED
        self.pkg_config_bitmap = 0
        self.tdcx: list[int] = []
        self.chldcnt = 0
        # TDCS
        self.op_state = OP_STATE_UNINITIALIZED
        self.op_state_lock = HpLock()
        self.sept_lock = HpLock()
        self.epoch_lock = PlainLock()
        self.td_epoch = 0
        self.refcount = [0, 0]
        self.num_vcpus = 0
        self.num_assoc_vcpus = 0
        self.root: TablePage | None = None
        self.root_level = 3
        self.gpaw = 0
        self.gpa_bad = 0
        self.virt_maxpa = 0
        self.attributes = 0
        self.xfam = 0
        self.max_vcpus = 0
        self.config_flags = 0
        self.pending_ve_disable = False
        self.notify_ept_faults = False
        self.tsc_frequency = 0
        self.tsc_multiplier = 0
        self.tsc_offset = 0
        self.x2apic_ids: dict[int, int] = {}
        self.mrtd_hash: MeasurementHash | None = None
        self.mrtd = bytes(48)
        self.mrconfigid = bytes(48)
        self.mrowner = bytes(48)
        self.mrownerconfig = bytes(48)
        self.rtmr = [bytes(48)] * 4


class VeInfo:
    """TDVPS.VE_INFO: what TDG.VP.VEINFO.GET returns."""

    __slots__ = ("category", "exit_qualification", "gla", "gpa", "instruction", "reason", "valid")

    def __init__(self) -> None:
        self.valid = False
        self.reason = 0
        self.exit_qualification = 0
        self.gla = 0
        self.gpa = 0
        self.instruction = 0
        self.category = 0


class Vcpu:
    """A virtual CPU: what its TDVPR and TDCX pages hold.

    `progressed`: the guest has completed an instruction since it was entered; zero-step mitigation
    learns this from RIP. `nr_retired` counts the instructions, for checks. `lp` is the logical
    processor while the vCPU is inside the TD.
    """

    __slots__ = (
        "assoc_lp",
        "epf_count",
        "epf_gpas",
        "fields",
        "guest_regs",
        "hp_busy_since_ns",
        "index",
        "init_rcx",
        "last_exit",
        "lp",
        "nr_retired",
        "pages",
        "progressed",
        "state",
        "td",
        "tdvpr_hpa",
        "tdvpr_pfn",
        "vcpu_epoch",
        "ve_info",
    )

    def __init__(self, tdvpr_hpa: int, td: Td) -> None:
        self.tdvpr_hpa = tdvpr_hpa
        self.tdvpr_pfn = tdvpr_hpa >> 12
        self.td = td
        self.pages: list[int] = [tdvpr_hpa]
        self.state = VCPU_UNINITIALIZED
        self.index = 0
        self.init_rcx = 0
        self.assoc_lp = NO_LP
        self.vcpu_epoch = 0
        self.last_exit = LAST_EXIT_ASYNC_FAULT
        self.lp: LogicalProcessor | None = None
        # The guest's registers while a TDCALL that left the TD waits for re-entry.
        self.guest_regs: Regs | None = None
        self.progressed = False
        self.nr_retired = 0
        self.epf_count = 0
        self.epf_gpas: list[int] = []
        self.hp_busy_since_ns = -1
        self.ve_info = VeInfo()
        self.fields: dict[int, int] = {}

    def retire(self) -> None:
        """The guest completes an instruction."""
        self.progressed = True
        self.nr_retired += 1


class KotEntry:
    """Key ownership: the state of one HKID, and the packages whose caches it must leave."""

    __slots__ = ("state", "wbinvd_bitmap")

    def __init__(self, state: int) -> None:
        self.state = state
        self.wbinvd_bitmap = 0


class Kot:
    """The key ownership table."""

    __slots__ = ("entries", "lock")

    def __init__(self, first: int, last: int, global_hkid: int) -> None:
        self.lock = PlainLock()
        self.entries = {
            hkid: KotEntry(HKID_RESERVED if hkid == global_hkid else HKID_FREE)
            for hkid in range(first, last + 1)
        }


class CacheWb:
    """TDH.PHYMEM.CACHE.WB state of one package."""

    __slots__ = ("hkids", "intr_point", "mutex")

    def __init__(self) -> None:
        self.mutex = False
        self.intr_point = 0
        self.hkids: tuple[int, ...] = ()


class LpState:
    """What the module keeps per logical processor."""

    __slots__ = ("last_tdvpr_pfn",)

    def __init__(self) -> None:
        self.last_tdvpr_pfn = -1
