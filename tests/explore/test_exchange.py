"""What workers tell each other of the exhaustive search: a step that one has learned is the same
for all, and what it touched is known to all."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from septum.explore.exhaustive.heard import learn_of, look_at
from septum.explore.exhaustive.learn import Recording, Translating
from septum.explore.exhaustive.real import Making
from septum.explore.exhaustive.transitions import Transitions, Unfaithful
from septum.explore.runs.run import Runner, StateMissed
from septum.explore.runs.steering import Lasting
from septum.explore.scenario import ScenarioSubject
from septum.explore.states.fingerprint import Fingerprint
from septum.explore.subject import Options, Strategy
from septum.explore.tracking.footprint import Footprints, S, X
from septum.explore.tracking.locations import EVERYWHERE
from septum.explore.workers import been, exchange
from septum.explore.workers.exchange import Exchange, make_files
from septum.explore.workers.search import Job, Searcher

pytestmark = pytest.mark.usefixtures("few_runs")

NAME = "write-against-convert"


def begin_as_another(searcher, files, mine) -> Transitions:  # type: ignore[no-untyped-def]
    """From now on `searcher` is a worker that knows what `mine` does of what is shared, and no
    step."""
    searcher.transitions = other = Transitions(searcher.tracker, True, keeps=False)
    searcher.exchange_by(files, 1)
    assert other.exchange is not None
    other.exchange._news = set(mine.exchange._news)
    return other


@pytest.fixture
def told():  # type: ignore[no-untyped-def]
    """A worker that has told what it learned, and what another one has that has begun as it had."""
    searcher = Searcher(ScenarioSubject(NAME, "v3", "end"), Options(keep_going=True))
    try:
        searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
        assert searcher.tracker is not None
        assert searcher.transitions is not None
        files = make_files(2)
        searcher.exchange_by(files, 0)
        searcher.do(Job(2, Strategy.EXHAUSTIVE, preemptions=1))
        other = Transitions(searcher.tracker, True, keeps=False)
        other.exchange = Exchange(files, 1, searcher.tracker.footprints)
        yield searcher, other
    finally:
        searcher.close()


def test_what_is_heard_is_what_was_learned(told) -> None:  # type: ignore[no-untyped-def]
    """Steps come out with the same effect, and depend on the same as where they were made."""
    searcher, other = told
    mine = searcher.transitions
    other.exchange._news = set(mine.exchange._news)  # it has learned the same of what is shared
    assert other.hear()
    assert other.nr_known > 40
    for key, steps in other._steps.items():
        for step in steps:
            same = mine._known(*key, step)
            assert same is not None
            assert same.effect() == step.effect()
            assert same.masks == step.masks
            assert set(same.touched) == set(step.touched)
            assert same.left == step.left
            assert same.moved == step.moved
    assert not other.hear()
    assert set(other.ends) <= set(mine.ends)


def test_what_promises_were_told_to_see_need_not_be_seen_again(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A look in which no promise broke is known to all."""
    searcher = Searcher(ScenarioSubject(NAME, "v3", "quiet"), Options(failures=0, keep_going=True))
    try:
        searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
        files = make_files(2)
        searcher.exchange_by(files, 0)
        job = Job(2, Strategy.EXHAUSTIVE, preemptions=1)
        monkeypatch.setattr(exchange, "TELL_AT", 1)
        assert searcher.do(job).complete
        mine = searcher.transitions
        assert mine is not None
        assert mine.exchange is not None
        searcher.runner.clean()
        runs = []
        for hears in (True, False):
            other = begin_as_another(searcher, files, mine)
            if not hears:
                monkeypatch.setattr(
                    Exchange,
                    "hear",
                    lambda self, hear=Exchange.hear: [
                        batch._replace(looks=[]) for batch in hear(self)
                    ],
                )
            assert searcher.do(job).complete
            assert not searcher.note
            assert None in other.looks.values()
            runs.append(other.nr_learning)
        assert runs[0] < 0.8 * runs[1]
    finally:
        searcher.close()


@pytest.mark.parametrize("room", [0, 5])
def test_where_there_is_no_room_to_tell_the_others_do_without(monkeypatch, room: int) -> None:  # type: ignore[no-untyped-def]
    """A full disk, also in the middle of what is told: the search goes on, and what was told
    before is heard."""
    searcher = Searcher(ScenarioSubject(NAME, "v3", "end"), Options(keep_going=True))
    pwrite = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        if at < 20_000:
            return pwrite(file, data, at)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data[:room], at)

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(been, "TELL_AT", 8)
    try:
        searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
        files = make_files(2)
        searcher.exchange_by(files, 0)
        result = searcher.do(Job(2, Strategy.EXHAUSTIVE, preemptions=1))
        assert result.complete and not result.note
        mine = searcher.transitions
        assert mine is not None and mine.exchange is not None and mine.exchange._full
        other = begin_as_another(searcher, files, mine)
        assert other.hear()
        assert not other.hear()
    finally:
        searcher.close()


