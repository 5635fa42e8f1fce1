"""What somebody may have meant by a name that there is not."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def meant(name: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a sentence that says that `name` is wrong: the nearest of `known`, and `otherwise`
    when none is near."""
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"did you mean {near[0]!r}?" if near else otherwise
