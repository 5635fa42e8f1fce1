"""The subcommands that make many runs, and the designs that they are made with: `explore`,
`compare`, `compare-backing`, `designs`. Each imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from septum.cli.app import app
from septum.cli.options import Check, Design, Json, Memory, Preemptions, Seed, Vcpus, Workers


@app.command(short_help="Try every interleaving and failure of a scenario.")
def explore(
    scenario: Annotated[list[str], typer.Argument(help="Scenarios by name or file.")],
    design: Design = "v3",
    strategy: Annotated[
        str,
        typer.Option(help="auto, exhaustive, pct, random; or plain: all, none left out as alike."),
    ] = "auto",
    preemptions: Preemptions = 2,
    failures: Annotated[
        int | None,
        typer.Option(
            help="At most so many injected failures; without it one, where the scenario allows any."
        ),
    ] = None,
    time: Annotated[
        float,
        typer.Option(help="Seconds to search each scenario; shrinking has 20 to 60 more."),
    ] = 60.0,
    schedules: Annotated[
        int | None, typer.Option(help="At most so many schedules for each scenario.")
    ] = None,
    workers: Workers = None,
    seed: Seed = 0,
    check: Check = "end",
    json: Annotated[bool, typer.Option("--json", help="Verdicts as JSON on stdout.")] = False,
    report: Annotated[Path | None, typer.Option(help="Folder for stories and verdicts.")] = None,
    emit_test: Annotated[
        Path | None, typer.Option("--emit-test", help="Write a pytest regression test here.")
    ] = None,
    fail: Annotated[
        list[str] | None,
        typer.Option(
            help="A choice point that may fail beside those that the scenario allows, such as"
            " 'alloc:*' or 'seamcall:*=busy'."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="A finding that does not count: a part of its `promise: text`."),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Do not stop at the first finding.")
    ] = False,
    ktap: Annotated[
        bool, typer.Option("--ktap", help="Verdicts as KTAP on stdout, for kernel CI.")
    ] = False,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Print all that was reached, too.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Show how far it is, on a terminal.")
    ] = True,
) -> None:
    """Try every interleaving and failure of a scenario; tell the shortest story of what broke."""
    from septum.cli.report import write_token_page
    from septum.explore.command import explore_command
    from septum.explore.wanted import Wanted
    from septum.explore.workers.parallel import cores

    wanted = Wanted(
        design=design,
        strategy=strategy,
        preemptions=preemptions,
        failures=failures,
        time_s=time,
        schedules=schedules,
        workers=cores() if workers is None else workers,
        seed=seed,
        check=check,
        fail=fail or (),
        ignore=ignore or (),
        keep_going=keep_going,
        as_json=json,
        ktap=ktap,
        coverage=coverage,
        watch=watch,
        report=report,
        emit_test=emit_test,
        page=write_token_page,
    )
    raise SystemExit(explore_command(scenario, wanted))


@app.command(short_help="Which promises does each design break?")
def compare(
    design: Annotated[
        list[str] | None,
        typer.Argument(help="Designs by name, or your own: PATH.py:Class."),
    ] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="v3 without each of its patches.")
    ] = False,
    proposals: Annotated[
        bool, typer.Option("--proposals", help="What the review of v3 proposed.")
    ] = False,
    scenarios: Annotated[
        str | None, typer.Option(help="Scenarios, with commas, instead of each design's own.")
    ] = None,
    preemptions: Preemptions = 2,
    failures: Annotated[int, typer.Option(help="At most so many injected failures.")] = 1,
    schedules: Annotated[int, typer.Option(help="At most so many schedules in a search.")] = 10_000,
    time: Annotated[float, typer.Option(help="Seconds for one search.")] = 20.0,
    workers: Workers = None,
    seed: Seed = 0,
    check: Check = "quiet",
    cost: Annotated[
        bool, typer.Option("--cost/--no-cost", help="Measure what each costs, too.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="The table as JSON on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the page here, too.")] = None,
    report: Annotated[Path, typer.Option(help="Folder for table, page and stories.")] = Path(
        "septum-compare"
    ),
) -> None:
    """Which promises does each design break, and what does it cost? Without any: all of them."""
    from septum.checks.modes import check_mode
    from septum.compare.command import Wanted, compare_command, scenario_names
    from septum.compare.result import Bounds
    from septum.explore.workers.parallel import cores

    kinds = [kind for kind, on in (("ablation", ablations), ("proposal", proposals)) if on]
    raise SystemExit(
        compare_command(
            Wanted(
                names=tuple(design or ()),
                kinds=tuple(kinds),
                scenarios=scenario_names(scenarios),
                bounds=Bounds(preemptions, failures, schedules, time, seed, check_mode(check)),
                workers=cores() if workers is None else workers,
                costs=cost,
                as_json=json,
                html=html,
                report=report,
            )
        )
    )


@app.command("compare-backing", short_help="The same boot on 4 KB and on huge backing.")
def compare_backing(
    memory: Memory = "1G",
    vcpus: Vcpus = 2,
    backing: Annotated[
        str, typer.Option(help="Backings to compare, with commas.")
    ] = "4k,hugetlb-2m,hugetlb-1g",
    dynamic_pamt: Annotated[
        bool,
        typer.Option(
            "--dynamic-pamt/--static-pamt",
            help="PAMT for 4 KB pages only where needed, or for all.",
        ),
    ] = True,
    firmware: Annotated[
        Path | None, typer.Option(help="TDVF image; without it, the one that `run` would use.")
    ] = None,
    json: Json = False,
) -> None:
    """Boot the same guest on 4 KB and on huge backing, and count what each costs."""
    from septum.cli.backing import print_comparison

    names = [name.strip() for name in backing.split(",") if name.strip()]
    raise SystemExit(print_comparison(memory, vcpus, names, dynamic_pamt, firmware, as_json=json))


@app.command(short_help="List the designs by kind.")
def designs(
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only base, ablation, proposal or seeded-bug; may be repeated."),
    ] = None,
    json: Json = False,
) -> None:
    """List the designs by kind, with their origin and one line each."""
    from septum.cli.designs import print_designs

    raise SystemExit(print_designs(kind or [], as_json=json))
