"""The two judges on what becomes of memory: of a frame, of a block, of all of it."""

import random
from collections.abc import Callable

import pytest

from septum.explore.states.fingerprint import CONTENTS, WHOLES, Fingerprint
from septum.explore.toybox import AS_BUILT_AGAIN, CLEANED, TWO_BLOCKS
from septum.explore.toys import Op, Toy
from septum.explore.tracking import track

Compare = Callable[[Toy, int | None], tuple[int, int] | None]
Patch = Callable[[pytest.MonkeyPatch], None]
Notices = Callable[[Toy, Patch, int | None], None]


def memory_toy(seed: int, nr_tasks: int, length: int) -> Toy:
    """A toy from dice that does everything to memory, by frame, by block, and to all of it."""
    dice = random.Random(seed)
    programs = [tuple(_memory_op(dice) for _ in range(length)) for _ in range(nr_tasks)]
    return Toy(f"memory-{seed}", programs)


def _memory_op(dice: random.Random) -> Op:
    names = ("store", "store", "load", "dirty", "flush", "flush_block", "wipe", "wbinvd")
    name, frame, value = dice.choice(names), dice.randrange(3), dice.randrange(2)
    if name in ("store", "wipe"):
        return (name, frame, value)
    return (name,) if name == "wbinvd" else (name, frame)


@pytest.mark.parametrize("tasks,length,seeds", [(2, 2, 20), (3, 1, 20)])
def test_memory(compare: Compare, tasks: int, length: int, seeds: int) -> None:
    """The judges agree on what becomes of memory."""
    for seed in range(seeds):
        for preemptions in (1, None):
            compare(memory_toy(seed, tasks, length), preemptions)


def forgets_frames(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fingerprint, "_told_in", lambda self, whole: ())


def sees_no_frames(patch: pytest.MonkeyPatch) -> None:
    def content(self: Fingerprint, location: int) -> int:
        return hash((self.tables[WHOLES].get(location, 0), self.tables[CONTENTS].get(location, 0)))

    patch.setattr(Fingerprint, "content", content)


def looks_at_blocks_alone(patch: pytest.MonkeyPatch) -> None:
    def is_in_written(self: Fingerprint, part: int) -> bool:
        return self._whole_of.get(part) in self.tables[WHOLES]

    patch.setattr(Fingerprint, "_is_in_written", is_in_written)


def takes_two_blocks_for_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(track, "of_int", lambda number: number)


@pytest.mark.parametrize(
    "toy,breaks",
    [
        (CLEANED, forgets_frames),
        (CLEANED, sees_no_frames),
        (AS_BUILT_AGAIN, looks_at_blocks_alone),
        (TWO_BLOCKS, takes_two_blocks_for_one),
    ],
)
def test_what_is_not_told_of_memory_is_noticed(notices: Notices, toy: Toy, breaks: Patch) -> None:
    """Who writes to all of memory writes to every frame, and what comes of it depends on each."""
    notices(toy, breaks, None)
