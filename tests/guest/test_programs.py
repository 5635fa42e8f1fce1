"""Rules of the single guest programs, on a TD whose host grants everything."""

import pytest

from septum.abi.status import TDX_OPERAND_BUSY, TDX_PAGE_ALREADY_ACCEPTED, TDX_PAGE_SIZE_MISMATCH
from septum.abi.tdvf import TdvfSection, parse_tdvf
from septum.abi.tdvf_build import build_tdvf, edk2_sections, synthetic_tdvf
from septum.guest.access_before_accept import (
    CASE_A,
    CASE_B,
    CASE_C,
    AccessBeforeAcceptGuest,
    AccessParams,
)
from septum.guest.cpu import GuestCpu
from septum.guest.dryrun import DryCpu, DryRun, DryRunError
from septum.guest.linux import LinuxGuest
from septum.guest.page_alloc import hash_table_size
from septum.guest.params import MIB, FirmwareParams, LinuxParams, firmware_params
from septum.guest.program import Guest
from septum.guest.script import (
    Accept,
    AcceptRange,
    Barrier,
    Convert,
    Op,
    ScriptGuest,
    Verify,
    Write,
    script_from_json,
)
from septum.guest.shared_memory import (
    atomic_pool_size,
    direct_map_leaves,
    kexec_finish,
    kvmclock_shared_size,
    swiotlb_size,
)
from septum.guest.tdvf import Tdvf
from septum.guest.unaccepted import UnacceptedTable, accept_memory, tdx_accept_memory
from septum.vmm.layout import q35_layout

GIB = 1 << 30
OWN = parse_tdvf(synthetic_tdvf(), "own")
FRAME = 2 << 20


class Nothing(Guest):
    def run(self, cpu: GuestCpu) -> None:
        cpu.idle()


def one_cpu(nr_cpus: int = 1) -> DryCpu:
    return DryCpu(DryRun(Nothing(nr_cpus), q35_layout(4 * GIB, OWN)), 0)


def accepts(cpu: DryCpu) -> list[tuple[int, int]]:
    return [(r.gpa, r.size_bytes) for r in cpu.td.log if r.op == "accept" and not r.status]


# TDVF


def firmware() -> Tdvf:
    return Tdvf(q35_layout(4 * GIB, OWN), FirmwareParams())


@pytest.mark.parametrize(
    ("start", "end", "nr_4k", "nr_2m"),
    [
        (0, 4 * FRAME, 0, 4),
        (0, FRAME, 512, 0),
        (0, FRAME + 4096, 1, 1),
        (FRAME - 4096, 2 * FRAME, 513, 0),
        (FRAME - 4096, 3 * FRAME, 1, 2),
        (0x1000, 0x3000, 2, 0),
        (0, 0, 0, 0),
    ],
)
def test_2m_only_for_more_than_2_mib(start: int, end: int, nr_4k: int, nr_2m: int) -> None:
    cpu = one_cpu()
    firmware().accept_range(cpu, start, end)
    sizes = [size for _, size in accepts(cpu)]
    assert (sizes.count(4096), sizes.count(FRAME)) == (nr_4k, nr_2m)


def test_one_vcpu_accepts_all_low_memory_alone() -> None:
    layout = q35_layout(4 * GIB, OWN)
    run = DryRun(LinuxGuest(layout, 1), layout)
    run.run()
    sizes = [r.size_bytes for r in run.log if r.phase == "tdvf-sec" and r.op == "accept"]
    assert (sizes.count(FRAME), sizes.count(4096)) == (1023, 486)


def test_many_vcpus_need_larger_stacks() -> None:
    """600 vCPUs need 10 MiB of stacks: [0, 8 MiB) is too small and taken on the way, then only
    what the stacks need of the range that holds them, because it is larger than a chunk."""
    cpu = one_cpu(600)
    end = firmware().accept_memory_for_aps_stack(cpu)
    assert end == 0x820000 + 10 * MIB
    assert (0, FRAME) in accepts(cpu)


class Stubborn(DryCpu):
    """A vCPU whose ACCEPTs answer from a list first."""

    __slots__ = ("answers",)

    def __init__(self, answers: list[int]) -> None:
        super().__init__(DryRun(Nothing(1), q35_layout(4 * GIB, OWN)), 0)
        self.answers = answers

    def tdcall_accept(self, gpa: int, level: int) -> int:
        return self.answers.pop(0) if self.answers else super().tdcall_accept(gpa, level)

    def panic(self, text: str) -> None:
        raise DryRunError(text)


def test_size_mismatch_falls_back_to_512_pages() -> None:
    cpu = Stubborn([TDX_PAGE_SIZE_MISMATCH | 1])
    firmware().accept_page(cpu, 5 * FRAME, 1)
    assert accepts(cpu) == [(5 * FRAME + i * 4096, 4096) for i in range(512)]


