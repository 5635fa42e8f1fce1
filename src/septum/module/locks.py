"""The module's locks, as operations on the 16-bit lock words that live in its structures.

Two kinds have a word: the host-priority shared/exclusive lock (PAMT entries, op_state, the S-EPT
tree) and the plain shared/exclusive lock (epoch, KOT). Lock words stay with their owners as ints;
the paths that run most inline the free case. The S-EPT entry lock is bit 11 of the entry.

    host priority:   15:2 readers   1 host priority   0 exclusive
    plain:           15:1 readers                     0 exclusive

Source: TDX module 1.5.25, tdx_locks.
"""

from typing import Protocol

EX = 1
HP = 2
READER = 4
BUSY_FOR_SHARED = EX | HP
"""A word without these bits can be taken shared by adding READER and nothing else."""


class HasLock(Protocol):
    """Anything with a host-priority lock word."""

    lock: int


def hp_lock_sh(owner: HasLock) -> bool:
    """Host: take shared. A failed attempt leaves its increment and sets host priority."""
    word = owner.lock
    if word & EX:
        owner.lock = word + READER | HP
        return False
    owner.lock = (word + READER) & ~HP
    return True


def hp_lock_ex(owner: HasLock) -> bool:
    """Host: take exclusive. Only a free word, or one with nothing but host priority, will do."""
    word = owner.lock
    if word & ~HP:
        owner.lock = word | HP
        return False
    owner.lock = EX
    return True


def hp_promote(owner: HasLock) -> bool:
    """Host: from shared to exclusive; needs exactly one reader."""
    word = owner.lock
    if word & ~HP != READER:
        owner.lock = word | HP
        return False
    owner.lock = EX
    return True


def hp_unlock_sh(owner: HasLock) -> None:
    """Drop a shared hold."""
    owner.lock -= READER


def hp_unlock_ex(owner: HasLock) -> None:
    """Drop an exclusive hold: host priority stays, left-over increments are wiped."""
    owner.lock &= HP


PLAIN_EX = 1
PLAIN_READER = 2


class PlainLock:
    """A plain shared/exclusive lock: try-locks only, no host priority."""

    __slots__ = ("word",)

    def __init__(self) -> None:
        self.word = 0

    def try_sh(self) -> bool:
        """Take shared. A failed attempt leaves its increment, which the holder's release wipes."""
        word = self.word
        self.word = word + PLAIN_READER
        return not word & PLAIN_EX

    def try_ex(self) -> bool:
        """Take exclusive, which needs a free lock."""
        if self.word:
            return False
        self.word = PLAIN_EX
        return True

    def unlock_sh(self) -> None:
        """Drop a shared hold."""
        self.word -= PLAIN_READER

    def unlock_ex(self) -> None:
        """Drop the exclusive hold."""
        self.word = 0


class HpLock:
    """A host-priority lock that stands alone (op_state, S-EPT tree)."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = 0
