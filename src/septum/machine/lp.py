"""A logical processor: its TLB, its interrupt state, and the guest it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.machine.tlb import Tlb
from septum.sim import Sim, WaitQueue

if TYPE_CHECKING:
    from septum.machine.machine import GuestContext


class PiDesc:
    """A posted-interrupt descriptor. `on` (PID.ON): an interrupt is posted that no processor has
    moved to its guest's virtual APIC yet."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on = False


class LogicalProcessor:
    """One hardware thread."""

    __slots__ = (
        "context",
        "guest",
        "id",
        "ipi_pending",
        "ipi_wq",
        "irq_enabled",
        "notification",
        "package",
        "sim",
        "tlb",
        "wake_wq",
    )

    def __init__(self, sim: Sim, id: int, package: int) -> None:
        self.sim = sim
        self.id = id
        self.package = package
        self.tlb = Tlb()
        self.irq_enabled = True
        self.ipi_pending = False
        # A notification vector that came while interrupts were off, for the guest to be entered.
        self.notification: PiDesc | None = None
        # The TDX module's vCPU while this processor is inside a TD, else None.
        self.guest: object | None = None
        # The guest program that runs here while inside a TD.
        self.context: GuestContext | None = None
        self.ipi_wq = WaitQueue(sim, f"ipi acknowledgement of cpu{id}")
        self.wake_wq = WaitQueue(sim, f"guest memory to change (cpu{id} spins)")

    def interrupt_pending(self) -> bool:
        """An external interrupt waits to be taken."""
        return self.ipi_pending

    def local_irq_disable(self) -> None:
        """cli: interrupts stay pending."""
        self.irq_enabled = False

    def local_irq_enable(self) -> None:
        """sti: pending interrupts are taken, which acknowledges their senders."""
        self.irq_enabled = True
        self.notification = None  # the host's handler of that vector does nothing
        if self.ipi_pending:
            self.acknowledge()

    def acknowledge(self) -> None:
        """The interrupt handler runs: senders that wait for it go on."""
        self.ipi_pending = False
        self.ipi_wq.wake_up_all()
        self.sim.point("interrupt handler")
