"""JSON that commands print, and that they write into files."""

from __future__ import annotations

import msgspec


def json_text(body: object) -> str:
    """`body` as JSON, indented so that people can read it, too; without an end of line."""
    return msgspec.json.format(msgspec.json.encode(body)).decode()
