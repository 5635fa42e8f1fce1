"""The page as a reader has it: opened in Chromium from a file, stepped, clicked, linked to."""

import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from septum.cli.report import trace_of
from septum.linux.kvm.events import KvmMmuSplitHugePage
from septum.module.events import SeamcallEvent
from septum.report.html import PageData, page_html, write_page
from septum.report.html.columns import Blob
from septum.report.html.memory import MemoryFold
from septum.report.html.steps import Steps, Strings
from septum.sim.events import Event, FindingEvent, LockEvent
from septum.trace import TraceHeader, TraceReader, TraceWriter
from septum.trace.describe import describe
from septum.trace.opening import OPENING
from septum.vmm.events import ConversionEvent

Page = Any  # conftest's Browser
ROOT = Path(__file__).resolve().parents[3]
ANOTHER_STEP = 12


def late_attributes_token() -> str:
    """F6 of docs/findings.md: one preemption, two findings."""
    text = (ROOT / "docs" / "findings.md").read_text().partition("## F6")[2]
    found = re.search(r"septum replay (septum1\.[\w-]+)", text)
    assert found is not None
    return found.group(1)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("traces")
    runs = {
        "counterexample": late_attributes_token(),
        "split": "accept-level-prefault",
        "failure": "finding-folio-split-enomem",
    }
    return {name: trace_of(run, folder / f"{name}.jsonl") for name, run in runs.items()}


@pytest.fixture(scope="module")
def pages(traces: dict[str, Path]) -> dict[str, Path]:
    made = {}
    for name, trace in traces.items():
        made[name] = trace.with_suffix(".html")
        write_page(trace, made[name])
    return made


def text_of(browser: Page, selector: str) -> str:
    return str(browser.js(f"document.querySelector({json.dumps(selector)}).innerText"))


def step_of(browser: Page) -> int:
    return int(browser.js("document.body.dataset.step"))


def row_with(browser: Page, words: str) -> str:
    """A selector of the first row in view with these words."""
    number = browser.js(
        "[...document.querySelectorAll('.row')]"
        f".find(row => row.innerText.includes({json.dumps(words)}))?.id"
    )
    assert number, f"no row says {words}"
    return f"#{number}"


def test_a_counterexample_opens_at_what_broke(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["counterexample"])
    assert browser.problems == []
    assert "BROKEN" in text_of(browser, "h1")
    assert "mapping-in-folio" in text_of(browser, "h1")
    assert "promise broken" in text_of(browser, ".row.selected")
    assert "preempted here" in text_of(browser, ".rows")


def test_the_ladder_steps_by_keyboard_and_the_map_follows(
    browser: Page, pages: dict[str, Path]
) -> None:
    browser.open(pages["split"])
    browser.key("Home")
    seen = []
    legends = []
    for _ in range(40):
        seen.append(step_of(browser))
        legends.append(text_of(browser, ".legend"))
        browser.key("ArrowDown")
    assert seen == sorted(set(seen))
    assert len(set(legends)) >= 3
    assert "PENDING 2M" in legends[0]
    assert any("MAPPED 4K" in legend for legend in legends)
    last = step_of(browser)
    browser.key("k")
    assert step_of(browser) < last
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    assert step_of(browser) <= last + 1
    assert browser.problems == []


def test_next_change_of_the_page_stops_where_it_changes(
    browser: Page, pages: dict[str, Path]
) -> None:
    browser.open(pages["split"])
    browser.key("Home")
    gfn = browser.js("septum.open.map.gfn")
    states = []
    for _ in range(4):
        browser.key("n")
        assert f"gfn 0x{gfn:x}" in text_of(browser, ".changes")
        states.append((step_of(browser), text_of(browser, ".page-state")))
    assert [step for step, _ in states] == sorted({step for step, _ in states})
    browser.key("p")
    assert step_of(browser) == states[-2][0]


def test_a_click_shows_registers_and_what_changed(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["split"], "#step=0")
    browser.click(row_with(browser, "TDH.MEM.PAGE.DEMOTE"))
    registers = text_of(browser, ".registers")
    assert "RAX 0x0: TDX_SUCCESS" in text_of(browser, "#details")
    assert re.search(r"rcx\s+0x80000001\s+0x0\s+GPA and level: 0x80000000, 2M", registers)
    assert "HPA of the new S-EPT page" in registers
    assert "tdh_mem_page_demote" in text_of(browser, ".path")
    assert re.search(r"patch(es)? 02", text_of(browser, ".path"))
    assert re.search(r"PENDING_BLOCKED 2M.*→ PENDING 4K", text_of(browser, ".changes"))
    assert "mmu_lock" in text_of(browser, "ul.held")


def test_injected_failures_are_marked(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["failure"])
    browser.key("Home")
    assert "injected failure" in text_of(browser, ".rows")
    assert browser.problems == []


