"""Steps that are known because they looked at the same elsewhere: they must come out as they do
when the model makes them. Each thing that they rest on is left out once, and that is noticed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from judging import REFERENCE

from septum.explore.exhaustive.alike import Alike, Like, Others, OwnSeen
from septum.explore.exhaustive.known import Step
from septum.explore.exhaustive.transitions import Transitions
from septum.explore.scenario import ScenarioSubject
from septum.explore.states.fingerprint import Seen
from septum.explore.states.stacks import _codes
from septum.explore.states.stand import NOTHING_HELD, Own, Stand, frame_at
from septum.explore.subject import Options, Strategy, Subject
from septum.explore.tracking.footprint import Footprints
from septum.explore.workers.search import Job, Searcher

pytestmark = pytest.mark.usefixtures("few_runs")


def judge(
    monkeypatch: pytest.MonkeyPatch, subject: Subject, preemptions: int = 0
) -> tuple[int, int]:
    """In a search in which the model makes every step: how many would have been known because they
    are like another, and how many of those come out otherwise than it was worked out."""
    record = Transitions.record
    judged = wrong = 0

    def find(self, state, task, alone, choices):  # type: ignore[no-untyped-def]
        for step in self._steps.get((task, state.chain(task), alone), ()):
            if step.comes_out(choices) and state.sees(step.seen):
                return step
        return None

    def look(self, state, task, alone, choices, ends):  # type: ignore[no-untyped-def]
        nonlocal judged, wrong
        values = tuple(choice.value for choice in choices)
        stand = self.alike.stands.get(state.chain(task))
        found = stand and self.alike.find(
            task, alone, stand, lambda step: step.answers == values and state.sees(step.seen)
        )
        worked_out: Step | None = None
        if found:
            worked_out = self._made_alike(*found, state, task, stand)
        known = self.nr_known
        step = record(self, state, task, alone, choices, ends)
        if worked_out and self.nr_known > known:
            judged += 1
            wrong += effects(step) != effects(worked_out)
        return step

    with monkeypatch.context() as patch:
        patch.setitem(_codes, look.__code__, False)  # no frame of the model
        patch.setattr(Transitions, "find", find)
        patch.setattr(Transitions, "record", look)
        searcher = Searcher(subject, Options())
        try:
            result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=preemptions))
        finally:
            searcher.close()
    assert result.complete and not result.note
    return judged, wrong


def effects(step: Step) -> tuple[object, ...]:
    """All that a search makes use of."""
    change = step.change
    return (
        step.effect(),
        (change.value, change.shown, sorted(change.digests)),
        (step.moved, set(step.left or ()), step.makes, step.handed_on),
        (step.masks, step.wrote, set(step.looks_at), step.retries),
    )


SUBJECTS = {
    "reference": ("reference.toml", 0, 150),
    # Frames that hold what no variable names are in it.
    "punch": ("punch-against-accept", 1, 250),
}


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is in a file."""
    monkeypatch.chdir(tmp_path)
    Path("reference.toml").write_text(REFERENCE, encoding="utf-8")


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("name", SUBJECTS)
def test_steps_that_are_like_others_come_out_as_was_worked_out(monkeypatch, name: str) -> None:
    scenario, preemptions, least = SUBJECTS[name]
    judged, wrong = judge(monkeypatch, ScenarioSubject(scenario, "v3", "end"), preemptions)
    assert judged > least
    assert wrong == 0


Patch = Callable[[pytest.MonkeyPatch], None]


def own_does_not_matter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OwnSeen, "fits", lambda self, own, tracker: True)


def all_is_as_it_was_written(patch: pytest.MonkeyPatch) -> None:
    """What a step wrote it wrote everywhere, or nowhere: where the same was there before, its own
    sums do not tell."""
    init = Like.__init__

    def forgets(self, *args):  # type: ignore[no-untyped-def]
        init(self, *args)
        self._written = []

    patch.setattr(Like, "__init__", forgets)


