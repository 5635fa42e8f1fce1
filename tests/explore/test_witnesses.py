"""Witnesses of scenarios that are about a race: one preemption reaches them, and programs that run
one after the other do not, so that a verdict "held" says that the race was met."""

import pytest

from septum.explore import Options, Outcome, Strategy, Verdict, explore
from septum.explore.scenario import ScenarioSubject

RACES = [
    "accept-against-convert",
    "convert-against-convert",
    "convert-against-fault",
    "convert-against-fault-there",
    "finding-spinning-on-folio",
    "host-fault-against-convert",
    "prefault-by-thread",
    "slot-delete-against-prefault",
    "write-against-convert",
]


def searched(subject: ScenarioSubject, strategy: Strategy, preemptions: int) -> Verdict:
    """All within so many preemptions, and without failures: those may reach a witness, too."""
    options = Options(strategy=strategy, preemptions=preemptions, failures=0, keep_going=True)
    verdict = explore(subject, options)
    assert verdict.complete
    return verdict


@pytest.mark.parametrize("name", RACES)
def test_a_race_is_met_by_a_preemption_and_by_nothing_less(name: str) -> None:
    subject = ScenarioSubject(name, "v3", "end")
    declared = [witness.name for witness in subject.witnesses]
    assert declared
    in_turn = searched(subject, Strategy.PLAIN, preemptions=0)
    assert (in_turn.outcome, in_turn.missing_witnesses) == (Outcome.UNDETERMINED, declared)
    racing = searched(subject, Strategy.EXHAUSTIVE, preemptions=1)
    assert (racing.outcome, racing.missing_witnesses) == (Outcome.HELD, [])
