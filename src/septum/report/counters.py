"""The counters of a run as tables: KVM's statistics, violations, splits, SEAMCALLs, locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.report.lines import Lines, Span
from septum.words import count_text, time_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from septum.report.result import RunResult

SUCCESS = "TDX_SUCCESS"

DEBUGFS = (
    "pages_4k",
    "pages_2m",
    "pages_1g",
    "pf_taken",
    "pf_fixed",
    "pf_spurious",
    "pf_emulate",
    "pf_mmio_spte_created",
    "exits",
    "irq_exits",
    "halt_exits",
    "signal_exits",
    "halt_wakeup",
    "tlb_flush",
    "remote_tlb_flush",
    "remote_tlb_flush_requests",
    "nx_lpage_splits",
)
"""Statistics that the kernel has, in the order of the report. Zeros at both times are left out."""

ALWAYS = frozenset(("pages_4k", "pages_2m", "pages_1g"))

_CAUSES = (
    ("ept_violation.", "EPT violations by cause and level"),
    ("pf_fixed.", "Mappings made by faults, by kind and level"),
    ("split.", "Splits of 2 MB mappings by cause"),
)

_OWN = (
    ("kick", "rounds of kicking vCPUs out (kvm_make_all_cpus_request)"),
    ("ipi", "IPIs sent in them"),
    ("tdh_do_no_vcpus.busy", "SEAMCALLs that were busy and were made again without vCPUs"),
    ("vp_enter_busy", "TDH.VP.ENTER busy"),
    ("wait_for_sept_zap", "vCPUs that waited for a removal"),
    ("fault_local_retry", "faults tried again without going back to the guest"),
    ("accept_level.checked", "accepts whose level was checked"),
    ("accept_level.write_lock", "of them with mmu_lock for writing"),
)


def counter_lines(lines: Lines, result: RunResult) -> None:
    """Add all tables. A table without a row is left out."""
    _debugfs_lines(lines, result)
    for prefix, heading in _CAUSES:
        _cause_lines(lines, result.stats, prefix, heading)
    _own_lines(lines, result.stats)
    _lock_lines(lines, result)
    _seamcall_lines(lines, result.seamcalls)
    _named_lines(lines, "Exits to user space by reason", result.user_exits)


def _debugfs_lines(lines: Lines, result: RunResult) -> None:
    columns = [(s.name, s.stats) for s in result.snapshots][-4:]
    if not columns or columns[-1][1] != result.stats:
        columns = [*columns[-3:], ("end", result.stats)]
    names = [n for n in DEBUGFS if n in ALWAYS or any(stats.get(n) for _, stats in columns)]
    lines.heading("KVM's statistics (debugfs names)")
    lines.add(Span(f"  {'':26}" + "".join(f"{name:>13}" for name, _ in columns), "dim"))
    for name in names:
        values = "".join(f"{count_text(stats.get(name, 0)):>13}" for _, stats in columns)
        lines.add(f"  {name:26}{values}")


def _cause_lines(lines: Lines, stats: Mapping[str, int], prefix: str, heading: str) -> None:
    rows = {
        name.removeprefix(prefix).replace(".", " "): value
        for name, value in stats.items()
        if name.startswith(prefix) and value
    }
    if len(rows) > 1:
        rows["in all"] = sum(rows.values())
    _named_lines(lines, heading, rows, by_count=False)


def _named_lines(
    lines: Lines, heading: str, rows: Mapping[str, int], by_count: bool = True
) -> None:
    if not rows:
        return
    lines.heading(heading)
    pairs = sorted(rows.items(), key=lambda row: (-row[1], row[0])) if by_count else rows.items()
    for name, value in pairs:
        lines.add(f"  {name:26}{count_text(value):>13}")


def _own_lines(lines: Lines, stats: Mapping[str, int]) -> None:
    rows = [(text, stats[name]) for name, text in _OWN if stats.get(name)]
    if not rows:
        return
    lines.heading("Kicks, retries and accept levels")
    for text, value in rows:
        lines.add(f"  {text:63}{count_text(value):>13}")


def _lock_lines(lines: Lines, result: RunResult) -> None:
    if result.locks:
        lines.heading("Locks")
        lines.add(Span(f"  {'':26}{'read':>13}{'write':>13}{'longest write (virtual)':>26}", "dim"))
    for lock in result.locks:
        hold = time_text(lock.max_write_hold_ns) if result.time_ns else "not timed"
        lines.add(
            f"  {lock.name:26}{count_text(lock.nr_read):>13}{count_text(lock.nr_write):>13}"
            f"{hold:>26}"
        )
    writers = {
        name.removeprefix("mmu_lock_write."): value
        for name, value in result.stats.items()
        if name.startswith("mmu_lock_write.") and value
    }
    _named_lines(lines, "mmu_lock taken for writing, by function", writers)


def _seamcall_lines(lines: Lines, seamcalls: Mapping[str, Mapping[str, int]]) -> None:
    if not seamcalls:
        return
    lines.heading("SEAMCALLs by leaf and status")
    lines.add(Span(f"  {'':44}{'calls':>13}{'success':>13}", "dim"))
    for leaf in sorted(seamcalls):
        statuses = seamcalls[leaf]
        lines.add(
            f"  {leaf:44}{count_text(sum(statuses.values())):>13}"
            f"{count_text(statuses.get(SUCCESS, 0)):>13}"
        )
        others = {name: n for name, n in statuses.items() if name != SUCCESS}
        for name, n in sorted(others.items(), key=lambda item: (-item[1], item[0])):
            lines.add(f"    {name:42}{count_text(n):>13}")
