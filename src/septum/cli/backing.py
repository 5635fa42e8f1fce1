"""`septum compare-backing`: the same boot on 4 KB and on huge pages, side by side."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from septum.cli.exits import BROKEN, OK
from septum.errors import InputError
from septum.firmware.acquire import acquire_firmware
from septum.json_text import json_text
from septum.scenarios.backing import compare_backing, render_comparison
from septum.scenarios.boot import check_boot
from septum.vmm.layout import parse_memory_size

if TYPE_CHECKING:
    from pathlib import Path


def print_comparison(
    memory: str,
    nr_vcpus: int,
    backings: list[str],
    dynamic_pamt: bool,
    firmware: Path | None,
    *,
    as_json: bool,
) -> int:
    """Run and print; returns the exit code. Raises InputError for what cannot be done."""
    memory_bytes = parse_memory_size(memory)
    if not backings:
        raise InputError("--backing names nothing; write for example 4k,hugetlb-1g")
    for backing in backings:
        check_boot(memory_bytes, nr_vcpus, backing)
    image = acquire_firmware(firmware).image

    workers = min(os.cpu_count() or 1, len(backings))
    print(f"booting on {', '.join(backings)} ({workers} at a time) ...", file=sys.stderr)

    def progress(backing: str) -> None:
        print(f"  {backing} is done", file=sys.stderr)

    comparison = compare_backing(
        image, memory_bytes, nr_vcpus, backings, dynamic_pamt, workers, progress
    )
    if as_json:
        print(json_text(comparison))
    else:
        print(render_comparison(comparison), end="")
    return OK if all(run.held for run in comparison.runs) else BROKEN
