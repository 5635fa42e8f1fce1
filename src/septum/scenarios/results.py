"""The words for what comes of an operation, and which of them there are."""

from __future__ import annotations

import re
from functools import cache

from septum.abi.errno import ERRNO_NAMES
from septum.abi.status import STATUS_NAMES

ANY = "any"
OK = "ok"
VE = "#VE"
LOST = "lost"
"""Something that the guest wrote is not there."""
REFUSED = "refused"
"""What Linux in the guest did for an operation did not succeed."""
MIXED = "mixed"
"""What was read differs from page to page."""
SIGBUS = "SIGBUS"
STOPPED = "stopped"
"""The result of an operation that does not end, as its vCPU is stopped in it."""
TDX = "TDX_"
"""The prefix of a status, which may be left out."""

_BOTH = (ANY, OK, MIXED, STOPPED)
_VALUE = re.compile(r"0x[0-9a-fA-F]+")
_RETURNED = re.compile(r"(?P<error>-E\w+|-?\d+)(?:, \d+K left| at page \d+)?")


@cache
def words(guest: bool) -> tuple[str, ...]:
    """All that an operation of a guest, or of a VMM, may come to: but for values that were read,
    and what stands after an error (`, 4K left`, ` at page 3`)."""
    if guest:
        statuses = sorted(name.removeprefix(TDX) for name in STATUS_NAMES.values())
        return (*_BOTH, VE, LOST, REFUSED, *statuses)
    return (*_BOTH, SIGBUS, *(f"-{name}" for name in sorted(ERRNO_NAMES.values())))


def may_come(word: str, guest: bool) -> bool:
    """Whether an operation of a guest, or of a VMM, may come to `word`."""
    if _VALUE.fullmatch(word):
        return True
    if guest:
        return word.removeprefix(TDX) in words(guest)
    returned = _RETURNED.fullmatch(word)
    if returned is not None:
        return not returned["error"].startswith("-E") or returned["error"] in words(guest)
    return word in words(guest)
