"""Small systems with known answers, on which the explorer itself is judged and measured.

A toy is a list of programs over shared cells, locks and frames, one for each task, in a language of
some forty operations. To the explorer this module is a model's; which toys there are is in
`toybox`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.subject import Built, Witness
from septum.linux.srcu import Srcu
from septum.machine.config import MachineConfig
from septum.machine.mem import PhysMem
from septum.sim import Mutex, RwLock, Sim, WaitQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from septum.sim import Finding

Op = tuple[str | int, ...]
Program = tuple[Op, ...]

FRAMES = (0, 512, 513)
"""The frames that programs know, of two blocks of memory. The first is not as it always was."""


class Cell:
    """A shared word."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Node:
    """What a task makes and links into the shared list."""

    __slots__ = ("next", "value")

    def __init__(self, value: int) -> None:
        self.value = value
        self.next: Node | None = None


class Label:
    """What a task makes for others, and nobody writes to."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


class Basket:
    """What a task makes, with a dict in it."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: dict[int, int] = {}


class ToyState:
    """All that the programs share, and what each of them has seen."""

    __slots__ = (
        "basket",
        "cells",
        "head",
        "label",
        "log",
        "mem",
        "mutexes",
        "rwlocks",
        "seen",
        "srcu",
        "table",
        "wq",
    )

    def __init__(self, sim: Sim, nr_tasks: int) -> None:
        self.cells = [Cell() for _ in range(4)]
        self.mutexes = [Mutex(sim, f"m{i}") for i in range(2)]
        self.rwlocks = [RwLock(sim, f"rw{i}") for i in range(2)]
        self.wq = WaitQueue(sim, "wq")
        self.srcu = Srcu(sim, "srcu")
        self.seen: list[list[int]] = [[] for _ in range(nr_tasks)]
        self.table: dict[int, int] = {}
        self.log: list[int] = []
        self.head: Node | None = None
        self.label: Label | None = None
        self.basket: Basket | None = None
        self.mem = PhysMem(sim, MachineConfig())
        self.mem.write(FRAMES[0], 0, 1)


