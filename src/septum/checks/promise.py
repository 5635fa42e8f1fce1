"""What a promise is made of. Each one is a class in a file of its own.

The class docstring is the sentence that a report prints: its first paragraph what is promised,
the second what happens on real hardware when it is broken.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, ClassVar

from septum.checks.sept import END_GFN

if TYPE_CHECKING:
    from septum.checks.checker import Checker
    from septum.checks.operation import Operation
    from septum.checks.view import VmView
    from septum.linux.kvm.types import KvmVcpu


class Promise:
    """One promise about the world, and the state that it needs to see it broken.

    A check looks at a window of GFNs of one VM, or at the machine; it reads the world, never
    changes it, and tells what it finds with `broken`.
    """

    __slots__ = ("checker", "told")

    name: ClassVar[str] = ""
    consequences: ClassVar[dict[str, str]] = {}
    """Pattern of how a finding's text begins -> what happens then, where that is not the same for
    all."""
    thorough: ClassVar[bool] = False
    """It takes its time, and what it sees stays: not every look at a window has to include it."""

    def __init__(self, checker: Checker) -> None:
        self.checker = checker
        self.told: set[object] = set()

    def start(self) -> None:
        """The world is as it should be: take what is compared with later."""

    def operation_begin(self, op: Operation) -> None:
        """User space is about to ask something of KVM or of guest_memfd."""

    def operation_end(self, op: Operation) -> None:
        """It was answered: `op.ret`."""

    def returned(self, name: str) -> None:
        """The current task goes back to user space from the system call `name`."""

    def ept_violation_handled(self, vcpu: KvmVcpu) -> None:
        """KVM has handled an EPT violation of the vCPU."""

    def fault_tried(self, vcpu: KvmVcpu, gpa: int, ret: int) -> None:
        """A fault at `gpa` came to `ret`: RET_PF_* or -errno."""

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """Check the leaves and pages of `vm` in [first_gfn, end_gfn)."""

    def changed(self, vm: VmView) -> list[tuple[int, int]]:
        """[first, end) GFNs that should be looked at again, besides where the S-EPT changed."""
        return []

    def look_machine(self) -> None:
        """Check what belongs to no VM, or to none any more."""

    def gone(self, vm: VmView) -> None:
        """The VM was destroyed; `vm` says what it was."""

    def exited(self) -> None:
        """Every process has exited, and nothing is open any more."""

    def finish(self) -> None:
        """The run is over. Full looks have been made."""

    def broken(self, cause: object, text: str) -> None:
        """The promise is broken: a finding that says `text`, once for each `cause`."""
        if cause in self.told:
            return
        self.told.add(cause)
        self.checker.report(self.name, text)


def sentence(promise: type[Promise]) -> str:
    """What is promised, in one line."""
    return _paragraphs(promise)[0]


def consequence(promise: type[Promise], text: str = "") -> str:
    """What happens on real hardware when the promise is broken, in one line; of a finding that says
    `text`, when that is given."""
    for beginning, words in promise.consequences.items():
        if re.match(beginning, text):
            return words
    return _paragraphs(promise)[1]


def _paragraphs(promise: type[Promise]) -> list[str]:
    text = inspect.cleandoc(promise.__doc__ or "")
    return [" ".join(part.split()) for part in text.split("\n\n")]
