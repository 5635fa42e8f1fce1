"""`septum compare`: verdicts in one table, with v3 beside, whatever the number of workers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from columns import too_wide
from comparing import MINE, QUICK, compare, environment, marks, rows
from msgspec import structs
from processes import septum

from septum.cli.main import run_command
from septum.compare.cost import Measured, conversion_script, measure
from septum.compare.page import page_html
from septum.compare.plan import CORE, make_plan
from septum.compare.pool import Pool
from septum.compare.reading import example_counts, example_notes
from septum.compare.result import Bounds, Broken, Comparison, Cost, Searched
from septum.compare.table import COLUMNS, Table
from septum.compare.text import comparison_lines
from septum.compare.words import sign
from septum.designs import KINDS, Design, find_design
from septum.errors import InputError
from septum.guest.script import ScriptGuest


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of a design that is v3 and of one that is broken."""
    folder = tmp_path_factory.mktemp("table")
    done = compare("mine.py:Same", "mine.py:NoTrack", *QUICK, "--workers", "2", cwd=folder)
    assert done.returncode == 1, done.stderr
    assert done.stdout == (folder / "septum-compare" / "compare.txt").read_text()
    return folder


def test_who_breaks_nothing_and_who_does_appear_as_such(table: Path) -> None:
    folder = table / "septum-compare"
    lines = (folder / "compare.txt").read_text().splitlines()
    assert max(map(len, lines)) <= 80
    same = next(line for line in lines if line.startswith("mine.py:Same")).split()
    broken = next(line for line in lines if line.startswith("mine.py:NoTrack")).split()
    assert same[1:] == ["."] * 15 + ["all"]
    assert "1" in broken[1:-1]
    assert "  1. mine.py:NoTrack: no-bug in convert-one-page" in lines
    # Looked past: what breaks later in the same run.
    assert any(line.startswith("     then teardown: ") for line in lines)


def test_stories_and_page_are_in_the_folder(table: Path) -> None:
    folder = table / "septum-compare"
    story = (folder / "01-mine-py-NoTrack-no-bug.txt").read_text()
    assert story.startswith("BROKEN: promise no-bug in scenario convert-one-page")
    assert "The shortest schedule found" in story
    page = (folder / "compare.html").read_text()
    assert "mine.py:NoTrack" in page and story.splitlines()[0] in page
    # Complete in itself: nothing is fetched, nothing is run.
    assert not re.search(r"<(script|link|img|iframe)|https?://|url\(", page)
    for number in re.findall(r'href="#example-(\d+)"', page):
        assert f'id="example-{number}"' in page


def test_the_token_of_a_cell_replays(table: Path) -> None:
    answer = json.loads((table / "septum-compare" / "compare.json").read_bytes())
    assert (answer["schema"], answer["schema_version"]) == ("septum.compare", 2)
    again = septum("replay", answer["examples"][0]["broken"]["token"], cwd=table)
    assert again.returncode == 1, again.stderr
    assert "TDX_TLB_TRACKING_NOT_DONE" in again.stdout


def test_the_number_of_workers_changes_nothing(table: Path, tmp_path: Path) -> None:
    first = json.loads((table / "septum-compare" / "compare.json").read_bytes())
    args = ("mine.py:Same", "mine.py:NoTrack", *QUICK, "--json", "--workers", "1")
    second = json.loads(compare(*args, cwd=tmp_path).stdout)
    for answer in (first, second):
        for searched in answer["searches"]:
            del searched["seconds"]
    assert first == second


