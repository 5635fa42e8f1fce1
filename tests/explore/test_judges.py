"""Two judges: the fast search and the plain one say the same of every small system.

The plain search tries every schedule; the fast one leaves out what it takes to be equivalent. They
must agree on all findings and on all final states, for every bound on preemptions.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from septum.explore import fingerprint, own, special, track
from septum.explore.fingerprint import CONTENTS, WHOLES, Fingerprint, Seen
from septum.explore.footprint import Context, Footprints, S
from septum.explore.graph import GraphSearch
from septum.explore.learn import Recording
from septum.explore.loops import Row
from septum.explore.making import Making
from septum.explore.own import OwnState
from septum.explore.plain import plain_search
from septum.explore.run import Runner
from septum.explore.scenario import ScenarioSubject
from septum.explore.search import Job, Searcher
from septum.explore.split import split
from septum.explore.stacks import Stacks, _codes, _Stack
from septum.explore.stand import Stand
from septum.explore.steps import Steps
from septum.explore.subject import Options, Strategy
from septum.explore.toybox import (
    AS_BUILT_AGAIN,
    CLEANED,
    CUT_OFF,
    HANDED_ON,
    HELD,
    LISTS,
    LIVELOCK,
    MADE_OTHERWISE,
    NEW_GUARDS,
    NEW_LOCKS,
    NEW_QUEUE,
    RETRY,
    TOYS,
    TWO_BLOCKS,
    USED_AGAIN,
    dice_toy,
)
from septum.explore.toys import Toy, ToyState
from septum.explore.transitions import Step, Unfaithful, chain_of
from septum.explore.values import Contents
from septum.sim import Mutex, WaitQueue

BOUNDS = (0, 1, 2, None)
LIMIT = 3000


class FinalsOf(Toy):
    """A toy that notes the ends of its runs."""

    __slots__ = ("finals",)

    def __init__(self, toy: Toy) -> None:
        super().__init__(toy.name, toy.programs, toy.bad, goes_on=toy.goes_on)
        self.finals: set[object] = set()

    def finish(self, built) -> None:  # type: ignore[no-untyped-def]
        super().finish(built)
        if not built.sim.findings:
            self.finals.add(self.final(built))


def options_for(toy: Toy, preemptions: int | None) -> Options:
    spins = 5 if toy in (LIVELOCK, RETRY) else 1000
    return Options(
        strategy=Strategy.EXHAUSTIVE,
        preemptions=preemptions,
        failures=1,
        spin_points=spins,
        max_points=60 if spins == 5 else 2000,
        keep_going=True,
    )


def compare(toy: Toy, preemptions: int | None) -> tuple[int, int] | None:
    """Numbers of schedules of the two; None when the plain judge needs too many."""
    options = options_for(toy, preemptions)
    plain = plain_search(toy, options, LIMIT)
    if not plain.complete:
        return None
    noted = FinalsOf(toy)
    searcher = Searcher(noted, options)
    searcher.prepare()
    noted.finals.clear()
    try:
        result = searcher.do(
            Job(1, Strategy.EXHAUSTIVE, preemptions=options.max_preemptions(), failures=1)
        )
    finally:
        searcher.close()
    assert result.complete and not result.note
    found = {(f.finding.promise, f.finding.text) for f in result.found}
    assert found == set(plain.findings)
    assert noted.finals == plain.finals
    return plain.schedules, result.schedules


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
@pytest.mark.parametrize("preemptions", BOUNDS)
def test_toys(toy: Toy, preemptions: int | None) -> None:
    """The judges agree on the toys made by hand."""
    compare(toy, preemptions)


@pytest.mark.parametrize("tasks,length,seeds", [(2, 4, 20), (3, 2, 8)])
def test_dice(tasks: int, length: int, seeds: int) -> None:
    """The judges agree on toys made by dice, and the fast one needs far fewer schedules."""
    plain = fast = 0
    for seed in range(seeds):
        for preemptions in BOUNDS:
            numbers = compare(dice_toy(seed, tasks, length), preemptions)
            if numbers is not None:
                plain += numbers[0]
                fast += numbers[1]
    assert plain > 4 * fast


def rounds_toy(seed: int) -> Toy:
    """A toy from dice in which tasks do the same several times in a row, and then go on."""
    base = dice_toy(seed, 2, 2)
    dice = random.Random(seed)
    programs = [list(program) for program in base.programs]
    for program in programs:
        op = dice.choice([("read", dice.randrange(3)), ("point",), ("peek", 0), ("trylock", 0)])
        at = dice.randrange(len(program) + 1)
        if at and program[at - 1][0] in ("unless", "fail"):
            at -= 1  # these skip what follows
        program[at:at] = [op] * dice.choice([3, 4, 6, 9])
    return Toy(f"rounds-{seed}", [tuple(program) for program in programs], base.bad)


def test_who_goes_round_and_comes_out_of_it_is_followed() -> None:
    """That a task sees the same again and again does not mean that it goes round for ever."""
    for seed in range(24):
        for preemptions in (0, 1):
            compare(rounds_toy(seed), preemptions)


def test_who_takes_the_same_for_a_round_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that puts aside who has looked at the same three times misses ends."""
    add = Row.add

    def hasty(self: Row, step: Step, state: int) -> list[Step]:
        before = self._steps[-2:]
        if [other.observed for other in before] == [step.observed] * 2:
            return [step]
        return add(self, step, state)

    monkeypatch.setattr(Row, "add", hasty)
    with pytest.raises(AssertionError):
        test_who_goes_round_and_comes_out_of_it_is_followed()


