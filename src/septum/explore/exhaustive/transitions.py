"""Steps that were made once, so that they need not be made again.

What a step of a task does is a function of where the task stands (its chain), of whether it is
alone, of how its choice points come out, and of the contents that it looks at. A step that was made
in a real run is kept with what it saw; wherever the same task stands in the same place and would
see the same, the step is known, and a search applies it to a state without running the model.
Every step, wherever it is known from, was made by the model once, or one that looked at the same
was (`alike`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.exhaustive.alike import Alike, Like, own_seen
from septum.explore.exhaustive.heard import learn_of, look_at
from septum.explore.exhaustive.judged import JudgedEnds
from septum.explore.exhaustive.known import DONE, POINT, Ends, Step
from septum.explore.exhaustive.visited import Visited
from septum.explore.runs.run import Abandoned
from septum.explore.states.fingerprint import (
    CHAINS,
    CONTENTS,
    SHOWN,
    WHOLES,
    ZERO,
    Change,
    Fingerprint,
    Mark,
    Write,
    kinds_of,
)
from septum.explore.states.stand import Stand
from septum.explore.tracking.footprint import X, join
from septum.explore.tracking.locations import EVERYWHERE, RESULTS, VIEW

if TYPE_CHECKING:
    from septum.explore.exhaustive.alike import Others
    from septum.explore.exhaustive.heard import Key
    from septum.explore.exhaustive.known import Choice, Look
    from septum.explore.exhaustive.tails import Kind, Tail
    from septum.explore.states.stand import Own
    from septum.explore.tracking.track import Tracker
    from septum.explore.workers.exchange import Exchange
    from septum.sim import Finding


class Unfaithful(Abandoned):
    """A step came out in two ways though it saw the same: something that matters is not seen."""


class Transitions:
    """All steps known, of one world. `forgets`: of a task that has ended, only what it left behind
    and the results of its operations that are not right matter, not how it came to them; with
    `keeps`, all that it left, and not only what those look at who judge."""

    __slots__ = (
        "_observed",
        "_steps",
        "_tracker",
        "alike",
        "ends",
        "exchange",
        "forgets",
        "keeps",
        "looks",
        "nr_known",
        "nr_learning",
        "tails",
        "visited",
    )

    def __init__(self, tracker: Tracker, forgets: bool, *, keeps: bool) -> None:
        self._tracker = tracker
        self.forgets = forgets
        self.keeps = keeps
        self._steps: dict[tuple[int, int, bool], list[Step]] = {}
        self.alike = Alike(tracker)
        self.nr_known = 0
        self.nr_learning = 0  # real runs in which steps were learned
        self._observed = {0}  # chains that stand for all that a task observed
        # What the promises said: in a step in which they looked, by what they could see when it
        # began, and where runs ended.
        self.looks: dict[Look, Finding | None] = {}
        self.ends = JudgedEnds()
        self.visited = Visited()
        self.tails: dict[tuple[Kind, int], list[Tail]] = {}  # steps in a row, by where they begin
        self.exchange: Exchange | None = None  # with other workers

    def clear(self) -> None:
        """Forget all."""
        self._steps.clear()
        self._observed = {0}
        self.looks.clear()
        self.ends.clear()
        self.visited.clear()
        self.tails.clear()
        self.alike.clear()
        self.nr_known = self.nr_learning = 0

    def drop(self, news: set[int]) -> None:
        """Forget what lacks accesses of the locations `news`, which did not count until now, and
        what took them for one task's own."""
        self.visited.clear()
        self.tails.clear()
        self.alike.clear()
        if EVERYWHERE in news:
            self.clear()
            return
        touched = {*self._tracker.footprints.numbers_of(news)}
        disowned = self._tracker.footprints.disowned
        for key, steps in list(self._steps.items()):
            relied = disowned >> key[0] & 1
            left = [
                step
                for step in steps
                if touched.isdisjoint(step.touched) and not (relied and step.relies)
            ]
            if len(left) < len(steps):
                self.nr_known -= len(steps) - len(left)
                if left:
                    self._steps[key] = left
                else:
                    del self._steps[key]

    def find(
        self, state: Fingerprint, task: int, alone: bool, choices: tuple[int, ...]
    ) -> Step | None:
        """The step of `task` in `state` whose choice points come out as `choices`, and 0 after."""
        chain = state.chain(task)
        for step in self._steps.get((task, chain, alone), ()):
            if step.comes_out(choices) and state.sees(step.seen):
                return step
        stand = self.alike.stands.get(chain)
        if stand is None:
            return None
        found = self.alike.find(
            task,
            alone,
            stand,
            lambda step: step.comes_out(choices) and state.sees(step.seen),
        )
        if found is None:
            return None
        step = self._made_alike(*found, state, task, stand)
        self._steps.setdefault((task, chain, alone), []).append(step)
        return step

    def _made_alike(
        self, like: Like, others: Others, state: Fingerprint, task: int, stand: Stand
    ) -> Step:
        """The step of `task`, which stands at `stand` in `state`, that is made like another."""
        base = like.step
        chain = state.chain(task)
        step = base.copy()
        step.raw = hash((task, chain, base.observed)) or 1
        step.moved = like.moved_at(stand)
        if base.end == DONE:
            own = like.own_after(stand.own, others)
            step.chain = self._chain_of_ended(task, own)
        else:
            after = like.stand_after(stand, others, step.raw)
            own = after.own
            step.chain = chain_of(task, after)
            self.alike.stands.setdefault(step.chain, after)
            if base.end == POINT:
                step.place = after.place()
            if base.retries:
                step.retries = after.counted()
        writes: dict[tuple[int, int], int] = {}
        if step.chain != chain:
            writes[CHAINS, task] = step.chain
        shown = hash(own.shown) or ZERO
        if shown != state.tables[SHOWN].get(task):
            writes[SHOWN, task] = shown
        step.change = base.change.like(base.raw, step.raw, task, writes)
        mark = state.mark()
        state.learn(step.change, mark)
        state.rewind(mark)
        if self._tracker.watched.counts and step.change.shown and not base.change.shown:
            # It overwrites something that was otherwise before.
            views = self._tracker.footprints.views(task, False)[1]
            step.masks = join(step.masks, self._tracker.footprints.masks(views))
        return step

    def _chain_of_ended(self, task: int, left: Own) -> int:
        """What stands for a task that has ended."""
        return hash((DONE, task, hash(left.total if self.keeps else left.shown))) or 1

    def record(
        self, state: Fingerprint, task: int, alone: bool, choices: tuple[Choice, ...], ends: Ends
    ) -> Step:
        """A step was made in `state`, in the tracked world: keep it, and make `state` what it led
        to. Raises Unfaithful when it is known to come out otherwise."""
        tracker = self._tracker
        looked = tracker.steps.looked
        viewed = looked or tracker.steps.viewed
        kept, shared, made, touched = tracker.steps.take(task)
        kinds = kinds_of(shared)
        whole_of = tracker.footprints.whole_of
        met = _met(kinds, made, whole_of)
        kinds.update(dict.fromkeys(made, X))
        contents, handed_on = tracker.own.reach(task, state.written(kinds, tracker))
        untold = {at for at, content in contents.items() if content is None}
        observed, seen = state.observe(met, untold)
        values = tuple([choice.value for choice in choices])
        chain = state.chain(task)
        step = Step(seen, hash((observed, values, alone)), choices)
        step.raw = step.chain = hash((task, chain, step.observed)) or 1
        step.looked = looked
        step.looks_at = tuple(met)
        step.handed_on = handed_on
        step.makes = bool(tracker.steps.makes)
        step.end, step.woken = ends.end, ends.woken
        step.place, step.finding = ends.place, ends.finding
        after = self._stops(step, task, chain, ends)

        mark = state.mark()
        state.set(CHAINS, task, step.chain)
        # What a chain stands for that is all that was observed is not told apart by contents.
        own = after.own if isinstance(after, Stand) else after
        state.set(SHOWN, task, step.chain if own is None else hash(own.shown))
        state.write(kinds, step.raw, contents, tracker)
        step.numbers = bool(tracker.steps.results)
        for number, result in tracker.steps.results:
            state.set(CONTENTS, RESULTS | number, result)
        tracker.steps.results.clear()
        step.change = _change(state, mark, made, tracker.footprints.parts)
        state.learn(step.change, mark)
        step.wrote = step.change.locations(whole_of)

        if tracker.watched.counts and (viewed or step.change.shown or step.change.afresh):
            context, views = tracker.footprints.views(task, viewed)
            tracker.steps.accesses.append((context, views))
            kept |= views
            touched.add(VIEW)
        step.touched = tracker.footprints.numbers_of(touched)
        step.masks = tracker.footprints.masks(kept)
        return self._keep(step, (task, chain, alone), after, touched)

    def _stops(self, step: Step, task: int, chain: int, ends: Ends) -> Stand | Own | None:
        """Where `task`, which was at `chain`, stands after the step, or what it left if it has
        ended. None: that cannot be told, and the step's chain stands for all that was observed."""
        tracker = self._tracker
        after: Stand | Own | None = None
        if ends.task is not None:
            after = stand = tracker.stands(ends.task, step.raw)
            step.moved = tracker.stacks.moved
            if ends.end == POINT and ends.task.retrying:
                told = tracker.stacks.counted(ends.task) if stand is None else stand.counted()
                step.retries = told
            if stand is not None:
                step.chain = chain_of(task, stand)
                self.alike.stands.setdefault(step.chain, stand)
        if ends.end == DONE and self.forgets and ends.finding is None:
            after = left = tracker.left_behind(task)
            if left is not None:
                step.chain = self._chain_of_ended(task, left)
        if after is None:
            self._observed.add(step.chain)
        else:
            step.left = tuple(tracker.own.noted)
            step.relies = chain in self._observed
        return after

    def _keep(self, step: Step, key: Key, after: Stand | Own | None, touched: set[int]) -> Step:
        """The step that is known from now on: one that was known already, or this one. Raises
        Unfaithful when they came out in two ways."""
        same = self._known(*key, step)
        if same is not None:
            if same.effect() != step.effect() and not step.finding and not same.finding:
                raise Unfaithful(
                    f"a step of task {key[0]} came out in two ways, by {_difference(same, step)}"
                )
            same.hearsay = False
            return same
        if step.finding is None or not step.looked:
            self._steps.setdefault(key, []).append(step)
            self.nr_known += 1
            if after is not None and not step.finding:
                self._keep_like(step, key, after, touched)
            if self.exchange is not None and step.finding is None:
                self.exchange.tell(key, step, self._tracker)
        return step

    def _keep_like(self, step: Step, key: Key, after: Stand | Own, touched: set[int]) -> None:
        """A step was made that `touched` these locations: it may be known elsewhere."""
        tracker = self._tracker
        task, chain, alone = key
        before = self.alike.stands.get(chain)
        if before is None:
            return
        accesses = [one for _, one in tracker.steps.accesses]
        own = after.own if isinstance(after, Stand) else after
        seen = own_seen(touched, accesses, before.own, own, tracker)
        if seen is not None:
            step.like = Like(step, before, after, seen, tracker.watched)
            self.alike.add(task, alone, step.like)

    def hear(self) -> bool:
        """Take over what other workers have learned. Whether there was anything. Where it shows
        that more is shared, that is news."""
        if self.exchange is None:
            return False
        footprints = self._tracker.footprints
        batches = self.exchange.hear()
        for batch in batches:
            for one in batch.opened - footprints.opened:
                look_at(one, self._tracker)
            for told in batch.steps:
                learn_of(told, footprints)
            agrees = batch.tag == self.exchange.tag and not footprints.news
            if agrees:
                for key, step, *_ in batch.steps:
                    self._take_over(key, step)
                self.ends.update(batch.ends)
                self.looks.update(dict.fromkeys(batch.looks))
            if batch.been is not None:
                inbox = self.exchange.inbox
                inbox.hear(batch.been)
                if agrees:
                    for at, visit in inbox.visits(batch.been):
                        self.visited.hear(at, visit)
        return bool(batches)

    def _take_over(self, key: Key, step: Step) -> None:
        if self._known(*key, step) is None:
            step.hearsay = True
            self._steps.setdefault(key, []).append(step)
            self.nr_known += 1
            if step.chain == step.raw:
                self._observed.add(step.chain)
            if step.like is not None:
                task, chain, alone = key
                self.alike.add(task, alone, step.like)
                before = self.alike.stands.get(chain)
                others = None
                if before is not None and step.end != DONE:
                    others = step.like.others_at(before, self._tracker)
                if before is not None and others is not None:
                    after = step.like.stand_after(before, others, step.raw)
                    self.alike.stands.setdefault(step.chain, after)

    def _known(self, task: int, chain: int, alone: bool, step: Step) -> Step | None:
        answers = step.answers
        for known in self._steps.get((task, chain, alone), ()):
            if known.seen == step.seen and known.answers == answers:
                return known
        return None


