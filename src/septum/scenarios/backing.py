"""The case for huge pages in one table: the same boot on different backings of guest memory."""

from __future__ import annotations

import multiprocessing
import signal
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from septum.abi.leaves import seamcall_name
from septum.module.pamt import PT_PAMT
from septum.scenarios.boot import Boot, BootRecipe
from septum.sim import RoundRobin
from septum.words import count_text, size_text, wrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from septum.abi.tdvf import TdvfImage

QUANTUM = 2000
NAME_WIDTH = 32
COLUMN_WIDTH = 12
STATIC_PAMT_PAGES_PER_2M = 2
"""PAMT_4K has 16 bytes for each of the 512 pages of a 2 MB frame."""
LEAVES = (
    "TDH.MEM.SEPT.ADD",
    "TDH.MEM.PAGE.AUG",
    "TDH.MEM.RANGE.BLOCK",
    "TDH.MEM.TRACK",
    "TDH.MEM.PAGE.DEMOTE",
    "TDH.MEM.PAGE.REMOVE",
    "TDH.PHYMEM.PAGE.WBINVD",
    "TDH.PHYMEM.PAMT.ADD",
)
WHY = """\
4K backing costs an EPT violation, a SEAMCALL and a read-locked fault for each 4 KB that the guest
accepts, and four SEAMCALLs to take it away again.

1 GB backing counts as 2 MB backing: KVM maps a TD's memory by 2 MB at most.

On huge backing REMOVE goes by 4 KB where memory became shared: KVM hands MapGPA on in pieces of
2 MB from where the request begins, so that a request that begins inside a 2 MB page splits every
page that it touches, and no fault merges them again (patch 06)."""


class BackingRun(msgspec.Struct, frozen=True):
    """The boot on one backing: counts by row name, up to login and of the whole life, and whether
    every promise held."""

    backing: str
    dynamic_pamt: bool
    held: bool
    at_login: dict[str, int]
    whole_life: dict[str, int]


class BackingComparison(msgspec.Struct, frozen=True):
    """What `septum compare-backing` found."""

    memory_bytes: int
    nr_vcpus: int
    runs: list[BackingRun]
    schema: str = "septum.compare-backing/2"


def compare_backing(
    image: TdvfImage,
    memory_bytes: int,
    nr_vcpus: int,
    backings: Sequence[str],
    dynamic_pamt: bool = True,
    workers: int = 1,
    progress: Callable[[str], None] | None = None,
) -> BackingComparison:
    """Boot once on each of `backings`, each to login and down again; `progress` is told of each
    that is done. `workers` processes do it.

    Raises InputError for a backing that does not exist.
    """
    recipes = [
        BootRecipe(memory_bytes, nr_vcpus, image.sha256, backing=name, dynamic_pamt=dynamic_pamt)
        for name in backings
    ]
    runs = []
    for run in _runs(recipes, image, workers):
        runs.append(run)
        if progress is not None:
            progress(run.backing)
    return BackingComparison(memory_bytes, nr_vcpus, runs)


def _runs(recipes: list[BootRecipe], image: TdvfImage, workers: int) -> Iterator[BackingRun]:
    if workers == 1 or len(recipes) == 1:
        yield from map(partial(_boot, image), recipes)
        return
    count = min(workers, len(recipes))
    with multiprocessing.get_context("fork").Pool(count, leave_interrupts) as pool:
        yield from pool.imap(partial(_boot, image), recipes)


def leave_interrupts() -> None:
    """In a process of a pool: Control-C is the parent's, who says once that it is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _boot(image: TdvfImage, recipe: BootRecipe) -> BackingRun:
    boot = Boot(recipe, image, schedule=RoundRobin(QUANTUM), check="end")
    boot.login = _at_login
    boot.run()
    held = boot.up and not boot.world.sim.findings
    return BackingRun(recipe.backing, recipe.dynamic_pamt, held, _login_counts(boot), _life(boot))


def _at_login(boot: Boot) -> None:
    """Pages that the module holds, while the TD lives."""
    module = boot.world.module
    td = next(iter(module.tds.values()))
    sept = sum(1 for _ in module.sept_tables(td.tdr_pfn))
    if boot.recipe.dynamic_pamt:
        pamt = 2 * sum(entry.pt == PT_PAMT for entry in module.pamt.entries_2m())
    else:
        pamt = STATIC_PAMT_PAGES_PER_2M * (boot.recipe.memory_bytes >> 21)
    boot.extra = {"S-EPT pages": sept, "PAMT_4K pages": pamt, "KiB for both": 4 * (sept + pamt)}


def _login_counts(boot: Boot) -> dict[str, int]:
    stats = boot.snapshots.taken[0].stats if boot.snapshots.taken else {}
    return {
        "EPT violations": sum(n for key, n in stats.items() if key.startswith("ept_violation.")),
        "mmu_lock taken for reading": stats.get("mmu_lock_read", 0),
        "mmu_lock taken for writing": stats.get("mmu_lock_write", 0),
        "splits": sum(n for key, n in stats.items() if key.startswith("split.")),
        "vCPU kicks": stats.get("kick", 0),
        "private pages mapped by 2M": stats.get("pages_2m", 0),
        "private pages mapped by 4K": stats.get("pages_4k", 0),
        **boot.extra,
    }


def _life(boot: Boot) -> dict[str, int]:
    leaves: dict[str, int] = {}
    for (leaf, _), count in boot.world.module.counts.items():
        name = seamcall_name(leaf)
        leaves[name] = leaves.get(name, 0) + count
    return {"SEAMCALLs": sum(leaves.values()), **{name: leaves.get(name, 0) for name in LEAVES}}


# Text


def render_comparison(comparison: BackingComparison) -> str:
    """The table as text of at most 80 columns. With two backings or more, the last column is the
    first in units of the last."""
    runs = comparison.runs
    pamt = "Dynamic PAMT" if runs[0].dynamic_pamt else "static PAMT"
    names = [run.backing for run in runs]
    if len(runs) > 1:
        names.append("first/last")
    shape = f"{size_text(comparison.memory_bytes)}, {comparison.nr_vcpus} vCPUs, {pamt}"
    lines = [
        f"The same boot of a TD: {shape}",
        "",
        " " * NAME_WIDTH + "".join(f"{name:>{COLUMN_WIDTH}}" for name in names),
        "Up to login",
        *_rows([run.at_login for run in runs]),
        "Whole life, to the last page",
        *_rows([run.whole_life for run in runs]),
    ]
    held = "".join(f"{'held' if run.held else 'BROKEN':>{COLUMN_WIDTH}}" for run in runs)
    lines += [f"{'All promises':<{NAME_WIDTH}}{held}", ""]
    for paragraph in WHY.split("\n\n"):
        lines += wrap(paragraph, "- ", "  ")
    return "\n".join(lines) + "\n"


def _rows(counts: list[dict[str, int]]) -> list[str]:
    rows = []
    for name in counts[0]:
        values = [each[name] for each in counts]
        row = "".join(f"{count_text(value):>{COLUMN_WIDTH}}" for value in values)
        if len(values) > 1 and values[0] and values[-1]:
            row += f"{f'{values[0] / values[-1]:.2f} x':>{COLUMN_WIDTH}}"
        rows.append(f"  {name:<{NAME_WIDTH - 2}}{row}")
    return rows
