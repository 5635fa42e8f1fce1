"""Short ways of the exhaustive search: steps that are walked without a node, changes that are known
as sums, runs that are not logged. Each must come to what the long way comes to."""

import itertools
from functools import cache

import pytest

from septum.explore.exhaustive import graph, tails
from septum.explore.exhaustive.learn import Recording
from septum.explore.exhaustive.loops import Row
from septum.explore.exhaustive.transitions import _change
from septum.explore.scenario import ScenarioSubject
from septum.explore.states.fingerprint import CONTENTS, DIGESTS, WHOLES, Change, Fingerprint
from septum.explore.states.values import Contents
from septum.explore.subject import Options, Strategy
from septum.explore.toys import Toy
from septum.explore.tracking.adopt import NotTrackable
from septum.explore.tracking.footprint import Footprints
from septum.explore.tracking.patches import Patches
from septum.explore.tracking.track import Tracker
from septum.explore.workers.search import Job, Searcher

pytestmark = pytest.mark.usefixtures("few_runs")

SCENARIOS = ["write-against-convert", "fault-against-fault"]


def search(name, preemptions=1):  # type: ignore[no-untyped-def]
    """(number of states at the end, what was found)."""
    searcher = Searcher(ScenarioSubject(name, "v3", "end"), Options(keep_going=True))
    try:
        job = Job(1, Strategy.EXHAUSTIVE, preemptions=preemptions)
        result = searcher.do(job)
        assert result.complete
        assert not result.note
        assert searcher.transitions is not None
        return len(searcher.transitions.ends), sorted(f.finding.text for f in result.found)
    finally:
        searcher.close()


@cache
def searched_whole():  # type: ignore[no-untyped-def]
    """What a search of the first scenario comes to, with nothing broken and nothing counted."""
    return search(SCENARIOS[0])


def counting(monkeypatch, owner, name, count):  # type: ignore[no-untyped-def]
    """What `count` makes of the result and the arguments of each call of a function, in a list."""
    counted = []
    plain = getattr(owner, name)

    def call(*args):  # type: ignore[no-untyped-def]
        result = plain(*args)
        counted.append(count(result, *args))
        return result

    monkeypatch.setattr(owner, name, call)
    return counted


@pytest.mark.parametrize("name", SCENARIOS)
def test_tails_walked_without_nodes_lead_to_the_same_ends(name, monkeypatch) -> None:
    walked = counting(monkeypatch, graph, "slide", lambda _, node, *others: len(node.before))
    short = search(name)
    assert sum(walked) > 200
    monkeypatch.setattr(graph, "slide", lambda *_: None)
    assert search(name) == short


def test_tails_that_do_not_tell_what_they_touched_are_noticed(monkeypatch) -> None:
    """Who was passed over is tried where a tail depends on it: else ends are lost."""
    whole = searched_whole()
    monkeypatch.setattr(tails, "add_to", lambda below, task, masks: None)
    lost = search(SCENARIOS[0])
    assert lost[0] < whole[0]


def test_steps_in_a_row_made_as_one_lead_to_the_same_ends(monkeypatch) -> None:
    """Also where tasks retry: a loop is seen, whether its steps are taken one by one or not."""
    walked = counting(
        monkeypatch, tails.Tail, "fits", lambda fits, tail, *others: fits and len(tail.steps)
    )
    whole = search(SCENARIOS[1])
    assert sum(walked) > 100
    monkeypatch.setattr(tails, "TAIL_MIN", 1000)
    assert search(SCENARIOS[1]) == whole


def test_steps_in_a_row_that_do_not_tell_what_they_rest_on_are_noticed(monkeypatch) -> None:
    whole = searched_whole()
    monkeypatch.setattr(tails, "_seen", lambda steps, state: state.seen({}))
    monkeypatch.setattr(Searcher, "_plain", lambda self, job, result: None)
    assert breaks_or_differs(SCENARIOS[0], whole)


