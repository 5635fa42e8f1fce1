"""The story of what is seen late ends where the damage is done, and what it says is true there."""

import re

import msgspec
import pytest

from septum.explore.api import Search
from septum.explore.command import stories
from septum.explore.replay import find_subject
from septum.explore.runs.run import Runner
from septum.explore.runs.steering import Replaying
from septum.explore.stories.damage import Damage, damage_of
from septum.explore.stories.parting import first_difference
from septum.explore.stories.recording import Recording
from septum.explore.verdict import Counterexample, Verdict
from septum.explore.wanted import Wanted
from septum.module.events import SeamcallEvent

SEEN_LATE = ("convert-against-fault-there", "bug-seq-not-checked")


class Found:
    """What a search found, and its stories: as it is told, and whole."""

    def __init__(self, scenario: str, design: str, check: str = "end") -> None:
        subject = find_subject(scenario, design, check)
        search = Search(subject, Wanted().options(subject))
        search.start()
        self.verdict: Verdict = search.run()
        self.runner: Runner = search.runner
        (self.example,) = self.verdict.counterexamples
        (self.told,) = stories(self.verdict, self.runner, [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "septum.explore.stories.telling.damage_of",
                lambda runner, example, recording, **_: Damage(example, recording),
            )
            (self.whole,) = stories(self.verdict, self.runner, [])

    def recording(self) -> Recording:
        example = self.example
        return Recording(self.runner, example.answers, example.finding, example.free)

    def damage(self, example: Counterexample | None = None) -> Damage:
        return damage_of(self.runner, example or self.example, self.recording())


def rows(story: list[str]) -> list[str]:
    """The ladder."""
    first = next(at for at, line in enumerate(story) if line.startswith("        + "))
    return story[first : story.index("", first)]


def joined(story: list[str]) -> str:
    return " ".join(" ".join(story).split())


@pytest.mark.parametrize(
    ("scenario", "design", "last", "why"),
    [
        (*SEEN_LATE, "TDH.MEM.PAGE.AUG", "step 9: it"),
        ("host-fault-against-convert", "bug-host-fault-unlocked", "TDH.MEM.PAGE.AUG", ""),
        (
            "convert-one-page",
            "bug-module-demote-pending",
            "TDH.MEM.PAGE.DEMOTE",
            "and is 4K pending since step 21 (TDH.MEM.PAGE.DEMOTE of vcpu0)",
        ),
    ],
)
def test_it_ends_where_the_damage_is_done(scenario: str, design: str, last: str, why: str) -> None:
    """With the step that does it, and above that it is the whole story, line by line."""
    found = Found(scenario, design)
    told, whole = rows(found.told), rows(found.whole)
    assert len(told) < len(whole)
    assert told[:-1] == whole[: len(told) - 1]
    assert " XX " in told[-1] and f"promise {found.example.finding.promise} is" in told[-1]
    steps = [line for line in told if re.match(r" *\d+ ", line)]
    assert last in steps[-2]
    text = joined(found.told)
    assert "The story is cut where the damage is done" in text
    assert "The search, with --check end, saw " in text
    assert why in text.partition("Why: ")[2]


def test_what_the_search_said_stays() -> None:
    """The token is of the whole run, which breaks the promise in the search's words."""
    found = Found(*SEEN_LATE)
    said = found.example.finding
    assert (said.task, said.where) == ("main", "end of the programs")
    run = found.runner.run(Replaying(found.example.answers, found.example.free))
    assert run.finding == said
    assert found.told[:5] == found.whole[:5]  # verdict and token
    assert "saw the same later (main, end of the programs)." in joined(found.told)
    (size,) = (line for line in found.told if line.startswith("The shortest schedule"))
    assert size in found.whole


def test_what_the_cut_hides_is_counted() -> None:
    """A schedule is as long as the search says; the ladder may end before its last preemption."""
    found = Found(*SEEN_LATE)
    assert "Not shown" not in found.damage().cut
    more = msgspec.structs.replace(found.example, preemptions=found.example.preemptions + 1)
    assert "Not shown, as later: 1 of the schedule's preemptions" in found.damage(more).cut


def test_what_is_seen_at_once_is_told_as_it_is() -> None:
    found = Found("convert-against-write", "bug-no-kick")
    assert found.told == found.whole
    damage = found.damage()
    assert (damage.cut, damage.other, damage.example) == ("", None, found.example)


def test_the_schedule_that_passes_does_so_at_every_step() -> None:
    """The search's own, where it parts before the damage; never one that parts after it, nor one
    that does damage which is mended in the end."""
    found = Found(*SEEN_LATE)
    example, damage = found.example, found.damage()
    assert damage.example.passing == example.passing is not None
    nr = damage.recording.beats[-1].decision + 1
    late = [*example.answers, *[0] * (nr + 2 - len(example.answers)), 1]
    assert first_difference(example.answers, late) > nr
    for passing in (late, None):
        other = found.damage(msgspec.structs.replace(example, passing=passing))
        assert other.example.passing is not None
        assert first_difference(example.answers, other.example.passing) <= nr
        careful = Runner(find_subject(*SEEN_LATE, "every-step"), found.runner.options)
        assert careful.run(Replaying(other.example.passing)).finding is None
        assert careful.run(Replaying(example.answers)).finding is not None


@pytest.mark.parametrize(
    ("scenario", "design", "says"),
    [
        (
            "convert-straddling-per-vm",
            "bug-split-head-only",
            "precise-zap is broken there, too, at step 31",
        ),
        ("fault-against-fault", "bug-not-frozen", "mirror is broken before that, at step 5"),
    ],
)
def test_another_promise_that_breaks_before_is_said(scenario: str, design: str, says: str) -> None:
    """Where the damage of what comes to a KVM_BUG_ON, or to the guest, is done long before."""
    found = Found(scenario, design)
    assert f"with every step looked at, {says}" in joined(found.told)
    assert "looked at at every step" not in joined(found.whole)


def test_nothing_is_told_of_what_unwinding_does() -> None:
    """A task that is ended where a promise breaks gives its locks back in no run."""
    last = Found(*SEEN_LATE, "every-step").recording().beats[-1]
    assert isinstance(last.event, SeamcallEvent)
    assert last.state is not None and last.state.locks["vm1 mmu_lock"] == (("vcpu0", "sh"),)


def test_what_the_scenario_foresees_is_no_end() -> None:
    """It is told where it happens; only the last row is marked, what the story is of."""
    ladder = rows(Found("dead-vm-closes", "bug-dead-vm-keeps-pages").told)
    assert [line for line in ladder if " XX " in line] == [ladder[-1]]
    assert "promise no-bug is broken" in ladder[-1]
    assert any("breaks, as the scenario foresees: accept-once" in line for line in ladder)
