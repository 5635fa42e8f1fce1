"""Search over schedules and failures of a small scenario, and the shortest story of what broke.

A `Subject` says what is run; `explore` runs it under every schedule within bounds, or under many
random ones, and returns a `Verdict`. It drives plain code through `Sim.point` and `Sim.choose`, and
the model does not know of it. What a search knows of the model is in `tracking` and `states` (which
slots are statistics, what a page table is), in `covering` and `stories` (words), and in `scenario`.

From the ground up: `tracking` tells what a step of a run touches, `states` what is one state;
`runs` makes runs under schedules, drawn or written down; `exhaustive` goes through all states
within the bounds, `workers` does so on all cores. `covering` says what was reached, `stories` what
broke, and why. The modules beside these are what others call: the command, subjects, verdicts,
replays, tests.
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
