"""The toys by name: made by hand (a lost update, a deadlock, a broken protocol, retry loops), or
from dice. Nothing here runs in the tasks of a toy.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from septum.explore.toys import Toy

if TYPE_CHECKING:
    from septum.explore.toys import Op, Program

LOST_UPDATE = Toy("lost-update", [(("inc", 0),), (("inc", 0),)], bad=[1])
LOCKED_UPDATE = Toy(
    "locked-update",
    [(("lock", 0), ("inc", 0), ("unlock", 0))] * 2,
    bad=[0, 1],
)
DEADLOCK = Toy(
    "deadlock",
    [
        (("lock", 0), ("lock", 1), ("unlock", 1), ("unlock", 0)),
        (("lock", 1), ("lock", 0), ("unlock", 0), ("unlock", 1)),
    ],
)
PRODUCER_CONSUMER = Toy(
    "producer-consumer",
    [
        (("append", 1), ("wake", 1), ("append", 2), ("wake", 1)),
        (("wait", 1, 1), ("append", 11), ("wait", 1, 2), ("append", 12)),
    ],
)
GRACE_PERIOD = Toy(
    "grace-period",
    [
        (("enter",), ("read", 0), ("leave",)),
        (("enter",), ("leave",)),
        (("write", 0, 1), ("synchronize",), ("append", 1)),
    ],
)
LIVELOCK = Toy(
    "livelock",
    [(("write", 1, 1), ("retry", 2, 1)), (("write", 1, 2), ("retry", 2, 1))],
)
RETRY = Toy(
    "retry",
    [(("retry", 1, 1), ("write", 0, 7)), (("point",), ("write", 1, 1), ("write", 0, 3))],
)
# A lock that is taken by test and then set, with unrelated work around it: the bug needs two
# switches at the right places out of many.
_BROKEN_LOCK: Program = (
    *((("append", 1),) * 3),
    ("unless", 1, 0, 5),
    ("write", 1, 1),
    ("inc", 0),
    ("write", 1, 0),
    ("append", 2),
    *((("read", 3),) * 4),
)
RARE = Toy("rare", [_BROKEN_LOCK, _BROKEN_LOCK], bad=[1])
FAILING = Toy(
    "failing",
    [
        (("lock", 0), ("fail", 0, 2), ("unlock", 0), ("point",)),
        (("lock", 0), ("unlock", 0)),
    ],
)
# A task whose node another one takes out makes the next: it cannot know whether the first is gone.
HANDED_ON = Toy(
    "handed-on",
    [
        (("push", 2), ("pop",), ("use", 1)),
        (("pop",), ("peek",)),
        (("push", 3), ("pop",)),
    ],
)
# It takes its node out itself, but another may still have it and write into it.
HELD = Toy(
    "held",
    [
        (("push", 3), ("pop",), ("push", 1)),
        (("hold", 7), ("hold", 1)),
        (("peek",), ("hold", 1)),
    ],
)
# One word leads to two nodes, and another task drops the one behind.
CUT_OFF = Toy(
    "cut-off",
    [
        (("pair", 1), ("wait", 1, 1), ("use", 2), ("push", 2)),
        (("cut",), ("peek",)),
        (("wake", 1), ("poke", 3)),
    ],
)
# The first step depends on what the others do, those after it do not, and the check does again.
USED_AGAIN = Toy(
    "used-again",
    [
        (
            *(("atomic_inc", 0), ("use", 1), ("use", 1), ("push", 2)),
            *(("check", 0, 9), ("push", 3), ("peek",)),
        ),
        (("write", 0, 5),),
        (("poke", 4),),
    ],
)
# What a label says depends on when it was made, and who made it is gone.
MADE_OTHERWISE = Toy(
    "made-otherwise",
    [
        (("atomic_inc", 1), ("label", 1)),
        (("write", 1, 5),),
        (("point",), ("heed", 0), ("point",)),
        (("atomic_inc", 0),),
    ],
    goes_on=False,
)
# Who cleans all caches comes before, after or between who write to frames and to all of a block.
CLEANED = Toy("cleaned", [(("wbinvd",),), (("store", 2, 0),), (("wipe", 1, 1),)])
# A frame is as it was built again, and dirty, or as it was built and clean.
AS_BUILT_AGAIN = Toy("as-built-again", [(("store", 1, 1),), (("store", 0, 1),), (("wbinvd",),)])
# One of them writes to another block than the others.
TWO_BLOCKS = Toy("two-blocks", [(("flush_block", 0),), (("store", 0, 0),), (("flush_block", 1),)])
# Locks that a run made. Who waits to write does so or not, though somebody has read elsewhere.
NEW_LOCKS = Toy(
    "new-locks",
    [
        (
            *(("renew", 0), ("renew", 1), ("wake", 0)),
            *(("rlock", 1), ("runlock", 1), ("wlock", 0), ("read", 2), ("wunlock", 0)),
        ),
        (("wait", 0, 1), ("wlock", 0), ("inc", 2), ("point",), ("wunlock", 0)),
    ],
)
# An update is lost under two of them.
NEW_GUARDS = Toy(
    "new-guards",
    [
        (
            *(("renew", 0), ("renew", 1), ("wake", 1)),
            *(("lock", 0), ("inc", 0), ("point",), ("unlock", 0)),
        ),
        (("wait", 1, 1), ("lock", 1), ("inc", 0), ("point",), ("unlock", 1)),
    ],
)
# Somebody waits at a queue that a run made, or nobody does.
NEW_QUEUE = Toy(
    "new-queue",
    [
        (("renew_queue",), ("atomic_inc", 0), ("wake", 1), ("read", 2)),
        (("unless", 0, 1, 2), ("wait", 1, 1), ("read", 2)),
        (("point",), ("point",)),
    ],
)
LISTS = (HANDED_ON, HELD, CUT_OFF, USED_AGAIN)
MEMORY = (CLEANED, AS_BUILT_AGAIN, TWO_BLOCKS)
MADE_LOCKS = (NEW_LOCKS, NEW_GUARDS, NEW_QUEUE)
TOYS = (
    LOST_UPDATE,
    LOCKED_UPDATE,
    DEADLOCK,
    PRODUCER_CONSUMER,
    GRACE_PERIOD,
    LIVELOCK,
    RETRY,
    RARE,
    FAILING,
    MADE_OTHERWISE,
    *LISTS,
    *MEMORY,
    *MADE_LOCKS,
)


def find_toy(name: str) -> Toy:
    """The toy called `name`; `dice-SEED-TASKS-LENGTH` makes one. Raises KeyError."""
    if name.startswith("dice-"):
        seed, tasks, length = (int(part) for part in name.split("-")[1:])
        return dice_toy(seed, tasks, length)
    return {toy.name.removeprefix("toy:"): toy for toy in TOYS}[name]


def dice_toy(seed: int, nr_tasks: int, length: int) -> Toy:
    """A toy from dice: programs that hold locks properly and may do anything else."""
    dice = random.Random(seed)
    programs = [tuple(_dice_program(dice, length)) for _ in range(nr_tasks)]
    bad = [dice.randrange(4)] if dice.random() < 0.5 else []
    return Toy(f"dice-{seed}-{nr_tasks}-{length}", programs, bad)


def _dice_program(dice: random.Random, length: int) -> list[Op]:
    ops: list[Op] = []
    plain = ("read", "write", "inc", "atomic_inc", "cmpxchg", "put", "get", "append", "push")
    rare = ("size", "poke", "peek", "trylock", "fail", "choose", "check", "unless", "wake")
    while len(ops) < length:
        what = dice.random()
        if what < 0.3:
            kind = dice.choice(["", "r", "w"])
            which = dice.randrange(2)
            inner = [_dice_op(dice, dice.choice(plain)) for _ in range(dice.randrange(3))]
            ops += [(f"{kind}lock", which), *inner, (f"{kind}unlock", which)]
        elif what < 0.75:
            ops.append(_dice_op(dice, dice.choice(plain)))
        else:
            name = dice.choice(rare)
            ops.append(_dice_op(dice, name))
            if name in ("unless", "fail"):  # these skip what follows
                ops.append(_dice_op(dice, dice.choice(plain)))
    return ops


def _dice_op(dice: random.Random, name: str) -> Op:
    cell = dice.randrange(3)
    if name in ("write", "put", "check"):
        return (name, cell, dice.randrange(1, 4))
    if name == "cmpxchg":
        return (name, cell, dice.randrange(2), dice.randrange(1, 4))
    if name == "unless":
        return (name, cell, dice.randrange(2), 2)
    if name in ("choose", "fail"):
        return (name, cell, 2)  # two alternatives; go on at the operation after the next
    if name in ("size", "peek"):
        return (name,)
    if name == "trylock":
        return (name, dice.randrange(2))
    return (name, cell)
