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
    from collections.abc import Iterable, Sequence

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
    """Executes one program. Each operation is the method of its name, which returns how far from it
    the program goes on: None is the next operation."""

    __slots__ = ("_acc", "_program", "_seen", "_sim", "_srcu_idx", "_state")

    def __init__(self, sim: Sim, state: ToyState, index: int, program: Program) -> None:
        self._sim = sim
        self._state = state
        self._seen = state.seen[index]
        self._program = program
        self._acc = 0
        self._srcu_idx = 0

    def run(self) -> None:
        """All operations in order. Raises ValueError for one that there is not."""
        at = 0
        program = self._program
        while at < len(program):
            name, *given = program[at]
            operation = getattr(self, f"op_{name}", None)
            if operation is None:
                raise ValueError(f"no toy operation {name!r}")
            far = operation(*given)
            at += 1 if far is None else far

    # Cells, and where a program goes on

    def op_point(self) -> None:
        self._sim.point("point")

    def op_read(self, cell: int) -> None:
        self._sim.point("read")
        self._acc = self._state.cells[cell].value
        self._seen.append(self._acc)

    def op_write(self, cell: int, value: int) -> None:
        self._sim.point("write")
        self._state.cells[cell].value = value

    def op_inc(self, cell: int) -> None:
        self._sim.point("read")
        value = self._state.cells[cell].value
        self._sim.point("write")
        self._state.cells[cell].value = value + 1

    def op_atomic_inc(self, cell: int) -> None:
        self._sim.point("atomic")
        self._state.cells[cell].value += 1

    def op_cmpxchg(self, cell: int, old: int, new: int) -> None:
        self._sim.point("cmpxchg")
        found = self._state.cells[cell].value
        if found == old:
            self._state.cells[cell].value = new
        self._seen.append(found)

    def op_unless(self, cell: int, value: int, far: int) -> int | None:
        """Skip ahead unless the cell holds a value."""
        self._sim.point("read")
        return far if self._state.cells[cell].value != value else None

    def op_retry(self, cell: int, value: int) -> int | None:
        """Stay here until the cell holds a value."""
        self._sim.point("cpu_relax")
        return 0 if self._state.cells[cell].value != value else None

    def op_choose(self, which: int, n: int) -> None:
        self._seen.append(self._sim.choose(f"op:{which}", n))

    def op_fail(self, which: int, far: int) -> int | None:
        """Skip ahead where it fails."""
        return far if self._sim.choose(f"fail:{which}", 2) else None

    def op_check(self, cell: int, value: int) -> None:
        """A broken promise when the cell holds this value."""
        self._sim.point("check")
        if self._state.cells[cell].value == value:
            self._sim.find("toy", f"cell {cell} is {value}", where="check")

    # Locks and queues

    def op_lock(self, which: int) -> None:
        self._state.mutexes[which].lock()

    def op_unlock(self, which: int) -> None:
        self._state.mutexes[which].unlock()

    def op_trylock(self, which: int) -> None:
        mutex = self._state.mutexes[which]
        if mutex.trylock():
            self._seen.append(1)
            self._sim.point("held")
            mutex.unlock()
        else:
            self._seen.append(0)

    def op_rlock(self, which: int) -> None:
        self._state.rwlocks[which].read_lock()

    def op_runlock(self, which: int) -> None:
        self._state.rwlocks[which].read_unlock()

    def op_wlock(self, which: int) -> None:
        self._state.rwlocks[which].write_lock()

    def op_wunlock(self, which: int) -> None:
        self._state.rwlocks[which].write_unlock()

    def op_renew(self, which: int) -> None:
        """From now on there is another mutex and rwlock."""
        self._state.mutexes[which] = Mutex(self._sim, f"m{which}")
        self._state.rwlocks[which] = RwLock(self._sim, f"rw{which}")

    def op_renew_queue(self) -> None:
        self._state.wq = WaitQueue(self._sim, "wq")

    def op_enter(self) -> None:
        self._sim.point("srcu_read_lock")
        self._srcu_idx = self._state.srcu.read_lock()

    def op_leave(self) -> None:
        self._sim.point("srcu_read_unlock")
        self._state.srcu.read_unlock(self._srcu_idx)

    def op_synchronize(self) -> None:
        self._state.srcu.synchronize()

    def op_wait(self, cell: int, value: int) -> None:
        """Until the cell holds that much."""
        waited = self._state.cells[cell]
        self._state.wq.wait_event(lambda: waited.value >= value)

    def op_wake(self, cell: int) -> None:
        self._sim.point("wake")
        self._state.cells[cell].value += 1
        self._state.wq.wake_up_all()

    # A dict and a list

    def op_put(self, key: int, value: int) -> None:
        self._sim.point("put")
        self._state.table[key] = value

    def op_get(self, key: int) -> None:
        self._sim.point("get")
        self._seen.append(self._state.table.get(key, -1))

    def op_size(self) -> None:
        self._sim.point("size")
        self._seen.append(len(self._state.table))

    def op_append(self, value: int) -> None:
        self._sim.point("append")
        self._state.log.append(value)

    # Frames of memory

    def op_store(self, frame: int, value: int) -> None:
        self._sim.point("store")
        self._state.mem.write(FRAMES[frame], 0, value)

    def op_load(self, frame: int) -> None:
        self._sim.point("load")
        self._seen.append(self._state.mem.read(FRAMES[frame], 0))

    def op_dirty(self, frame: int) -> None:
        self._sim.point("dirty")
        self._seen.append(self._state.mem.dirty_of(FRAMES[frame]))

    def op_flush(self, frame: int) -> None:
        self._sim.point("flush")
        self._state.mem.wbinvd_page(FRAMES[frame])

    def op_flush_block(self, frame: int) -> None:
        """The block that a frame is in."""
        self._sim.point("flush_block")
        self._state.mem.wbinvd_pages(FRAMES[frame] & ~511, 512)

    def op_wipe(self, frame: int, value: int) -> None:
        """All of the block that a frame is in."""
        self._sim.point("wipe")
        self._state.mem.fill(FRAMES[frame] & ~511, 512, 0, value)

    def op_wbinvd(self) -> None:
        self._sim.point("wbinvd")
        self._state.mem.wbinvd()

    # What tasks make for each other: nodes of a list, a label, a basket

    def op_push(self, value: int) -> None:
        node = Node(value)
        self._sim.point("push")
        node.next = self._state.head
        self._state.head = node

    def op_pair(self, value: int) -> None:
        """Two nodes at once."""
        node = Node(value)
        node.next = Node(value + 1)
        self._sim.point("pair")
        node.next.next = self._state.head
        self._state.head = node

    def op_insist(self, cell: int) -> None:
        """Show all a new node in each round, until a cell is 1."""
        while self._state.cells[cell].value != 1:
            self._state.head = Node(cell)
            self._sim.retry("cpu_relax")

    def op_persist(self, cell: int, limit: int) -> None:
        """Try until a cell is 1, at most as often as another cell says now."""
        self._sim.point("limit")
        times = self._state.cells[limit].value
        while self._state.cells[cell].value != 1 and times:
            times -= 1
            self._relax()
        self._seen.append(times)

    def op_tour(self, *stops: int) -> None:
        """Set cells to 0 that are not, one after the other."""
        for stop in stops:
            self._sim.point("tour")
            if self._state.cells[stop].value:
                self._state.cells[stop].value = 0

    def _relax(self) -> None:
        """Not all of a round is within the loop."""
        self._sim.point("pause")
        self._sim.retry("cpu_relax")

    def op_cut(self) -> None:
        """Drop all but the newest node."""
        self._sim.point("cut")
        if self._state.head is not None:
            self._state.head.next = None

    def op_poke(self, value: int) -> None:
        """Write into the newest node."""
        self._sim.point("poke")
        if self._state.head is not None:
            self._state.head.value = value

    def op_peek(self) -> None:
        self._sim.point("peek")
        self._seen.append(self._state.head.value if self._state.head is not None else -1)

    def op_pop(self) -> None:
        """Take the newest node out, and let it go."""
        self._sim.point("pop")
        if self._state.head is not None:
            self._state.head = self._state.head.next

    def op_hold(self, value: int) -> None:
        """Get hold of the newest node, and write into it later."""
        self._sim.point("hold")
        held = self._state.head
        self._sim.point("held")
        if held is not None:
            held.value = value

    def op_use(self, value: int) -> None:
        """Make a node that nobody else ever has."""
        mine = Node(value)
        self._sim.point("use")
        self._seen.append(mine.value)

    def op_label(self, cell: int) -> None:
        """Tell for good what a cell holds."""
        self._sim.point("label")
        self._state.label = Label(self._state.cells[cell].value)

    def op_heed(self, cell: int) -> None:
        """Put into a cell what was told."""
        self._sim.point("heed")
        if self._state.label is not None:
            self._state.cells[cell].value = self._state.label.value

    def op_fill(self, key: int) -> None:
        """Give all a new basket, with two things in it."""
        basket = Basket()
        basket.items[key] = basket.items[key + 1] = 0
        self._sim.point("fill")
        self._state.basket = basket

    def op_list(self) -> None:
        """What is in the basket, in which order."""
        self._sim.point("list")
        if self._state.basket is not None:
            self._seen.extend(self._state.basket.items)


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

    def unbroken(self, broke: Iterable[tuple[str, str]]) -> list[str]:
        """So there is nothing that must break."""
        return []

    @property
    def must_break(self) -> Sequence[str]:
        """Nor in every run."""
        return ()

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
