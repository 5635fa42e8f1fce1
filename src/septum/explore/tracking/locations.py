"""What the numbers are by which a search knows objects, places in them, and accesses.

They are integers, as a search makes, hashes and compares them by the million:

    name      id(object)                                of the built world
              1 << 62 | class << 40 | key               of what a run made and that stands for
                                                        something, whoever makes it (KEYED)
              1 << 63 | task << 40 | class << 24 | nr   of all else that a run made

               63 62       40 39      24 23          0
              +--+-----------+----------+-------------+
              |1 |   task    |  class   |     nr      |
              +--+-----------+----------+-------------+

    location  name << 8 | slot                          a slot of an object; 0 where one location
                                                        stands for all of it
              1 << 62 | hash                            a part: an entry of a table, a value of a
                                                        dict, a frame or a block of memory
              1 << 80 | task << 32 | nr                 the result of an operation of a task
    access    location << 2 | kind                      kinds: S, X, IX and IS (`footprint`)

Classes go by the numbers that `Names` gives them, tasks by index. Logs have the id of an object in
place of its name.
"""

from __future__ import annotations

EVERYWHERE = -1
"""Stands for all locations."""

VIEW = 1
"""The location of all that promises can see, and remember. Whoever changes something of it changes
a part (IX); where promises look they read it all, and remember (S and IX)."""

RESULTS = 1 << 80
"""The first location of a result of an operation: only the end of the run looks at them."""

PART_LOCATION = 1 << 62
"""The first location of a part."""

KEYED_NAME = 1 << 62
"""The first name of an object that a run made, by what it stands for."""

MADE_NAME = 1 << 63
"""The first name of another object that a run made."""

UNNAMED = MADE_NAME << 32
"""In place of a name: all objects that a run made and that have none."""

FIRST_MADE = KEYED_NAME << 8
"""The first location of an object that a run made."""

CLASS_AND_SLOT = 0xFFFF << 32 | 0xFF
"""The part of a location that says what it is, where the name has a maker."""

_NR = 0xFFFFFF
_CLASS = 0xFFFF
_TASK = 0x7FFFFF


def is_part(location: int) -> bool:
    """Whether a location is of a part."""
    return PART_LOCATION <= location < PART_LOCATION << 8


def made_in_run(location: int) -> bool:
    """Whether a location is of an object whose name has its maker."""
    return location >= MADE_NAME << 8


def keyed_name(kind: int, key: int) -> int:
    """The name of what stands for `key`, of the class with the number `kind`."""
    return KEYED_NAME | kind << 40 | key


def class_of_keyed(name: int) -> int:
    """The number of its class."""
    return name >> 40 & _CLASS


def made_names(task: int, kind: int) -> int:
    """What the names of all objects begin with that `task` makes of the class with the number
    `kind`; the first of them has the number 1."""
    return MADE_NAME | task << 40 | kind << 24


def without_nr(name: int) -> int:
    """The `made_names` that a name is one of."""
    return name & ~_NR


def class_of_made(name: int) -> int:
    """The number of the class of what a name with a maker stands for."""
    return name >> 24 & _CLASS


def maker_of(name: int) -> int:
    """The task that made what a name stands for."""
    return name >> 40 & _TASK
