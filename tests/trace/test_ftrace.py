"""ftrace text, read back with nothing but the kernel's TP_printk() strings: each becomes a parser.

The strings are those of arch/x86/kvm/trace.h, arch/x86/kvm/mmu/mmutrace.h and
include/trace/events/kvm.h; the layout of a line is that of kernel/trace/trace_output.c.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from septum.cli.report import trace_of
from septum.linux.kvm import events as kvm
from septum.module.events import SeamcallEvent
from septum.sim.events import Event
from septum.trace import TraceReader
from septum.trace.command import render
from septum.trace.ftrace import ftrace_lines

Golden = Callable[[str, str], None]

PRINTK = {
    "kvm_entry": "vcpu %u, rip 0x%lx intr_info 0x%08x error_code 0x%08x",
    "kvm_exit": "vcpu %u reason %s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x"
    " error_code 0x%08x requests 0x%016llx",
    "kvm_page_fault": "vcpu %u rip 0x%lx address 0x%016llx error_code 0x%llx",
    "kvm_userspace_exit": "reason %s (%d)",
    "kvm_hypercall": "nr 0x%lx a0 0x%lx a1 0x%lx a2 0x%lx a3 0x%lx",
    "kvm_unmap_hva_range": "mmu notifier unmap range: %#016lx -- %#016lx",
    "kvm_mmu_spte_requested": "gfn %llx pfn %llx level %d",
    "kvm_tdp_mmu_spte_changed": "as id %d gfn %llx level %d old_spte %llx new_spte %llx",
    "kvm_mmu_split_huge_page": "gfn %llx spte %llx level %d errno %d",
    "kvm_mmu_set_spte": "gfn %llx spte %llx (%s) level %d at %llx",
    "kvm_mmu_get_page": "sp gen %u gfn %llx l%u %u-byte q%u%s root %u %s %s",
    "kvm_mmu_prepare_zap_page": "sp gen %u gfn %llx l%u %u-byte q%u%s root %u %s",
    "kvm_mmu_zap_all_fast": "kvm-mmu-valid-gen %u used_pages %x",
}
LINE = re.compile(
    r"^ *(?P<comm>.{1,16}?)-(?P<pid>\d+) +\[(?P<cpu>\d{3})\] (?P<flags>[dDbBnNp.HhsZz0-9]{5}) +"
    r"(?P<seconds>\d+)\.(?P<micros>\d{6}): (?P<event>\w+): (?P<text>.*)$"
)
KRETPROBE = re.compile(
    r"\((?:0|(?P<caller>\w+)\+0x[0-9a-f]+/0x[0-9a-f]+) <- (?P<function>\w+)\)"
    r"(?P<args>(?: \w+=0x[0-9a-f]+)*)$"
)
_SPEC = re.compile(r"%(?P<alternate>#?)(?P<width>0\d+)?(?:l{0,2})(?P<kind>[uxds])")
Value = int | str


class Line(NamedTuple):
    """One line of ftrace text; `values` are in the order of the format string."""

    comm: str
    pid: int
    cpu: int
    time_us: int
    event: str
    values: tuple[Value, ...]


def _pattern(printk: str) -> tuple[re.Pattern[str], list[int]]:
    """A regular expression for a format string, and the base of each value (0: text)."""
    out, bases, at = [], [], 0
    for spec in _SPEC.finditer(printk):
        out.append(re.escape(printk[at : spec.start()]))
        width = int(spec["width"] or 1)
        if spec["kind"] == "s":
            out.append("(.*?)")
            bases.append(0)
        elif spec["kind"] == "x":
            prefix = "0x" if spec["alternate"] else ""
            out.append(f"({prefix}[0-9a-f]{{{width - len(prefix)},}})")
            bases.append(16)
        else:
            out.append(r"(-?\d+)")
            bases.append(10)
        at = spec.end()
    out.append(re.escape(printk[at:]))
    return re.compile("".join(out)), bases


_PATTERNS = {event: _pattern(printk) for event, printk in PRINTK.items()}


def parse(text: str) -> list[Line]:
    """The lines of a trace. Raises ValueError for one that no kernel prints."""
    return [_parse(line) for line in text.splitlines() if not line.startswith("#")]


def _parse(line: str) -> Line:
    match = LINE.match(line)
    if match is None:
        raise ValueError(f"not a line of ftrace: {line}")
    event, text = match["event"], match["text"]
    time_us = int(match["seconds"]) * 10**6 + int(match["micros"])
    values: tuple[Value, ...]
    if event in _PATTERNS:
        pattern, bases = _PATTERNS[event]
        found = pattern.fullmatch(text)
        if found is None:
            raise ValueError(f"not what {event} prints: {text}")
        values = tuple(
            int(word, base) if base else word
            for word, base in zip(found.groups(), bases, strict=True)
        )
    else:
        probe = KRETPROBE.fullmatch(text)
        if probe is None:
            raise ValueError(f"neither a tracepoint of KVM nor a kretprobe: {line}")
        args = [int(word.split("=")[1], 16) for word in probe["args"].split()]
        values = (probe["function"], probe["caller"] or "", *args)
    return Line(match["comm"], int(match["pid"]), int(match["cpu"]), time_us, event, values)


# What is printed is what happened

FIELDS: dict[str, Callable[..., tuple[Value, ...]]] = {
    "kvm_entry": lambda e: (e.vcpu_id, e.rip, e.intr_info, e.error_code),
    "kvm_exit": lambda e: (
        e.vcpu_id,
        e.exit_reason,
        e.guest_rip,
        e.info1,
        e.info2,
        e.intr_info,
        e.error_code,
        e.requests,
    ),
    "kvm_page_fault": lambda e: (e.vcpu_id, e.guest_rip, e.fault_address, e.error_code),
    "kvm_mmu_spte_requested": lambda e: (e.gfn, e.pfn, e.level),
    "kvm_tdp_mmu_spte_changed": lambda e: (e.as_id, e.gfn, e.level, e.old_spte, e.new_spte),
    "kvm_mmu_split_huge_page": lambda e: (e.gfn, e.spte, e.level, e.errno),
    "kvm_hypercall": lambda e: (e.nr, e.a0, e.a1, e.a2, e.a3),
}


def told(events: list[Event]) -> Counter[tuple[str, tuple[Value, ...]]]:
    """What the events say, in the kernel's order of fields."""
    found: Counter[tuple[str, tuple[Value, ...]]] = Counter()
    for event in events:
        tag = str(event.__struct_config__.tag)
        if tag in FIELDS:
            found[tag, FIELDS[tag](event)] += 1
    return found


