"""The subcommands about one run, and what goes into it: `run`, `replay`, `report`, `mrtd`,
`firmware`, `scenarios`. Each imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from septum.cli.app import app
from septum.cli.options import Check, Design, Json, JsonReport, Memory, Only, Trace, Vcpus


@app.command(short_help="Boot a TD, or run a scenario, and check it.")
def run(
    context: typer.Context,
    scenario: Annotated[
        str | None,
        typer.Argument(help="A scenario by name or file; without it, the standard boot."),
    ] = None,
    firmware: Annotated[
        Path | None,
        typer.Option(help="TDVF image; by default an OVMF is looked for, then fetched, then made."),
    ] = None,
    memory: Memory = "4G",
    vcpus: Vcpus = 8,
    design: Design = "v3",
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
    check: Check = "quiet",
    json: JsonReport = False,
    trace: Trace = None,
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
    from septum.checks.modes import check_mode
    from septum.cli.given import check_run_options, given, refuse_boot_options

    options = given(context)
    check_run_options(options, schedule=schedule, seed=seed, as_json=json, ktap=ktap)
    mode = check_mode(check)
    if scenario is not None:
        refuse_boot_options(options)
        from septum.cli.scenario import run_one

        raise SystemExit(
            run_one(
                scenario,
                design=design,
                schedule=schedule,
                seed=seed,
                check=mode,
                trace=trace,
                report=report,
                as_json=json,
                ktap=ktap,
            )
        )
    from septum.cli.run import REPORT, RunOptions, run_boot

    raise SystemExit(
        run_boot(
            RunOptions(
                firmware=firmware,
                memory=memory,
                vcpus=vcpus,
                design=design,
                seed=seed,
                schedule=schedule,
                check=mode,
                json=json,
                trace=trace,
                report=report or REPORT,
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
    trace: Trace = None,
    json: JsonReport = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for the report of a boot and the picture (septum-report)."),
    ] = None,
    emit_test: Annotated[
        Path | None,
        typer.Option("--emit-test", help="Write a pytest test of a scenario's run here."),
    ] = None,
) -> None:
    """Run again exactly what a token stands for."""
    from septum.cli.run import replay_token

    raise SystemExit(
        replay_token(token, firmware, trace=trace, json=json, report=report, emit_test=emit_test)
    )


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
    only: Only = "",
    design: Annotated[
        str | None, typer.Option(help="The host's design, of a scenario; without it v3.")
    ] = None,
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
    json: Json = False,
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
    json: Json = False,
) -> None:
    """Show the TDVF metadata of an image."""
    from septum.cli.firmware import print_firmware

    raise SystemExit(print_firmware(image, as_json=json))


@app.command()
def scenarios(
    json: Json = False,
) -> None:
    """List the scenarios, one line each."""
    from septum.cli.scenario import print_scenarios

    raise SystemExit(print_scenarios(as_json=json))
