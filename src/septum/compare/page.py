"""A comparison as one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.compare.result import Comparison


def page_html(comparison: Comparison) -> str:
    """The page, complete in itself."""
    return ""
