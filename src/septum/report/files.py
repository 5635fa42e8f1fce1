"""The report folder: report.txt, report.json, and a picture of memory for each snapshot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from septum.errors import InputError
from septum.json_text import json_text
from septum.report.result import SCHEMA, SCHEMA_VERSION, RunResult
from septum.report.svg import memory_svg
from septum.report.text import render_report, title, verdict

if TYPE_CHECKING:
    from septum.report.result import Snapshot

JSON_NAME = "report.json"
TEXT_NAME = "report.txt"
REPORT_FILES = (JSON_NAME, TEXT_NAME, "memory-*.svg")
"""What is written into the folder."""


def report_json(result: RunResult) -> str:
    """The result as indented JSON; its `schema` and `schema_version` say what it is."""
    return json_text(result) + "\n"


def report_schema() -> dict[str, object]:
    """The JSON Schema of report.json."""
    return msgspec.json.schema(RunResult)


def read_report(path: Path) -> RunResult:
    """A result out of report.json. Raises InputError that says what is wrong with the file."""
    try:
        data = path.read_bytes()
        start = msgspec.json.decode(data)
        schema = (start.get("schema"), start.get("schema_version"))
        if schema != (SCHEMA, SCHEMA_VERSION):
            raise InputError(
                f"{path} is not a report of this version ({SCHEMA} {SCHEMA_VERSION}); "
                "`septum run --report DIR` writes one"
            )
        return msgspec.json.decode(data, type=RunResult)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a report.json") from None
    except (msgspec.MsgspecError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); write the report again") from None


def picture_name(snapshot: Snapshot) -> str:
    """The file name of a snapshot's picture."""
    word = re.sub(r"[^A-Za-z0-9_-]+", "-", snapshot.name).strip("-") or "snapshot"
    return f"memory-{word}.svg"


def write_report(result: RunResult, folder: Path) -> list[str]:
    """Write all files of the report; returns their paths as text, the report first.

    Raises InputError when the folder cannot be written.
    """
    pictures = {picture_name(s): s for s in result.snapshots if result.banks}
    files = [str(folder / name) for name in (TEXT_NAME, JSON_NAME, *pictures)]
    if result.trace_file:
        files.append(result.trace_file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / TEXT_NAME, render_report(result, files))
        _write(folder / JSON_NAME, report_json(result))
        for name, snapshot in pictures.items():
            heading = snapshot.title or f"The guest's memory: {snapshot.name}"
            subtitle = f"{verdict(result)}: {title(result)}"
            _write(folder / name, memory_svg(heading, subtitle, result.banks, snapshot))
    except OSError as error:
        raise InputError(
            f"the report folder {folder} cannot be written ({error.strerror}); "
            "name another one with --report"
        ) from None
    return files


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
