"""The guest of a scenario: vCPUs that do what is in their queues, and then wait for more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import tdvmcall
from septum.abi.status import (
    STATUS_MASK,
    TDX_OPERAND_BUSY,
    TDX_PAGE_ALREADY_ACCEPTED,
    TDX_PAGE_SIZE_MISMATCH,
    status_name,
)
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from septum.guest.cpu import LEVEL_2M, LEVEL_4K, LEVEL_SIZES, VirtualizationException
from septum.guest.program import Guest
from septum.guest.tdcpu import TdGuestCpu
from septum.guest.unaccepted import tdx_accept_memory
from septum.scenarios.results import LOST, MIXED, OK, REFUSED, TDX, VE
from septum.scenarios.shared_access import shared_access
from septum.sim import ALTERNATIVE

if TYPE_CHECKING:
    from septum.guest.cpu import GuestCpu
    from septum.scenarios.ops import Op
    from septum.scenarios.record import Record
    from septum.scenarios.scenario import Vm

BUSY_RETRIES_MAX = 100
VE_RETRIES_MAX = 20


def status_word(status: int) -> str:
    """A TDX status without its prefix and its detail: `PAGE_SIZE_MISMATCH`; `ok` for success."""
    return status_name(status & STATUS_MASK).removeprefix(TDX).partition("|")[0] if status else OK


def token_word(tokens: set[int]) -> str:
    """What was read: `0x22`, `mixed` when pages differ."""
    return f"{tokens.pop():#x}" if len(tokens) == 1 else MIXED


class ScenarioGuest(Guest):
    """Runs `queues[i]` on vCPU i from `done[i]` on; then reports, and goes on when entered again.

    Everything it knows is here and not on its stack, so that a vCPU whose stack is renewed while
    it waits goes on where it was.
    """

    __slots__ = ("actors", "done", "gpa", "memory_bytes", "queues", "record")

    def __init__(self, vm: Vm, actors: list[str], record: Record) -> None:
        super().__init__(vm.nr_vcpus)
        self.gpa = vm.gpa
        self.memory_bytes = vm.memory_bytes
        self.actors = actors
        self.record = record
        self.queues: list[list[Op]] = [[] for _ in actors]
        # By vCPU, so that each touches its own.
        self.done = dict.fromkeys(range(len(actors)), 0)

    def run(self, cpu: GuestCpu) -> None:
        """Never returns."""
        assert isinstance(cpu, TdGuestCpu)
        index = cpu.index
        while True:
            queue = self.queues[index]
            while self.done[index] < len(queue):
                op = queue[self.done[index]]
                self.done[index] += 1
                self.execute(cpu, op)
            cpu.report_and_begin(tdvmcall.REPORT_SCRIPT_DONE)

    def execute(self, cpu: GuestCpu, op: Op) -> None:
        """Do one operation and record its result."""
        assert isinstance(cpu, TdGuestCpu)
        actor = self.actors[cpu.index]
        if op.alternatives:
            number = self.done[cpu.index] - 1
            name = f"{ALTERNATIVE}{actor}.{number}"
            op = op.alternatives[cpu.machine.sim.choose(name, len(op.alternatives))]
        self.record.begin(actor, op)
        try:
            result = self._do(cpu, op)
        except VirtualizationException:
            result = VE
        self.record.end(actor, op, result)

    def _do(self, cpu: TdGuestCpu, op: Op) -> str:
        gpa = op.area.gpa(self.gpa)
        size = op.area.size(self.memory_bytes)
        nr_pages = size >> PAGE_SHIFT
        verb = op.verb
        if verb == "accept":
            return self._accept(cpu, gpa, size, op.level)
        if verb == "convert":
            return OK if cpu.map_gpa(gpa, size, not op.to_private) else REFUSED
        if verb == "hlt":
            cpu.hlt()
            return OK
        if verb == "signal":
            self.record.raise_flag(op.name)
            return OK
        if verb == "wait":
            cpu.spin_until(lambda: op.name in self.record.flags)
            return OK
        if op.shared:
            return self._shared(cpu, op, gpa, nr_pages)
        if verb == "write":
            cpu.fill(gpa, nr_pages, op.token if op.token >= 0 else None)
            return OK
        if verb == "verify":
            return OK if cpu.verify(gpa, nr_pages) else LOST
        if verb == "use":
            return self._use(cpu, gpa, nr_pages, op.level)
        if verb == "touch":
            cpu.load(gpa, nr_pages)
            return OK
        assert verb == "read"
        return token_word({cpu.read(gpa + (i << PAGE_SHIFT)) for i in range(nr_pages)})

    def _accept(self, cpu: TdGuestCpu, gpa: int, size: int, level: int) -> str:
        """Page by page of `level`, until one fails; level -1 as Linux does, 2M before 4K."""
        if level < 0:
            return OK if tdx_accept_memory(cpu, gpa, gpa + size) else REFUSED
        step = LEVEL_SIZES[level]
        for at in range(gpa, gpa + max(size, step), step):
            status = cpu.accept(at, level)
            if status:
                return status_word(status)
        return OK

    def _use(self, cpu: TdGuestCpu, gpa: int, nr_pages: int, level: int) -> str:
        """Write page after page; a #VE handler accepts, at `level` if that fits, else at 4K."""
        for at in range(gpa, gpa + (nr_pages << PAGE_SHIFT), PAGE_SIZE):
            result = self._use_page(cpu, at, level)
            if result != OK:
                return result
        return OK

    def _use_page(self, cpu: TdGuestCpu, gpa: int, level: int) -> str:
        """User space may take the page again before it is written: then it is another #VE."""
        for _ in range(VE_RETRIES_MAX):
            try:
                cpu.write(gpa)
            except VirtualizationException:
                status = self._handle_ve(cpu, gpa, level)
                if status:
                    return status_word(status)
            else:
                return OK
        return VE

    def _handle_ve(self, cpu: TdGuestCpu, gpa: int, level: int) -> int:
        """0 when the page is accepted now, by whomever."""
        status = 0
        for _ in range(BUSY_RETRIES_MAX):
            at = gpa & -PMD_SIZE if level == LEVEL_2M else gpa
            status = cpu.accept(at, level)
            kind = status & STATUS_MASK
            if kind in (0, TDX_PAGE_ALREADY_ACCEPTED):
                return 0
            if kind == TDX_PAGE_SIZE_MISMATCH and level == LEVEL_2M:
                level = LEVEL_4K
            elif kind == TDX_OPERAND_BUSY:
                # A SEAMCALL that holds the entry's lock is not preempted for a hundred of these.
                cpu.cpu_relax()
            else:
                break
        return status

    def _shared(self, cpu: TdGuestCpu, op: Op, gpa: int, nr_pages: int) -> str:
        """Through the shared alias: what the guest had there privately is given up."""
        tokens: set[int] = set()
        for at in range(gpa, gpa + (nr_pages << PAGE_SHIFT), PAGE_SIZE):
            self.memory.forget(at, 1)
            token = None
            if op.verb == "write":
                token = op.token if op.token >= 0 else self.memory.new_token()
            tokens.add(shared_access(cpu, at, token))
        return token_word(tokens) if op.verb == "read" else OK
