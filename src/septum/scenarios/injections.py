"""The failures that a scenario injects in every run, as `alloc:tdx_split_cache @2` writes them."""

from __future__ import annotations

import re

from septum.scenarios.failures import SEAMCALL
from septum.scenarios.scenario import Injection

_INJECTION = re.compile(
    r"([\w:.*-]+?)(?:=(busy|error|[0-9]{1,9}))?(?: @(?:(all)|([0-9]{1,9})(?:-([0-9]{1,9}))?))?"
)
_VALUES = {"busy": 1, "error": 2}
EVER = 1 << 30


class InjectionError(ValueError):
    """What is wrong with it, and what would be right, without a full stop."""


def parse_injection(text: str) -> Injection:
    """Which choice point comes out how, and when. Raises InjectionError."""
    match = _INJECTION.fullmatch(text)
    if match is None or "*" in match[1]:
        raise InjectionError(
            f"{text!r} is not understood; write a choice point, and which time, like"
            " `alloc:tdx_split_cache @2` or `seamcall:TDH.MEM.PAGE.DEMOTE=busy @all`"
        )
    name, how, always, since, until = match.groups()
    value = _VALUES.get(how or "") or int(how or 1)
    if not value or (name.startswith(SEAMCALL) and value > max(_VALUES.values())):
        raise InjectionError(
            f"{text!r} changes nothing, as {how} is no failure; write busy or error"
        )
    first = int(since or 1)
    last = EVER if always else int(until or first)
    if not 1 <= first <= last:
        raise InjectionError(
            f"{text!r} never happens; times count from 1, the first before the last, as in `@2-5`"
        )
    return Injection(name, value, first, last)