class ToyTask:
    """Executes one program."""

    __slots__ = ("_acc", "_index", "_program", "_sim", "_srcu_idx", "_state")

    def __init__(self, sim: Sim, state: ToyState, index: int, program: Program) -> None:
        self._sim = sim
        self._state = state
        self._index = index
        self._program = program
        self._acc = 0
        self._srcu_idx = 0

    def run(self) -> None:
        """All operations in order."""
        at = 0
        program = self._program
        while at < len(program):
            at = self._step(program[at], at)

    def _step(self, op: Op, at: int) -> int:
        sim, state, seen = self._sim, self._state, self._state.seen[self._index]
        name, arg = str(op[0]), int(op[1]) if len(op) > 1 else 0
        if name == "point":
            sim.point("point")
        elif name == "read":
            sim.point("read")
            self._acc = state.cells[arg].value
            seen.append(self._acc)
        elif name == "write":
            sim.point("write")
            state.cells[arg].value = int(op[2])
        elif name == "inc":
            sim.point("read")
            value = state.cells[arg].value
            sim.point("write")
            state.cells[arg].value = value + 1
        elif name == "atomic_inc":
            sim.point("atomic")
            state.cells[arg].value += 1
        elif name == "cmpxchg":
            sim.point("cmpxchg")
            found = state.cells[arg].value
            if found == int(op[2]):
                state.cells[arg].value = int(op[3])
            seen.append(found)
        elif name == "unless":  # skip ahead unless the cell holds a value
            sim.point("read")
            if state.cells[arg].value != int(op[2]):
                return at + int(op[3])
        elif name == "retry":  # go back until the cell holds a value
            sim.point("cpu_relax")
            if state.cells[arg].value != int(op[2]):
                return at
        elif name == "choose":
            seen.append(sim.choose(f"op:{arg}", int(op[2])))
        elif name == "fail":
            if sim.choose(f"fail:{arg}", 2):
                return at + int(op[2])
        elif name == "check":  # a broken promise when the cell holds this value
            sim.point("check")
            if state.cells[arg].value == int(op[2]):
                sim.find("toy", f"cell {arg} is {op[2]}", where="check")
        else:
            self._rest(name, arg, op)
        return at + 1

    def _rest(self, name: str, arg: int, op: Op) -> None:
        sim, state, seen = self._sim, self._state, self._state.seen[self._index]
        if name == "lock":
            state.mutexes[arg].lock()
        elif name == "unlock":
            state.mutexes[arg].unlock()
        elif name == "trylock":
            if state.mutexes[arg].trylock():
                seen.append(1)
                sim.point("held")
                state.mutexes[arg].unlock()
            else:
                seen.append(0)
        elif name == "rlock":
            state.rwlocks[arg].read_lock()
        elif name == "runlock":
            state.rwlocks[arg].read_unlock()
        elif name == "wlock":
            state.rwlocks[arg].write_lock()
        elif name == "wunlock":
            state.rwlocks[arg].write_unlock()
        elif name == "renew":  # from now on there is another mutex and rwlock
            state.mutexes[arg] = Mutex(sim, f"m{arg}")
            state.rwlocks[arg] = RwLock(sim, f"rw{arg}")
        elif name == "renew_queue":
            state.wq = WaitQueue(sim, "wq")
        elif name == "enter":
            sim.point("srcu_read_lock")
            self._srcu_idx = state.srcu.read_lock()
        elif name == "leave":
            sim.point("srcu_read_unlock")
            state.srcu.read_unlock(self._srcu_idx)
        elif name == "synchronize":
            state.srcu.synchronize()
        elif name == "wait":
            cell = state.cells[arg]
            state.wq.wait_event(lambda: cell.value >= int(op[2]))
        elif name == "wake":
            sim.point("wake")
            state.cells[arg].value += 1
            state.wq.wake_up_all()
        elif name == "put":
            sim.point("put")
            state.table[arg] = int(op[2])
        elif name == "get":
            sim.point("get")
            seen.append(state.table.get(arg, -1))
        elif name == "size":
            sim.point("size")
            seen.append(len(state.table))
        elif name == "append":
            sim.point("append")
            state.log.append(arg)
        elif name in ("store", "load", "dirty", "flush", "flush_block", "wipe", "wbinvd"):
            self._on_memory(name, arg, op)
        else:
            self._on_list(name, arg)

    def _on_memory(self, name: str, arg: int, op: Op) -> None:
        mem, seen = self._state.mem, self._state.seen[self._index]
        self._sim.point(name)
        if name == "store":
            mem.write(FRAMES[arg], 0, int(op[2]))
        elif name == "load":
            seen.append(mem.read(FRAMES[arg], 0))
        elif name == "dirty":
            seen.append(mem.dirty_of(FRAMES[arg]))
        elif name == "flush":
            mem.wbinvd_page(FRAMES[arg])
        elif name == "flush_block":  # the block that a frame is in
            mem.wbinvd_pages(FRAMES[arg] & ~511, 512)
        elif name == "wipe":
            mem.fill(FRAMES[arg] & ~511, 512, 0, int(op[2]))
        else:
            mem.wbinvd()

    def _on_list(self, name: str, arg: int) -> None:
        sim, state, seen = self._sim, self._state, self._state.seen[self._index]
        if name == "push":
            node = Node(arg)
            sim.point("push")
            node.next = state.head
            state.head = node
        elif name == "insist":  # show all a new node in each round, until a cell is 1
            while state.cells[arg].value != 1:
                state.head = Node(arg)
                sim.retry("cpu_relax")
        elif name == "label":  # tell for good what a cell holds
            sim.point("label")
            state.label = Label(state.cells[arg].value)
        elif name == "heed":  # put into a cell what was told
            sim.point("heed")
            if state.label is not None:
                state.cells[arg].value = state.label.value
        elif name == "pair":  # two at once
            node = Node(arg)
            node.next = Node(arg + 1)
            sim.point("pair")
            node.next.next = state.head
            state.head = node
        elif name == "cut":  # drop all but the newest node
            sim.point("cut")
            if state.head is not None:
                state.head.next = None
        elif name == "poke":  # write into the newest node
            sim.point("poke")
            if state.head is not None:
                state.head.value = arg
        elif name == "peek":
            sim.point("peek")
            seen.append(state.head.value if state.head is not None else -1)
        elif name == "pop":  # take the newest node out, and let it go
            sim.point("pop")
            if state.head is not None:
                state.head = state.head.next
        elif name == "hold":  # get hold of the newest node, and write into it later
            sim.point("hold")
            held = state.head
            sim.point("held")
            if held is not None:
                held.value = arg
        elif name == "fill":  # give all a new basket, with two things in it
            basket = Basket()
            basket.items[arg] = basket.items[arg + 1] = 0
            sim.point("fill")
            state.basket = basket
        elif name == "list":  # what is in the basket, in which order
            sim.point("list")
            if state.basket is not None:
                seen.extend(state.basket.items)
        elif name == "use":  # make a node that nobody else ever has
            mine = Node(arg)
            sim.point("use")
            seen.append(mine.value)
        else:
            raise ValueError(f"no toy operation {name!r}")


