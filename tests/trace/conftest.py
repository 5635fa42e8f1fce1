"""A short story of two vCPUs and a VMM, told in events of every room."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from septum.abi.leaves import (
    TDG_MEM_PAGE_ACCEPT,
    TDH_MEM_PAGE_AUG,
    TDH_MEM_PAGE_DEMOTE,
    TDH_MEM_RANGE_BLOCK,
    TDH_MEM_TRACK,
)
from septum.abi.status import OPERAND_ID_SEPT_ENTRY, TDX_OPERAND_BUSY
from septum.guest.events import GuestPhaseEvent
from septum.linux.kvm.events import (
    KvmEntry,
    KvmExit,
    KvmMmuSetSpte,
    KvmMmuSplitHugePage,
    KvmMmuSpteRequested,
    KvmPageFaultEvent,
    KvmTdpMmuSpteChanged,
    KvmUserspaceExit,
)
from septum.module.events import SeamcallEvent, TdcallEvent, TdExitEvent
from septum.sim.events import ChoiceEvent, Event, FindingEvent, LockEvent, SwitchEvent
from septum.trace import TraceHeader
from septum.vmm.events import ConversionEvent

GOLDEN = Path(__file__).parent / "golden"
GPA = 0x12400000
GFN = GPA >> 12
LEAF_SPTE = 0x8600001234400BB7
ACCEPT_2M = 1 | 1 << 32
BUSY = TDX_OPERAND_BUSY | OPERAND_ID_SEPT_ENTRY


class Story:
    """Collects events; each one is 100 ns after the last."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, make: Callable[..., Event], task: str, *fields: object) -> None:
        cpu = {"vmm0": 2, "vmm0.vcpu0": 0, "vmm0.vcpu1": 1}[task]
        self.events.append(make(100 * len(self.events), task, cpu, *fields))

    def seamcall(self, task: str, leaf: int, rcx: int, status: int = 0) -> None:
        self.add(SeamcallEvent, task, leaf, 0, rcx, 0x100000000, 0x1234400000, status, 0, 0)

    def fault_in(self, task: str, gpa: int) -> None:
        """An accept at 2M faults, is mapped and done again."""
        gfn = gpa >> 12
        self.add(TdcallEvent, task, TDG_MEM_PAGE_ACCEPT, 0x100000, 0, gpa | 1, 1, 0)
        self.add(TdExitEvent, task, 0x100000, 0, 48, 0x182, ACCEPT_2M, gpa)
        self.add(KvmExit, task, 0, "EPT_VIOLATION", 0, 0x182, ACCEPT_2M)
        self.add(KvmPageFaultEvent, task, 0, gpa, 2)
        self.add(LockEvent, task, "lock", "mmu_lock", "sh")
        self.add(KvmMmuSpteRequested, task, gfn, 0x1234400, 2)
        self.seamcall(task, TDH_MEM_PAGE_AUG, gpa | 1)
        self.add(KvmTdpMmuSpteChanged, task, gfn, 2, 1 << 63, LEAF_SPTE, 0, True)
        self.add(KvmMmuSetSpte, task, gfn, LEAF_SPTE, 2, 0x10041B)
        self.add(LockEvent, task, "unlock", "mmu_lock", "sh")
        self.add(KvmEntry, task, 0)
        self.add(TdcallEvent, task, TDG_MEM_PAGE_ACCEPT, 0x100000, 0, gpa | 1, 0, 0)


@pytest.fixture
def story() -> list[Event]:
    tale = Story()
    for task in ("vmm0.vcpu0", "vmm0.vcpu1"):
        tale.add(KvmEntry, task, 0)
        tale.add(GuestPhaseEvent, task, "tdvf-sec")
    for number in range(6):
        tale.fault_in("vmm0.vcpu0", GPA + (number << 21))
    tale.add(KvmUserspaceExit, "vmm0.vcpu0", 39, 0)
    tale.add(LockEvent, "vmm0", "wait", "mmu_lock", "ex")
    tale.add(LockEvent, "vmm0", "lock", "mmu_lock", "ex")
    tale.seamcall("vmm0", TDH_MEM_RANGE_BLOCK, GPA | 1, BUSY)
    tale.add(ChoiceEvent, "vmm0", "seamcall.busy", 1)
    tale.seamcall("vmm0", TDH_MEM_TRACK, 0x100000000)
    tale.add(KvmExit, "vmm0.vcpu1", 1, "EXTERNAL_INTERRUPT")
    tale.add(SwitchEvent, "vmm0.vcpu1", "vmm0", "ipi")
    tale.seamcall("vmm0", TDH_MEM_PAGE_DEMOTE, GPA | 1)
    tale.add(KvmMmuSplitHugePage, "vmm0", GFN, LEAF_SPTE, 2, 0, "conversion")
    tale.add(KvmMmuSplitHugePage, "vmm0", GFN + 512, LEAF_SPTE, 2, -12, "conversion")
    tale.add(LockEvent, "vmm0", "unlock", "mmu_lock", "ex")
    tale.add(ConversionEvent, "vmm0", GPA, 0x4000, False, "map_gpa", 0)
    tale.add(FindingEvent, "vmm0", "guest-data", "page #5 lost; vCPU 1 reads 0x0 -> not 0x7")
    return tale.events


@pytest.fixture
def header() -> TraceHeader:
    return TraceHeader(
        septum_version="0.1.0",
        design="v3",
        recipe={"memory_bytes": 4 << 30, "backing": "thp", "dynamic_pamt": False},
        schedule="random",
        seed=7,
        token="septum1.abc",
    )


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare with tests/trace/golden; SEPTUM_UPDATE_GOLDEN=1 writes instead."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("SEPTUM_UPDATE_GOLDEN"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return compare
