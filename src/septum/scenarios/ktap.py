"""A scenario's run as KTAP: a subtest for each promise, one for what the scenario expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.report.ktap import Case

if TYPE_CHECKING:
    from septum.scenarios.outcome import ScenarioOutcome

EXPECTATIONS = "expectations"


def outcome_case(outcome: ScenarioOutcome) -> Case:
    """The run as a test with subtests. A break that the scenario foresees is XFAIL."""
    foreseen = {
        finding.promise: known
        for finding, known in reversed(list(zip(outcome.findings, outcome.foreseen, strict=True)))
    }
    texts = {finding.promise: finding.text for finding in reversed(outcome.findings)}
    subtests = []
    for name in dict.fromkeys((*outcome.promises, *texts)):
        if name not in texts:
            subtests.append(Case(name))
        elif foreseen[name]:
            subtests.append(Case(name, directive="XFAIL", data=texts[name]))
        else:
            subtests.append(Case(name, ok=False, data=texts[name]))
    unmet = [text for text in outcome.unmet if not text.startswith("promise ")]
    subtests.append(Case(EXPECTATIONS, ok=not unmet, diagnostics=unmet))
    return Case(
        f"{outcome.scenario}:{outcome.design}",
        ok=outcome.ok,
        diagnostics=[f"replay: septum replay {outcome.token}"],
        subtests=subtests,
    )
