"""The boot program against boot traces of four guests that were derived independently.

The traces (tests/guest/data) list what firmware and kernel ask for; the program must ask for the
same accepts at the same levels and the same conversions, phase by phase.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypedDict

import pytest

from septum.abi.tdvf import SectionType, TdvfImage, TdvfSection, parse_tdvf
from septum.abi.tdvf_build import build_tdvf, edk2_sections
from septum.guest.dryrun import DryCpu, DryRun, Request
from septum.guest.linux import LinuxGuest
from septum.guest.params import FirmwareParams, LinuxParams
from septum.guest.shared_memory import direct_map_leaves
from septum.sim import RandomSchedule
from septum.vmm.layout import LayoutError, q35_layout

GIB = 1 << 30
SIZES = (2, 4, 64, 512)
PHASES = {
    "tdvf-sec": ("tdvf-sec",),
    "tdvf-dxe": ("tdvf-dxe",),
    "tdvf-ebs": ("tdvf-exit-boot-services",),
    "linux-memblock": ("linux-memblock",),
    "linux-mem_init": ("linux-mem-init",),
    "linux-free_core": ("linux-mem-init",),
    "linux-prewmark": ("linux-page-alloc",),
    "linux-postcore": ("linux-dma-pools",),
    "linux-drivers": ("linux-drivers",),
    "linux-userspace": ("linux-userspace",),
    "steady": ("linux-runtime",),
}


class TraceEvent(TypedDict, total=False):
    phase: str
    evidence: str
    op: str
    gpa: str
    size: int
    vcpu: int
    repeat: int
    stride: int


class Trace(TypedDict):
    memory_gib: int
    vcpus: int
    totals: dict[str, int]
    events: list[TraceEvent]
    kexec: list[dict[str, int | str]]


@cache
def trace(gib: int) -> Trace:
    path = Path(__file__).parent / "data" / f"boot_{gib}G.json"
    loaded: Trace = json.loads(path.read_text())
    return loaded


@cache
def trixie() -> TdvfImage:
    """An image with the sections of Debian trixie's OVMF.fd, which the traces were made for."""
    sections = list(edk2_sections(4 << 20, 0x84000))
    sections[2] = TdvfSection(0, 0, 0x811000, 0xF000, SectionType.TEMP_MEM)
    return parse_tdvf(build_tdvf(sections, 4 << 20), "trixie")


@cache
def dry_run(gib: int) -> tuple[DryRun, list[DryCpu]]:
    layout = q35_layout(gib * GIB, trixie())
    run = DryRun(LinuxGuest(layout, trace(gib)["vcpus"]), layout)
    return run, run.run()


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges [start, end) with those that touch joined; overlap is an error."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if out and start < out[-1][1]:
            raise AssertionError(f"{start:#x} asked for twice")
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def trace_ranges(event: TraceEvent) -> Iterator[tuple[int, int]]:
    start = int(event["gpa"], 16)
    for i in range(event.get("repeat", 1)):
        at = start + i * event.get("stride", 0)
        yield at, at + event["size"]