def test_judge_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast search that never takes a task to be worth preempting is caught."""
    monkeypatch.setattr(GraphSearch, "_wanted", lambda self, node, task: False)
    with pytest.raises(AssertionError):
        compare(TOYS[0], 1)


def test_contents_that_are_not_told_apart_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for which all words look alike comes to other ends, or sees that steps do."""
    monkeypatch.setattr(Contents, "of_slot", lambda self, obj, k: 1)
    with pytest.raises((AssertionError, Unfaithful)):
        for toy in TOYS:
            compare(toy, 2)


def swaps(a: int, b: int) -> Toy:
    """Two tasks write the same two values to each of four cells, in other places."""
    one = tuple(("write", cell, b if cell % 2 else a) for cell in range(4))
    other = tuple(("write", cell, a if cell % 2 else b) for cell in range(4))
    return Toy(f"swaps-{a}-{b}", [one, other])


def test_ends_that_differ_in_who_has_which_content_are_all_reached(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Every end counts. With sums of plain hashes some are taken for one: with almost any two
    values, wherever the cells are."""
    assert compare(swaps(1, 2), None) is not None
    monkeypatch.setattr(fingerprint, "spread", lambda number: number)
    with pytest.raises(AssertionError):
        for b in range(2, 8):
            compare(swaps(1, b), None)


def test_guards_that_do_not_guard_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that takes every access for one under a lock is caught."""
    keep = Footprints._keep

    def guarded(self: Footprints, context: Context, access: int) -> bool:
        news = keep(self, context, access)
        context.kept.clear()
        return news

    monkeypatch.setattr(Footprints, "_keep", guarded)
    with pytest.raises(AssertionError):
        for toy in TOYS:
            compare(toy, 2)


def test_what_a_lock_guards_needs_no_preemption() -> None:
    """Two tasks that only ever touch a word under a lock are searched lock by lock."""
    body = (("lock", 0), *((("read", 0), ("write", 0, 1)) * 6), ("unlock", 0))
    guarded = compare(Toy("guarded", [body, body]), 2)
    bare = compare(Toy("bare", [body[1:-1], body[1:-1]]), 2)
    assert guarded is not None
    assert bare is None or guarded[1] < bare[1]


CHOICES = """
summary = "Two vCPUs that choose, against a conversion."
source = "a test"
setup = ["host: allocate frame 0"]

[vm]
ve = true

[guest]
vcpu0 = ["choose: accept 2M frame 0 => any | touch page 1 => any"]
vcpu1 = ["choose: accept 4K page 1 => any | touch page 0 => any"]

[kernel]
attributes = "vm"

[host]
convert = ["set-attributes page 1 to shared"]
"""


def test_how_far_a_program_is_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vCPU that does the same twice stands in two places. Where nobody counts, steps that are
    known lead to another place."""
    path = tmp_path / "twice.toml"
    again = '"accept 2M frame 0 => any"'
    lines = [line for line in CHOICES.splitlines() if not line.startswith("vcpu")]
    at = lines.index("[guest]") + 1
    lines.insert(at, f"vcpu0 = [{again}, {again}]")
    path.write_text("\n".join(lines))

    def note() -> str:
        searcher = Searcher(ScenarioSubject(str(path), "v3", "end"), Options(keep_going=True))
        try:
            return searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=2)).note
        finally:
            searcher.close()

    assert not note()
    monkeypatch.setattr(special, "STATISTICS", special.STATISTICS | {("ScenarioGuest", "done")})
    # What a search falls back to is another matter, and takes its time.
    monkeypatch.setattr(Searcher, "_plain", lambda self, job, result: None)
    assert note()


def test_subtrees_together_are_the_whole(tmp_path: Path) -> None:
    """The search is cut into subtrees, also behind choices that came out otherwise: what they reach
    together is what the search of all of it reaches."""
    path = tmp_path / "choices.toml"
    path.write_text(CHOICES)
    options = Options(keep_going=True)
    searcher = Searcher(ScenarioSubject(str(path), "v3", "end"), options)
    try:
        assert searcher.do(Job(1, Strategy.EXHAUSTIVE)).complete
        assert searcher.transitions is not None
        whole = set(searcher.transitions.ends)
        runner = Runner(ScenarioSubject(str(path), "v3", "end"), options)
        prefixes = split(runner, options, 0, 40)
        assert any(1 in prefix[8:] for prefix in prefixes)
        reached: set[int] = set()
        for number, prefix in enumerate(prefixes):
            searcher.transitions.clear()
            result = searcher.do(Job(number, Strategy.EXHAUSTIVE, prefix=prefix))
            assert result.complete
            assert not result.note
            assert result.states or result.schedules
            reached |= searcher.transitions.ends.keys()
        assert reached == whole
    finally:
        searcher.close()


def test_what_goes_round_unjudged_is_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that makes no more real runs to see whether a loop ends must not say that all is
    well."""
    monkeypatch.setattr("septum.explore.real.LASTING_MAX", 0)
    searcher = Searcher(LIVELOCK, options_for(LIVELOCK, 2))
    try:
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=2))
    finally:
        searcher.close()
    assert not result.complete or result.found