def read_back(lines: list[Line]) -> Counter[tuple[str, tuple[Value, ...]]]:
    return Counter((line.event, line.values) for line in lines if line.event in FIELDS)


@pytest.mark.parametrize("scenario", ["accept-level-b", "convert-against-fault", "busy-once"])
def test_a_whole_run_reads_back(tmp_path: Path, scenario: str) -> None:
    """Every line of a run is one that the kernel prints, with the values that the events have."""
    path = trace_of(scenario, tmp_path / "t.jsonl")
    with TraceReader(path) as reader:
        text = b"".join(render(reader, reader.header, "ftrace", via=reader.via)).decode()
    with TraceReader(path) as reader:
        events = list(reader)
    lines = parse(text)
    assert read_back(lines) == told(events)
    calls = [event for event in events if isinstance(event, SeamcallEvent)]
    probes = [line for line in lines if line.event.startswith("tdh_")]
    assert Counter(line.values[2:] for line in probes) == Counter(
        (event.rcx, event.rdx, event.r8, event.status) for event in calls
    )
    assert {line.values[0] for line in probes} == {line.event for line in probes}
    assert "tdx_sept_remove_private_spte" in {line.values[1] for line in probes}
    tracepoints = [event for event in events if type(event).__module__ == kvm.__name__]
    assert len(lines) == len(probes) + sum(hasattr(event, "text") for event in tracepoints)


def test_a_line_that_no_kernel_prints_is_refused(story: list[Event]) -> None:
    """The parser can fail: it is not satisfied with any text."""
    text = "".join(ftrace_lines(story))
    assert parse(text)
    for old, new in (("errno -12", "errno ENOMEM"), ("info1 0x", "info1 "), (" [", " (")):
        assert old in text
        with pytest.raises(ValueError, match="not "):
            parse(text.replace(old, new))


def test_golden_ftrace(story: list[Event], golden: Golden) -> None:
    golden("ftrace.txt", "".join(ftrace_lines(story)))


def test_ftrace_is_in_order_of_time_with_one_pid_for_each_task() -> None:
    events: list[Event] = [
        kvm.KvmEntry(2_000_001_000, "vmm0.vcpu1", 1, 1),
        kvm.KvmEntry(1_999_999_999, "vmm0.vcpu0", 0, 0),
        kvm.KvmEntry(3_000_000_000, "vmm0.vcpu1", 1, 1),
    ]
    lines = parse("".join(ftrace_lines(events)))
    assert [line.time_us for line in lines] == [1_999_999, 2_000_001, 3_000_000]
    assert [line.comm for line in lines] == ["CPU 0/KVM", "CPU 1/KVM", "CPU 1/KVM"]
    assert lines[1].pid == lines[2].pid != lines[0].pid


def test_ftrace_leaves_out_what_no_kernel_shows(story: list[Event]) -> None:
    hidden = {"lock", "switch", "tdcall", "td_exit", "conversion", "guest_phase", "finding"}
    assert not hidden & {line.event for line in parse("".join(ftrace_lines(story)))}