def test_what_v3_breaks_is_not_the_designs_own(tmp_path: Path) -> None:
    args = ("mine.py:Same", "--scenarios", "finding-attributes-enomem", "--no-cost")
    done = compare(*args, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for row in rows(done.stdout).values():
        cell = row["cells"]["mapping-in-folio"]
        assert (cell["mark"], cell["finding"]) == ("base", "F2")
        assert marks(row) == {"base", "held"}


def test_a_budget_that_runs_out_is_undetermined(tmp_path: Path) -> None:
    args = ("mine.py:Same", "--scenarios", "convert-against-fault", "--time", "0.1")
    done = compare(*args, "--no-cost", "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert marks(rows(done.stdout)["mine.py:Same"]) == {"undetermined"}


MISTAKES = [
    (["v99"], "no design is called 'v99'"),
    (["mine.py:Nobody"], "has no class 'Nobody'"),
    (["mine.py:Raises", *QUICK], "mine.py, line 27, in tdx_track: ValueError: no"),
    (["v3", "--scenarios", "nowhere"], "no scenario is called 'nowhere'"),
    (["v3", "--failures", "-1"], "--failures -1"),
    (["v3", "--schedules", "0"], "--schedules 0"),
    (["v3", "--time", "0"], "--time 0"),
    (["v3", "--workers", "0"], "--workers 0"),
    (["v3", "--check", "never"], "--check 'never'"),
    (["v3", "--report", "mine.py"], "mine.py is there and is no folder"),
    (["v3", "--preemptions", "few"], "--preemptions"),
    (["v3", "--preemptions", "-2"], "--preemptions -2: give a bound, or -1 for none"),
    (["v3", "--scenarios", ""], "--scenarios '': give names"),
    (["v3", "--scenarios", "convert-one-page,"], "--scenarios 'convert-one-page,': give names"),
    (["v3", "--report", "mine.py/x"], "mine.py/x: no folder can be made there"),
    (["v3", "--html", "."], "--html . is a folder; name a file"),
    (["mine.py"], "there is NoTrack, Same, Raises; write mine.py:NoTrack"),
]


@pytest.mark.parametrize(("args", "words"), MISTAKES, ids=lambda value: str(value)[:30])
def test_a_mistake_is_one_sentence_and_2(
    args: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setattr(sys, "argv", ["septum", "compare", *args])
    assert run_command() == 2
    told = capfd.readouterr()
    assert words in told.err
    assert told.out == ""
    assert "Traceback" not in told.err


INTERRUPTED = """
import os, signal, sys
from septum.cli.main import run_command
from septum.compare import command

# Who was started in the background of a shell inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def ended(self, number):
    os.kill(os.getpid(), getattr(signal, name))

command._Telling.ended = ended
name = sys.argv.pop()
sys.argv = ["septum", *sys.argv[1:]]
sys.exit(run_command())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_keeps_what_was_found(name: str, tmp_path: Path) -> None:
    """Ctrl-C when the first search has ended, or what `timeout` sends: its row is there, and so is
    what was left out."""
    args = ("compare", "v3-without-02", *QUICK, "--json", "--workers", "1")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *args, name],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    answer = json.loads(done.stdout)
    assert answer["interrupted"]
    assert answer["left_out"] == 1
    assert [searched["design"] for searched in answer["searches"]] == ["v3"]
    assert marks(rows(done.stdout)["v3"]) == {"held"}


# The table


def searched(
    design: str,
    *promises: str,
    complete: bool = True,
    level: int = -1,
    known: str = "",
    text: str = "broke",
) -> Searched:
    """A search in which these promises broke; `known` as the scenario says."""
    return Searched(
        design,
        "some",
        complete=complete,
        level=2 if complete else level,
        why="a budget ran out",
        schedules=1,
        states=1,
        steps=1,
        seconds=0.0,
        broken=[Broken(promise, f"{promise} {text}", "token", 1, 1, 0) for promise in promises],
        known={known: text} if known else {},
    )


def named(name: str, base: str = "v3", breaks: tuple[str, ...] = ()) -> Design:
    """A design of that name."""
    return Design(name, "here", name, find_design("v3").units, base=base, breaks=breaks)


def comparison_of(table: Table, runs: list[Searched]) -> Comparison:
    """A comparison of searches that were not run."""
    return Comparison(
        septum_version="0",
        command="septum compare",
        bounds=Bounds(),
        promises=list(COLUMNS),
        rows=table.rows,
        examples=table.examples,
        searches=runs,
        costs=[],
        loads={},
    )


def cell_of(mine: Searched, v3: Searched, promise: str) -> str:
    """The sign of a cell in the row of `mine`."""
    return sign(Table([named("mine")], [v3, mine]).rows[0].cells[promise])


def test_each_mark_means_what_the_legend_says() -> None:
    clean, broken = searched("v3"), searched("v3", "tlb")
    assert cell_of(searched("mine"), clean, "tlb") == "."
    assert cell_of(searched("mine", "tlb"), clean, "tlb") == "1"
    assert cell_of(searched("mine", "tlb"), broken, "tlb") == "v3"
    assert cell_of(searched("mine"), broken, "tlb") == "+"
    assert cell_of(searched("mine", complete=False), clean, "tlb") == "?"
    assert cell_of(searched("mine", complete=False), broken, "tlb") == "?"
    assert cell_of(searched("mine", known="tlb"), searched("v3", known="tlb"), "tlb") == "v3"
    assert cell_of(searched("mine", "tlb", complete=False), clean, "tlb") == "1"
    assert cell_of(searched("mine", "as-expected"), clean, "as-expected") == "1"


def test_a_break_where_v3_is_undetermined_says_so() -> None:
    """v3 may break it, too; what it is seen to break or to hold is not open."""
    ran_out = searched("v3", complete=False, level=0)
    assert cell_of(searched("mine", "tlb"), ran_out, "tlb") == "1?"
    assert cell_of(searched("mine", "as-expected"), ran_out, "as-expected") == "1?"
    assert cell_of(searched("mine"), ran_out, "tlb") == "."
    enough = searched("v3", complete=False, level=1)
    assert cell_of(searched("mine", "tlb"), enough, "tlb") == "1"
    assert cell_of(searched("mine", "tlb"), searched("v3", "tlb", complete=False), "tlb") == "v3"
    table = Table([named("mine")], [ran_out, searched("mine", "tlb")])
    assert table.examples[0].base_open == ["tlb"]
    notes = example_notes(table.examples[0])
    assert notes == ["v3 there, tlb: undetermined (a budget ran out)"]


def test_what_v3_shows_in_another_way_is_told_beside() -> None:
    """Numbers do not count, nor where it was seen; other words do, also where it is foreseen."""
    v3 = searched("v3", "tlb", text="of GFN 0x80000 (1 page) (vcpu0)")
    assert (
        cell_of(searched("mine", "tlb", text="of GFN 0x80005 (9 page) (main)"), v3, "tlb") == "v3"
    )
    other = searched("mine", "tlb", text="of somebody else")
    assert cell_of(other, v3, "tlb") == "1~"
    (example,) = Table([named("mine")], [v3, other]).examples
    assert example_notes(example) == ["v3 there, tlb: tlb of GFN 0x80000 (1 page) (vcpu0)"]
    foreseen = searched("mine", known="no-bug", text="AUG failed")
    v3 = searched("v3", known="no-bug", text="REMOVE failed")
    assert cell_of(foreseen, v3, "no-bug") == "1~"
    (example,) = Table([named("mine")], [v3, foreseen]).examples
    assert example_counts(example).endswith("septum run some --design mine")


def test_a_design_is_compared_with_what_it_changes() -> None:
    """Its base holds what v3 breaks: then the break is the design's own."""
    searches = [searched("v3", "tlb"), searched("base"), searched("mine", "tlb")]
    rows = {row.design: row for row in Table([named("mine", base="base")], searches).rows}
    assert sign(rows["mine"].cells["tlb"]) == "1"
    rows = {row.design: row for row in Table([named("mine")], searches).rows}
    assert sign(rows["mine"].cells["tlb"]) == "v3"


def test_the_plan_has_the_bases_first_and_each_kind_once() -> None:
    """What a design changes is searched in its scenarios, and v3 in all."""
    plan = make_plan(["rfc-v5", "v3-without-14", "v3-without-01"], [], [])
    names = [design.name for design in plan.designs]
    assert names == ["v3", "v3-f2-repaired", "v3-without-14", "v3-without-01", "rfc-v5"]
    assert ("v3-f2-repaired", "attributes-enomem-repaired") in plan.searches
    assert {s for _, s in plan.searches} == {s for d, s in plan.searches if d == "v3"}
    everything = make_plan([], ["ablation", "proposal"], [])
    kinds = [design.kind for design in everything.designs]
    assert kinds == sorted(kinds, key=list(KINDS).index)
    assert make_plan(["v3"], [], []).searches == [("v3", name) for name in CORE]


def test_two_files_with_one_name_are_not_one_scenario(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table could say of one what the other did: which of them, by the order of the names."""
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "late.toml").write_text('summary = "x"\n[guest]\nvcpu0 = ["hlt"]\n')
    with pytest.raises(InputError, match=r"one/late.toml and two/late.toml are both called 'late'"):
        make_plan(["v3"], [], ["one/late.toml", "busy-once", "two/late.toml"])
    twice = make_plan(["v3"], [], ["one/late.toml", "one/late.toml"])
    assert twice.searches == [("v3", "one/late.toml")]


def test_wide_signs_do_not_touch_and_80_columns_hold() -> None:
    """Three characters and more, in every column, beside a name that is too long for a line."""
    name = "a-design-with-quite-a-long-name-for-a-table"
    runs = [searched("v3", complete=False), searched(name, *COLUMNS)]
    table = Table([named(name)], runs)
    row = structs.replace(
        table.rows[0],
        cells={p: structs.replace(c, number=10) for p, c in table.rows[0].cells.items()},
    )
    comparison = comparison_of(table, runs)
    comparison.rows = [row]
    lines = comparison_lines(comparison, "folder")
    assert too_wide(lines) == []
    told = [line.split() for line in lines.plain().splitlines()]
    assert ["10?"] * len(COLUMNS) + ["all"] in told
    assert lines.plain().startswith(
        "1 design beside v3 in 1 scenario: 0 of them break what v3 does"
    )
    assert "1 what v3 may break, too" in " ".join(lines.plain().split())
    assert re.search(
        r'href="#example-10" aria-label="[^"]*undetermined[^"]*">10\?<', page_html(comparison)
    )


def test_the_first_line_says_what_is_undetermined() -> None:
    """That nothing is known to break is not that everything held."""
    runs = [searched("v3"), searched("a", complete=False), searched("b", complete=False)]
    for names, told in (
        (["a"], "0 of them break what v3 does not, 1 is undetermined."),
        (["a", "b"], "0 of them break what v3 does not, 2 are undetermined."),
    ):
        table = Table([named(name) for name in names], runs)
        said = " ".join(comparison_lines(comparison_of(table, runs), "folder").plain().split())
        assert told in said


def test_text_and_page_say_the_same_of_bases_and_costs() -> None:
    """A base that is not v3 is named in both, and its figures are those that count."""
    runs = [searched("v3", "tlb"), searched("base"), searched("mine", "tlb")]
    table = Table([named("v3"), named("base"), named("mine", base="base")], runs)
    comparison = comparison_of(table, runs)
    comparison.loads = {"boot": "a boot"}
    comparison.costs = [
        Cost("v3", "boot", kicks=7, pamt_pages=12345, seamcalls={"TDH.MEM.TRACK": 7}),
        Cost("base", "boot", kicks=9, pamt_pages=12345, seamcalls={"TDH.MEM.TRACK": 9}),
        Cost("mine", "boot", kicks=9, pamt_pages=12345, seamcalls={"TDH.MEM.TRACK": 9}),
    ]
    text = comparison_lines(comparison, "folder").plain()
    assert re.search(r"^mine +as base$", text, flags=re.M)
    assert re.search(r"^base .* 9 .* 12345 ", text, flags=re.M)
    assert "lock pages pages kept" in text
    assert "TDH.MEM.TRACK 7 -> 9" in text
    page = page_html(comparison)
    for shown in (text, page):
        assert "changes base, and is compared with it" in shown
    assert page.count('<td class="number other">9</td>') == 2
    row = page.split('<th scope="row">mine</th>')[-1]
    assert "other" not in row.split("</tr>")[0]


def test_what_breaks_in_one_run_is_one_example() -> None:
    """The cells of a run share its number; the first that broke leads, a mere mismatch follows."""
    other = named("mine", breaks=("tlb", "cache"))
    run = searched("mine", "teardown", "tlb", "as-expected")
    run.broken[2] = structs.replace(run.broken[2], token="another")
    table = Table([other], [searched("v3"), run])
    (example,) = table.examples
    assert example.broken.promise == "teardown"
    assert [later.promise for later in example.then] == ["tlb", "as-expected"]
    assert {sign(table.rows[0].cells[p]) for p in ("teardown", "tlb", "as-expected")} == {"1"}
    assert table.rows[0].unseen == ["cache"]


# Costs and workers


def test_the_conversion_load_keeps_the_guests_data_and_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own verify finds every page that was not converted as it was; a design that is v3 costs
    what v3 costs."""
    monkeypatch.setattr("septum.compare.cost.CONVERT_HUGE", 5)
    measured = Measured("v3", "convert")
    first = measured.run()
    assert first.ended == ""
    assert isinstance(measured.guest, ScriptGuest)
    assert [min(results) for results in measured.guest.results] == [0] * 4
    assert first.seamcalls["TDH.MEM.PAGE.DEMOTE"] == first.splits > 5
    assert first.huge > 0
    assert first.pamt_pages > 0
    assert measure("v3", "convert") == first


def test_every_fifth_page_of_the_load_is_left_alone() -> None:
    (ops,) = conversion_script(1 << 32, 1, 8)
    starts = {op.gpa >> 21 for op in ops if type(op).__name__ == "Convert"}
    assert starts == {(1 << 11) + n for n in (1, 2, 3, 6, 7)}


def _mistake() -> Broken:
    raise InputError("yours")


def _defect() -> Broken:
    raise ValueError("ours")


def _die() -> Broken:
    os._exit(9)


def test_a_pool_tells_a_mistake_from_a_defect_and_from_a_death() -> None:
    told: list[int] = []
    first, second = Pool(2).run([_defect, _die], Broken, told.append)
    assert isinstance(first, str) and "ValueError: ours" in first
    assert isinstance(second, str) and "exit code 9" in second
    assert sorted(told) == [0, 1]
    with pytest.raises(InputError, match="yours"):
        Pool(1).run([_mistake], Broken, told.append)
