"""docs/coverage.md: what the searches of the whole library reach in v3, and what none reaches.

`tools/verdicts.py --write` makes it of the searches that it runs for docs/verdicts.md.
"""

from __future__ import annotations

import re
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from septum.abi.leaves import seamcall_name, tdcall_name
from septum.module.dispatch import SEAMCALLS, TDCALLS
from septum.scenarios.model_names import model_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"

HEAD = """# Coverage

What the searches of [verdicts.md](verdicts.md) reach of v3 and of the TDX module, the {scenarios}
scenarios together that there were when this page was made; in brackets, in how many of them.
[search.md](search.md#what-was-reached) says what is told. A scenario's setup, and how its VMs are
taken down, are not: so much of what builds a VM is missing here. `make verdicts` makes this page.

## Calls, by the state of the S-EPT entry that they worked on

| call | state | how it ended |
| --- | --- | --- |
"""


def page(reached: Mapping[str, Iterable[str]]) -> str:
    """The page as Markdown. `reached`: the items of each scenario."""
    counts = Counter(item for items in reached.values() for item in items)
    kinds: dict[str, dict[str, int]] = {}
    for item, count in sorted(counts.items()):
        kind, _, rest = item.partition(":")
        kinds.setdefault(kind, {})[rest] = count
    return "".join(
        (
            HEAD.format(scenarios=len(reached)),
            _states(kinds.get("sept", {})),
            _others(kinds),
            _errors(kinds.get("error", {})),
            _races(kinds.get("race", {})),
            _locks(reached),
            _choices(kinds.get("choice", {})),
        )
    )


def _cell(words: Mapping[str, int]) -> str:
    return ", ".join(f"{word} ({count})" for word, count in words.items())


def _states(items: Mapping[str, int]) -> str:
    table: dict[tuple[str, str], dict[str, int]] = {}
    for rest, count in items.items():
        state, call, status = rest.split(":")
        table.setdefault((call, state), {})[status] = count
    return "".join(
        f"| {call} | {state} | {_cell(words)} |\n" for (call, state), words in sorted(table.items())
    )


def _others(kinds: Mapping[str, Mapping[str, int]]) -> str:
    on_entries = {rest.partition(":")[2] for rest in kinds.get("sept", {})}
    table: dict[str, dict[str, int]] = {}
    called: set[str] = set()
    for kind in ("call", "tdcall"):
        for rest, count in kinds.get(kind, {}).items():
            call, status = rest.split(":")
            called.add(call)
            if rest not in on_entries:
                table.setdefault(call, {})[status] = count
    there = [*map(seamcall_name, SEAMCALLS), *map(tdcall_name, TDCALLS)]
    never = [name for name in there if name not in called]
    text = "\n## Calls that worked on none\n\n| call | how it ended |\n| --- | --- |\n"
    text += "".join(f"| {call} | {_cell(words)} |\n" for call, words in sorted(table.items()))
    # Of TDH.VP.ENTER only a refusal has a status that the host sees.
    return text + f"\nNever made while tasks run: {', '.join(never)}.\n"


def _errors(items: Mapping[str, int]) -> str:
    begun: dict[str, dict[str, int]] = {}
    for rest, count in items.items():
        function, number, *entry = rest.split(":")
        begun.setdefault(f"{function}:{number}", {})[entry[0] if entry else function] = count
    text = "\n## Errors of the host\n\n| begins in | error | in |\n| --- | --- | --- |\n"
    for place, entries in begun.items():
        function, _, number = place.partition(":")
        text += f"| {function} | {number} | {_cell(entries)} |\n"
    never: dict[str, list[str]] = {}
    for place in sorted(model_names(rooms=("linux",)).errors - begun.keys()):
        function, _, number = place.partition(":")
        never.setdefault(function, []).append(number)
    text += "\nErrors of v3 that no scenario comes to while tasks run:\n\n"
    return text + "".join(
        f"- {function}: {', '.join(numbers)}\n" for function, numbers in never.items()
    )


def _races(items: Mapping[str, int]) -> str:
    table: dict[str, dict[str, int]] = {}
    for rest, count in items.items():
        function, entry = rest.split(":")
        table.setdefault(function, {})[entry] = count
    text = "\n## Races that KVM noticed\n\n| noticed by | in |\n| --- | --- |\n"
    return text + "".join(f"| {name} | {_cell(words)} |\n" for name, words in table.items())


def _locks(reached: Mapping[str, Iterable[str]]) -> str:
    pairs: Counter[tuple[str, str, str]] = Counter()
    for items in reached.values():
        met = set()
        for item in items:
            if item.startswith("contend:"):
                lock, waiter, holder = item.removeprefix("contend:").rsplit(":", 2)
                met.add((_kind_of_lock(lock), _role(waiter), _role(holder)))
        pairs.update(met)
    table: dict[str, dict[str, int]] = {}
    for (lock, waiter, holder), count in sorted(pairs.items()):
        table.setdefault(lock, {})[f"{waiter} for {holder}"] = count
    text = "\n## Locks that tasks waited for\n\n| lock | who waited for whom |\n| --- | --- |\n"
    return text + "".join(f"| {lock} | {_cell(words)} |\n" for lock, words in table.items())


def _kind_of_lock(name: str) -> str:
    """Without the VM and the number."""
    return re.sub(r"^vm\d+\s+|\s+vm\d.*$", "", name)


def _role(task: str) -> str:
    return "a vCPU" if "vcpu" in task else "user space"


def _choices(items: Mapping[str, int]) -> str:
    table: dict[str, dict[str, int]] = {}
    for rest, count in items.items():
        name, value = rest.rsplit("=", 1)
        if not name.startswith("choose:"):
            table.setdefault(name, {})[value] = count
    text = "\n## Choices other than the ordinary\n\n| choice point | outcome |\n| --- | --- |\n"
    text += "".join(f"| {name} | {_cell(words)} |\n" for name, words in table.items())
    never = [
        name
        for name in sorted(model_names(rooms=("linux", "module", "machine", "vmm")).choices)
        if not any(fnmatchcase(each, name) or fnmatchcase(name, each) for each in table)
    ]
    return text + f"\nNever: {', '.join(never)}.\n"
