"""What tests of several rooms share."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest

from septum.explore.workers import parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_collection_finish() -> None:
    """Thousands of tests and all of the model stay to the end: the collector need not go through
    them again and again, as it would with every few hundred objects of a world."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _one_worker(request: pytest.FixtureRequest) -> Iterator[None]:
    """A search that is not told how many processes to use takes one where tests run in several
    processes already: of two each searches in part what the other does. Tests of workers say how
    many."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(request.config, "workerinput"):
            patch.setattr(parallel, "cores", lambda: 1)
        yield


@pytest.fixture
def nr_lines():
    """Counts the lines of Python that a call executes: what it costs, the same on any machine."""

    def count(call: Callable[[], object]) -> int:
        nr = 0

        def see(frame: object, event: str, arg: object) -> object:
            nonlocal nr
            nr += event == "line"
            return see

        before = sys.gettrace()
        sys.settrace(see)
        try:
            call()
        finally:
            sys.settrace(before)
        return nr

    return count
