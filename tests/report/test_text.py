"""The report as text: golden, 80 columns, and its sentences where they belong."""

import io
from collections.abc import Callable

import msgspec
import pytest
from columns import too_wide
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from septum.report import RunResult, print_lines, render_report, report_lines
from septum.report.lines import wants_colour
from septum.report.published import figures
from septum.report.text import verdict

Golden = Callable[[str, str], None]


def test_golden_held(held: RunResult, golden: Golden) -> None:
    golden("held.txt", render_report(held, ["out/report.txt", "out/report.json"]))


def test_golden_broken(broken: RunResult, golden: Golden) -> None:
    golden("broken.txt", render_report(broken))


def test_golden_big(big: RunResult, golden: Golden) -> None:
    golden("big.txt", render_report(big))


def test_first_line_is_the_verdict(held: RunResult, broken: RunResult) -> None:
    assert render_report(held).startswith("HELD: boot of a TD with 4 GiB and 8 vCPUs, design v3\n")
    assert render_report(broken).startswith("BROKEN: ")
    held.complete = False
    assert verdict(held) == "UNDETERMINED"
    held.failures = ["vCPU 0: triple fault"]
    assert verdict(held) == "BROKEN"
    assert "the VM died: vCPU 0: triple fault" in render_report(held)


@given(
    words=st.text(
        st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=400
    ).filter(lambda text: text.strip()),
    number=st.integers(0, 10**12),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_80_columns_hold_whatever_is_told(broken: RunResult, words: str, number: int) -> None:
    result = msgspec.structs.replace(broken)
    result.cause = words
    result.ended = words
    result.command = words
    result.firmware = words
    result.token = "septum1." + "x" * (number % 500)
    result.findings = [msgspec.structs.replace(result.findings[0], text=words)] * 12
    result.stats = {**result.stats, "pages_4k": number, "split.accept": number}
    assert too_wide(report_lines(result, [words])) == []


def test_a_long_token_pastes_back_into_one_word(held: RunResult) -> None:
    text = render_report(held)
    command = text[text.index("  septum replay") :].split("\n\n")[0].replace("\\\n", "")
    assert command.split() == ["septum", "replay", held.token]


def test_every_published_figure_has_its_reason(held: RunResult, big: RunResult) -> None:
    for result in (held, big):
        rows = figures(result)
        assert [row.published for row in rows] == [1143, 2710, 11, 17626]
        assert all(row.why for row in rows)
    assert all("64 GiB and 16 vCPUs" in row.why for row in figures(big))
    assert figures(held)[0].ours == 1179


def test_figures_without_login_say_so(held: RunResult) -> None:
    held.snapshots = []
    rows = figures(held)
    assert {row.ours for row in rows} == {None}
    assert {row.why for row in rows} == {"The run did not get that far."}
    assert render_report(held)


def test_an_equal_figure_is_not_explained_as_a_difference(held: RunResult) -> None:
    stats = {**held.snapshots[0].stats, "accept_level.write_lock": 11}
    held.snapshots[0] = msgspec.structs.replace(held.snapshots[0], stats=stats)
    assert figures(held)[2].why == "One for each 2 MB frame accepted at 4K."


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal_and_without_no_color(
    held: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    lines = report_lines(held)
    pipe = io.StringIO()
    print_lines(lines, pipe)
    assert pipe.getvalue() == lines.plain()
    terminal = Terminal()
    assert wants_colour(terminal)
    print_lines(lines, terminal)
    assert "\x1b[" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    quiet = Terminal()
    print_lines(lines, quiet)
    assert quiet.getvalue() == lines.plain()
