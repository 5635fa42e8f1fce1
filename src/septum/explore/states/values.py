"""What stands at a location right now, as a number: the content that a fingerprint is made of.

Objects of the built world go by their identity, which no run changes; objects that a run made go
by the name that the tracker gave them. A content that is not known gives None.
"""

from __future__ import annotations

import hashlib
from array import array
from contextlib import suppress
from enum import Enum
from operator import attrgetter
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING

import msgspec

from septum.abi.types import PTRS_PER_TABLE
from septum.explore.tracking.mix import all_small, of_int
from septum.explore.tracking.private import LOCKS, PRIVATE
from septum.linux.srcu import Srcu
from septum.machine.mem import FrameBlock, PhysMem
from septum.machine.tables import TablePage
from septum.module.locks import EX, HP
from septum.sim import OfTime, Task
from septum.sim.state import slots_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ATOMS = (str, bytes, float, range, Enum)
_RUNNING_HASH = type(hashlib.sha384())
"""Of measurements: nobody changes one, `MeasurementHash` makes another."""
_PLAIN_DEPTH = 4
_NONE = 0x6C62272E07BB0142
_ABSENT = _NONE + 1
_IN_PARTS = _NONE + 2

# Words of the module's locks: what counts while the lock is held exclusively. Attempts that fail
# leave their increments, which the release wipes.
LOCK_WORDS = {
    ("PamtEntry", "lock"): EX | HP,
    ("PamtEntry1G", "lock"): EX | HP,
    ("PamtEntry2M", "lock"): EX | HP,
    ("HpLock", "lock"): EX | HP,
    ("PlainLock", "word"): EX,
}

# Since when something has lasted: whether it does counts, not since when, as virtual time does not.
SINCE = frozenset((("Vcpu", "hp_busy_since_ns"),))

# The descriptors themselves: a tracked class has others in their place, which would tell.
_table = dict(slots_of(TablePage))
_block = dict(slots_of(FrameBlock))
_srcu = dict(slots_of(Srcu))
_blocks_of = dict(slots_of(PhysMem))["_blocks"].__get__
_base, _stride = _table["base"].__get__, _table["stride"].__get__
_entries = _table["entries"].__get__
_token, _key = _block["token"].__get__, _block["key"].__get__
_dirty = _block["dirty"].__get__


_SIMPLE = frozenset((str, bytes))
_readers: dict[type, attrgetter[tuple[object, ...]] | None] = {}


def is_private(value: object) -> bool:
    """Whether an object is a value of one task by its nature."""
    return value.__class__.__name__ in PRIVATE


class Unknown(Exception):
    """A value whose content cannot be told."""