def test_what_rests_on_other_knowledge_is_not_taken_over(told) -> None:  # type: ignore[no-untyped-def]
    """Where other things turned out to be shared, steps lack something or have too much."""
    _, other = told
    other.exchange.learned({12345})
    assert other.hear()
    assert not other.nr_known


def test_who_has_missed_something_agrees_with_nobody(told) -> None:  # type: ignore[no-untyped-def]
    _, other = told
    before = other.exchange.tag
    other.exchange.parts_company()
    assert other.exchange.tag != before


def test_what_one_comes_to_look_at_all_do(told) -> None:  # type: ignore[no-untyped-def]
    """A slot that is written after all, the order of a dict, what promises read: who hears of it
    looks, too, and starts over."""
    searcher, other = told
    tracker = searcher.tracker
    news = tracker.footprints.news
    kind, name = min(tracker.members.keys() - tracker.logged, key=str)
    ordered = next(
        oid
        for oid, obj in tracker.names.of_base.items()
        if hasattr(obj, "look_at_order") and not hasattr(obj, "in_order")
    )
    unread = next(kind for kind in range(1, 1 << 16) if kind not in tracker.watched._read)
    tracker.watched._asked.add(unread)
    for opened in (
        ("slot", kind, name),
        ("order", ordered, ""),
        ("orders", 0xFFFF, ""),
        ("read", unread, ""),
    ):
        before = other.exchange.tag
        tracker.footprints.forget_news()
        look_at(opened, tracker)
        assert EVERYWHERE in news
        assert opened in tracker.footprints.opened
        assert other.exchange.tag != before
        tracker.footprints.forget_news()
        look_at(opened, tracker)
        assert not news
    assert (kind, name) in tracker.logged


def test_what_another_worker_changed_is_put_back() -> None:
    """A step that another worker told of may write to what no run of this one has written to. It is
    logged here once before it is made where nobody listens: else the next run begins with that."""
    searcher = Searcher(ScenarioSubject("accept-4k-against-2m", "v3", "end"), Options(failures=0))
    try:
        job = Job(1, Strategy.EXHAUSTIVE, preemptions=1)
        assert searcher.do(job).complete
        # All that is shared is known now: what is learned again is told, and stays.
        assert searcher.transitions is not None
        searcher.transitions.clear()
        files = make_files(2)
        searcher.exchange_by(files, 0)
        assert searcher.do(job).complete
        tracker, mine = searcher.tracker, searcher.transitions
        assert tracker is not None
        assert mine is not None
        assert mine.exchange is not None
        # As another worker is, whose runs have changed nothing yet.
        searcher.runner.clean()
        tracker.changed.clear()
        other = begin_as_another(searcher, files, mine)
        result = searcher.do(job)
        assert result.complete
        assert not searcher.note
        assert other.nr_learning < mine.nr_learning / 2
        assert any(step.hearsay for steps in other._steps.values() for step in steps)
    finally:
        searcher.close()


@pytest.fixture
def unmarked():  # type: ignore[no-untyped-def]
    """A worker that knows what tasks share, and whose runs have changed nothing yet."""
    searcher = Searcher(ScenarioSubject("accept-4k-against-2m", "v3", "end"), Options(failures=0))
    try:
        searcher.prepare()
        searcher.runner.clean()
        assert searcher.tracker is not None
        searcher.tracker.changed.clear()
        yield searcher
    finally:
        searcher.close()


def test_what_a_run_changes_that_judges_is_put_back(unmarked) -> None:  # type: ignore[no-untyped-def]
    """Whether a loop ever ends is seen in steps that nobody has made before."""
    unmarked.runner.run(Lasting([]))
    unmarked.runner.clear(verify=True)


def test_what_a_run_changes_that_translates_is_put_back(unmarked) -> None:  # type: ignore[no-untyped-def]
    """Which answers a path of the search stands for is seen in steps that another may have told."""
    translating = Translating([0] * 40)
    unmarked.runner.run(translating)
    moves = [(task, tuple(choices)) for task, choices in translating.moves]
    unmarked.runner.clean()
    unmarked.tracker.changed.clear()
    tracker, transitions = unmarked.tracker, unmarked.transitions
    state = Fingerprint(tracker.footprints, tracker.watched)
    unmarked.runner.run(Making(moves, [False] * len(moves), state, tracker, transitions))
    unmarked.runner.clear(verify=True)