def nr_misplaced(monkeypatch: pytest.MonkeyPatch, toy: Toy, preemptions: int) -> int:
    """In a search: how often a task does not stand, or have, what steps say that were made again
    without a look at what they do; and whether the search saw so itself, and gave up."""
    found = 0
    meet = Stacks.meet

    def met(self: Stacks) -> bool:
        nonlocal found
        same = meet(self)
        schedule = self._sim.schedule
        assert isinstance(schedule, Recording)
        tracker, transitions = schedule._tracker, schedule._transitions
        for task in self._sim.tasks:
            known = schedule.state.chain(task.index)
            if task.done or known in transitions._observed:
                continue
            frames, own = self.frames(task), tracker.own.look(task.index)
            assert frames is not None and own is not None
            found += known != chain_of(task.index, Stand(frames, own, in_guest=False))
        return same

    with monkeypatch.context() as patch:
        patch.setitem(_codes, met.__code__, False)  # no frame of the model
        patch.setattr(Stacks, "meet", met)
        searcher = Searcher(toy, options_for(toy, preemptions))
        try:
            result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=preemptions, failures=1))
        finally:
            searcher.close()
    return found + bool(result.note)


Patch = Callable[[pytest.MonkeyPatch], None]


def memory_toy(seed: int, nr_tasks: int, length: int) -> Toy:
    """A toy from dice that does everything to memory, by frame, by block, and to all of it."""
    dice = random.Random(seed)
    names = ("store", "store", "load", "dirty", "flush", "flush_block", "wipe", "wbinvd")
    programs = [
        tuple((dice.choice(names), dice.randrange(3), dice.randrange(2)) for _ in range(length))
        for _ in range(nr_tasks)
    ]
    return Toy(f"memory-{seed}", programs)


