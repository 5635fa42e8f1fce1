"""The world of a scenario, looked at after each event of a run: what a story is told of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from septum.explore.stories.holders import Holders
from septum.explore.stories.module_watch import ModuleWatcher, invalidation_changes
from septum.scenarios.changes import changes, lock_changes
from septum.scenarios.states import StateWatcher

if TYPE_CHECKING:
    from septum.explore.stories.holders import Held
    from septum.explore.stories.module_watch import ModuleLook
    from septum.scenarios.states import WorldState
    from septum.sim.events import Event
    from septum.vmm.world import World


class Seen(NamedTuple):
    """The world and, beside it, module and KVM; None where nobody could look."""

    state: WorldState | None = None
    module: ModuleLook | None = None


class Watch:
    """Looks at pages, locks, module, KVM and who has what."""

    __slots__ = ("_holders", "_module", "_state")

    def __init__(self, world: World) -> None:
        self._state = StateWatcher(world)
        self._module = ModuleWatcher(world)
        self._holders = Holders(world)

    def begin(self) -> Seen:
        """The run begins. Returns what there is."""
        self._holders.begin()
        return Seen(self._state.look(), self._module.begin())

    def after(self, event: Event, at: int) -> Seen:
        """What there is right after `event`, the one of index `at`. To be called of every event."""
        seen = Seen(self._state.after(event), self._module.after(event, at))
        self._holders.look(event.task, at)
        return seen

    def left(self, task: str, at: int) -> None:
        """A task has ended or waits, before the event of index `at`: no event tells of it."""
        self._holders.look(task, at)

    def end(self, task: str, at: int) -> Held:
        """The run has ended, in `task`, after so many events."""
        return self._holders.end(task, at)

    def now(self) -> WorldState:
        """The state now."""
        return self._state.look()


def changes_between(old: Seen, new: Seen, locks: frozenset[str], *, mirror: bool) -> list[str]:
    """What changed, old -> new; nothing where nobody could look."""
    lines = list(invalidation_changes(old.module, new.module))
    if old.state is None or new.state is None or old.state == new.state:
        return lines
    pages = changes(old.state, new.state, mirror=mirror)
    return [*pages, *lines, *lock_changes(old.state, new.state, locks)]
