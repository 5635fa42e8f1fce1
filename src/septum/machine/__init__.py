"""The hardware: page frames and their contents, keys, cache lines, processors, TLBs, IPIs."""

from septum.machine.config import MachineConfig, Tdmr
from septum.machine.lp import LogicalProcessor, PiDesc
from septum.machine.machine import GuestContext, Machine, SeamModule
from septum.machine.mem import GARBAGE, PhysMem
from septum.machine.tables import TablePage
from septum.machine.tlb import Tlb, TlbEntry

__all__ = [
    "GARBAGE",
    "GuestContext",
    "LogicalProcessor",
    "Machine",
    "MachineConfig",
    "PhysMem",
    "PiDesc",
    "SeamModule",
    "TablePage",
    "Tdmr",
    "Tlb",
    "TlbEntry",
]
