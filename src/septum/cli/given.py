"""Options that say nothing of what was asked for: refused, so that nobody takes them for done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import typer

IN_A_SCENARIO = {
    "memory": "its file says it, as `memory` in [vm]",
    "vcpus": "its file says it, as `vcpus` in [vm]",
    "backing": "its file says it, as `backing` in [vm]",
    "module": "its file says it, as `module` in [machine]",
    "dynamic_pamt": "its file says it, as `dynamic-pamt = true` in [machine]",
    "gmem_attributes": 'its file says it, as `attributes = "guest_memfd"` in [kernel]',
    "firmware": "its VMs boot none; leave it out",
}
"""The options of the boot, by parameter, and where a scenario has what they say."""


def given(context: typer.Context) -> set[str]:
    """The parameters that the command line names."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def refuse_boot_options(options: Iterable[str]) -> None:
    """Raises InputError where one of `options` is of the boot, and a scenario is run."""
    for name, instead in IN_A_SCENARIO.items():
        if name in options:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is of the boot, and this is a scenario: {instead}")


def check_run_options(
    options: Iterable[str], *, schedule: str, seed: int, as_json: bool, ktap: bool
) -> None:
    """Raises InputError where one option of `septum run` takes away what another says."""
    if as_json and ktap:
        raise InputError("--json and --ktap both write to stdout: give one of them")
    if "seed" in options and schedule == "round-robin":
        raise InputError(f"--seed {seed}: round-robin draws nothing; add --schedule random")
    if abs(seed) >> 63:
        raise InputError(f"--seed {seed}: give a number of at most {(1 << 63) - 1}")
