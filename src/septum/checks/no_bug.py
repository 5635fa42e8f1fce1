"""The promise `no-bug`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from septum.checks.promise import Promise
from septum.checks.sept import END_GFN

if TYPE_CHECKING:
    from septum.checks.view import VmView


class NoBug(Promise):
    """There is no KVM_BUG_ON, TDX_BUG_ON, WARN or machine check.

    On real hardware every ioctl of a bugged VM fails with -EIO and its pages leak; a machine check
    takes the host down or poisons the page.
    """

    __slots__ = ()
    name = "no-bug"
    consequences: ClassVar[dict[str, str]] = {
        "KVM_BUG_ON": "On real hardware every ioctl of the VM fails with -EIO from then on, and"
        " pages that KVM cannot take back from the TD leak.",
        "WARN|SEAMCALL": "On real hardware the kernel prints a warning with a call trace and goes"
        " on, with what it warned of; with panic_on_warn the host stops.",
        "machine check": "On real hardware the machine check takes the host down, or poisons the"
        " page and ends who read it.",
        "use after free": "On real hardware the kernel reads and writes memory that is somebody"
        " else's by now: KASAN tells of it where it is on, elsewhere anything may come of it.",
        "corruption: two tasks change": "On real hardware the list is left in pieces: an oops,"
        " or a page that two users have; with CONFIG_DEBUG_LIST the kernel tells of it first.",
        "corruption": "On real hardware the page cache and the page's metadata are left in pieces:"
        " list corruption, an oops, or memory that two users have.",
        "BUG: bad page state": "On real hardware the kernel prints a bad page state, is tainted,"
        " and gives the page to nobody any more.",
        "BUG: a present leaf": "On real hardware the kernel stops there with an oops: the task ends"
        " with its locks held, and with panic_on_oops the host does.",
        "BUG: gfn .* is to be mapped at level": "On real hardware the level is an index: KVM reads"
        " beyond its tables, and maps whatever that comes to.",
        "VM_BUG_ON": "On real hardware it is an oops with CONFIG_DEBUG_VM; elsewhere the guest gets"
        " other pages than its own.",
        "guest panic": "On real hardware the guest's kernel panics.",
    }

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """A VM that is bugged, or a TD that the module gave up, is found even when the place
        where it happened did not report it; those that do have reported already. A VM that is
        dead for what its guest did is not bugged."""
        kvm = vm.kvm
        if kvm.vm_bugged:
            self._state(vm, "bugged")
        td = vm.td
        if td is not None and td.fatal:
            self._state(vm, "in the module's FATAL state")

    def _state(self, vm: VmView, what: str) -> None:
        if self.checker.was_found(self.name):
            return
        self.broken((vm.name, what), f"{vm.name} is {what}")