class Contents:
    """Tells contents. `name_of` gives the stable name of an object by its id."""

    __slots__ = ("held", "name_of", "named")

    def __init__(self, name_of: Callable[[int], int]) -> None:
        self.name_of = name_of
        self.named: set[int] = set()  # names met in contents since somebody emptied it
        # Ids of what was met in contents and can change without a word: values of one task by
        # nature, containers without a name, what functions have taken along.
        self.held: set[int] = set()

    def of_slot(self, obj: object, k: int) -> int | None:
        """Slot `k` of a slotted object; of a table page or frame block, all of it; of memory, what
        its parts do not tell: nothing."""
        if isinstance(obj, TablePage):
            entries = _entries(obj)
            return hash((_base(obj), _stride(obj), entries.tobytes() if entries else None))
        try:
            if isinstance(obj, FrameBlock):
                return _of_block(obj)
            if isinstance(obj, PhysMem):
                return _IN_PARTS
            if isinstance(obj, Srcu):
                counts = _srcu["nr_readers"].__get__(obj)
                readers = _numbers(_srcu["readers"].__get__(obj))
                return hash((_srcu["idx"].__get__(obj), *list.__iter__(counts), *readers))
            rows = slots_of(type(obj))
            if k >= len(rows):
                return None
            name, member = rows[k]
            value = member.__get__(obj)
            slot = type(obj).__name__, name
            held = LOCK_WORDS.get(slot)
            if held is not None and value & EX:
                value &= held
            if slot in SINCE:
                value = value >= 0
            return self._value(value, _PLAIN_DEPTH)
        except AttributeError:
            return _ABSENT
        except Unknown:
            return None

    def of_parts(self, obj: object) -> Iterator[int | None]:
        """All that an object holds, one after the other; of a lock nothing: tasks have it."""
        if isinstance(obj, LOCKS):
            return
        if isinstance(obj, list | dict | set | array):
            self.named.clear()
            yield self.of_container(obj)
            return
        for k in range(len(slots_of(type(obj)))):
            self.named.clear()
            yield self.of_slot(obj, k)

    def of_value(self, value: object) -> int:
        """What a variable holds. Raises Unknown."""
        return self._value(value, _PLAIN_DEPTH)

    def of_container(self, obj: object) -> int | None:
        """All elements of a container, in their order."""
        try:
            return self._elements(obj, _PLAIN_DEPTH)
        except Unknown:
            return None

    def of_part(self, whole: object, key: object) -> int | None:
        """One entry of a page table, one frame or 2 MB block of memory, one value of a dict."""
        if isinstance(whole, TablePage):
            assert isinstance(key, int)
            entries = _entries(whole)
            return of_int(entries[key] if entries else _base(whole) + key * _stride(whole))
        if isinstance(whole, PhysMem):
            assert isinstance(key, int)
            pfn = key if key >= 0 else ~key << 9
            block = dict.get(_blocks_of(whole), pfn >> 9, _UNTOUCHED)
            if key < 0:
                return _of_block(block)
            return hash(tuple([_of_frame(values, pfn & 511) for values in _of_each(block)]))
        assert isinstance(whole, dict)
        try:
            return self._value(dict.get(whole, key, Unknown), _PLAIN_DEPTH)
        except Unknown:
            return None

    def of_lock(self, lock: object) -> int:
        """Who has a lock or waits for it."""
        owner = getattr(lock, "owner", None) or getattr(lock, "writer", None)
        readers = getattr(lock, "readers", [])
        waiters = getattr(lock, "waiters", [])
        return hash(
            (
                owner.index if owner is not None else 0,
                tuple(_numbers(readers)),
                tuple(_numbers(waiters)),
                getattr(lock, "nr_writers_waiting", 0),
            )
        )

    def _value(self, value: object, depth: int) -> int:
        if value is None:
            return _NONE
        if isinstance(value, int):
            return _NONE if value.__class__ is OfTime else of_int(value)
        if value.__class__ in _SIMPLE:
            return hash(value)
        if is_private(value) and depth > 0:
            return self._of_private(value, depth)
        if isinstance(value, _ATOMS):
            return hash(value)
        if isinstance(value, tuple | frozenset):
            inner = [self._value(element, depth) for element in value]
            return hash(tuple(inner) if isinstance(value, tuple) else frozenset(inner))
        if isinstance(value, list | dict | set | array):
            name = self.name_of(id(value))
            if name:
                self.named.add(name)
                return hash((3, name))
            if depth <= 0:
                raise Unknown
            self.held.add(id(value))
            return self._elements(value, depth - 1)
        if isinstance(value, MethodType):
            return hash((4, id(value.__func__), self._value(value.__self__, depth)))
        if isinstance(value, type | BuiltinFunctionType | ModuleType):
            return hash((5, id(value)))
        if isinstance(value, FunctionType):
            return self._of_function(value, depth)
        if isinstance(value, msgspec.Struct):
            if not value.__struct_config__.frozen:
                self.held.add(id(value))
            return hash((11, type(value), self._value(msgspec.structs.astuple(value), depth)))
        if isinstance(value, _RUNNING_HASH):
            return hash((13, value.digest()))
        if isinstance(value, Task):
            return hash((12, value.index))
        name = self.name_of(id(value))
        if not name:
            raise Unknown
        self.named.add(name)
        return hash((6, name))

    def _of_private(self, value: object, depth: int) -> int:
        """An object by all that it holds."""
        self.held.add(id(value))
        kind = value.__class__
        read = _readers.get(kind)
        if read is None:
            names = [name for name, _ in slots_of(kind)]
            read = _readers[kind] = attrgetter(*names) if len(names) > 1 else None
        held: tuple[object, ...] | None = None
        if read is not None:
            with suppress(AttributeError):
                held = read(value)
        if held is None:
            held = tuple(getattr(value, name, _ABSENT) for name, _ in slots_of(kind))
        if all_small(held):
            return hash((10, held))
        return hash((10, tuple([self._value(inner, depth - 1) for inner in held])))

    def _of_function(self, value: FunctionType, depth: int) -> int:
        """Its code, with what it has taken along: cells, and values of arguments."""
        cells = value.__closure__ or ()
        defaults = value.__defaults__ or ()
        if not cells and not defaults:
            return hash((5, id(value.__code__)))
        if depth <= 0:
            raise Unknown
        self.held.update(map(id, cells))
        inner = [self._value(cell.cell_contents, depth - 1) for cell in cells]
        inner += [self._value(default, depth - 1) for default in defaults]
        return hash((5, id(value.__code__), tuple(inner)))

    def _elements(self, obj: object, depth: int) -> int:
        if isinstance(obj, dict):
            pairs = [
                (self._value(key, depth), self._value(value, depth))
                for key, value in dict.items(obj)
            ]
            # The order of keys counts only where it is looked at (see TrackedDict).
            if not hasattr(obj, "in_order"):
                pairs.sort()
            return hash((7, tuple(pairs)))
        if isinstance(obj, set):
            return hash(frozenset(self._value(value, depth) for value in set.__iter__(obj)))
        if isinstance(obj, array):
            return hash((8, array.tobytes(obj)))
        assert isinstance(obj, list)
        return hash((9, tuple([self._value(value, depth) for value in list.__iter__(obj)])))


def _numbers(tasks: list[Task]) -> list[int]:
    """Those of tasks, in order. That they are looked at here is no access of the step under way."""
    return sorted([task.index for task in list.__iter__(tasks)])


_UNTOUCHED = FrameBlock()
"""What frames hold that nobody has written to."""


def _of_each(block: FrameBlock) -> tuple[int | array[int], ...]:
    """What it keeps of each of its frames."""
    return _token(block), _key(block), _dirty(block)


def _of_frame(values: int | array[int], index: int) -> int:
    return of_int(array.__getitem__(values, index) if isinstance(values, array) else values)


def _of_block(block: FrameBlock) -> int:
    """All of it. How it came to keep what it does, in one number or in 512, does not count."""
    return hash(tuple(map(_of_frames, _of_each(block))))


def _of_frames(values: int | array[int]) -> object:
    if isinstance(values, array):
        first = array.__getitem__(values, 0)
        if array.count(values, first) < PTRS_PER_TABLE:
            return array.tobytes(values)
        values = first
    return of_int(values)
