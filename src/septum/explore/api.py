"""`explore`: the search as a whole, from a subject and options to a verdict."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from septum.explore import budget
from septum.explore.bounds import WORKERS_MAX, searched_text
from septum.explore.progress import Progress
from septum.explore.runs.portfolio import RUNS_MAX, Batch, Portfolio, batch_sizes, nr_batches
from septum.explore.runs.run import DidNotRepeat, OutOfTime
from septum.explore.runs.shrink import Shrunk, kind_of, shrink, words_of
from septum.explore.subject import UNBOUNDED, Strategy
from septum.explore.verdict import Counterexample, Outcome, Verdict
from septum.explore.workers.parallel import Workers
from septum.explore.workers.search import Found, Job, JobResult, Searcher, found_by
from septum.explore.workers.split import split
from septum.sim import ListSchedule, encode_token
from septum.sim.schedule import SEARCHED
from septum.stamp import stamp
from septum.words import plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.explore.runs.run import Runner
    from septum.explore.subject import Options, Subject

JOBS_MIN, JOBS_MAX = 8, WORKERS_MAX
JOB_STATES = 40
"""The search within a bound is cut into one job for so many states of that without preemptions."""
LEVELS_MAX = 8
"""Up to so many preemptions are searched one by one; a bound above that comes next."""
EXAMPLES_MAX = 12
NOTHING_FAILS = "nothing fails here: the scenario's [failures] allow names no choice point"


class Totals:
    """What all jobs saw together."""

    __slots__ = (
        "broke",
        "coverage",
        "drawn",
        "foreseen",
        "found",
        "ignored",
        "notes",
        "schedules",
        "started",
        "states",
        "steps",
    )

    def __init__(self) -> None:
        self.schedules = 0
        self.steps = 0
        self.states = 0
        self.found: list[Found] = []
        self.coverage: dict[str, int] = {}
        self.notes: list[str] = []
        self.foreseen: dict[tuple[str, str], str] = {}  # by what makes findings the same
        self.ignored: dict[tuple[str, str], str] = {}
        self.broke: set[tuple[str, str]] = set()  # all of what is foreseen
        self.drawn: dict[str, int] = {}  # random schedules, by kind
        self.started = budget.now()

    def add(self, result: JobResult) -> None:
        """Add a job's result."""
        self.schedules += result.schedules
        self.steps += result.steps
        self.states += result.states
        self.found += result.found
        for into, told in ((self.foreseen, result.foreseen), (self.ignored, result.ignored)):
            for promise, text in told:
                into.setdefault(words_of(promise, text), f"{promise}: {text}")
        for item, count in result.coverage.items():
            self.coverage[item] = self.coverage.get(item, 0) + count
        self.broke.update(result.foreseen)
        if result.note and result.note not in self.notes:
            self.notes.append(result.note)