def test_busy_is_retried_three_times_and_accepted_is_tolerated() -> None:
    cpu = Stubborn([TDX_OPERAND_BUSY | 1] * 3)
    firmware().accept_page(cpu, 0, 1)
    assert accepts(cpu) == [(0, FRAME)]
    firmware().accept_page(Stubborn([TDX_PAGE_ALREADY_ACCEPTED | 1]), 0, 1)
    with pytest.raises(DryRunError, match="ACCEPT of 0x0 at level 1 failed"):
        firmware().accept_page(Stubborn([TDX_OPERAND_BUSY | 1] * 4), 0, 1)
    with pytest.raises(DryRunError, match="failed with 0xc0000b0b00000000"):
        firmware().accept_page(Stubborn([TDX_PAGE_SIZE_MISMATCH]), 0, 0)


def test_page_aug_section_is_added_like_any_other() -> None:
    """The firmware never accepts what the VMM added."""
    sections = list(edk2_sections(2 << 20, 128 << 10))
    old = sections[5]
    sections[5] = TdvfSection(0, 0, old.memory_address, old.memory_size, old.type, 2)
    layout = q35_layout(GIB, parse_tdvf(build_tdvf(sections, 2 << 20), "aug"))
    run = DryRun(LinuxGuest(layout, 2), layout)
    run.run()
    assert not any(r.status for r in run.log)


# Linux


def test_linux_tries_levels_from_the_top() -> None:
    cpu = one_cpu()
    assert tdx_accept_memory(cpu, GIB - FRAME - 4096, 2 * GIB + 4096)
    tried = [(r.gpa, r.size_bytes, bool(r.status)) for r in cpu.td.log]
    assert tried[:4] == [
        (GIB - FRAME - 4096, 4096, False),
        (GIB - FRAME, FRAME, False),
        (GIB, GIB, True),
        (GIB, FRAME, False),
    ]
    assert tried[-1] == (2 * GIB, 4096, False)
    assert len(tried) == 1 + 1 + 1 + 512 + 1


def test_linux_panics_when_4k_fails() -> None:
    cpu = Stubborn([TDX_OPERAND_BUSY] * 3)
    with pytest.raises(DryRunError, match="Failed to accept memory"):
        accept_memory(cpu, full_table(), 4 * GIB, FRAME)


def full_table(nr_units: int = 16) -> UnacceptedTable:
    table = UnacceptedTable(4 * GIB, nr_units)
    table.bits[:] = b"\1" * nr_units
    return table


