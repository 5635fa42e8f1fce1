"""The case for huge pages in one table: the same boot on different backings of guest memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.abi.leaves import seamcall_name
from septum.module.pamt import PT_PAMT
from septum.report.words import count_text, size_text
from septum.scenarios.boot import Boot, BootRecipe
from septum.sim import RoundRobin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from septum.abi.tdvf import TdvfImage

QUANTUM = 2000
NAME_WIDTH = 42
COLUMN_WIDTH = 12


class BackingRun(msgspec.Struct, frozen=True):
    """The boot on one backing: `counts` by row name, and whether every promise held."""

    backing: str
    dynamic_pamt: bool
    held: bool
    counts: dict[str, int]


class BackingComparison(msgspec.Struct, frozen=True):
    """What `septum compare-backing` found."""

    memory_bytes: int
    nr_vcpus: int
    runs: list[BackingRun]
    schema: str = "septum.compare-backing/1"


def compare_backing(
    image: TdvfImage,
    memory_bytes: int,
    nr_vcpus: int,
    backings: Sequence[str],
    dynamic_pamt: bool = False,
    progress: Callable[[str], None] | None = None,
) -> BackingComparison:
    """Boot once on each of `backings`, each to login and down again.

    Raises InputError for a backing that does not exist.
    """
    runs = []
    for backing in backings:
        if progress is not None:
            progress(backing)
        recipe = BootRecipe(
            memory_bytes, nr_vcpus, image.sha256, backing=backing, dynamic_pamt=dynamic_pamt
        )
        boot = Boot(recipe, image, schedule=RoundRobin(QUANTUM), check="end")
        boot.login = _at_login
        boot.run()
        held = boot.up and not boot.world.sim.findings
        runs.append(BackingRun(backing, dynamic_pamt, held, _counts(boot)))
    return BackingComparison(memory_bytes, nr_vcpus, runs)


def _at_login(boot: Boot) -> None:
    """Pages that the module holds, while the TD lives."""
    module = boot.world.module
    td = next(iter(module.tds.values()))
    boot.extra["S-EPT pages at login"] = sum(1 for _ in module.sept_tables(td.tdr_pfn))
    pairs = sum(entry.pt == PT_PAMT for entry in module.pamt.entries_2m())
    boot.extra["Dynamic PAMT pages at login"] = 2 * pairs


def _counts(boot: Boot) -> dict[str, int]:
    stats = boot.snapshots.taken[0].stats if boot.snapshots.taken else {}
    leaves: dict[str, int] = {}
    for (leaf, _), count in boot.world.module.counts.items():
        name = seamcall_name(leaf)
        leaves[name] = leaves.get(name, 0) + count
    violations = sum(n for name, n in stats.items() if name.startswith("ept_violation."))
    return {
        "EPT violations": violations,
        "pages_2m at login": stats.get("pages_2m", 0),
        "pages_4k at login": stats.get("pages_4k", 0),
        **boot.extra,
        "splits": sum(n for name, n in stats.items() if name.startswith("split.")),
        "mmu_lock taken for writing": stats.get("mmu_lock_write", 0),
        "mmu_lock taken for reading": stats.get("mmu_lock_read", 0),
        "kicks": stats.get("kick", 0),
        "SEAMCALLs in all": sum(leaves.values()),
        **{
            name: leaves.get(name, 0)
            for name in (
                "TDH.MEM.PAGE.AUG",
                "TDH.MEM.RANGE.BLOCK",
                "TDH.MEM.TRACK",
                "TDH.MEM.PAGE.DEMOTE",
                "TDH.MEM.PAGE.REMOVE",
                "TDH.MEM.SEPT.ADD",
                "TDH.PHYMEM.PAMT.ADD",
            )
        },
    }


def render_comparison(comparison: BackingComparison) -> str:
    """The table as text of at most 80 columns."""
    runs = comparison.runs
    pamt = "dynamic" if any(run.dynamic_pamt for run in runs) else "static"
    heading = (
        f"One boot of a TD with {size_text(comparison.memory_bytes)}, {comparison.nr_vcpus} vCPUs"
        f" and {pamt} PAMT on different"
    )
    lines = [
        heading,
        "backings of guest memory (counts up to login; SEAMCALLs of the whole life)",
        "",
        " " * NAME_WIDTH + "".join(f"{run.backing:>{COLUMN_WIDTH}}" for run in runs),
    ]
    for name in runs[0].counts:
        row = "".join(f"{count_text(run.counts[name]):>{COLUMN_WIDTH}}" for run in runs)
        lines.append(f"{name:<{NAME_WIDTH}}{row}")
    held = "".join(f"{'held' if run.held else 'BROKEN':>{COLUMN_WIDTH}}" for run in runs)
    lines.append(f"{'promises':<{NAME_WIDTH}}{held}")
    return "\n".join(lines) + "\n"
