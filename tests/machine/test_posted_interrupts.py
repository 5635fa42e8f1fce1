"""A posted interrupt goes to the virtual APIC of the guest that runs or is about to, or stays."""

from septum.abi import features as f
from septum.machine import GuestContext, Machine, MachineConfig, PiDesc
from septum.module import Module
from septum.module.metadata import _vcpu_state_details
from septum.sim import Sim

TDVPR = 0x400


def machine_with_guest() -> tuple[Machine, GuestContext, PiDesc]:
    """A guest that notes what it begins with and leaves."""
    machine = Machine(Sim(), MachineConfig())

    def guest() -> None:
        machine.exit_to_host(machine.lps[0], context.interrupt)

    context = GuestContext("guest", guest)
    machine.guest_contexts[TDVPR] = context
    desc = PiDesc()
    desc.on = True
    return machine, context, desc


def test_in_the_host_with_interrupts_on_it_stays_posted() -> None:
    machine, context, desc = machine_with_guest()
    machine.notify_posted(0, desc)
    assert desc.on and not context.interrupt and machine.lps[0].notification is None


def test_with_interrupts_off_the_guest_begins_with_it() -> None:
    machine, context, desc = machine_with_guest()
    lp = machine.lps[0]
    lp.local_irq_disable()
    machine.notify_posted(0, desc)
    assert machine.run_guest(lp, TDVPR) is True
    assert context.interrupt and not desc.on and lp.notification is None


def test_an_entry_that_does_not_come_about_leaves_it_posted() -> None:
    machine, context, desc = machine_with_guest()
    lp = machine.lps[0]
    lp.local_irq_disable()
    machine.notify_posted(0, desc)
    lp.local_irq_enable()
    assert desc.on and not context.interrupt and lp.notification is None


def test_the_module_tells_the_host_of_it() -> None:
    machine, context, desc = machine_with_guest()
    module = Module(machine)
    vcpu = type("V", (), {"tdvpr_pfn": TDVPR})()
    assert _vcpu_state_details(module, vcpu) == 0
    context.take_posted(desc)
    assert _vcpu_state_details(module, vcpu) == f.VCPU_STATE_DETAILS_VMXIP
    context.take_posted(desc)  # nothing new
    assert context.interrupt and not desc.on
