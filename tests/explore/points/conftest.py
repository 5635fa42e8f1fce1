"""Where the module needs no scheduling point: what the tests of that share.

A call takes its first lock, and that of OP_STATE, in one step with what is before. Here the points
are put back (`points`), for KVM's scenarios and for tasks that make calls of the module themselves
(`Calls`).
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from septum.abi.features import MD_FIELD_ID_TDCS_OP_STATE
from septum.abi.leaves import SEAMCALL_LEAVES, TDCALL_LEAVES, VERSION_SHIFT
from septum.abi.regs import Regs
from septum.abi.status import STATUS_MASK, TDX_OP_STATE_INCORRECT
from septum.conform.scene import (
    CONTROL,
    GPA,
    LARGE,
    PAMT_PAGES,
    PARAMS,
    SECOND_TDVPR,
    SMALL,
    TD_PARAMS,
    TDR,
    TDVPR,
    Scene,
    runnable_scene,
    scene_config,
)
from septum.explore.subject import Built, Options, Strategy
from septum.explore.workers.search import Job, Searcher
from septum.machine import LogicalProcessor, Machine, TablePage
from septum.module import Module, dispatch, vp_enter
from septum.module.common import check_state, lock_td
from septum.module.state import MeasurementHash
from septum.module.vp import associate_vcpu, lock_vcpu
from septum.sim import Sim
from septum.sim.parts import slots_of

# ---- the points


def lock_td_after_point(m: Module, tdr_hpa: int, operand: int, exclusive: bool = False) -> Any:
    m.sim.point("module.tdr")
    return lock_td(m, tdr_hpa, operand, exclusive)


def lock_vcpu_after_point(m: Module, tdvpr_hpa: int, operand: int, exclusive: bool) -> Any:
    m.sim.point("module.tdvpr")
    return lock_vcpu(m, tdvpr_hpa, operand, exclusive)


def check_state_with_point(m: Module, td: Any, leaf: int, lock_op_state: bool = True) -> int:
    """The point is between what is looked at without the lock and the lock."""
    if lock_op_state:
        status = check_state(m, td, leaf, lock_op_state=False)
        if not status or status & STATUS_MASK == TDX_OP_STATE_INCORRECT:
            m.sim.point("module.op_state")
    return check_state(m, td, leaf, lock_op_state)


def associate_vcpu_after_point(
    lp: LogicalProcessor, td: Any, vcpu: Any, allow_disabled: bool
) -> tuple[int, bool]:
    lp.sim.point("module.associate")
    return associate_vcpu(lp, td, vcpu, allow_disabled)


class AfterPoint:
    """A leaf whose first lock is no TDR's and no TDVPR's."""

    __slots__ = ("leaf",)

    def __init__(self, leaf: Callable[[Module, LogicalProcessor, Regs, int], int]) -> None:
        self.leaf = leaf

    def __call__(self, m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
        m.sim.point("module.pamt")
        return self.leaf(m, lp, regs, version)


OTHER_FIRST_LOCK = (
    "TDH.MNG.CREATE",
    "TDH.PHYMEM.CACHE.WB",
    "TDH.PHYMEM.PAGE.RDMD",
    "TDH.PHYMEM.PAGE.RECLAIM",
    "TDH.PHYMEM.PAGE.WBINVD",
    "TDH.PHYMEM.PAMT.ADD",
    "TDH.PHYMEM.PAMT.REMOVE",
)


def put(patch: pytest.MonkeyPatch, old: Any, new: object) -> None:
    """`new` goes by the name of `old` wherever a module of the model has that."""
    name = old.__name__
    for leaf in [leaf for leaf, function in dispatch.SEAMCALLS.items() if function is old]:
        patch.setitem(dispatch.SEAMCALLS, leaf, new)
    for module in [m for at, m in sys.modules.items() if at.startswith("septum.module.")]:
        if vars(module).get(name) is old:
            patch.setattr(module, name, new)


@contextmanager
def points() -> Iterator[None]:
    """Put back the points that the module does without."""
    with pytest.MonkeyPatch.context() as patch:
        put(patch, lock_td, lock_td_after_point)
        put(patch, lock_vcpu, lock_vcpu_after_point)
        put(patch, check_state, check_state_with_point)
        patch.setattr(vp_enter, "associate_vcpu", associate_vcpu_after_point)
        for name in OTHER_FIRST_LOCK:
            leaf = SEAMCALL_LEAVES[name]
            patch.setitem(dispatch.SEAMCALLS, leaf, AfterPoint(dispatch.SEAMCALLS[leaf]))
        yield


# ---- what a search comes to


class Reached:
    """All ends, findings and coverage items of a search, and what it took."""

    def __init__(
        self,
        ends: frozenset[Any],
        found: set[tuple[str, str]],
        coverage: set[object],
        size: tuple[int, int],
    ) -> None:
        self.ends, self.found, self.coverage, self.size = ends, found, coverage, size

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Reached)
        return (self.ends, self.found, self.coverage) == (other.ends, other.found, other.coverage)

    def __hash__(self) -> int:
        return hash(self.ends)


def search(subject: Any, strategy: Strategy, preemptions: int | None, failures: int = 0) -> Reached:
    """Everything within so many preemptions; `subject` notes its ends."""
    options = Options(preemptions=preemptions, failures=failures, keep_going=True)
    searcher = Searcher(subject, options)
    try:
        if strategy is Strategy.EXHAUSTIVE:
            searcher.prepare()
        subject.ends.clear()  # of the runs in which it got ready
        bound = options.max_preemptions()
        result = searcher.do(Job(1, strategy, preemptions=bound, failures=failures))
    finally:
        searcher.close()
    assert result.complete and not result.note
    found = {(f.finding.promise, f.finding.text) for f in result.found} | set(result.foreseen)
    size = (result.schedules, result.states)
    return Reached(frozenset(subject.ends), found, set(result.coverage), size)


# ---- tasks that make calls of the module themselves

Call = tuple[str, dict[str, int]]
"""A call and its operands; "version" is none of them. "exit": an interrupt, in the TD."""
MB2 = 2 << 20
PENDING, BLOCKED, MAPPED, TABLE, NL_BLOCKED, FREE = (GPA + i * MB2 for i in range(6))
DEBUG = "0x1"
NEW_PAGE, NEW_PAIR = CONTROL + 0x9_0000, PAMT_PAGES + 0x10_0000
LAST_PAGE, LAST_SMALL = LARGE + 8 * MB2, SMALL + 0x5000

CALLS: dict[str, Call] = {
    "aug": ("TDH.MEM.PAGE.AUG", {"rcx": FREE | 1, "rdx": TDR, "r8": LAST_PAGE}),
    "aug there": ("TDH.MEM.PAGE.AUG", {"rcx": PENDING | 1, "rdx": TDR, "r8": LAST_PAGE}),
    "aug 4K": ("TDH.MEM.PAGE.AUG", {"rcx": TABLE + 0x1000, "rdx": TDR, "r8": LAST_SMALL}),
    "block": ("TDH.MEM.RANGE.BLOCK", {"rcx": PENDING | 1, "rdx": TDR}),
    "block mapped": ("TDH.MEM.RANGE.BLOCK", {"rcx": MAPPED | 1, "rdx": TDR}),
    "unblock": ("TDH.MEM.RANGE.UNBLOCK", {"rcx": BLOCKED | 1, "rdx": TDR}),
    "track": ("TDH.MEM.TRACK", {"rcx": TDR}),
    "remove": ("TDH.MEM.PAGE.REMOVE", {"rcx": BLOCKED | 1, "rdx": TDR}),
    "demote": (
        "TDH.MEM.PAGE.DEMOTE",
        {"rcx": BLOCKED | 1, "rdx": TDR, "r8": NEW_PAGE, "r12": NEW_PAIR, "r13": NEW_PAIR + 4096},
    ),
    "relocate": ("TDH.MEM.PAGE.RELOCATE", {"rcx": TABLE, "rdx": TDR, "r8": LAST_SMALL}),
    "add table": ("TDH.MEM.SEPT.ADD", {"rcx": FREE | 1, "rdx": TDR, "r8": NEW_PAGE}),
    "remove table": ("TDH.MEM.SEPT.REMOVE", {"rcx": NL_BLOCKED | 1, "rdx": TDR}),
    "read entry": ("TDH.MEM.SEPT.RD", {"rcx": PENDING | 1, "rdx": TDR}),
    "read L2 attributes": ("TDH.MEM.SEPT.RD", {"rcx": PENDING | 1, "rdx": TDR | 1}),
    "enter": ("TDH.VP.ENTER", {"rcx": TDVPR}),
    "enter other": ("TDH.VP.ENTER", {"rcx": SECOND_TDVPR}),
    "enter wrongly": ("TDH.VP.ENTER", {"rcx": TDVPR | 1 << 53}),
    "exit": ("exit", {}),
    "accept": ("TDG.MEM.PAGE.ACCEPT", {"rcx": PENDING | 1}),
    "accept free": ("TDG.MEM.PAGE.ACCEPT", {"rcx": FREE | 1}),
    "flush": ("TDH.VP.FLUSH", {"rcx": TDVPR}),
    "flush other": ("TDH.VP.FLUSH", {"rcx": SECOND_TDVPR}),
    "read vCPU": ("TDH.VP.RD", {"rcx": TDVPR, "rdx": 5}),
    "write vCPU": ("TDH.VP.WR", {"rcx": TDVPR, "rdx": 5, "r8": 7, "r9": 7}),
    "init vCPU": ("TDH.VP.INIT", {"rcx": TDVPR, "version": 1}),
    "add to vCPU": ("TDH.VP.ADDCX", {"rcx": NEW_PAGE, "rdx": TDVPR}),
    "read TD": ("TDH.MNG.RD", {"rcx": TDR, "rdx": MD_FIELD_ID_TDCS_OP_STATE}),
    "init TD": ("TDH.MNG.INIT", {"rcx": TDR, "rdx": TD_PARAMS}),
    "create TD": ("TDH.MNG.CREATE", {"rcx": NEW_PAGE, "rdx": 34}),
    "finalize": ("TDH.MR.FINALIZE", {"rcx": TDR}),
    "flush done": ("TDH.MNG.VPFLUSHDONE", {"rcx": TDR}),
    "free key": ("TDH.MNG.KEY.FREEID", {"rcx": TDR}),
    "write caches": ("TDH.PHYMEM.CACHE.WB", {}),
    "reclaim": ("TDH.PHYMEM.PAGE.RECLAIM", {"rcx": LARGE}),
    "reclaim TDCX": ("TDH.PHYMEM.PAGE.RECLAIM", {"rcx": TDR + 0x1000}),
    "reclaim TDR": ("TDH.PHYMEM.PAGE.RECLAIM", {"rcx": TDR}),
    "read page": ("TDH.PHYMEM.PAGE.RDMD", {"rcx": NEW_PAGE}),
    "flush page": ("TDH.PHYMEM.PAGE.WBINVD", {"rcx": LAST_SMALL}),
    "add pair": (
        "TDH.PHYMEM.PAMT.ADD",
        {"rcx": LAST_PAGE | 1, "rdx": NEW_PAIR, "r8": NEW_PAIR + 4096},
    ),
    "remove pair": ("TDH.PHYMEM.PAMT.REMOVE", {"rcx": SMALL | 1}),
    "remove pair of TDR": ("TDH.PHYMEM.PAMT.REMOVE", {"rcx": CONTROL | 1}),
}


def initialized(scene: Scene) -> None:
    """One entry in each state; vCPUs outside, each associated with the processor of a task."""
    for page, gpa in enumerate((PENDING, BLOCKED, MAPPED)):
        scene.aug(gpa, 1, LARGE + page * MB2)
    for gpa in (TABLE, NL_BLOCKED):
        scene.add_sept(gpa, 1)
    scene.aug(TABLE, 0, SMALL)
    for gpa in (BLOCKED, NL_BLOCKED):
        scene.must("TDH.MEM.RANGE.BLOCK", gpa | 1, TDR)
    scene.track()


def runnable(scene: Scene) -> None:
    """The same of a TD that runs, whose guest has accepted MAPPED."""
    initialized(scene)
    scene.must("TDH.MR.FINALIZE", TDR)
    scene.enter()
    scene.accept(MAPPED | 1)
    scene.exit()
    scene.track()


def running(scene: Scene) -> None:
    """The first vCPU is in the TD, on the processor of the first task."""
    runnable(scene)
    scene.enter()


def flushed(scene: Scene) -> None:
    """No vCPU is associated."""
    runnable(scene)
    scene.must("TDH.VP.FLUSH", TDVPR)
    scene.must("TDH.VP.FLUSH", SECOND_TDVPR, lp=1)


def torn_down(scene: Scene) -> None:
    """The key is free again."""
    flushed(scene)
    scene.must("TDH.MNG.VPFLUSHDONE", TDR)
    scene.must("TDH.PHYMEM.CACHE.WB")
    scene.must("TDH.MNG.KEY.FREEID", TDR)


PREPARED = {
    prepare.__name__: prepare for prepare in (initialized, runnable, running, flushed, torn_down)
}


class World:
    """What tasks share, and by task how its calls ended."""

    __slots__ = ("ended", "machine", "module")

    def __init__(self, machine: Machine, module: Module, nr_tasks: int) -> None:
        self.machine = machine
        self.module = module
        self.ended: list[list[tuple[object, ...]]] = [[] for _ in range(nr_tasks)]


class CallTask:
    """A task that makes calls, on a processor of its own."""

    __slots__ = ("cpu", "program", "world")

    def __init__(self, world: World, cpu: int, program: tuple[Call, ...]) -> None:
        self.world, self.cpu, self.program = world, cpu, program

    def run(self) -> None:
        for name, operands in self.program:
            self._make(name, operands)

    def _make(self, name: str, operands: dict[str, int]) -> None:
        machine, module = self.world.machine, self.world.module
        ended = self.world.ended[self.cpu]
        lp = machine.lps[self.cpu]
        in_td = lp.guest is not None
        regs = Regs(**{k: value for k, value in operands.items() if k != "version"})
        if name.startswith("TDH."):
            if in_td:
                return
            regs.rax = SEAMCALL_LEAVES[name] | operands.get("version", 0) << VERSION_SHIFT
            if name == "TDH.VP.ENTER":
                machine.sim.point("seamcall")
                module.vp_enter(lp, regs)
            else:
                machine.seamcall(self.cpu, regs)
            ended.append((name, regs.rax, *(getattr(regs, r) for r in ("rcx", "rdx", "r8", "r9"))))
        elif in_td:
            machine.sim.point("guest instruction")
            if name == "exit":
                module.external_interrupt(lp)
            else:
                regs.rax = TDCALL_LEAVES[name]
                outcome = module.tdcall_step(lp, regs)
                ended.append((f"{name} {outcome.kind}", regs.rax))


class Calls:
    """Programs of calls, as a subject that notes its ends."""

    witnesses = ()
    design, recipe = "", b""
    may_fail, forgets, goes_on = False, True, True

    def __init__(self, prepare: str, *programs: str) -> None:
        """`programs`: names of calls, in each separated by commas. `prepare`: one of PREPARED, or
        "created" for a TD that is not initialised."""
        self.name = " | ".join(programs)
        self._prepare = PREPARED.get(prepare)
        assert self._prepare is not None or prepare == "created"
        self._programs = [tuple(CALLS[c] for c in program.split(", ")) for program in programs]
        self.ends: set[object] = set()
        self.dynamic = False

    def expects(self, finding: object) -> bool:
        return False

    def unbroken(self, broke: object) -> list[str]:
        return []

    must_break = ()

    def is_failure(self, choice: str) -> bool:
        return False

    def build(self) -> Built:
        sim = Sim()
        if self._prepare is None:
            scene = Scene(scene_config(self.dynamic), sim=sim)
            scene.add_pair(CONTROL)
            scene.create_td(params=replace(PARAMS, attributes=DEBUG), init=False)
        else:
            scene = runnable_scene(self.dynamic, vcpus=2, finalize=False, sim=sim)
            self._prepare(scene)
        world = World(scene.machine, scene.module, len(self._programs))
        return Built(sim, [world], world)

    def start(self, built: Any) -> None:
        for cpu, program in enumerate(self._programs):
            built.sim.spawn(f"t{cpu}", CallTask(built.world, cpu, program).run, cpu=cpu)

    def finish(self, built: Built) -> None:
        self.ends.add(self.final(built))

    def final(self, built: Any) -> object:
        machine, module = built.world.machine, built.world.module
        told = [module.tds, module.vcpus, module.kot, module.caches, module.lp_states]
        told += [list(module.pamt.entries_2m()), [list(lp.tlb.entries()) for lp in machine.lps]]
        tokens = tuple(machine.mem.token_of(at >> 12) for at in (LARGE, SMALL, LAST_SMALL))
        return tuple(map(tuple, built.world.ended)), said(told, {}), tokens

    def came_out(self, built: Built) -> object:
        return self.final(built)


def said(obj: object, seen: dict[int, int]) -> object:
    """All that an object of the module holds, as a hashable value."""
    if obj is None or isinstance(obj, int | str | bytes):
        return obj
    if isinstance(obj, list | tuple):
        return tuple(said(one, seen) for one in obj)
    if isinstance(obj, dict):
        return tuple((key, said(obj[key], seen)) for key in sorted(obj))
    if isinstance(obj, TablePage):
        return obj.values().tobytes()
    if isinstance(obj, LogicalProcessor | MeasurementHash):
        return type(obj).__name__
    if id(obj) in seen:
        return seen[id(obj)]
    seen[id(obj)] = len(seen)
    return tuple(said(getattr(obj, name), seen) for name, _ in slots_of(type(obj)))


def both(calls: Calls, strategy: Strategy, preemptions: int | None) -> tuple[Reached, Reached]:
    """What is reached without the points, and with them."""
    without = search(calls, strategy, preemptions)
    with points():
        return without, search(calls, strategy, preemptions)


def world(seed: int) -> Calls:
    """Two or three tasks with calls by dice: none that takes a TDR exclusively, or none that comes
    to a vCPU by its TDVPR and needs that be as it was (what is lost then is told by the tests)."""
    dice = random.Random(seed)
    takes_tdr = {"init vCPU", "init TD", "finalize", "flush done", "free key"}
    takes_tdr |= {"reclaim TDR", "remove pair of TDR"}
    comes_to_vcpu = {"enter", "enter other", "enter wrongly", "read vCPU", "write vCPU"}
    out = takes_tdr if seed % 3 else comes_to_vcpu
    host = [name for name in CALLS if name not in out]
    host += [name for name in host if CALLS[name][0].startswith(("TDH.MEM", "TDH.VP"))] * 3
    guest = ["accept", "accept free", "exit", "exit"] * (len(host) // 4) + host
    prepare = dice.choice(["running", *PREPARED])
    tasks, length = dice.choice(((2, 2), (2, 3), (3, 2)))
    programs = [", ".join(dice.choices(host, k=length)) for _ in range(1, tasks)]
    programs.insert(0, ", ".join(dice.choices(guest if prepare == "running" else host, k=length)))
    calls = Calls(prepare, *programs)
    calls.dynamic = bool(dice.randrange(2))
    return calls


class Points:
    """What the tests use."""

    Calls = Calls
    both = staticmethod(both)
    put = staticmethod(put)
    restored = staticmethod(points)
    search = staticmethod(search)
    world = staticmethod(world)


@pytest.fixture(name="points")
def _points() -> type[Points]:
    return Points
