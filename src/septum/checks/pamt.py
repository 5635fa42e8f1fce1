"""The promise `pamt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks.promise import Promise
from septum.checks.text import agree
from septum.module.pamt import PT_NDA, PT_PAMT, PT_RSVD

if TYPE_CHECKING:
    from septum.module.pamt import PamtEntry2M


FREE = (PT_NDA, PT_RSVD, PT_PAMT)
"""The types of pages that no TD has."""


class PamtPairs(Promise):
    """Dynamic PAMT pairs are installed exactly where 4 KB pages need them; reference counts equal
    users; none leak.

    On real hardware a pair too few makes the next SEAMCALL fail and bugs the VM; one too many is
    memory lost until reboot, in a frame that can never be mapped at 2 MB again.
    """

    __slots__ = ()
    name = "pamt"

    def look_machine(self) -> None:
        """Per 2 MB frame: 4 KB pages in TDX use, pair in the PAMT, count in the kernel.

        The kernel counts before a page is given and after it is taken back, so that the three are
        compared when no task is in the middle of either.
        """
        world = self.checker.world
        if not world.module.pamt.dynamic or not self.checker.at_rest():
            return
        counts = dict(world.host.x86_tdx.state.pamt_refcounts)
        ahead: dict[int, list[int]] = {}
        for page in world.host.x86_tdx.pages_counted_ahead():
            ahead.setdefault(page >> 9, []).append(page)
        for leaf in world.module.pamt.entries_2m():
            frame = leaf.hpa >> 21
            has_pair = leaf.pt == PT_PAMT
            count = counts.pop(frame, 0)
            users = users_of(leaf)
            spare = sum(not is_used(leaf, page & 511) for page in ahead.get(frame, ()))
            if users <= count <= users + spare and has_pair == bool(count):
                continue
            pair = "has a pair" if has_pair else "has no pair"
            self.broken(
                (frame,),
                f"the 2 MB frame at PFN {frame << 9:#x} {pair}, {users} of its 4 KB pages "
                f"{agree(users, 'is', 'are')} in TDX use, and the kernel counts {count}",
            )
        for frame, count in sorted(counts.items()):
            if count:
                self.broken(
                    (frame,),
                    f"the kernel counts {count} for the 2 MB frame at PFN {frame << 9:#x}, which "
                    "the TDX module never used",
                )


def users_of(leaf: PamtEntry2M) -> int:
    """4 KB pages of a 2 MB frame that belong to a TD, counted one by one."""
    _, types = children_of(leaf)
    users = len(types) - sum([types.count(free) for free in FREE])
    if leaf.child_pt not in FREE:
        users += 512 - len(types)
    return users


def children_of(leaf: PamtEntry2M) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(indexes, types) of the 4 KB pages of a 2 MB frame that have an entry of their own."""
    # By the plain type's own method: a search that watches what the model does with its containers
    # would take a look at all of one for an access that makes steps depend on each other.
    children = leaf.children
    return tuple(dict.keys(children)), tuple([child.pt for child in dict.values(children)])


def is_used(leaf: PamtEntry2M, index: int) -> bool:
    """Whether the 4 KB page at `index` of a 2 MB frame belongs to a TD."""
    child = leaf.children.get(index)
    return (child.pt if child is not None else leaf.child_pt) not in FREE
