"""The promise `guest-data`."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from septum.checks.intervals import Intervals
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN, PENDING_STATE
from septum.checks.text import agree, pages_text

if TYPE_CHECKING:
    from septum.checks.checker import Checker
    from septum.checks.view import VmView
    from septum.machine import PhysMem


class GuestData(Promise):
    """A guest reads back what it last wrote, unless it gave the page up.

    On real hardware memory of the guest silently turns to zeros or to somebody else's bytes: file
    systems break, kernels crash, and nothing in the logs says why.
    """

    __slots__ = ("_judged",)
    name = "guest-data"
    thorough = True

    def __init__(self, checker: Checker) -> None:
        super().__init__(checker)
        # By VM, all that was judged last. The same is not judged again.
        self._judged: dict[str, tuple[object, ...]] = {}

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """The guest's record of what it owns is compared with the frames that the S-EPT maps.

        A token that is newer than the recorded one is a write that the guest is in the middle of:
        it records a range when all of it is written. Guests compare on their own when they read.
        """
        memory = vm.memory
        if memory is None or not vm.has_key():
            return
        owned = memory.ranges_in(first_gfn << 12, end_gfn - first_gfn)
        if not owned:
            return
        history = self.checker.history(vm)
        runs = vm.runs(first_gfn, end_gfn)
        nr_changes = vm.world.machine.mem.nr_changes
        judged = (runs, nr_changes, owned, memory.last_token, vm.hkid, history.taken)
        if judged == self._judged.get(vm.name):
            return
        self._judged[vm.name] = judged
        seen = Intervals()
        at = 0
        for gfn, nr, _, state, pfn in runs:
            seen.append(gfn, gfn + nr)
            while at < len(owned) and owned[at][0] + owned[at][1] <= gfn:
                at += 1
            i = at
            while i < len(owned) and owned[i][0] < gfn + nr:
                start = max(gfn, owned[i][0])
                end = min(gfn + nr, owned[i][0] + owned[i][1])
                if not state & PENDING_STATE:
                    self._compare(vm, start, end, pfn + start - gfn, owned[i][2])
                i += 1
        # Owned and nowhere: lost, unless user space took it.
        have = Intervals([(gfn, gfn + nr) for gfn, nr, _ in owned])
        for start, end in have.minus(seen).minus(history.taken):
            self.broken(
                (vm.name, "gone", start, end),
                f"{vm.name}: {pages_text(start, end)}, which the guest wrote and did not give up, "
                f"{agree(end - start, 'is', 'are')} mapped to no frame",
            )

    def _compare(self, vm: VmView, start: int, end: int, pfn: int, token: int) -> None:
        """GFNs [start, end) map to frames from `pfn`, each of which holds `token`."""
        memory = vm.memory
        assert memory is not None
        mem = vm.world.machine.mem
        gfn = start
        while gfn < end:
            nr = min(end - gfn, 512 - (pfn & 511))
            wrong = first_wrong(mem, pfn, nr, token, vm.hkid, memory.last_token)
            if wrong >= 0:
                found = mem.token_of(pfn + wrong)
                key = mem.key_of(pfn + wrong)
                what = (
                    f"holds {found:#x}"
                    if key == vm.hkid
                    else f"was last written with HKID {key} and not with the TD's {vm.hkid}"
                )
                self.broken(
                    (vm.name, "content", (gfn + wrong) >> 9),
                    f"{vm.name}: GFN {gfn + wrong:#x}, where the guest wrote {token:#x}, is PFN "
                    f"{pfn + wrong:#x}, which {what}",
                )
                return
            gfn += nr
            pfn += nr


def first_wrong(mem: PhysMem, pfn: int, nr: int, token: int, hkid: int, last_token: int) -> int:
    """Offset of the first of `nr` frames of one 2 MB block that has not `token` under `hkid`; -1.

    `last_token` is the newest of the guest's own: those after `token` are writes of its own.
    """
    oldest = token if token <= last_token else 0
    block = mem.block(pfn)
    if block is None:
        return 0
    index = pfn & 511
    tokens = block.token
    keys = block.key
    if isinstance(tokens, int):
        if tokens != token and not oldest < tokens <= last_token:
            return 0
    elif tokens[index : index + nr] != array("q", (token,)) * nr:
        for i in range(nr):
            found = tokens[index + i]
            if found != token and not oldest < found <= last_token:
                return i
    if isinstance(keys, int):
        return -1 if keys == hkid else 0
    if keys[index : index + nr] == array("h", (hkid,)) * nr:
        return -1
    return next(i for i in range(nr) if keys[index + i] != hkid)