def expected(gib: int, cpu: int | None = None) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """(program phase, op) -> ranges. The quote buffer is not in this comparison."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for event in trace(gib)["events"]:
        if cpu is not None and event.get("vcpu") != cpu:
            continue
        if event["size"] == 8192 and event["phase"] == "steady":
            continue
        key = (PHASES[event["phase"]][0], event["op"])
        found.setdefault(key, []).extend(trace_ranges(event))
    return {key: merged(ranges) for key, ranges in found.items()}


def asked(
    log: list[Request], cpu: int | None = None
) -> dict[tuple[str, str], list[tuple[int, int]]]:
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for r in log:
        if r.op == "report" or r.status or (cpu is not None and r.cpu != cpu):
            continue
        if r.op == "to_shared" and r.size_bytes == 8192:
            continue
        found.setdefault((r.phase, r.op), []).append((r.gpa, r.gpa + r.size_bytes))
    return {key: merged(ranges) for key, ranges in found.items()}


@pytest.mark.parametrize("gib", SIZES)
def test_same_ranges_in_every_phase(gib: int) -> None:
    assert asked(dry_run(gib)[0].log) == expected(gib)


@pytest.mark.parametrize("gib", SIZES)
def test_same_share_of_each_vcpu_in_sec(gib: int) -> None:
    log = [r for r in dry_run(gib)[0].log if r.phase == "tdvf-sec"]
    for cpu in range(trace(gib)["vcpus"]):
        theirs = expected(gib, cpu).get(("tdvf-sec", "accept"), [])
        mine = merged((r.gpa, r.gpa + r.size_bytes) for r in log if r.cpu == cpu)
        assert mine == theirs, f"vCPU {cpu}"


@pytest.mark.parametrize("gib", SIZES)
def test_same_totals(gib: int) -> None:
    totals = trace(gib)["totals"]
    run, _ = dry_run(gib)
    accepts = Counter((r.size_bytes, r.status == 0) for r in run.log if r.op == "accept")
    assert accepts[4096, True] == totals["accept_4k_ops"]
    assert accepts[2 << 20, True] == totals["accept_2m_ops"]
    assert accepts[1 << 30, False] == totals["accept_1g_first_tries"]
    assert sum(size * n for (size, ok), n in accepts.items() if ok) == totals["accepted_bytes"]
    ram_shared = sum(r.size_bytes for r in run.log if r.op == "to_shared" and is_ram(run, r.gpa))
    assert ram_shared == totals["mapgpa_bytes_ram_to_shared"]
    exits = sum(
        max(1, r.size_bytes >> 21)
        for r in run.log
        if r.op == "to_shared" and not is_ram(run, r.gpa)
    )
    assert exits == totals["mapgpa_kvm_exits_mmio"]


def is_ram(run: DryRun, gpa: int) -> bool:
    assert isinstance(run.guest, LinuxGuest)
    return any(r.gpa <= gpa < r.end for r in run.guest.layout.ram)


@pytest.mark.parametrize(("gib", "mib"), [(2, 0), (4, 1462), (64, 61222), (512, 508274)])
def test_memory_left_unaccepted(gib: int, mib: int) -> None:
    guest = dry_run(gib)[0].guest
    assert isinstance(guest, LinuxGuest)
    assert guest.unaccepted_bytes == mib << 20


@pytest.mark.parametrize("gib", SIZES)
def test_no_data_lost_and_the_boot_reports(gib: int) -> None:
    run, _ = dry_run(gib)
    assert run.sim.findings == []
    assert run.log[-1].op == "report"
    assert [r.op for r in run.log].count("report") == 1
    own = list(run.guest.memory.ranges())
    for gfn, nr, token in own:
        assert [t for _, _, t in run.pages.ranges_in(gfn << 12, nr)] == [token]


@pytest.mark.parametrize("gib", SIZES)
def test_kexec_returns_every_shared_leaf(gib: int) -> None:
    """Each shared range goes back by 2M leaves where it covers whole frames, else by 4K leaves."""
    guest = dry_run(gib)[0].guest
    assert isinstance(guest, LinuxGuest)
    mine = {
        (start, leaf, count)
        for gpa, size in guest.shared.ranges
        for start, leaf, count in direct_map_leaves(gpa, size)
    }
    theirs = {
        (int(str(k["gpa"]), 16), int(k["leaf"]), int(k["calls"])) for k in trace(gib)["kexec"]
    }
    assert mine == theirs


def test_every_schedule_asks_for_the_same() -> None:
    """Which vCPU goes first changes the order, not what is accepted and shared."""
    layout = q35_layout(4 * GIB, trixie())
    for seed in range(3):
        run = DryRun(LinuxGuest(layout, 8), layout, schedule=RandomSchedule(seed))
        run.run()
        assert run.sim.findings == []
        ours, first = asked(run.log), asked(dry_run(4)[0].log)
        assert ours == first


def test_same_run_twice_is_identical() -> None:
    layout = q35_layout(4 * GIB, trixie())
    again = DryRun(LinuxGuest(layout, 8), layout)
    again.run()
    assert again.log == dry_run(4)[0].log


def signature(run: DryRun) -> list[tuple[int, str, int, int]]:
    return sorted((r.cpu, r.op, r.gpa, r.size_bytes) for r in run.log)


@pytest.mark.parametrize(
    ("params", "firmware"),
    [
        (LinuxParams(swiotlb_percent=3), FirmwareParams()),
        (LinuxParams(swiotlb_below_low_end=0x7E00000), FirmwareParams()),
        (LinuxParams(prewatermark_allocs_per_vcpu=13.0), FirmwareParams()),
        (LinuxParams(lazy_accept=False), FirmwareParams()),
        (LinuxParams(), FirmwareParams(accept_level=0)),
        (LinuxParams(), FirmwareParams(accept_chunk_bytes=64 << 20)),
        (LinuxParams(), FirmwareParams(dma_pool=False)),
    ],
)
def test_parameters_change_the_trace(params: LinuxParams, firmware: FirmwareParams) -> None:
    """The comparison is not vacuous: another rule is noticed."""
    layout = q35_layout(4 * GIB, trixie())
    run = DryRun(LinuxGuest(layout, 8, params, firmware), layout)
    run.run()
    assert run.sim.findings == []
    assert signature(run) != signature(dry_run(4)[0])


def test_eager_accept_leaves_nothing() -> None:
    layout = q35_layout(4 * GIB, trixie())
    run = DryRun(LinuxGuest(layout, 2, LinuxParams(lazy_accept=False)), layout)
    run.run()
    guest = run.guest
    assert isinstance(guest, LinuxGuest)
    assert guest.unaccepted_bytes == 0
    high = sum(r.size_bytes for r in run.log if r.op == "accept" and r.gpa >= 4 * GIB)
    assert high == 2 * GIB


def test_firmware_without_pool_flips_single_pages() -> None:
    """The published repeats: 974, 476 and 156 accepts of three pages (4 GiB, 8 vCPUs)."""
    layout = q35_layout(4 * GIB, trixie())
    run = DryRun(LinuxGuest(layout, 8, firmware=FirmwareParams(dma_pool=False)), layout)
    run.run()
    dxe = Counter(r.gpa >> 12 for r in run.log if r.phase == "tdvf-dxe" and r.op == "accept")
    assert dxe == {0x7D9D7: 974, 0x7D9DA: 476, 0x7D9D9: 156}


def test_workload_accepts_more_memory_on_all_vcpus() -> None:
    layout = q35_layout(4 * GIB, trixie())
    run = DryRun(LinuxGuest(layout, 4, LinuxParams(workload_bytes=256 << 20)), layout)
    cpus = run.run()
    accepted = [r.cpu for r in run.log if r.phase == "linux-workload" and r.op == "accept"]
    assert abs(len(accepted) * 2 - 256) <= 4 * 4, "within one block for each vCPU"
    assert len(set(accepted)) > 1
    assert run.sim.findings == []
    assert not any("out_of_memory" in cpu.counts for cpu in cpus)


@pytest.mark.parametrize(
    ("mib", "cpus"), [(384, 1), (512, 1), (1024, 3), (2048 + 512, 2), (3072, 1)]
)
def test_other_sizes_boot(mib: int, cpus: int) -> None:
    layout = q35_layout(mib << 20, trixie())
    params = LinuxParams(workload_bytes=64 << 20)
    run = DryRun(LinuxGuest(layout, cpus, params), layout)
    run.run()
    assert run.sim.findings == []
    assert run.log[-1].op == "report"


def test_odd_memory_size_is_accepted_to_the_last_page() -> None:
    """The EFI stub accepts what fills no 2 MiB unit."""
    memory = 3 * GIB + 0x5000
    layout = q35_layout(memory, trixie())
    run = DryRun(LinuxGuest(layout, 2, LinuxParams(lazy_accept=False)), layout)
    run.run()
    stub = [(r.gpa, r.size_bytes) for r in run.log if r.phase == "linux-efistub"]
    assert stub == [(5 * GIB + i * 4096, 4096) for i in range(5)]
    assert run.sim.findings == []


def test_too_small_a_guest_is_one_sentence() -> None:
    with pytest.raises(LayoutError, match="give it at least 384M"):
        LinuxGuest(q35_layout(256 << 20, trixie()), 1)
