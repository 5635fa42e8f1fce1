"""What a guest is: state that its vCPUs share, and the program that each of them runs."""

from abc import ABC, abstractmethod

from septum.guest.cpu import GuestCpu
from septum.guest.memory import GuestMemory


class Guest(ABC):
    """The software of one TD. Its state is slotted and plain.

    MODEL: programs change their shared state between two instructions, so the guest's own
    spinlocks and its page tables are not modelled, and no two vCPUs meet in a critical section.
    """

    __slots__ = ("memory", "nr_cpus")

    def __init__(self, nr_cpus: int) -> None:
        if nr_cpus < 1:
            raise ValueError(f"A guest needs at least 1 vCPU, not {nr_cpus}.")
        self.nr_cpus = nr_cpus
        self.memory = GuestMemory()

    @abstractmethod
    def run(self, cpu: GuestCpu) -> None:
        """The program of vCPU `cpu.index`. It never returns: it ends in idle or shutdown."""
