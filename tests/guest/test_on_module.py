"""Guest programs on the real module, under the smallest host that can run them.

The host here is 100 lines that map what is asked for, split when a conversion or a 4K accept
needs it, and remove what becomes shared. It shows that the programs' instructions, data and
interrupts work on the module; the kernel's own host has its own tests.
"""

from collections import Counter
from collections.abc import Callable

import pytest

from septum.abi import leaves, tdvmcall
from septum.abi.regs import Regs
from septum.abi.tdvf import parse_tdvf
from septum.abi.tdvf_build import synthetic_tdvf
from septum.guest.access_before_accept import (
    CASE_A,
    CASE_B,
    CASE_C,
    AccessBeforeAcceptGuest,
    AccessParams,
)
from septum.guest.dryrun import DryRun
from septum.guest.linux import LinuxGuest
from septum.guest.params import FirmwareParams, LinuxParams
from septum.guest.program import Guest
from septum.guest.script import Accept, AcceptRange, Convert, ScriptGuest, Verify, Write
from septum.guest.tdcpu import TdGuestCpu, make_guest_cpus
from septum.machine import Machine, MachineConfig, Tdmr
from septum.module import Module
from septum.sim import Mutex, RandomSchedule, Schedule, Sim
from septum.vmm.layout import GuestLayout, q35_layout

GIB = 1 << 30
FRAME = 2 << 20
OWN = parse_tdvf(synthetic_tdvf(), "own")
SEPT_VE_DISABLE = 1 << 28
EXIT_EPT_VIOLATION = 0x30
EXIT_TDCALL = 77