def test_what_a_run_changed_that_came_out_otherwise_is_put_back(unmarked, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Where a known step comes out otherwise, nobody listens. The search begins anew, and need not
    give up its reduction."""
    unmarked.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
    unmarked.runner.clean()
    unmarked.tracker.changed.clear()
    raised = []
    follow = Recording._pick_known

    def otherwise(self, ring):  # type: ignore[no-untyped-def]
        if not raised and self._at > 20:
            raised.append(unmarked.runner.nr_runs)
            raise Unfaithful("a step of task 1 came out otherwise")
        return follow(self, ring)

    monkeypatch.setattr(Recording, "_pick_known", otherwise)
    result = unmarked.do(Job(2, Strategy.EXHAUSTIVE, preemptions=1))
    assert raised
    assert result.complete
    assert not unmarked.note


def test_where_more_counts_and_runs_do_not_nothing_is_kept(unmarked, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The world turns out not to have been put back just when a search starts over because more is
    shared: what it has learned lacks more than that."""
    unmarked.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
    transitions = unmarked.transitions
    assert transitions.nr_known

    def missed(self):  # type: ignore[no-untyped-def]
        raise StateMissed(0, ["kvm"])

    monkeypatch.setattr(Runner, "settle", missed)
    unmarked.tracker.footprints.news.add(12345)
    unmarked._start_over(transitions)
    assert not transitions.nr_known


class Stub:
    """What is worked out of a step where it is heard."""

    masks = (0, 0, 0, 0)
    touched = 0


def touching(task: int, access: int, parts: dict[int, int]):  # type: ignore[no-untyped-def]
    """What is told of a step of a task that holds no locks."""
    nothing: frozenset[int] = frozenset()
    return ((task, 0, False), Stub(), [(nothing, nothing, [access])], [], parts)


def test_what_another_touched_is_learned() -> None:
    """Two tasks clash where one was seen here and the other by another worker."""
    here, there = Footprints(), Footprints()
    nothing: frozenset[int] = frozenset()
    here.register(here.context(1, nothing, nothing), [77 << 2 | X])
    told = touching(2, 77 << 2 | S, {})
    learn_of(told, here)
    assert here.is_shared(77)
    assert here.news
    assert told[1].masks[0]
    learn_of(told, there)
    assert not there.news


def test_parts_are_known_with_their_wholes() -> None:
    footprints = Footprints()
    part, whole = 1 << 62 | 5, 900
    learn_of(touching(1, part << 2 | X, {part: whole}), footprints)
    assert footprints.whole_of[part] == whole
    footprints.add_part(whole, part)  # the tracker comes to it, too
    assert footprints.parts[whole] == [part]


def test_half_a_batch_is_read_when_it_is_whole(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    files = make_files(2)
    ours, theirs = (Exchange(files, index, Footprints()) for index in (0, 1))
    monkeypatch.setattr(exchange, "TELL_AT", 0)
    ours.tell_end(5, None)
    ours.flush()
    data = os.pread(files[0].fileno(), 1 << 20, 0)
    os.ftruncate(files[0].fileno(), len(data) - 3)
    assert theirs.hear() == []
    os.pwrite(files[0].fileno(), data, 0)
    (batch,) = theirs.hear()
    assert batch.ends == [(5, None)]
    assert theirs.hear() == []
    assert ours.hear() == []


def test_workers_end_when_nobody_asks_any_more(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A search that is killed leaves no processes behind, spread or not."""
    script = (
        "import sys, time\n"
        "from septum.explore import Options, Strategy\n"
        "from septum.explore.api import Search\n"
        "from septum.explore.scenario import ScenarioSubject\n"
        "search = Search(ScenarioSubject('write-against-convert', 'v3', 'end'),\n"
        "    Options(strategy=Strategy.EXHAUSTIVE, workers=3, preemptions=1))\n"
        "search.start()\n"
        "search._level(0, 0)\n"
        "search._workers.spread()\n"
        "first = [p.pid for p in search._workers._processes]\n"
        "print(*first, *search._workers._spread, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 3
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(100):
        if not any(map(is_alive, workers)):
            break
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def is_alive(process_id: int) -> bool:
    """A process that is there, and not only waits to be reaped."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii", errors="replace")
        return state.rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