def frames_that_wait_never_change(patch: pytest.MonkeyPatch) -> None:
    """Nor do values that the task has elsewhere, whatever it holds of them where it runs."""
    init = Others.__init__

    def forgets(self, *args):  # type: ignore[no-untyped-def]
        init(self, *args)
        self.values = ((), ())

    patch.setattr(Others, "__init__", forgets)


def nothing_is_hidden(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("septum.explore.states.stand.FrameAt.observing", lambda self, hidden: self)


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(
    "breaks,name",
    [
        (own_does_not_matter, "reference"),
        (all_is_as_it_was_written, "reference"),
        (frames_that_wait_never_change, "reference"),
        (nothing_is_hidden, "punch"),
    ],
)
def test_what_steps_rest_on_that_is_left_out_is_noticed(
    monkeypatch, breaks: Patch, name: str
) -> None:
    breaks(monkeypatch)
    scenario, preemptions, _ = SUBJECTS[name]
    _, wrong = judge(monkeypatch, ScenarioSubject(scenario, "v3", "end"), preemptions)
    assert wrong > 0


def stand(
    *, outer: int = 0, lasting: int = 0, silent: int = 0, alive: tuple[int, ...] = ()
) -> Stand:
    """A task with two frames, of which the outer one waits."""
    frames = tuple([frame_at(value, 0, (value, 2), NOTHING_HELD) for value in (100 + outer, 77)])
    return Stand((frames, ()), Own({}, (0, 0, lasting, silent), alive, {}), in_guest=False)


def is_alike(there: Stand, *, makes: bool = False, numbers: bool = False) -> bool:
    """Whether a step whose innermost frame ran, where nothing was made before, is known to come out
    the same at `there`. `makes`: something that gets a name; `numbers`: a result."""
    tracker: Any = SimpleNamespace(footprints=Footprints(), own=SimpleNamespace(refers=set()))
    step = Step(Seen(frozenset(), frozenset(), ()), 1, ())
    step.makes, step.numbers = makes, numbers
    step.moved = ((1, 1), None)
    here = stand()
    known = Alike(tracker)
    known.add(1, False, Like(step, here, here, OwnSeen(set(), set(), here.own, {}, {}), {}))
    return known.find(1, False, there, lambda step: True) is not None


def test_names_are_the_same_only_where_the_same_were_given() -> None:
    """Which name an object gets depends on those that are never given again. Who makes nothing
    does not mind; but objects that live may die in any step, and tell what was put into them."""
    assert is_alike(stand(), makes=True)
    assert is_alike(stand(lasting=5))
    assert not is_alike(stand(lasting=5), makes=True)
    assert not is_alike(stand(alive=(5,)))
    assert not is_alike(stand(silent=5))


def test_results_are_counted_along_the_whole_program() -> None:
    """Frames that wait do not matter; but results have numbers, and how many there were before
    follows from where the outermost frames are."""
    assert is_alike(stand(outer=1))
    assert is_alike(stand(), numbers=True)
    assert not is_alike(stand(outer=1), numbers=True)


def test_what_was_looked_at_as_a_whole_has_the_same_parts() -> None:
    """A whole of which all was looked at has no more parts than then; what had none has none; and
    what was only written to led to no object, whose end that may have been."""

    def fits(divide: int = 0, refers: int = 0) -> bool:
        tracker: Any = SimpleNamespace(
            footprints=Footprints(), own=SimpleNamespace(refers={refers})
        )
        footprints = tracker.footprints
        footprints.add_part(20, 21)
        own = stand().own
        seen = OwnSeen({10, 20, 21}, {30}, own, footprints.parts, {20: 1})
        if divide:
            footprints.add_part(divide, 99)
        return seen.fits(own, tracker)

    assert fits()
    assert fits(divide=40, refers=40)
    assert not fits(divide=20)
    assert not fits(divide=10)
    assert not fits(refers=30)
