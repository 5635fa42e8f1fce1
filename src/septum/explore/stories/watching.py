"""The world of a scenario, looked at after each event of a run: what a story is told of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from septum.explore.stories.holders import Held, Holders
from septum.explore.stories.module_watch import ModuleWatcher, invalidation_changes
from septum.scenarios.changes import changes, lock_changes
from septum.scenarios.states import StateWatcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.stories.holders import FolioHeld
    from septum.explore.stories.module_watch import ModuleLook
    from septum.linux.kvm.gmem_types import GmemInode
    from septum.scenarios.states import WorldState
    from septum.sim.events import Event
    from septum.vmm.world import World


T = TypeVar("T")


class Seen(NamedTuple):
    """The world and, beside it, module and KVM; None where nobody could look."""

    state: WorldState | None = None
    module: ModuleLook | None = None


class Watch:
    """Looks at pages, locks, module, KVM and who has what. `error` is what a look has raised, after
    which nothing is seen any more: the run goes on, and the rest of its story can be told."""

    __slots__ = ("_holders", "_module", "_state", "error")

    def __init__(self, world: World, leaked_pfn: int = -1) -> None:
        """`leaked_pfn`: of the page that nobody frees, where the finding is of one."""
        self._state = StateWatcher(world)
        self._module = ModuleWatcher(world)
        self._holders = Holders(world)
        self._holders.leaked_pfn = leaked_pfn
        self.error: Exception | None = None

    def _unless_raised(self, look: Callable[[], T], unseen: T) -> T:
        if self.error is None:
            try:
                return look()
            except Exception as error:
                # A design has left what cannot be read; whoever tells the story says so.
                self.error = error
        return unseen

    def begin(self) -> Seen:
        """The run begins. Returns what there is."""

        def look() -> Seen:
            self._holders.begin()
            return Seen(self._state.look(), self._module.begin())

        return self._unless_raised(look, Seen())

    def after(self, event: Event, at: int) -> Seen:
        """What there is right after `event`, the one of index `at`. To be called of every event."""

        def look() -> Seen:
            seen = Seen(self._state.after(event), self._module.after(event, at))
            self._holders.look(event.task, at)
            return seen

        return self._unless_raised(look, Seen())

    def left(self, task: str, at: int) -> None:
        """A task has ended or waits, before the event of index `at`: no event tells of it."""
        self._unless_raised(lambda: self._holders.look(task, at), None)

    def end(self, task: str, at: int) -> Held:
        """The run has ended, in `task`, after so many events."""
        return self._unless_raised(lambda: self._holders.end(task, at), Held())

    def folios_of(self, inode: GmemInode, task: str, at: int) -> tuple[FolioHeld, ...]:
        """Folios of a guest_memfd that somebody refers to, while `task` runs."""
        return self._unless_raised(lambda: self._holders.folios_of(inode, task, at), ())

    def now(self) -> WorldState | None:
        """The state now."""
        return self._unless_raised(self._state.look, None)


def changes_between(old: Seen, new: Seen, locks: frozenset[str], *, mirror: bool) -> list[str]:
    """What changed, old -> new; nothing where nobody could look."""
    lines = list(invalidation_changes(old.module, new.module))
    if old.state is None or new.state is None or old.state == new.state:
        return lines
    pages = changes(old.state, new.state, mirror=mirror)
    return [*pages, *lines, *lock_changes(old.state, new.state, locks)]
