"""The report folder: what is in it, that it can be read back, and that pictures are well-formed."""

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from septum.errors import InputError
from septum.report import (
    RunResult,
    Snapshot,
    read_report,
    report_json,
    report_schema,
    write_report,
)
from septum.report.progress import Progress
from septum.report.svg import memory_svg

SVG = "{http://www.w3.org/2000/svg}"


def squares(picture: str) -> list[ET.Element]:
    """The groups with a tooltip that stand for a part of memory."""
    root = ET.fromstring(picture)
    return [g for g in root.iter(f"{SVG}g") if (g.findtext(f"{SVG}title") or "").startswith("0x")]


def test_folder(held: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "report"
    files = write_report(held, folder)
    assert [Path(name).name for name in files] == [
        "report.txt",
        "report.json",
        "memory-login.svg",
    ]
    assert all(Path(name).is_file() for name in files)
    text = (folder / "report.txt").read_text(encoding="utf-8")
    assert all(Path(name).name in text for name in files)
    assert read_report(folder / "report.json") == held


def test_same_result_same_bytes(held: RunResult, tmp_path: Path) -> None:
    write_report(held, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(held, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_json_has_schema_and_version(held: RunResult) -> None:
    body = json.loads(report_json(held))
    assert (body["schema"], body["schema_version"]) == ("septum.report", 1)
    assert body["snapshots"][0]["regions"][0] == [0, 2048, "2m"]
    properties = report_schema()["$defs"]["RunResult"]["properties"]  # type: ignore[index]
    assert set(body) == set(properties)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "not a report of this version"),
        ("nonsense", "damaged"),
        ("[1]", "damaged"),
        ('{"schema": "septum.report", "schema_version": 2}', "not a report of this version"),
    ],
)
def test_bad_report_files_are_told_in_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        read_report(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_report(tmp_path / "missing.json")


def test_a_folder_that_cannot_be_written(held: RunResult, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="--report"):
        write_report(held, blocked / "report")


def test_picture_has_a_square_with_a_tooltip_for_every_2_mb(held: RunResult) -> None:
    picture = memory_svg("title <&>", "sub", held.banks, held.snapshots[0])
    cells = squares(picture)
    assert len(cells) == 4096 // 2 + 2
    tips = [cell.findtext(f"{SVG}title") or "" for cell in cells]
    assert tips[0] == "0x0-0x1fffff: private, 2 MB leaves 2 MiB"
    assert len(set(tips)) == len(tips)
    mixed = [cell for cell in cells if len(cell.findall(f"{SVG}rect")) > 1]
    assert len(mixed) == 3
    for cell in mixed:
        heights = [float(rect.get("height") or 0) for rect in cell.findall(f"{SVG}rect")]
        assert sum(heights) == pytest.approx(12, abs=0.02)


def test_picture_names_banks_and_stays_self_contained(held: RunResult) -> None:
    picture = memory_svg("t", "s", held.banks, held.snapshots[0])
    for words in ("RAM below 4 GiB", "Firmware", "RAM above 4 GiB", "GPA 0x100000000 up to"):
        assert words in picture
    assert "href" not in picture
    assert "url(" not in picture


def test_picture_of_large_memory_stays_small(big: RunResult) -> None:
    picture = memory_svg("t", "s", big.banks, big.snapshots[0])
    assert len(squares(picture)) <= 4352
    assert len(picture) < 1 << 20


def test_snapshot_names_make_safe_file_names(held: RunResult, tmp_path: Path) -> None:
    first = held.snapshots[0]
    held.snapshots = [Snapshot(name="../a b", title="", time_ns=0, stats={}, regions=first.regions)]
    names = [Path(name).name for name in write_report(held, tmp_path / "r")]
    assert names[2] == "memory-a-b.svg"
    assert (tmp_path / "r" / names[2]).is_file()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_tells_rate_and_what_stops_it() -> None:
    now = [0.0]
    stream = Terminal()
    with Progress("search", "runs", total=4096, stream=stream, clock=lambda: now[0]) as progress:
        progress.say("depth 3")
        now[0] = 2.0
        progress.nr_done = 1024
        assert progress.text() == (
            "search: 1,024 of 4,096 (25 %) runs  512/s  depth 3  Ctrl-C stops it"
        )
    assert "Ctrl-C stops it" in stream.getvalue()


def test_progress_is_silent_without_a_terminal() -> None:
    stream = io.StringIO()
    with Progress("search", "runs", stream=stream) as progress:
        progress.say("depth 3")
        progress.draw()
    assert stream.getvalue() == ""