def chain_of(task: int, stand: Stand) -> int:
    """What stands for a task that stops there."""
    return hash((POINT, task, stand.digest())) or 1


def _met(kinds: dict[int, int], made: set[int], whole_of: dict[int, int]) -> dict[int, int]:
    """What a step found of the locations that it touched: what it `made` it finds as it made it."""
    if not made:
        return kinds
    return {
        at: kind for at, kind in kinds.items() if at not in made and whole_of.get(at) not in made
    }


def _change(state: Fingerprint, mark: Mark, made: set[int], parts: dict[int, list[int]]) -> Change:
    """What a step wrote since `mark`. What it `made` may have been anything before: objects have
    the numbers of others that are gone. (What can be seen of its task follows from its chain.)"""
    emptied = sorted(made & parts.keys())
    inside = [*emptied]
    for at in inside:
        inside += parts.get(at, ())  # and the parts of parts
    afresh: list[Write] = []
    anew: set[tuple[int, int]] = set()
    for table, locations in ((WHOLES, {*inside}), (CONTENTS, {*made, *inside})):
        entries = state.tables[table]
        anew |= {(table, at) for at in locations}
        afresh += [(table, at, entries[at]) for at in sorted(locations & entries.keys())]
    writes = sorted(write for write in state.since(mark) if write[:2] not in anew)
    return Change(tuple(writes), tuple(afresh), tuple(emptied))


def _difference(a: Step, b: Step) -> str:
    names = ("where it stood", "what it saw", "its end", "who woke", "what it wrote", "its place")
    for name, x, y in zip(names, a.effect(), b.effect(), strict=True):
        if x != y:
            return name
    return "nothing"
