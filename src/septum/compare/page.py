"""A comparison as one HTML page: complete in itself, without scripts, for narrow and wide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jinja2

from septum.compare.reading import (
    COST_HEADS,
    COST_NOTE,
    Reading,
    example_counts,
    example_notes,
)
from septum.compare.words import MEANINGS

if TYPE_CHECKING:
    from septum.compare.result import Comparison


def page_html(comparison: Comparison) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("septum.compare", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(example_counts=example_counts, example_notes=example_notes)
    template = environment.get_template("compare.html.j2")
    return template.render(
        comparison=comparison,
        reading=Reading(comparison),
        meanings=MEANINGS,
        cost_heads=[" ".join(filter(None, head)).replace("- ", "") for head in COST_HEADS],
        cost_note=COST_NOTE,
    )
