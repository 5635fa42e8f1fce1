"""The first and the last line of a trace file: what was run, and that it is all there."""

from __future__ import annotations

import msgspec

from septum.abi.leaves import SEAMCALL_NAMES, TDCALL_NAMES

SCHEMA = "septum.trace"
SCHEMA_VERSION = 1

Scalar = str | int | bool | None


class TraceHeader(msgspec.Struct, tag="header", frozen=True, kw_only=True):
    """Line 1. With the same header, the rest of the file is the same, byte for byte.

    `recipe` are the world's parameters, `token` replays the run. The two tables of leaf numbers
    let a reader without Septum name SEAMCALLs and TDCALLs.
    """

    schema: str = SCHEMA
    schema_version: int = SCHEMA_VERSION
    septum_version: str
    scenario: str = "boot"
    design: str = ""
    recipe: dict[str, Scalar] = {}
    schedule: str = ""
    seed: int = 0
    token: str = ""
    only: list[str] = []
    """Categories of events that were kept; empty: all."""
    seamcall_leaves: dict[str, str] = msgspec.field(
        default_factory=lambda: {str(leaf): name for leaf, name in sorted(SEAMCALL_NAMES.items())}
    )
    tdcall_leaves: dict[str, str] = msgspec.field(
        default_factory=lambda: {str(leaf): name for leaf, name in sorted(TDCALL_NAMES.items())}
    )


class TraceEnd(msgspec.Struct, tag="end", frozen=True):
    """The last line. A file without it was cut short."""

    nr_events: int
