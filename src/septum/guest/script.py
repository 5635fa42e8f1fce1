"""A scripted guest: a short list of operations for each vCPU, for scenarios and searches.

Operations are plain data, so that a scenario can be written in JSON and shrunk.
"""

from collections.abc import Sequence

import msgspec

from septum.abi import tdvmcall
from septum.abi.types import PAGE_SIZE, PMD_SIZE
from septum.guest.cpu import GuestCpu, VirtualizationException
from septum.guest.program import Guest
from septum.guest.unaccepted import tdx_accept_memory


class Accept(msgspec.Struct, tag="accept", frozen=True):
    """One ACCEPT of TDX level `level`; the result is its status."""

    gpa: int
    level: int = 0


class AcceptRange(msgspec.Struct, tag="accept_range", frozen=True):
    """Accept as Linux does (1G, 2M, 4K); the result is 0, or -1 when 4K failed."""

    gpa: int
    size_bytes: int = PMD_SIZE


class Convert(msgspec.Struct, tag="convert", frozen=True):
    """MapGPA; the result is 0, or -1 when the host refused."""

    gpa: int
    size_bytes: int = PAGE_SIZE
    shared: bool = True


class Write(msgspec.Struct, tag="write", frozen=True):
    """Write a new token to pages; the result is the token, or -1 on #VE."""

    gpa: int
    nr_pages: int = 1


class Verify(msgspec.Struct, tag="verify", frozen=True):
    """Read back what the guest owns there; the result is 0, -1 on a difference or #VE."""

    gpa: int
    nr_pages: int = 1


class Barrier(msgspec.Struct, tag="barrier", frozen=True):
    """Wait until every vCPU has come to its next barrier or to its end."""


class Halt(msgspec.Struct, tag="halt", frozen=True):
    """HLT once."""


Op = Accept | AcceptRange | Convert | Write | Verify | Barrier | Halt


def script_from_json(text: str | bytes) -> list[list[Op]]:
    """The operations of each vCPU, from a JSON list of lists. Raises msgspec.DecodeError."""
    return msgspec.json.decode(text, type=list[list[Op]])


class ScriptGuest(Guest):
    """Runs `scripts[i]` on vCPU i. `results[i]` has one number for each operation done."""

    __slots__ = ("nr_arrived", "nr_ended", "nr_passed", "results", "scripts")

    def __init__(self, scripts: Sequence[Sequence[Op]]) -> None:
        super().__init__(len(scripts))
        self.scripts = [list(ops) for ops in scripts]
        self.results: list[list[int]] = [[] for _ in scripts]
        self.nr_arrived = 0
        self.nr_passed = 0  # barriers that everybody has passed
        self.nr_ended = 0

    def run(self, cpu: GuestCpu) -> None:
        """Run the script; the vCPU that ends last reports."""
        cpu.phase("script")
        results = self.results[cpu.index]
        for op in self.scripts[cpu.index]:
            results.append(self.execute(cpu, op))
        self.nr_ended += 1
        self._release(cpu)
        if self.nr_ended == cpu.nr_cpus:
            cpu.report(tdvmcall.REPORT_SCRIPT_DONE)
        cpu.idle()

    def execute(self, cpu: GuestCpu, op: Op) -> int:
        """Do one operation; its result as a number."""
        try:
            match op:
                case Accept(gpa, level):
                    return cpu.accept(gpa, level)
                case AcceptRange(gpa, size):
                    return 0 if tdx_accept_memory(cpu, gpa, gpa + size) else -1
                case Convert(gpa, size, shared):
                    return 0 if cpu.map_gpa(gpa, size, shared) else -1
                case Write(gpa, nr_pages):
                    token = self.memory.new_token()
                    cpu.fill(gpa, nr_pages, token)
                    return token
                case Verify(gpa, nr_pages):
                    return 0 if cpu.verify(gpa, nr_pages) else -1
                case Barrier():
                    return self._barrier(cpu)
                case Halt():
                    cpu.hlt()
                    return 0
        except VirtualizationException:
            cpu.count("virtualization_exceptions")
            return -1

    def _barrier(self, cpu: GuestCpu) -> int:
        number = self.nr_passed
        self.nr_arrived += 1
        self._release(cpu)
        cpu.spin_until(lambda: self.nr_passed > number)
        return 0

    def _release(self, cpu: GuestCpu) -> None:
        """Open the barrier when every vCPU that still runs waits at it."""
        if self.nr_arrived and self.nr_arrived + self.nr_ended == cpu.nr_cpus:
            self.nr_arrived = 0
            self.nr_passed += 1
        cpu.wake_spinners()
