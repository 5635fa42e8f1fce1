"""The states of a run in the Informal Trace Format, which Apalache writes and TLA+ tools read.

Source: Apalache ADR 015. Numbers are {"#bigint": "..."}, functions {"#map": [[key, value]...]},
tuples {"#tup": [...]}, sets {"#set": [...]}, records plain objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.words import LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.scenarios.states import Pages, StateStep
    from septum.trace.header import TraceHeader

VARS = ("task", "action", "sept", "mirror", "private", "bugged", "tlb", "locks", "pamt")
DESCRIPTION = "https://apalache-mc.org/docs/adr/015adr-trace.html"

Value = str | bool | dict[str, object]


def itf_chunks(steps: Iterable[StateStep], header: TraceHeader) -> Iterator[bytes]:
    """The file in pieces, one state each."""
    encode = msgspec.json.Encoder().encode
    meta = {
        "format": "ITF",
        "format-description": DESCRIPTION,
        "source": header.scenario,
        "description": f"a run of scenario {header.scenario} on design {header.design} by Septum "
        f"{header.septum_version}; septum replay {header.token}",
    }
    yield b'{"#meta":' + encode(meta) + b',"params":[],"vars":' + encode(VARS) + b',"states":['
    for index, step in enumerate(steps):
        yield (b",\n" if index else b"\n") + encode(_state(index, step))
    yield b"\n]}\n"


def _state(index: int, step: StateStep) -> dict[str, object]:
    vms = step.state.vms
    return {
        "#meta": {"index": index},
        "task": step.task,
        "action": step.action,
        "sept": _map((name, _pages(vm.sept)) for name, vm in vms.items()),
        "mirror": _map((name, _pages(vm.mirror)) for name, vm in vms.items()),
        "private": _map((name, _set(_range(*r) for r in vm.private)) for name, vm in vms.items()),
        "bugged": _set(name for name, vm in vms.items() if vm.bugged),
        "tlb": _map((_int(cpu), _pages(entries)) for cpu, entries in step.state.tlbs.items()),
        "locks": _map(
            (lock, _set({"task": task, "mode": mode} for task, mode in dict.fromkeys(holders)))
            for lock, holders in step.state.locks.items()
        ),
        "pamt": _map((_int(pfn), text) for pfn, text in step.state.pamt.items()),
    }


def _pages(pages: Iterable[Pages]) -> Value:
    """[first GFN, end GFN) -> what is there."""
    return _map((_range(p.first_gfn, p.end_gfn), _leaf(p)) for p in pages)


def _leaf(page: Pages) -> Value:
    return {"level": LEVELS[page.level], "state": page.state, "pfn": _int(page.pfn)}


def _int(number: int) -> Value:
    return {"#bigint": str(number)}


def _range(first: int, end: int) -> Value:
    return {"#tup": [_int(first), _int(end)]}


def _set(values: Iterable[Value]) -> Value:
    return {"#set": list(values)}


def _map(pairs: Iterable[tuple[Value, Value]]) -> Value:
    return {"#map": [list(pair) for pair in pairs]}
