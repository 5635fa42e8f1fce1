"""What a person sees after a run: text, JSON, and pictures, all made from a `RunResult`."""

from septum.report.files import read_report, report_json, report_schema, write_report
from septum.report.lines import print_lines
from septum.report.result import (
    Bank,
    FindingRecord,
    LockRecord,
    PageKind,
    PhaseRecord,
    PromiseResult,
    Region,
    RunResult,
    Snapshot,
)
from septum.report.text import render_report, report_lines, verdict

__all__ = [
    "Bank",
    "FindingRecord",
    "LockRecord",
    "PageKind",
    "PhaseRecord",
    "PromiseResult",
    "Region",
    "RunResult",
    "Snapshot",
    "print_lines",
    "read_report",
    "render_report",
    "report_json",
    "report_lines",
    "report_schema",
    "verdict",
    "write_report",
]