def test_a_link_to_a_step_and_folds(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["counterexample"], f"#step={ANOTHER_STEP}")
    assert step_of(browser) == ANOTHER_STEP
    assert text_of(browser, ".row.selected .number") == str(ANOTHER_STEP)
    browser.key("ArrowDown")
    assert browser.js("location.hash") == f"#step={step_of(browser)}" != f"#step={ANOTHER_STEP}"
    browser.js("location.hash = '#step=0'")
    browser.js("new Promise(done => setTimeout(done, 50))")
    assert step_of(browser) == 0


def test_keys_are_told_and_layers_switch(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["split"])
    browser.key("?")
    assert browser.js("document.getElementById('help').open") is True
    assert "next / previous change" in text_of(browser, "#help")
    browser.key("?")
    assert browser.js("document.getElementById('help').open") is False
    words = set()
    for layer in "12345":
        browser.key(layer)
        words.add(text_of(browser, ".legend"))
    assert len(words) == 5
    browser.click("#layers label:nth-of-type(4)")
    assert "folio" in text_of(browser, ".legend")


def test_a_click_in_the_map_selects_a_page(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["split"])
    first = browser.js("septum.open.map.key * 512")
    browser.click(".map-pages", 0.999, 0.999)
    assert browser.js("septum.open.map.gfn") == first + 511
    assert f"gfn 0x{first + 511:x}" in text_of(browser, ".page-state caption")
    step = step_of(browser)
    browser.key("ArrowLeft")  # the map has the keys now, not the ladder
    browser.key("ArrowUp")
    assert browser.js("septum.open.map.gfn") == first + 511 - 1 - 32
    assert step_of(browser) == step


@pytest.mark.parametrize("name", ["counterexample", "split"])
def test_a_narrow_screen_shows_all_of_it(browser: Page, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], "#step=10", width=390, height=844)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    assert browser.problems == []