class Search:
    """One search under way."""

    __slots__ = (
        "_last_number",
        "_local",
        "_nr_jobs",
        "_options",
        "_sizes",
        "_subject",
        "_until",
        "_workers",
        "level",
        "progress",
        "totals",
    )

    def __init__(self, subject: Subject, options: Options) -> None:
        self.totals = Totals()
        if options.failures and not subject.may_fail:
            options = msgspec.structs.replace(options, failures=0)
            self.totals.notes.append(NOTHING_FAILS)
        self._subject = subject
        self._options = options
        on = f"{subject.name} on {subject.design}" if subject.design else subject.name
        self.progress = Progress(on, options)
        self._until = budget.after(options.time_s)
        self._local = Searcher(subject, options, self._until)
        self._workers = Workers(subject, options, self._local)
        self._last_number = 0  # of the jobs made so far
        self._nr_jobs = JOBS_MIN  # that the next search within bounds is cut into
        self._sizes: list[tuple[list[int], int]] = []  # prefixes of the last level, and states
        self.progress.running = self._workers.nr_runs
        self.level = -1

    def start(self) -> None:
        """Fork, when more than one worker is wanted: before anybody has a thread."""
        self._workers.start()

    def close(self) -> None:
        """Nothing more is asked of it."""
        self._local.runner.close()

    def run(self) -> Verdict:
        """The whole search, from `start` on."""
        options = self._options
        try:
            complete, why = self._by_strategy(options.strategy)
        except KeyboardInterrupt:
            # Between two jobs. What those before it found is in the totals.
            self._workers.interrupted = True
            complete, why = False, "interrupted"
        finally:
            self._workers.stop()
            self._local.runner.until = 0.0
            self._local.close()
        timed_out = not complete and self._out_of_time()
        return self._verdict(complete, why, timed_out=timed_out)

    def _verdict(self, complete: bool, why: str, *, timed_out: bool) -> Verdict:
        """`why`: what a complete search went through, or what ended it before."""
        options = self._options
        examples = self._examples()
        if examples:
            outcome = Outcome.BROKEN
        else:
            outcome = Outcome.HELD if complete else Outcome.UNDETERMINED
        missing = [
            witness.name
            for witness in self._subject.witnesses
            if not witness.is_in(self.totals.coverage)
        ]
        if missing and outcome is Outcome.HELD:
            outcome = Outcome.UNDETERMINED
            why += f"; never reached: {', '.join(missing)}"
        unbroken = self._subject.unbroken(self.totals.broke) if complete else []
        if outcome is Outcome.HELD and set(unbroken) & set(self._subject.must_break):
            outcome = Outcome.BROKEN
        return Verdict(
            outcome=outcome,
            subject=self._subject.name,
            design=self._subject.design,
            strategy=options.strategy.value,
            seed=options.seed,
            preemptions=options.preemptions,
            failures=options.failures,
            complete=complete,
            why="; ".join([why, *self._workers.lost, *self.totals.notes]),
            schedules=self.totals.schedules,
            states=self.totals.states,
            steps=self.totals.steps,
            seconds=budget.now() - self.totals.started,
            counterexamples=examples,
            coverage=dict(sorted(self.totals.coverage.items())),
            missing_witnesses=missing,
            drawn=self.totals.drawn,
            foreseen=sorted(self.totals.foreseen.values()),
            unbroken=unbroken,
            ignored=sorted(self.totals.ignored.values()),
            interrupted=self._workers.interrupted,
            level=self.level,
            timed_out=timed_out,
        )

    def _by_strategy(self, strategy: Strategy) -> tuple[bool, str]:
        if strategy in (Strategy.PCT, Strategy.RANDOM):
            limit = self._options.schedules
            if limit is None and not self._until:
                limit = 1000
            return False, self._sample(strategy, limit)
        if strategy is Strategy.AUTO and self._local.decides:
            self._draw(Portfolio(min(RUNS_MAX, self._options.schedules or RUNS_MAX)))
            if self._stop_now():
                return False, self._why_sampled("")
        return self._exhaust()

    def _stop_now(self) -> bool:
        return (
            self._workers.interrupted
            or bool(self._workers.lost)
            or self._out_of_time()
            or (bool(self.totals.found) and not self._options.keep_going)
        )

    def _out_of_time(self) -> bool:
        return budget.passed(self._until)

    def _do(self, jobs: Iterator[Job]) -> list[JobResult]:
        results = self._workers.do(jobs, self.progress.told, not self._options.keep_going)
        for result in results:
            self.totals.add(result)
        return results

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    # Random

    def _draw(self, portfolio: Portfolio) -> None:
        """Schedules of several kinds, as long as that pays."""
        while batches := portfolio.draw():
            self.progress.begin("random schedules", len(batches))
            jobs = [self._batch(batch) for batch in batches]
            results = self._do(iter(jobs))
            by_number = {result.number: result for result in results}
            told = [
                (batch, by_number[job.number])
                for batch, job in zip(batches, jobs, strict=True)
                if job.number in by_number
            ]
            for batch, result in told:
                name = batch.dice.name
                self.totals.drawn[name] = self.totals.drawn.get(name, 0) + result.schedules
            if self._stop_now() or len(results) < len(jobs):
                break
            portfolio.learn([(batch, result.outcomes, result.steps) for batch, result in told])

    def _batch(self, batch: Batch) -> Job:
        return Job(
            self._next_number(),
            batch.dice.strategy,
            first=batch.number(),
            count=batch.count,
            stride=batch.dice.stride,
            compares=True,
            until=self._until,
        )

    def _sample(self, strategy: Strategy, limit: int | None) -> str:
        """Schedules of one strategy, and nothing else."""
        parts = nr_batches(limit) if limit is not None else 0
        how = " (PCT)" if strategy is Strategy.PCT else ""
        self.progress.begin(f"random schedules{how}", parts)
        self._do(self._batches(strategy, limit))
        return self._why_sampled(how)

    def _why_sampled(self, how: str) -> str:
        if self._workers.interrupted:
            return "interrupted"
        if self.totals.found:
            return f"found by random schedules{how}"
        if not self.totals.schedules and self._out_of_time():
            return "time ran out before a single schedule was through"
        return f"{plural(self.totals.schedules, 'random schedule')}{how} broke nothing"

    def _batches(self, strategy: Strategy, limit: int | None) -> Iterator[Job]:
        done = 0
        for count in batch_sizes(limit):
            if self._out_of_time():
                break
            yield Job(self._next_number(), strategy, first=done, count=count, until=self._until)
            done += count

    # Exhaustive

    def _exhaust(self) -> tuple[bool, str]:
        options = self._options
        bound = options.max_preemptions()
        one_by_one = 2 if bound == UNBOUNDED else min(bound, LEVELS_MAX)
        levels = sorted({*range(one_by_one + 1), bound})
        if self._plain:
            levels = [bound]
        # Failures multiply what there is to search: without them first, which says more sooner.
        rounds = [(level, 0) for level in levels]
        if options.failures:
            rounds = [*rounds, *((level, options.failures) for level in levels)]
        if len(levels) == 1:
            rounds = rounds[-1:]
        done = ""
        for level, failures in rounds:
            words = searched_text(level, failures)
            if done:
                if self._stop_now():
                    return False, f"{self._why_stopped()} before the search of {words}; {done}"
                self._workers.spread()
            if not self._level(level, failures):
                why = f"{self._why_stopped()} in the search of {words}"
                return False, f"{why}; {done or 'complete: nothing'}"
            done = f"complete: {words}"
            if failures == options.failures:
                self.level = level
        return True, done

    def _why_stopped(self) -> str:
        if self._workers.interrupted:
            return "interrupted"
        if self.totals.found and not self._options.keep_going:
            return "found"
        if self._workers.lost:
            return "not all workers were left"
        return "a budget ran out"

    @property
    def _plain(self) -> bool:
        """Every schedule, one by one: also where there is a single one."""
        return self._options.strategy is Strategy.PLAIN or not self._local.decides

    def _level(self, preemptions: int, failures: int) -> bool:
        """Search everything within these bounds, cut into jobs. Whether all of it was searched."""
        options = self._options
        single = self._plain or preemptions == 0
        bounds = msgspec.structs.replace(options, failures=failures)
        try:
            prefixes = (
                [[]] if single else split(self._local.runner, bounds, preemptions, self._nr_jobs)
            )
        except OutOfTime:
            return False
        schedules_max = 0
        if options.schedules is not None:
            left = options.schedules - self.totals.schedules
            if left <= 0:
                return False
            schedules_max = max(1, left // len(prefixes))
        jobs = [
            Job(
                self._next_number(),
                Strategy.PLAIN if self._plain else Strategy.EXHAUSTIVE,
                preemptions=preemptions,
                failures=failures,
                prefix=prefix,
                schedules_max=schedules_max,
                until=self._until,
            )
            for prefix in prefixes
        ]
        self.progress.begin(searched_text(preemptions, failures), len(jobs))
        results = self._do(iter(self._longest_first(jobs)))
        states_of = {result.number: result.states for result in results}
        self._sizes = [(job.prefix, states_of.get(job.number, 0)) for job in jobs]
        if single:
            states = sum(result.states for result in results)
            self._nr_jobs = min(JOBS_MAX, max(JOBS_MIN, states // JOB_STATES))
        return len(results) == len(jobs) and all(result.complete for result in results)

    def _longest_first(self, jobs: list[Job]) -> list[Job]:
        """Jobs in the order in which several workers are to do them, so that none has a long one
        when all others are through. How long one takes goes by the states that were found below its
        prefix within fewer preemptions.

        A process that does all by itself keeps their order, and so does a search that goes on after
        what it finds: what a worker has explored it does not enter again for another job, and the
        first that comes there tells.
        """
        if self._options.workers < 2 or self._options.keep_going:
            return jobs
        return sorted(jobs, key=lambda job: -self._size_below(job.prefix))

    def _size_below(self, prefix: list[int]) -> int:
        lengths = ((min(len(one), len(prefix)), one, states) for one, states in self._sizes)
        return sum(states for n, one, states in lengths if one[:n] == prefix[:n])

    # Counterexamples

    def _examples(self) -> list[Counterexample]:
        examples: list[Counterexample] = []
        until = budget.after(budget.shrinking_s(self._options.time_s))
        seen: set[tuple[str, str]] = set()
        for found in self.totals.found:
            kind = kind_of(found.finding)
            if self._options.per_promise:
                kind = (kind[0], "")
            if kind in seen or len(examples) >= EXAMPLES_MAX:
                continue
            seen.add(kind)
            examples.append(self._example(found, until))
        return examples

    def _shrunk(self, found: Found, until: float) -> Shrunk | None:
        """What a finding shrinks to; None when the user interrupts that. Raises DidNotRepeat."""
        # What runs leave behind must not make a smaller schedule look as if it broke, too.
        self._local.runner.verify_every = 1
        try:
            shrunk = shrink(self._local.runner, found.answers, found.free, until)
        except KeyboardInterrupt:
            self._workers.interrupted = True
            return None
        if shrunk is None or shrunk.run.finding is None:
            finding = found.finding
            raise DidNotRepeat(f"a finding did not repeat: {finding.promise}: {finding.text}")
        self._workers.interrupted |= shrunk.interrupted
        return shrunk

    def _example(self, found: Found, until: float) -> Counterexample:
        shrunk = self._shrunk(found, until) if self._options.shrink else None
        if shrunk is None:
            least, told = found, found.answers[: found.fair_from]
        else:
            least, told = found_by(shrunk.run), shrunk.answers
        schedule = ListSchedule(list(least.answers), SEARCHED, least.free)
        token = encode_token(stamp(), self._subject.recipe, schedule)
        return Counterexample(
            finding=least.finding,
            answers=told,
            steps=least.steps,
            preemptions=least.preemptions,
            failures=least.failures,
            first_steps=found.steps,
            first_preemptions=found.preemptions,
            first_failures=found.failures,
            token=token,
            free=list(least.free),
            passing=None if shrunk is None else shrunk.passing,
            late=self._options.shrink and (shrunk is None or shrunk.late),
        )

    @property
    def runner(self) -> Runner:
        """The world of this process, for stories."""
        return self._local.runner


def explore(subject: Subject, options: Options) -> Verdict:
    """Search the schedules of `subject` within the bounds of `options`."""
    with closing(Search(subject, options)) as search:
        search.start()
        return search.run()
