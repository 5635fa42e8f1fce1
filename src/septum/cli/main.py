"""The `septum` command. Subcommands import what they need when they run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from septum.cli.exits import Interrupted, guarded


class Commands(typer.core.TyperGroup):
    """The subcommands; an interrupt goes through to `guarded`, which says so."""

    def invoke(self, ctx: Any) -> object:
        """Raises Interrupted, of which typer knows nothing, where it would end without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


app = typer.Typer(
    name="septum",
    help="A TDX host that runs in a Python process: boot a TD, look at it, hold it to account.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    rich_markup_mode=None,
    cls=Commands,
)
module_app = typer.Typer(
    help="The TDX module by itself.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(module_app, name="module")


def _version(asked: bool) -> None:
    if asked:
        from septum import __version__

        print(f"septum {__version__}")
        raise typer.Exit


@app.callback()
def septum(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and leave.")
    ] = False,
) -> None:
    """A TDX host that runs in a Python process."""


@app.command()
def run(
    scenario: Annotated[
        str | None,
        typer.Argument(help="A scenario by name or file; without it, the standard boot."),
    ] = None,
    firmware: Annotated[
        Path | None,
        typer.Option(help="TDVF image; by default an OVMF is looked for, then fetched, then made."),
    ] = None,
    memory: Annotated[str, typer.Option(help="Guest memory, such as 4G.")] = "4G",
    vcpus: Annotated[int, typer.Option(help="Number of vCPUs.")] = 8,
    design: Annotated[
        str, typer.Option(help="The host's design, or your own: PATH.py:Class.")
    ] = "v3",
    backing: Annotated[
        str, typer.Option(help="Of guest memory: 4k, thp, hugetlb-2m or hugetlb-1g.")
    ] = "thp",
    module: Annotated[str, typer.Option(help="Version of the TDX module.")] = "1.5.28",
    dynamic_pamt: Annotated[
        bool, typer.Option("--dynamic-pamt", help="PAMT for 4 KB pages only where needed.")
    ] = False,
    gmem_attributes: Annotated[
        bool,
        typer.Option(
            "--gmem-attributes",
            help="guest_memfd holds the memory attributes (kvm.vm_memory_attributes=N).",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of a random schedule.")] = 0,
    schedule: Annotated[
        str, typer.Option(help="round-robin, or random (then --seed counts).")
    ] = "round-robin",
    check: Annotated[
        str, typer.Option(help="When promises are checked: end, quiet or every-step.")
    ] = "quiet",
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write the event stream here (JSON Lines; .gz compresses)."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report: of a boot, septum-report by default; of a scenario, its"
            " text and its page."
        ),
    ] = None,
    ktap: Annotated[
        bool, typer.Option("--ktap", help="Results as KTAP on stdout, for kernel CI.")
    ] = False,
) -> None:
    """Boot a TD from firmware to an idle Linux, convert, tear down, and report; or a SCENARIO."""
    if scenario is not None:
        from septum.cli.scenario import run_one

        raise SystemExit(
            run_one(
                scenario,
                design=design,
                schedule=schedule,
                seed=seed,
                check=check,
                trace=trace,
                report=report,
                as_json=json,
                ktap=ktap,
            )
        )
    from septum.cli.run import RunOptions, run_boot

    raise SystemExit(
        run_boot(
            RunOptions(
                firmware=firmware,
                memory=memory,
                vcpus=vcpus,
                design=design,
                seed=seed,
                schedule=schedule,
                check=check,
                json=json,
                trace=trace,
                report=report or Path("septum-report"),
                backing=backing,
                module=module,
                dynamic_pamt=dynamic_pamt,
                gmem_attributes=gmem_attributes,
                ktap=ktap,
            )
        )
    )