def test_dark_and_light(browser: Page, pages: dict[str, Path]) -> None:
    backs = []
    for dark in (True, False):
        browser.dark(dark)
        browser.open(pages["split"])
        backs.append(browser.js("getComputedStyle(document.body).backgroundColor"))
    dark_sum, light_sum = (sum(map(int, re.findall(r"\d+", back))) for back in backs)
    assert dark_sum < 200 < 600 < light_sum


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve vCPUs, 6,000 steps, a split now and then."""
    trace = tmp_path_factory.mktemp("long") / "long.jsonl"
    with TraceWriter(trace, TraceHeader(septum_version="0")) as writer:
        for number in range(3000):
            at = (number * 1000, f"vcpu{number % 12}", 0)
            writer.write(SeamcallEvent(*at, 41, 0, number << 12, 0, 0, 0, number << 12, 0))
            if number % 500 == 7:
                writer.write(KvmMmuSplitHugePage(*at, number << 9, 0x80, 2, 0))
            else:
                writer.write(LockEvent(*at, "wait", f"lock {number % 2}", "ex"))
    target = trace.with_suffix(".html")
    write_page(trace, target)
    return target


def test_a_long_run_has_charts_that_lead_to_its_steps(browser: Page, long_page: Path) -> None:
    browser.open(long_page)
    assert browser.js("document.querySelectorAll('#charts .uplot').length") == 4
    totals = browser.js("septum.open.charts.series.map(s => s.reduce((a, b) => a + b, 0))")
    assert totals[:4] == [0, 6, 0, 3000]
    browser.click("#charts .u-over", 0.5, 0.5)
    assert 2000 < step_of(browser) < 4000
    assert browser.problems == []


def test_rounds_of_alike_steps_are_folded_and_open(browser: Page, long_page: Path) -> None:
    browser.open(long_page)
    rows = browser.js("septum.open.rows.all.length")
    assert rows < 600
    browser.key("Home")
    for _ in range(60):
        if "more rounds of these" in text_of(browser, ".row.selected"):
            break
        browser.key("ArrowDown")
    assert "more rounds of these" in text_of(browser, ".row.selected")
    step = step_of(browser)
    browser.key("Enter")
    assert step_of(browser) == step
    assert text_of(browser, ".row.selected .number") == str(step)
    assert browser.js("septum.open.rows.all.length") > rows
    covered = browser.js("septum.open.rows.all.map(row => [row.start, row.end])")
    assert covered[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(covered))


AXE = ROOT / "tests" / "npm" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.skipif(not AXE.is_file(), reason="`make npm` installs axe-core, which judges the page")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_that_axe_calls_inaccessible(
    browser: Page, pages: dict[str, Path], dark: bool, width: int
) -> None:
    browser.dark(dark)
    browser.open(pages["failure"], width=width)
    browser.js(f"{AXE.read_text()}; 0")
    found = browser.js(
        "axe.run().then(run => run.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"
    )
    assert found == []


def test_a_page_whose_data_is_damaged_says_so(
    browser: Page, pages: dict[str, Path], tmp_path: Path
) -> None:
    text = pages["split"].read_text()
    broken = tmp_path / "broken.html"
    broken.write_text(re.sub(r'(type="text/plain">.{200}).{40}', r"\1", text, count=1))
    browser.open(broken)
    assert browser.problems
    assert "cannot be shown" in text_of(browser, "#notice")


# What the page unpacks is what the trace holds

DUMP = """septum.data.load().then((run) => Array.from({length: run.nr}, (_, step) => {
  const form = run.formOf(step);
  const row = run.row[step];
  const fields = {};
  for (const name of form.names) fields[name] = form.field(name, row).toString();
  return [form.tag, run.tasks[run.task[step]], run.time[step], septum.words.step(run, step),
    {...form.texts}, fields];
}))"""
U64 = (1 << 64) - 1


def strange_events() -> list[Event]:
    """Numbers at the ends of what there is."""
    events: list[Event] = []
    for number, value in enumerate((0, 1, 0xFFF, 1 << 52, 1 << 63, U64)):
        regs = (value, value ^ U64, number)
        events.append(SeamcallEvent(number, "a", 0, 7, 0, *regs, value, 3, U64, r13=value))
        ret = -number if number % 2 else 0
        events.append(ConversionEvent(number << 40, "b", 1, value & ~0xFFF, 4096, True, "x", ret))
    events.append(FindingEvent(1 << 52, "a", 0, "mirror", "</script> {0x12} <b>&amp; 7"))
    return events


def test_every_step_is_unpacked_as_it_was_told(
    browser: Page, traces: dict[str, Path], tmp_path: Path
) -> None:
    strange = tmp_path / "strange.jsonl"
    with TraceWriter(strange, TraceHeader(septum_version="0")) as writer:
        for event in strange_events():
            writer.write(event)
    for trace in (strange, traces["counterexample"]):
        page = tmp_path / "page.html"
        write_page(trace, page)
        browser.open(page)
        assert browser.problems == []
        with TraceReader(trace) as reader:
            events = [event for event in reader if not isinstance(event, OPENING)]
        rows = browser.js(DUMP)
        if trace is not strange:
            rows = [row for row in rows if not row[0].startswith("kvm_gmem_folio")]
            rows = [row for row in rows if row[0] not in {c.__struct_config__.tag for c in OPENING}]
        assert len(rows) == len(events)
        for row, event in zip(rows, events, strict=True):
            tag, task, time_ns, text, texts, fields = row
            assert (tag, task, time_ns) == (
                event.__struct_config__.tag,
                event.task,
                event.time_ns,
            )
            assert text == describe(event).text.replace("->", "→")
            for name, value in fields.items():
                assert int(value) == getattr(event, name) & U64
            if isinstance(event, SeamcallEvent):
                assert texts["rax"] == f"{event.status:#x}"


def test_the_memory_in_the_page_is_the_fold_at_every_step(
    browser: Page, pages: dict[str, Path], traces: dict[str, Path]
) -> None:
    """Forwards and backwards, in any order of steps."""
    browser.open(pages["split"])
    fold = MemoryFold()
    states: list[list[str]] = []
    gfns = [0x80000, 0x80001, 0x801FF]
    opening = True
    with TraceReader(traces["split"]) as reader:
        for event in reader:
            opening = opening and isinstance(event, OPENING)
            fold.apply(event)
            if opening:
                continue
            layers = fold.vm(1).layers
            states.append([fold.values.words(layer.get(gfn)) for layer in layers for gfn in gfns])
    steps = list(range(len(states)))
    random.Random(7).shuffle(steps)
    found = browser.js(
        f"""(() => {{ const memory = septum.open.memory;
          return {json.dumps(steps)}.map((step) => {{
            memory.goto(step);
            return memory.layers.flatMap((_, layer) => {json.dumps(gfns)}.map((gfn) =>
              memory.values[memory.value(1, layer, gfn)][0]));
          }}); }})()"""
    )
    assert len({tuple(state) for state in states}) > 5
    for step, state in zip(steps, found, strict=True):
        assert state == states[step], step


def test_a_seamcall_is_the_same_step_whichever_way_its_form_is_found(
    traces: dict[str, Path],
) -> None:
    """The quick way, by what the call has in common with an earlier one, and the plain way."""
    quick, plain = Steps(), Steps()
    with TraceReader(traces["failure"]) as reader:
        for event in reader:
            quick.add(event, reader.via())
            plain.add_plainly(event, reader.via())
    assert len(quick) == len(plain)
    assert packed(quick) == packed(plain)


def packed(steps: Steps) -> str:
    blob, strings = Blob(), Strings()
    head = steps.tables(blob, strings)
    return blob.pack((head, strings.all))


def test_the_page_needs_no_network_and_carries_its_licences(traces: dict[str, Path]) -> None:
    text = page_html(PageData(traces["failure"]))
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text)
    assert "Permission is hereby granted" in text
    assert "Permission to use, copy, modify" in text


@pytest.mark.parametrize(("name", "banner"), [("uplot", r"v{}\b"), ("d3-selection", r"v{}\b")])
def test_libraries_are_what_their_version_files_say(name: str, banner: str) -> None:
    folder = ROOT / "src" / "septum" / "report" / "html" / "vendor" / name
    version = (folder / "VERSION").read_text().strip()
    [build] = folder.glob("*.min.js")
    assert re.search(banner.format(re.escape(version)), build.read_text()[:300])
    assert (folder / "LICENSE").stat().st_size > 300