class MiniHost:
    """One TD, one thread for each vCPU, one big lock."""

    def __init__(self, guest: Guest, *, ve: bool = False, schedule: Schedule | None = None) -> None:
        self.sim = Sim(schedule)
        tdmrs = (Tdmr(base=GIB, size=160 * GIB),)
        config = MachineConfig(num_lps=guest.nr_cpus, tdmrs=tdmrs)
        self.machine = Machine(self.sim, config)
        self.module = Module(self.machine)
        self.machine.seam = self.module
        self.lock = Mutex(self.sim, "host")
        self.next_pfn = GIB >> 12
        self.next_frame = 8 * GIB >> 12
        self.tables: set[tuple[int, int]] = set()  # (level, gpa) of the S-EPT pages
        self.huge: set[int] = set()  # frames mapped at 2M
        self.small: set[int] = set()  # GFNs mapped at 4K
        self.split_frames: set[int] = set()
        self.reports: list[int] = []
        self.counts: Counter[str] = Counter()
        self._create(ve)
        self.cpus = make_guest_cpus(self.machine, guest)
        self.tdvprs = [self._create_vcpu() for _ in self.cpus]

    def call(self, leaf: int, **regs: int) -> Regs:
        values = Regs(rax=leaf, **regs)
        self.machine.seamcall(self.sim.current.cpu, values)
        assert not values.rax, f"{leaves.seamcall_name(leaf)} returned {values.rax:#x}"
        return values

    def page(self) -> int:
        self.next_pfn += 1
        return self.next_pfn << 12

    def _create(self, ve: bool) -> None:
        self.tdr = self.page()
        self.call(leaves.TDH_MNG_CREATE, rcx=self.tdr, rdx=40)
        self.call(leaves.TDH_MNG_KEY_CONFIG, rcx=self.tdr)
        for _ in range(6):
            self.call(leaves.TDH_MNG_ADDCX, rcx=self.page(), rdx=self.tdr)
        params = bytearray(1024)
        params[0:8] = (0 if ve else SEPT_VE_DISABLE).to_bytes(8, "little")
        params[8:16] = (3).to_bytes(8, "little")
        params[16:18] = (64).to_bytes(2, "little")
        params[24:32] = (6 | 3 << 3).to_bytes(8, "little")
        params[40:42] = (80).to_bytes(2, "little")
        self.machine.mem.load_bytes(5, 0, bytes(params))
        self.call(leaves.TDH_MNG_INIT, rcx=self.tdr, rdx=5 << 12)

    def _create_vcpu(self) -> int:
        tdvpr = self.page()
        self.call(leaves.TDH_VP_CREATE, rcx=tdvpr, rdx=self.tdr)
        for _ in range(5):
            self.call(leaves.TDH_VP_ADDCX, rcx=self.page(), rdx=tdvpr)
        self.call(leaves.TDH_VP_INIT, rcx=tdvpr)
        self.call(leaves.TDH_VP_FLUSH, rcx=tdvpr)
        return tdvpr

    def load(self, layout: GuestLayout) -> None:
        for section in layout.firmware.sections:
            for gpa, data in layout.firmware.pages(section):
                self.tables_for(gpa, 0)
                self.machine.mem.load_bytes(6, 0, data)
                self.call(
                    leaves.TDH_MEM_PAGE_ADD, rcx=gpa, rdx=self.tdr, r8=self.page(), r9=6 << 12
                )
                self.small.add(gpa >> 12)
                self.split_frames.add(gpa >> 21)

    def tables_for(self, gpa: int, level: int) -> None:
        for at in range(3, level, -1):
            start = gpa >> (12 + 9 * at) << (12 + 9 * at)
            if (at, start) not in self.tables:
                self.tables.add((at, start))
                self.call(leaves.TDH_MEM_SEPT_ADD, rcx=start | at, rdx=self.tdr, r8=self.page())

    def map_page(self, gpa: int, level: int) -> None:
        """EPT violation: 2M unless the guest wants 4K or the frame is split."""
        frame = gpa >> 21
        if frame in self.huge:
            if level == 0:
                self.counts["split by accept"] += 1
                self.split(frame)
            return
        if level == 0:
            self.split_frames.add(frame)
        if frame in self.split_frames:
            if gpa >> 12 not in self.small:
                self.tables_for(gpa, 0)
                gpa = gpa >> 12 << 12
                self.call(leaves.TDH_MEM_PAGE_AUG, rcx=gpa, rdx=self.tdr, r8=self.page())
                self.small.add(gpa >> 12)
            return
        self.tables_for(gpa, 1)
        hpa = self.next_frame << 12
        self.next_frame += 512
        self.call(leaves.TDH_MEM_PAGE_AUG, rcx=frame << 21 | 1, rdx=self.tdr, r8=hpa)
        self.huge.add(frame)

    def block(self, gpa: int, level: int) -> None:
        self.call(leaves.TDH_MEM_RANGE_BLOCK, rcx=gpa | level, rdx=self.tdr)
        self.call(leaves.TDH_MEM_TRACK, rcx=self.tdr)
        self.machine.send_ipi_and_wait(range(len(self.cpus)))

    def split(self, frame: int) -> None:
        self.block(frame << 21, 1)
        self.call(leaves.TDH_MEM_PAGE_DEMOTE, rcx=frame << 21 | 1, rdx=self.tdr, r8=self.page())
        self.tables.add((1, frame << 21))
        self.huge.discard(frame)
        self.split_frames.add(frame)
        self.small.update(range(frame << 9, (frame + 1) << 9))
        self.counts["splits"] += 1

    def convert(self, gpa: int, size: int) -> None:
        end = gpa + size
        while gpa < end:
            frame = gpa >> 21
            stop = min(end, (frame + 1) << 21)
            if frame in self.huge and stop - gpa == FRAME:
                self.block(gpa, 1)
                self.call(leaves.TDH_MEM_PAGE_REMOVE, rcx=gpa | 1, rdx=self.tdr)
                self.huge.discard(frame)
            elif frame in self.huge:
                self.split(frame)
            for gfn in range(gpa >> 12, stop >> 12):
                if gfn in self.small:
                    self.block(gfn << 12, 0)
                    self.call(leaves.TDH_MEM_PAGE_REMOVE, rcx=gfn << 12, rdx=self.tdr)
                    self.small.discard(gfn)
            gpa = stop

    def thread(self, cpu: TdGuestCpu) -> Callable[[], None]:
        tdvpr = self.tdvprs[cpu.index]
        self.machine.guest_contexts[tdvpr >> 12] = cpu.context
        lp = self.machine.lps[cpu.index]

        def run() -> None:
            regs = Regs()
            while not self.reports:
                regs.rax, regs.rcx = leaves.TDH_VP_ENTER, tdvpr
                self.machine.seamcall(cpu.index, regs)
                if lp.ipi_pending:
                    lp.acknowledge()
                with self.lock:
                    self.handle(regs)
                if lp.ipi_pending:
                    lp.acknowledge()

        return run

    def handle(self, regs: Regs) -> None:
        assert not regs.rax >> 32, f"VP.ENTER returned {regs.rax:#x}"
        reason = regs.rax
        self.counts[f"exit {reason}"] += 1
        if reason == EXIT_EPT_VIOLATION:
            accept = regs.rdx & 15 == 1
            self.map_page(regs.r8, regs.rdx >> 32 & 7 if accept else 1)
        elif reason == EXIT_TDCALL:
            if regs.r11 == tdvmcall.TDVMCALL_MAP_GPA:
                gpa = regs.r12 & ~(1 << 47)
                if gpa < 2 * GIB or gpa >= 4 * GIB:
                    self.convert(gpa, regs.r13)
            elif regs.r11 == tdvmcall.TDVMCALL_IO:
                self.reports.append(regs.r15)
            regs.r10 = 0

    def run(self) -> None:
        self.call(leaves.TDH_MR_FINALIZE, rcx=self.tdr)
        for cpu in self.cpus:
            self.sim.spawn(f"vcpu{cpu.index}", self.thread(cpu), cpu=cpu.index)
        # A vCPU that idles when the guest has reported never comes back: HLT is a poll here.
        self.sim.run()