@app.command()
def replay(
    token: Annotated[str, typer.Argument(help="The token that a report printed.")],
    firmware: Annotated[
        Path | None, typer.Option(help="The image, when it is not one that `run` finds by itself.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write the event stream here (JSON Lines; .gz compresses)."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
    report: Annotated[Path, typer.Option(help="Folder for the report and the picture.")] = Path(
        "septum-report"
    ),
) -> None:
    """Run again exactly what a token stands for."""
    from septum.cli.run import replay_token

    raise SystemExit(replay_token(token, firmware, trace=trace, json=json, report=report))


@app.command()
def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN|TOKEN", help="A trace file, a replay token, a scenario.")
    ],
    text: Annotated[
        bool, typer.Option("--text", help="As text on stdout (by default, if nothing else).")
    ] = False,
    mermaid: Annotated[Path | None, typer.Option(help="A Mermaid sequence diagram.")] = None,
    ftrace: Annotated[Path | None, typer.Option(help="As the kernel's trace shows it.")] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(help="For ui.perfetto.dev; a name that ends in .json for chrome://tracing."),
    ] = None,
    itf: Annotated[
        Path | None, typer.Option(help="A scenario's states, as TLA+ tools read them (ITF).")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="A page: ladder, memory, charts. One file, no network.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Kinds of events, with commas: seamcall,split,conversion...")
    ] = "",
    design: Annotated[str, typer.Option(help="The host's design, of a scenario.")] = "v3",
    firmware: Annotated[
        Path | None, typer.Option(help="The image of a boot, when `run` does not find it.")
    ] = None,
) -> None:
    """Show one run in the forms that people and tools read."""
    from septum.cli.report import ReportOptions, report_run

    raise SystemExit(
        report_run(
            run,
            ReportOptions(
                mermaid=mermaid,
                ftrace=ftrace,
                perfetto=perfetto,
                itf=itf,
                html=html,
                text=text,
                only=only,
                design=design,
                firmware=firmware,
            ),
        )
    )


