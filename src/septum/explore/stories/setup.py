"""What a setup breaks, event by event: the world is built once more, and watched from the first."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from septum.explore.scenario import ScenarioSubject
from septum.explore.stories.module_watch import call_under_way
from septum.explore.stories.recording import Recorded, beat_of
from septum.explore.stories.watching import Watch
from septum.explore.stories.why_waits import flags_waited
from septum.scenarios.world import ScenarioWorld
from septum.sim.events import FindingEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.runs.run import Runner
    from septum.sim import Finding
    from septum.sim.events import Event

OF_STEP = "in "
EVENTS_MAX = 20_000
"""To look at the world at each of more takes longer than anybody waits."""


class SetupRecording(Recorded):
    """What is done before the programs begin, in the step that breaks a promise, up to there, or
    that does not come to what it should: `place`. No beats where there are too many."""

    __slots__ = (
        "_ended",
        "_finding",
        "_runner",
        "_watch",
        "_world",
        "place",
    )

    def __init__(self, runner: Runner, finding: Finding) -> None:
        super().__init__()
        self.place = ""
        self._ended = False
        self._runner = runner
        self._finding = finding
        subject = runner.subject
        assert isinstance(subject, ScenarioSubject)
        world = ScenarioWorld(subject.scenario, subject.design, subject.check, self._begin)
        with closing(world.world):
            vmms = world.vmms.items()
            self.names = {f"vm{vmm.kvm.id}": name for name, vmm in vmms if vmm.kvm is not None}
        if len(self.beats) > EVENTS_MAX:
            self.beats = []
        self.tasks = list(dict.fromkeys(beat.event.task for beat in self.beats)) or [finding.task]

    def unseen(self) -> Exception | None:
        return self._watch.error

    def _begin(self, world: ScenarioWorld) -> Callable[[Event], None]:
        self._world = world
        self._watch = Watch(world.world)
        return self._see

    def _see(self, event: Event) -> None:
        if self._ended or self._came_out_wrong():
            return
        if isinstance(event, FindingEvent) and self._is_end(event):
            self.call = call_under_way()
            self._ended = True
            self.held = self._watch.end(event.task, len(self.beats))
            self.flags = flags_waited(self._world)
            return
        begins = ""
        if self._world.setup_at != self.place:
            begins = self._next()
        if len(self.beats) > EVENTS_MAX:
            return
        beat = beat_of(event, -1, self._runner)
        beat.begins = begins
        beat.state, beat.module = self._watch.after(event, len(self.beats))
        self.beats.append(beat)

    def _next(self) -> str:
        """Another step begins: the story may be of this one. Returns what it is."""
        if self.place.startswith(OF_STEP):
            self.setup.append(self.place.removeprefix(OF_STEP).strip("`"))
        self.place = self._world.setup_at
        self.beats.clear()
        self.start = self._watch.begin()
        return self.place.partition(" ")[2]

    def _came_out_wrong(self) -> bool:
        """A step has come to what the finding says that it should not: no event tells that."""
        self._ended = self._finding.text in self._world.record.unmet()
        return self._ended

    def _is_end(self, event: FindingEvent) -> bool:
        finding = self._finding
        return (event.promise, event.text) == (finding.promise, finding.text)