def test_who_is_passed_over_where_something_is_touched_is_tried(monkeypatch) -> None:
    """Only steps that touch nothing need nobody else before them."""
    whole = searched_whole()
    slide = graph.slide

    def careless(node, *others):  # type: ignore[no-untyped-def]
        left, node.preemptions_left = node.preemptions_left, 0
        slide(node, *others)
        node.preemptions_left = left

    monkeypatch.setattr(graph, "slide", careless)
    monkeypatch.setattr(Searcher, "_plain", lambda self, job, result: None)
    assert breaks_or_differs(SCENARIOS[0], whole)


def test_nobody_is_walked_on_beyond_the_end_of_a_run(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Where nobody saw that a task goes round its known steps would be walked for ever, and no time
    would end that: so many decisions as a run may have do."""
    monkeypatch.setattr("septum.explore.runs.steering.ALONE_MAX", 5000)
    monkeypatch.setattr(Row, "add", lambda *_: [])
    monkeypatch.setattr(Row, "extend", lambda *_: True)
    walked = counting(monkeypatch, graph, "slide", lambda _, node, *others: len(node.before))
    toy = Toy("round", [(("retry", 0, 1),), (("point",),)])
    searcher = Searcher(toy, Options(spin_points=5000, max_points=300))
    try:
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=1))
    finally:
        searcher.close()
    assert 100 < max(walked) <= 300 and not result.complete


def breaks_or_differs(name, whole) -> bool:  # type: ignore[no-untyped-def]
    """Whether a search comes to other ends than `whole`, or gives up its short ways."""
    try:
        return search(name) != whole
    except AssertionError:
        return True


def test_runs_that_go_on_only_for_what_is_not_known_learn_the_same(monkeypatch) -> None:
    foreseen = []
    foresee = Recording._foresee

    def counted(self, ring):  # type: ignore[no-untyped-def]
        before = self.first
        try:
            foresee(self, ring)
        finally:
            foreseen.append(self.first - before)

    monkeypatch.setattr(Recording, "_foresee", counted)
    whole = search(SCENARIOS[0])
    assert max(foreseen) > 10
    monkeypatch.setattr(Recording, "_foresee", lambda self, ring: None)
    assert search(SCENARIOS[0]) == whole


def test_a_run_that_goes_on_otherwise_than_foreseen_is_noticed(monkeypatch) -> None:
    whole = searched_whole()
    foresee = Recording._foresee
    monkeypatch.setattr(Recording, "_foresee", lambda self, ring: foresee(self, ring[::-1]))
    monkeypatch.setattr(Searcher, "_plain", lambda self, job, result: None)
    assert breaks_or_differs(SCENARIOS[0], whole)


def test_points_that_are_passed_unasked_are_counted(monkeypatch) -> None:
    """Where a task goes on along known steps nobody is asked; else who runs next would be told at
    the wrong point."""
    passed = counting(monkeypatch, Recording, "was_skipped", lambda _, run, count: count)
    whole = search(SCENARIOS[0])
    assert sum(passed) > 200
    with monkeypatch.context() as patch:
        patch.setattr(Recording, "_run_on", lambda self, task: None)
        assert search(SCENARIOS[0]) == whole
    monkeypatch.setattr(Recording, "_run_on", lambda self, task: self.sim.skip_points(2))
    monkeypatch.setattr(Searcher, "_plain", lambda self, job, result: None)
    assert breaks_or_differs(SCENARIOS[0], whole)


def test_the_sum_of_what_a_step_changes_is_what_it_changes(monkeypatch) -> None:
    """After every known step the fingerprints are those of what the state holds."""
    numbers = itertools.count()
    sound = counting(
        monkeypatch,
        Fingerprint,
        "apply",
        lambda _, state, change: next(numbers) % 7 > 0 or state.is_sound(),
    )
    search(SCENARIOS[0])
    assert len(sound) > 1000
    assert all(sound)


def state_with(*entries) -> tuple[Fingerprint, Footprints]:  # type: ignore[no-untyped-def]
    footprints = Footprints()
    for part in (21, 22, 23):
        footprints.add_part(20, part)
    state = Fingerprint(footprints, dict.fromkeys((10, 20, 21, 22, 23), True))
    for table, key, content in entries:
        state.set(table, key, content)
    return state, footprints


def test_what_an_object_was_before_it_was_made_does_not_matter() -> None:
    """An object gets the number of one that is gone. Whatever that had held, after the step that
    makes the new one the state is the same."""

    def made(state: Fingerprint) -> None:
        state.set(CONTENTS, 10, 7)
        state._drop_parts(20)
        state.set(WHOLES, 20, 8)
        state.set(CONTENTS, 22, 9)

    # Where the object is the same as the one before nothing seems to change.
    learned, footprints = state_with((CONTENTS, 10, 7), (WHOLES, 20, 8), (CONTENTS, 22, 9))
    mark = learned.mark()
    made(learned)
    change = _change(learned, mark, {10, 20}, footprints.parts)
    learned.learn(change, mark)
    other, _ = state_with((CONTENTS, 10, 1), (CONTENTS, 21, 5), (CONTENTS, 22, 4))
    other.apply(change)
    assert other.is_sound()
    assert (other.value, other.shown) == (learned.value, learned.shown)
    assert other.tables[DIGESTS] == learned.tables[DIGESTS]
    # What only tells what seemed to change leaves what was there.
    wrong, _ = state_with((CONTENTS, 10, 1), (CONTENTS, 21, 5), (CONTENTS, 22, 4))
    wrong.apply(Change(change.writes, (), ()))
    assert wrong.value != learned.value


def test_a_state_whose_sum_is_wrong_is_noticed() -> None:
    state, _ = state_with((CONTENTS, 10, 1))
    assert state.is_sound()
    change = Change(((CONTENTS, 10, 2),), (), ())
    state.apply(change)  # nobody has learned what it comes to
    assert not state.is_sound()


def test_what_is_written_while_nobody_listens_is_undone(monkeypatch) -> None:
    """Runs that follow known steps log nothing; a slot that could not be put back is noticed."""
    hushed = counting(monkeypatch, Patches, "hush", lambda _, patches, quiet: quiet)
    search("fault-against-fault")
    assert sum(hushed) > 20

    # What the first run changed of the built world is forgotten when it is put back.
    restore = Tracker.restore

    def forgetful(self):  # type: ignore[no-untyped-def]
        restore(self)
        self.changed.clear()

    monkeypatch.setattr(Tracker, "restore", forgetful)
    monkeypatch.setattr(Searcher, "_plain", lambda self, job, result: None)
    with pytest.raises((NotTrackable, AssertionError)):
        search("fault-against-fault")


def test_a_task_on_a_stack_is_told_by_its_number() -> None:
    """Who waits for a lock holds itself in a variable: it stands at the same place every time."""
    searcher = Searcher(ScenarioSubject(SCENARIOS[0], "v3", "end"), Options())
    searcher.runner.built.sim.spawn("some", lambda: None)
    tasks = searcher.runner.built.sim.tasks
    contents = Contents(lambda oid: 0)
    told = {contents.of_value(task) for task in tasks}
    assert len(told) == len(tasks) > 0
    assert told == {contents.of_value(task) for task in tasks}


def test_a_run_that_breaks_as_foreseen_ends_where_it_is_known_to() -> None:
    """A promise that the scenario expects to break ends a run in the middle of a step; how such an
    end is judged may be known already."""
    subject = ScenarioSubject("finding-fresh-folio-race", "v3", "quiet")
    searcher = Searcher(subject, Options())
    try:
        for preemptions in (0, 1):
            result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=preemptions))
            assert result.complete
            assert not result.found
    finally:
        searcher.close()