def test_guard_unit_makes_6_then_4_mib() -> None:
    cpu, table = one_cpu(), full_table()
    accept_memory(cpu, table, 4 * GIB, 4 * MIB)
    accept_memory(cpu, table, 4 * GIB + 4 * MIB, 4 * MIB)
    accept_memory(cpu, table, 4 * GIB + 8 * MIB, 4096)
    assert [(gpa - 4 * GIB) // MIB for gpa, _ in accepts(cpu)] == [0, 2, 4, 6, 8]
    assert table.bytes_left == 22 * MIB
    assert not table.contains_unaccepted(4 * GIB, 8 * MIB)
    assert table.contains_unaccepted(4 * GIB, 10 * MIB), "the guard unit behind it"


def test_last_unit_has_no_guard() -> None:
    cpu, table = one_cpu(), full_table(2)
    accept_memory(cpu, table, 4 * GIB, 4 * MIB)
    assert table.bytes_left == 0
    accept_memory(cpu, table, 0, 4096)
    accept_memory(cpu, None, 0, 4096)


@pytest.mark.parametrize(
    ("gib", "swiotlb", "pool", "dentry", "inode"),
    [
        (1, 64, 128, 1, 0.5),
        (2, 128, 256, 2, 1),
        (4, 256, 512, 4, 2),
        (64, 1024, 4096, 64, 32),
        (512, 1024, 4096, 128, 64),
    ],
)
def test_size_rules(gib: int, swiotlb: int, pool: int, dentry: float, inode: float) -> None:
    params = LinuxParams()
    assert swiotlb_size(gib * GIB, params) == swiotlb * MIB
    assert atomic_pool_size(gib * GIB, params) == pool * 1024
    assert hash_table_size(gib * GIB, 13) == dentry * MIB
    assert hash_table_size(gib * GIB, 14) == inode * MIB


def test_kvmclock_is_shared_above_64_vcpus() -> None:
    sizes = [kvmclock_shared_size(n) for n in (1, 64, 65, 128, 129, 256)]
    assert sizes == [0, 0, 4096, 4096, 8192, 16384]


def test_kexec_takes_everything_back_and_loses_nothing() -> None:
    layout = q35_layout(GIB, OWN)
    guest = LinuxGuest(layout, 1)
    run = DryRun(guest, layout)
    cpu = run.run()[0]
    leaves = sum(n for gpa, size in guest.shared.ranges for *_, n in direct_map_leaves(gpa, size))
    before = len(run.log)
    kexec_finish(cpu, guest.shared)
    calls = [r for r in run.log[before:] if r.op == "to_private"]
    assert len(calls) == leaves
    assert guest.shared.ranges == []
    assert run.sim.findings == []


def test_lost_data_is_noticed() -> None:
    """A host that loses a page next to a conversion: the guest sees it."""

    class Careless(DryRun):
        __slots__ = ()

        def convert(self, gpa: int, size_bytes: int) -> None:
            super().convert(gpa, size_bytes)
            if size_bytes == 16 << 10:
                self.pages.write(gpa + size_bytes, 1, 0)

    layout = q35_layout(4 * GIB, OWN)
    run = Careless(LinuxGuest(layout, 2), layout)
    run.run()
    assert run.sim.findings
    assert {f.promise for f in run.sim.findings} == {"guest-data"}


def test_bookworm_firmware_has_no_pool() -> None:
    sha = "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773"
    assert not firmware_params(sha).dma_pool
    assert firmware_params(OWN.sha256).dma_pool


# MapGPA


class Retrying(DryCpu):
    """A vCPU whose host stops MapGPA at chosen addresses."""

    __slots__ = ("stops",)

    def __init__(self, stops: list[int]) -> None:
        super().__init__(DryRun(Nothing(1), q35_layout(4 * GIB, OWN)), 0)
        self.stops = stops

    def tdvmcall(
        self, function: int, r12: int = 0, r13: int = 0, r14: int = 0, r15: int = 0
    ) -> tuple[int, int]:
        if self.stops:
            return 1, self.stops.pop(0) | r12 & self.shared_bit
        return super().tdvmcall(function, r12, r13, r14, r15)


def test_map_gpa_retries_as_linux_does() -> None:
    cpu = Retrying([0x1000, 0x3000, 0x3000])
    assert cpu.map_gpa(0x1000, 0x4000, True)
    assert [(r.gpa, r.size_bytes) for r in cpu.td.log] == [(0x3000, 0x2000)]
    assert not Retrying([0x1000] * 3).map_gpa(0x1000, 0x4000, True), "no progress"
    assert not Retrying([0x5000]).map_gpa(0x1000, 0x4000, True), "beyond the range"
    assert not Retrying([0]).map_gpa(0x1000, 0x4000, False), "before the range"
    assert Retrying([0x2000, 0x2000, 0x3000, 0x3000, 0x4000]).map_gpa(0x1000, 0x4000, False)


# Other guests


@pytest.mark.parametrize("nr_cpus", [1, 4])
@pytest.mark.parametrize("case", [CASE_A, CASE_B, CASE_C])
def test_access_before_accept(case: AccessParams, nr_cpus: int) -> None:
    guest = AccessBeforeAcceptGuest(nr_cpus, case)
    run = DryRun(guest, ve=True)
    cpus = run.run()
    assert run.sim.findings == []
    assert run.pages.nr_pages == 512
    assert run.log[-1].op == "report"
    mismatches = sum(cpu.counts.get("size_mismatches", 0) for cpu in cpus)
    assert mismatches == (1 if case is CASE_B else 0)
    touching = [cpu for cpu in cpus if cpu.counts.get("virtualization_exceptions")]
    assert len(touching) == (nr_cpus if case is CASE_C else 1)


def test_touching_unaccepted_memory_without_ve_is_fatal() -> None:
    with pytest.raises(DryRunError, match="touched unaccepted memory at 0x40000000"):
        DryRun(AccessBeforeAcceptGuest(1)).run()


def test_script_runs_in_step() -> None:
    first: list[Op] = [AcceptRange(GIB), Write(GIB, 512), Barrier(), Convert(GIB, 8192), Barrier()]
    second: list[Op] = [Barrier(), Write(GIB + FRAME - 4096), Barrier(), Verify(GIB, 512)]
    guest = ScriptGuest([first, second])
    run = DryRun(guest)
    run.run()
    assert guest.results == [[0, 1, 0, 0, 0], [0, 2, 0, 0]]
    assert run.log[-1].op == "report"


def test_script_barrier_does_not_wait_for_who_has_ended() -> None:
    guest = ScriptGuest([[Barrier(), Barrier()], [], [Barrier()]])
    DryRun(guest).run()
    assert guest.results == [[0, 0], [], [0]]


def test_script_notes_ve_and_statuses() -> None:
    guest = ScriptGuest([[Write(GIB), Verify(GIB), Accept(GIB, 1), Accept(GIB, 1), Write(GIB)]])
    DryRun(guest, ve=True).run()
    assert guest.results == [[-1, 0, 0, TDX_PAGE_ALREADY_ACCEPTED | 1, 2]]


def test_script_from_json() -> None:
    text = '[[{"type": "accept", "gpa": 4096}, {"type": "barrier"}], [{"type": "halt"}]]'
    assert script_from_json(text)[0] == [Accept(4096), Barrier()]


def test_guest_needs_a_vcpu() -> None:
    with pytest.raises(ValueError, match="at least 1 vCPU"):
        Nothing(0)