class Toy:
    """A toy as a subject. `bad` final values of cell 0 are findings."""

    __slots__ = ("_name", "bad", "goes_on", "programs", "witnesses")

    def __init__(
        self,
        name: str,
        programs: Sequence[Program],
        bad: Sequence[int] = (),
        witnesses: Sequence[Witness] = (),
        *,
        goes_on: bool = True,
    ) -> None:
        """`goes_on`: whoever judges the end may look at all of it, and not only at what was looked
        at before."""
        self._name = name
        self.goes_on = goes_on
        self.programs = tuple(programs)
        self.bad = tuple(bad)
        self.witnesses = tuple(witnesses)

    @property
    def name(self) -> str:
        """As the command line would call it."""
        return f"toy:{self._name}"

    @property
    def design(self) -> str:
        """Toys have none."""
        return ""

    @property
    def recipe(self) -> bytes:
        """The name is all."""
        return f"toy:{self._name}".encode()

    @property
    def may_fail(self) -> bool:
        """A program has an operation that can fail."""
        return any(op[0] == "fail" for program in self.programs for op in program)

    @property
    def forgets(self) -> bool:
        """All that a toy's end is judged by is in its state."""
        return True

    def expects(self, finding: Finding) -> bool:
        """Toys break by surprise."""
        return False

    def build(self) -> Built:
        """The shared state."""
        sim = Sim()
        state = ToyState(sim, len(self.programs))
        return Built(sim, [state], state)

    def start(self, built: Built) -> None:
        """One task for each program."""
        state = built.world
        assert isinstance(state, ToyState)
        for index, program in enumerate(self.programs):
            task = ToyTask(built.sim, state, index, program)
            built.sim.spawn(f"t{index}", task.run, cpu=index)

    def finish(self, built: Built) -> None:
        """Cell 0 must not hold a bad value."""
        state = built.world
        assert isinstance(state, ToyState)
        if state.cells[0].value in self.bad:
            built.sim.find("toy", f"cell 0 ends as {state.cells[0].value}", where="end")

    def is_failure(self, choice: str) -> bool:
        """Failures are those that say so."""
        return choice.startswith("fail:")

    def final(self, built: Built) -> object:
        """Everything."""
        state = built.world
        assert isinstance(state, ToyState)
        nodes = []
        node = state.head
        while node is not None:
            nodes.append(node.value)
            node = node.next
        return (
            tuple(cell.value for cell in state.cells),
            tuple(tuple(seen) for seen in state.seen),
            tuple(sorted(state.table.items())),
            tuple(state.log),
            tuple(nodes),
            tuple((state.mem.token_of(pfn), state.mem.dirty_of(pfn)) for pfn in FRAMES),
        )

    def came_out(self, built: Built) -> object:
        """Its end is all that there is."""
        return self.final(built)