@pytest.mark.parametrize("tasks,length,seeds", [(2, 2, 20), (3, 1, 20)])
def test_memory(tasks: int, length: int, seeds: int) -> None:
    """The judges agree on what becomes of memory."""
    for seed in range(seeds):
        for preemptions in (1, None):
            compare(memory_toy(seed, tasks, length), preemptions)


def forgets_frames(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fingerprint, "_told_in", lambda self, whole: ())


def sees_no_frames(patch: pytest.MonkeyPatch) -> None:
    def content(self: Fingerprint, location: int) -> int:
        return hash((self.tables[WHOLES].get(location, 0), self.tables[CONTENTS].get(location, 0)))

    patch.setattr(Fingerprint, "content", content)


def looks_at_blocks_alone(patch: pytest.MonkeyPatch) -> None:
    def is_in_written(self: Fingerprint, part: int) -> bool:
        return self._whole_of.get(part) in self.tables[WHOLES]

    patch.setattr(Fingerprint, "_is_in_written", is_in_written)


def takes_two_blocks_for_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(track, "of_int", lambda number: number)


@pytest.mark.parametrize(
    "toy,breaks",
    [
        (CLEANED, forgets_frames),
        (CLEANED, sees_no_frames),
        (AS_BUILT_AGAIN, looks_at_blocks_alone),
        (TWO_BLOCKS, takes_two_blocks_for_one),
    ],
)
def test_what_is_not_told_of_memory_is_noticed(
    monkeypatch: pytest.MonkeyPatch, toy: Toy, breaks: Patch
) -> None:
    """Who writes to all of memory writes to every frame, and what comes of it depends on each."""
    compare(toy, None)
    breaks(monkeypatch)
    with pytest.raises(AssertionError):
        compare(toy, None)


def forgets_what_was_there(patch: pytest.MonkeyPatch) -> None:
    def observe(self: Fingerprint, kinds: dict[int, int], untold: object) -> tuple[int, Seen]:
        return original(self, kinds)

    original = Fingerprint.observe
    patch.setattr(Fingerprint, "observe", observe)


def takes_new_locks_for_one(patch: pytest.MonkeyPatch) -> None:
    def named_lock(self: Steps, lock: object) -> frozenset[int]:
        return frozenset((self._tracker.name_of(id(lock)),))

    patch.setattr(Steps, "_named_lock", named_lock)


def waits_unheard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(special, "waits", lambda told: S)


@pytest.mark.parametrize(
    "toy,breaks",
    [
        (NEW_LOCKS, forgets_what_was_there),
        (NEW_GUARDS, takes_new_locks_for_one),
        (NEW_QUEUE, waits_unheard),
    ],
)
def test_what_is_not_told_of_locks_that_a_run_makes_is_noticed(
    monkeypatch: pytest.MonkeyPatch, toy: Toy, breaks: Patch
) -> None:
    """They have no names, and all of them count as one, of which nothing is told."""
    compare(toy, 2)
    breaks(monkeypatch)
    with pytest.raises(AssertionError):
        compare(toy, 2)


class Everything(set[int]):
    """All numbers but those that were taken away."""

    def __init__(self) -> None:
        self.others: set[int] = set()

    def __contains__(self, number: object) -> bool:
        return number not in self.others

    def discard(self, number: int) -> None:
        self.others.add(number)