@app.command()
def mrtd(
    image: Annotated[Path, typer.Argument(help="TDVF image.")],
    two_pass: Annotated[
        bool, typer.Option("--two-pass", help="Per section all PAGE.ADDs, then all MR.EXTENDs.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Build a TD from an image in the model and print its MRTD."""
    from septum.cli.mrtd import print_mrtd

    raise SystemExit(print_mrtd(image, two_pass=two_pass, as_json=json))


@app.command()
def firmware(
    image: Annotated[
        Path | None,
        typer.Argument(help="TDVF image; without it, the one that `run` would use."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show the TDVF metadata of an image."""
    from septum.cli.firmware import print_firmware

    raise SystemExit(print_firmware(image, as_json=json))


@app.command()
def scenarios(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the scenarios, one line each."""
    from septum.cli.scenario import print_scenarios

    raise SystemExit(print_scenarios(as_json=json))


@app.command()
def explore(
    scenario: Annotated[list[str], typer.Argument(help="Scenarios by name or file.")],
    design: Annotated[
        str, typer.Option(help="The host's design, or your own: PATH.py:Class.")
    ] = "v3",
    strategy: Annotated[
        str,
        typer.Option(help="auto, exhaustive, pct, random; or plain: all, none left out as alike."),
    ] = "auto",
    preemptions: Annotated[
        int, typer.Option(help="At most so many preemptions; -1 for no bound.")
    ] = 2,
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
    workers: Annotated[
        int | None, typer.Option(help="Processes; without it, one for each core.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    check: Annotated[
        str, typer.Option(help="When promises are checked: end, quiet or every-step.")
    ] = "end",
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
    from septum.explore.parallel import cores

    raise SystemExit(
        explore_command(
            scenario,
            design,
            strategy,
            preemptions,
            failures,
            time,
            schedules,
            cores() if workers is None else workers,
            seed,
            check,
            json,
            report,
            emit_test,
            fail=fail or (),
            ktap=ktap,
            coverage=coverage,
            watch=watch,
            page=write_token_page,
        )
    )


@app.command()
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
    preemptions: Annotated[
        int, typer.Option(help="At most so many preemptions; -1 for no bound.")
    ] = 2,
    failures: Annotated[int, typer.Option(help="At most so many injected failures.")] = 1,
    schedules: Annotated[int, typer.Option(help="At most so many schedules in a search.")] = 10_000,
    time: Annotated[float, typer.Option(help="Seconds for one search.")] = 20.0,
    workers: Annotated[
        int | None, typer.Option(help="Processes; without it, one for each core.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    check: Annotated[
        str, typer.Option(help="When promises are checked: end, quiet or every-step.")
    ] = "quiet",
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
    from septum.compare.command import Wanted, compare_command, scenario_names
    from septum.compare.result import Bounds
    from septum.explore.parallel import cores

    kinds = [kind for kind, on in (("ablation", ablations), ("proposal", proposals)) if on]
    raise SystemExit(
        compare_command(
            Wanted(
                names=tuple(design or ()),
                kinds=tuple(kinds),
                scenarios=scenario_names(scenarios),
                bounds=Bounds(preemptions, failures, schedules, time, seed, check),
                workers=cores() if workers is None else workers,
                costs=cost,
                as_json=json,
                html=html,
                report=report,
            )
        )
    )


@app.command("compare-backing")
def compare_backing(
    memory: Annotated[str, typer.Option(help="Guest memory, such as 4G.")] = "1G",
    vcpus: Annotated[int, typer.Option(help="Number of vCPUs.")] = 2,
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
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Boot the same guest on 4 KB and on huge backing, and count what each costs."""
    from septum.cli.backing import print_comparison

    names = [name.strip() for name in backing.split(",") if name.strip()]
    raise SystemExit(print_comparison(memory, vcpus, names, dynamic_pamt, firmware, as_json=json))


@app.command()
def designs(
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only base, ablation, proposal or seeded-bug; may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the designs by kind, with their origin and one line each."""
    from septum.cli.designs import print_designs

    raise SystemExit(print_designs(kind or [], as_json=json))


@app.command()
def trace(
    file: Annotated[Path, typer.Argument(help="A trace: JSON Lines, plain or gzip.")],
    fmt: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORMAT",
            help="ladder, ftrace, perfetto (JSON), pftrace, mermaid or jsonl.",
        ),
    ] = "ladder",
    only: Annotated[
        str, typer.Option(help="Kinds of events, with commas: seamcall,split,conversion...")
    ] = "",
    task: Annotated[str, typer.Option(help="Only tasks whose name contains this.")] = "",
    every_step: Annotated[
        bool, typer.Option("--every-step", help="Fold nothing in a ladder.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write here, not to stdout.")
    ] = None,
) -> None:
    """Show a recorded trace: a ladder, ftrace text, Perfetto (JSON, pftrace), or Mermaid."""
    from septum.trace import command

    command.trace(file, fmt, only, task, every_step, output)


@app.command()
def conform(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Transcripts, plain or gzip JSON Lines.")
    ],
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
    profile: Annotated[str, typer.Option(help="Module version to replay against.")] = "1.5.25",
) -> None:
    """Replay recorded SEAMCALL transcripts against the module; 1 on any divergence."""
    from septum.conform import command

    command.conform(files, json, profile)


@module_app.command("table")
def module_table(
    dynamic_pamt: Annotated[
        bool, typer.Option("--dynamic-pamt", help="With Dynamic PAMT.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The rows as JSON on stdout.")] = False,
) -> None:
    """Print every reachable state of an S-EPT entry, every call, every answer."""
    from septum.conform import command

    command.module_table(dynamic_pamt, json)


@module_app.command("fuzz")
def module_fuzz(
    calls: Annotated[int, typer.Option(help="How many calls to make.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="The run is a function of this and of --calls.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
) -> None:
    """Make any calls with any operands, and watch the module's invariants; 1 when one breaks."""
    from septum.conform import command

    command.fuzz_module(calls, seed, json)


def run_command() -> int:
    """Run the command line; returns the exit code."""
    return guarded(lambda: app(standalone_mode=True))


def run_and_exit() -> None:
    """The console script."""
    sys.exit(run_command())