def check_pages(host: MiniHost, guest: Guest) -> None:
    """Ground truth: each page that the guest owns holds what it last wrote."""
    for gfn, nr_pages, token in guest.memory.ranges():
        for page in range(gfn, gfn + nr_pages, 97):
            level, entry = host.module.sept_entry(host.tdr >> 12, page << 12)
            pfn = (entry >> 12 & (1 << 28) - 1) + (page & 511 if level == 1 else 0)
            assert host.machine.mem.token_of(pfn) == token, f"GFN {page:#x}"


@pytest.mark.parametrize("nr_cpus", [1, 3])
def test_linux_boots_on_the_module(nr_cpus: int) -> None:
    layout = q35_layout(3 * GIB, OWN)
    firmware = FirmwareParams(map_mmio=False, dma_pool_slots=((2, 4096), (1, 32 << 10)))
    guest = LinuxGuest(layout, nr_cpus, LinuxParams(), firmware)
    host = MiniHost(guest)
    host.load(layout)
    host.run()
    assert host.sim.findings == []
    assert host.reports == [tdvmcall.REPORT_BOOT_DONE]
    check_pages(host, guest)
    assert host.counts["splits"] > 2

    twin = LinuxGuest(layout, nr_cpus, LinuxParams(), firmware)
    dry = DryRun(twin, layout)
    dry.run()
    assert twin.unaccepted_bytes == guest.unaccepted_bytes
    assert twin.shared.ranges != []
    assert sorted(twin.shared.ranges) == sorted(guest.shared.ranges)


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("case", [CASE_A, CASE_B, CASE_C])
def test_access_before_accept_on_the_module(case: AccessParams, seed: int | None) -> None:
    guest = AccessBeforeAcceptGuest(3, case)
    host = MiniHost(guest, ve=True, schedule=None if seed is None else RandomSchedule(seed))
    host.run()
    assert host.sim.findings == []
    assert host.reports == [tdvmcall.REPORT_SCRIPT_DONE]
    check_pages(host, guest)
    faults = sum(cpu.counts.get("virtualization_exceptions", 0) for cpu in host.cpus)
    mismatches = sum(cpu.counts.get("size_mismatches", 0) for cpu in host.cpus)
    if case is CASE_B:
        assert mismatches == 1
    else:
        assert faults == 512
        assert host.counts["split by accept"] == 1


def test_script_on_the_module() -> None:
    guest = ScriptGuest(
        [
            [
                AcceptRange(GIB),
                Write(GIB, 512),
                Convert(GIB + 8192, 8192, True),
                Verify(GIB, 512),
                Convert(GIB + 8192, 8192, False),
                Accept(GIB, 1),
                AcceptRange(GIB + 8192, 8192),
                Verify(GIB, 512),
            ]
        ]
    )
    host = MiniHost(guest)
    host.run()
    assert guest.results[0][:5] == [0, 1, 0, 0, 0]
    assert guest.results[0][5] == 0xC0000B0B00000001, "the frame was split"
    assert guest.results[0][6:] == [0, 0]
    assert host.counts["splits"] == 1
    check_pages(host, guest)


def test_host_that_loses_a_page_is_noticed() -> None:
    """Broken on purpose: a conversion takes the page behind it too, and brings zeros back."""
    guest = ScriptGuest([[AcceptRange(GIB), Write(GIB, 512), Convert(GIB, 4096), Verify(GIB, 512)]])
    host = MiniHost(guest)
    convert = host.convert

    def greedy(gpa: int, size: int) -> None:
        convert(gpa, size)
        _, entry = host.module.sept_entry(host.tdr >> 12, gpa + size)
        host.machine.mem.write(entry >> 12 & (1 << 28) - 1, 40, 0)

    host.convert = greedy  # type: ignore[method-assign]
    host.run()
    assert [f.promise for f in host.sim.findings] == ["guest-data"]
