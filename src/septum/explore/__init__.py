"""Search over schedules and failures of a small scenario, and the shortest story of what broke.

A `Subject` says what is run; `explore` runs it under every schedule within bounds, or under many
random ones, and returns a `Verdict`. Nothing here knows the model: it drives plain code through
`Sim.point` and `Sim.choose`.
"""

from septum.explore.api import explore
from septum.explore.subject import Built, Options, Strategy, Subject, Witness
from septum.explore.verdict import Counterexample, Outcome, Verdict

__all__ = [
    "Built",
    "Counterexample",
    "Options",
    "Outcome",
    "Strategy",
    "Subject",
    "Verdict",
    "Witness",
    "explore",
]
