"""Scenarios as pytest tests, over designs, with the counterexample as the failure's text.

Nothing of Septum is imported here before a test asks for it, so that the plugin costs other test
runs nothing. See docs/pytest.md.
"""

from __future__ import annotations

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_septum import asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from septum.explore.verdict import Verdict

    Explore = Callable[..., Verdict]

MARKER = "septum"
DESIGN = "septum_design"
EXPLORE = "septum_explore"
TABLES = frozenset(("guest", "host", "vm"))
"""A TOML file is a scenario when it has a summary and one of these."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """--septum-designs and the bounds of the searches."""
    group = parser.getgroup("septum", "searches by Septum")
    group.addoption("--septum-designs", metavar="A,B", help="Designs to run scenarios on.")
    group.addoption("--septum-preemptions", type=int, metavar="N", help="Preemptions, at most.")
    group.addoption("--septum-failures", type=int, metavar="N", help="Failures, at most.")
    group.addoption(
        "--septum-strategy", metavar="S", help="auto, exhaustive, pct, random or plain."
    )
    group.addoption("--septum-time", type=float, metavar="S", help="Seconds for each search.")


def pytest_configure(config: pytest.Config) -> None:
    """Tell of the marker."""
    config.addinivalue_line(
        "markers",
        "septum(scenario, designs=['v3'], preemptions=2, failures=0, time_s=60, schedules=None,"
        " strategy='auto', seed=0, check='end', fail=[]): search the schedules of a scenario on"
        " each design; the test fails with the counterexample. The body runs after one that held.",
    )


def _designs(config: pytest.Config, marked: object = None) -> list[str]:
    option = config.getoption("--septum-designs")
    if option is not None:
        marked = [name.strip() for name in option.split(",") if name.strip()]
    try:
        return asked.designs(marked) if marked is not None else ["v3"]
    except asked.AskedError as error:
        raise pytest.Collector.CollectError(f"septum: {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A marked test, or one that takes `septum_design`, is one test for each design."""
    marker = metafunc.definition.get_closest_marker(MARKER)
    if marker is None and not {DESIGN, EXPLORE} & set(metafunc.fixturenames):
        return
    if DESIGN not in metafunc.fixturenames:
        metafunc.fixturenames.append(DESIGN)
    marked = marker.kwargs.get("designs") if marker is not None else None
    metafunc.parametrize(DESIGN, _designs(metafunc.config, marked), indirect=True)


@pytest.fixture
def septum_design(request: pytest.FixtureRequest) -> str:
    """The design that the test is about."""
    return str(getattr(request, "param", "v3"))


@pytest.fixture
def septum_explore(request: pytest.FixtureRequest, septum_design: str) -> Explore:
    """`septum_explore("scenario", preemptions=2, ...)` searches; the test fails when it does not
    hold. Without a name it is the marker's scenario. Returns the verdict."""

    def explore(scenario: str | Path | None = None, **bounds: object) -> Verdict:
        return _explore(request.node, scenario, str(bounds.pop("design", septum_design)), bounds)

    return explore


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """A marked test that does not search by itself is searched before its body."""
    marker = pyfuncitem.get_closest_marker(MARKER)
    if marker is not None and EXPLORE not in pyfuncitem.fixturenames:
        design = pyfuncitem.funcargs.get(DESIGN)
        if design is None:
            design = pyfuncitem.callspec.params[DESIGN]
        _explore(pyfuncitem, None, str(design), {})
    return (yield)


def _explore(
    item: pytest.Item, scenario: str | Path | None, design: str, bounds: dict[str, object]
) -> Verdict:
    """Search as asked: by the call, else by the marker, else by the command line."""
    marker = item.get_closest_marker(MARKER)
    marked = dict(marker.kwargs) if marker is not None else {}
    marked.pop("designs", None)
    wrong = ""
    try:
        chosen = asked.scenario(
            (scenario,) if scenario is not None else marker.args if marker is not None else ()
        )
        wanted = asked.bounds(marked | bounds)
        wrong = "" if chosen is not None else "no scenario is named; see docs/pytest.md"
    except asked.AskedError as error:
        wrong = str(error)
    if wrong or chosen is None:
        pytest.fail(f"septum: {wrong}", pytrace=False)
    return search(item.config, _path_or_name(item.path.parent, chosen), design, wanted)


def _path_or_name(folder: Path, scenario: str | Path) -> str:
    """A scenario beside the test goes before one of the library."""
    beside = folder / scenario
    with suppress(OSError, ValueError):  # too long for a file
        if beside.is_file():
            return str(beside)
    return str(scenario)


def search(config: pytest.Config, scenario: str, design: str, wanted: dict[str, object]) -> Verdict:
    """One search; fails the test with the story, or with why there is no answer."""
    from septum.designs.own import blame
    from septum.errors import EndlessLoop, InputError
    from septum.explore.testing import search_for_test

    options = {
        "preemptions": config.getoption("--septum-preemptions"),
        "failures": config.getoption("--septum-failures"),
        "strategy": config.getoption("--septum-strategy"),
        "time_s": config.getoption("--septum-time"),
    }
    bounds = {key: value for key, value in options.items() if value is not None} | wanted
    wrong = ""
    try:
        verdict, text = search_for_test(scenario, design, **bounds)
    except (InputError, EndlessLoop) as error:
        wrong = f"septum: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() in a design would end the whole run of tests
        told = blame(error)
        if not told:
            raise
        wrong = f"septum: {told}"
    if wrong or text:  # outside of the except: one sentence, and no word of another exception
        pytest.fail(wrong or text, pytrace=False)
    return verdict


# Scenario files


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    """A scenario that the command line names is a test; other TOML files are left alone."""
    if file_path.suffix != ".toml" or not parent.session.isinitpath(file_path):
        return None
    # One that cannot be read is collected: the search says what is wrong with it, and where.
    with suppress(OSError, ValueError, RecursionError):
        document = tomllib.loads(file_path.read_text(encoding="utf-8-sig"))
        if "summary" not in document or not TABLES & document.keys():
            return None
    made: ScenarioFile = ScenarioFile.from_parent(parent, path=file_path)
    return made


class ScenarioFile(pytest.File):
    """A scenario: an item for each design."""

    def collect(self) -> Iterable[ScenarioItem]:
        """The items, by design."""
        for design in _designs(self.config):
            yield ScenarioItem.from_parent(self, name=design)


class ScenarioItem(pytest.Item):
    """A scenario on a design."""

    def runtest(self) -> None:
        """Search; the bounds are the command line's."""
        search(self.config, str(self.path), self.name, {})

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it is, and what it is called."""
        return self.path, None, f"{self.path.name}[{self.name}]"