@pytest.mark.parametrize("kind", [Mutex, WaitQueue])
def test_a_new_lock_is_not_taken_for_what_was_where_it_is(kind: type[Mutex | WaitQueue]) -> None:
    """Of what is gone nobody asks. A lock that is made where such a thing was is told of."""
    searcher = Searcher(NEW_LOCKS, options_for(NEW_LOCKS, 1))
    try:
        searcher.prepare()
        assert searcher.tracker is not None
        searcher.tracker._gone = Everything()
        lock = kind(searcher.tracker.sim, "new")
        assert not searcher.tracker.is_gone(id(lock.waiters))
    finally:
        searcher.close()


def hands_nothing_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OwnState, "_named", lambda self, task, content: [])


def looks_no_further(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Contents, "of_parts", lambda self, obj: iter(()))


def keeps_frames(patch: pytest.MonkeyPatch) -> None:
    def leave(self: _Stack) -> None:
        frames, places = self.frames.copy(), self.places.copy()
        original(self)
        self.frames, self.places = frames, places

    original = _Stack.leave
    patch.setattr(_Stack, "leave", leave)


@pytest.mark.parametrize(
    "toy,breaks",
    [
        (HANDED_ON, hands_nothing_on),
        (CUT_OFF, looks_no_further),
        (USED_AGAIN, keeps_frames),
    ],
)
def test_a_name_follows_from_what_its_maker_did(
    monkeypatch: pytest.MonkeyPatch, toy: Toy, breaks: Patch
) -> None:
    """What a task made goes by the same name however others handle what they could get at, and
    whether or not its steps are looked at. That it does not is noticed."""
    for preemptions in (0, 1, 2):
        assert nr_misplaced(monkeypatch, toy, preemptions) == 0
    with monkeypatch.context() as patch:
        breaks(patch)
        assert nr_misplaced(monkeypatch, toy, 1) > 0


@pytest.mark.parametrize("toy,preemptions", [(HANDED_ON, 1), (HELD, 2)])
def test_two_objects_by_one_name_are_noticed(
    monkeypatch: pytest.MonkeyPatch, toy: Toy, preemptions: int
) -> None:
    """A search that gives the numbers of dead objects again, whoever had them, comes to other
    ends."""
    hands_nothing_on(monkeypatch)
    with pytest.raises(AssertionError):
        compare(toy, preemptions)


@pytest.mark.parametrize("preemptions", (0, 1))
def test_what_an_object_was_made_with_counts_when_it_may_be_otherwise(
    monkeypatch: pytest.MonkeyPatch, preemptions: int
) -> None:
    """Nobody writes to it later, so that reads of it are looked at only then. A search that never
    does misses ends."""
    compare(MADE_OTHERWISE, preemptions)
    monkeypatch.setattr(Making, "look", lambda *_: None)
    with pytest.raises(AssertionError):
        compare(MADE_OTHERWISE, preemptions)


@pytest.mark.parametrize("toy", LISTS, ids=lambda toy: toy.name)
@pytest.mark.parametrize("most", (0, 1))
def test_numbers_that_are_not_given_again(
    monkeypatch: pytest.MonkeyPatch, toy: Toy, most: int
) -> None:
    """Where no more than so many numbers of a class are given again, the same is found."""
    monkeypatch.setattr(own, "REUSED_MAX", most)
    assert nr_misplaced(monkeypatch, toy, 2) == 0
    compare(toy, 2)


# Who takes a node out stands where it stood, whichever it took: the word of what is left does not.
TAKEN_OUT = Toy("taken-out", [(("pair", 3), ("pair", 4)), (("pop",),), (("pop",),)])


def test_contents_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wrote them, and what he saw, stands for them; and all that he has may be in them."""
    of_slot = Contents.of_slot

    def blind(self: Contents, obj: object, k: int) -> int | None:
        return None if isinstance(obj, ToyState) else of_slot(self, obj, k)

    monkeypatch.setattr(Contents, "of_slot", blind)
    for toy in (TAKEN_OUT, *LISTS):
        assert nr_misplaced(monkeypatch, toy, 2) == 0
        compare(toy, 2)
    hands_nothing_on(monkeypatch)
    assert nr_misplaced(monkeypatch, HANDED_ON, 2) > 0
