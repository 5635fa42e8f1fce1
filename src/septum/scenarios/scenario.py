"""What a scenario is, once read: VMs, programs, failures, expectations. All of it is plain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from septum.scenarios.area import Area
from septum.scenarios.ops import Op

if TYPE_CHECKING:
    from collections.abc import Iterable

Backing = Literal["4k", "thp", "hugetlb-2m", "hugetlb-1g"]


class VmShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[vm]`: one VM.

    `memory` begins at `at` and is cut into `slots`, as sizes, one after the other; it is backed by
    one guest_memfd. `in_place`: shared pages are in it, too; `init_shared`: all are, at first.
    `ve`: touching a page that is not accepted is #VE instead of the end. `image`: pages that are
    part of the TD's image, so mapped and accepted from the beginning. `shares_memory_with`: the VM
    whose guest_memfd this one has bound, too. `on_fault`: what the VMM does on
    KVM_EXIT_MEMORY_FAULT: convert, or stop the VM. `later`: the VM is not there at the beginning; a
    program builds it.
    """

    memory: str = "2M"
    at: str = "0x80000000"
    vcpus: int = 0
    """0: as many as the programs need."""
    backing: Backing = "hugetlb-2m"
    in_place: bool = False
    init_shared: bool = False
    ve: bool = False
    slots: list[str] = []
    image: list[str] = []
    shares_memory_with: str = ""
    on_fault: Literal["convert", "stop"] = "convert"
    later: bool = False


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[machine]`: the hardware and the TDX module."""

    module: str = "1.5.28"
    dynamic_pamt: bool = False
    partial_write_erratum: bool = False


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[kernel]`: module parameters, and the FIXUP patches of the v3 tree.

    `attributes`: who holds what is private: guest_memfd (vm_memory_attributes=N, what v3 was
    tested with) or vm (Y).
    """

    attributes: Literal["guest_memfd", "vm"] = "guest_memfd"
    tdx_huge_page: bool = True
    fixup_zap_before_split: bool = True
    fixup_merge_after_to_private: bool = True
    fixup_ignore_ugfn_alignment: bool = True


class Failures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[failures]`: choice points that a search may use, and those that fail in every run.

    `allow` are names with `*`; `inject` are names as in `alloc:tdx_split_cache @2`: the second
    time it is met. Of a SEAMCALL, `seamcall:LEAF=busy` or `=error`.
    """

    allow: list[str] = []
    inject: list[str] = []


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[expect]`: what must be so when the programs have ended, and at the very end.

    `dead`: VMs that are dead or bugged then (names, or true for the only one). `ends`: why VMMs
    gave up, as parts of what they say; `may_end` in some runs. `broken`: promises that this
    breaks in every run; `may_break` in some; each by name, or as `name: part of the finding` when
    only that is meant. `counts` by name, `pages` by area. `witnesses`: what a search must have
    reached, each with " or " between what will do.
    """

    dead: bool | list[str] = False
    ends: list[str] = []
    may_end: list[str] = []
    broken: list[str] = []
    may_break: list[str] = []
    counts: dict[str, int | str] = {}
    pages: dict[str, str] = {}
    witnesses: list[str] = []

    def foresees(self, promise: str, text: str) -> bool:
        """Whether a finding is as the scenario says."""
        return any(covers(entry, promise, text) for entry in (*self.broken, *self.may_break))


def covers(entry: str, promise: str, text: str) -> bool:
    """Whether an entry of `broken` or `may_break` means this finding."""
    name, colon, part = entry.partition(": ")
    return name == promise and (not colon or part in text)


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario file, table by table. Programs are by VM when there are several."""

    summary: str
    source: str = ""
    notes: str = ""
    setup: list[str] = []
    after: list[str] = []
    vm: dict[str, object] = {}
    machine: Machine = Machine()
    kernel: Kernel = Kernel()
    guest: dict[str, object] = {}
    host: dict[str, object] = {}
    failures: Failures = Failures()
    expect: Expect = Expect()


class Injection(msgspec.Struct, frozen=True):
    """The choice point `name` comes out as `value` from its `first` time to its `last`."""

    name: str
    value: int
    first: int
    last: int


class Program(msgspec.Struct, frozen=True):
    """What one vCPU or one thread of the VMM does. `vm` is a name, `vcpu` -1 for a thread."""

    name: str
    vm: str
    vcpu: int
    ops: tuple[Op, ...]


class Step(msgspec.Struct, frozen=True):
    """An operation that has the world for itself: before the programs, or after."""

    actor: str
    vm: str
    vcpu: int
    op: Op


class Vm(msgspec.Struct, frozen=True):
    """A VM, with sizes as numbers."""

    name: str
    shape: VmShape
    gpa: int
    memory_bytes: int
    slots: tuple[int, ...]
    image: tuple[Area, ...]
    nr_vcpus: int


class Scenario(msgspec.Struct, frozen=True):
    """All of a scenario. `text` is the file, which a replay token carries."""

    name: str
    document: Document
    vms: tuple[Vm, ...]
    setup: tuple[Step, ...]
    programs: tuple[Program, ...]
    after: tuple[Step, ...]
    injections: tuple[Injection, ...]
    pages: tuple[tuple[str, str, Area, str], ...]
    """Of `[expect.pages]`: (key, VM, area, state)."""
    text: str
    where: str = ""
    """What its file is called in a sentence about it."""
    also_fail: tuple[str, ...] = ()
    """Choice points that may fail beside those that the file allows."""
    ignored: tuple[str, ...] = ()
    """Parts of findings, as `promise: text`, that the user does not want to hear of."""

    def asked(self, fail: Iterable[str] = (), ignore: Iterable[str] = ()) -> Scenario:
        """The same where these choice points may fail, too, and findings with these texts do not
        count."""
        return msgspec.structs.replace(
            self, also_fail=(*self.also_fail, *fail), ignored=(*self.ignored, *ignore)
        )

    @property
    def may_fail(self) -> tuple[str, ...]:
        """Patterns of the choice points that a search may let fail."""
        return (*self.document.failures.allow, *self.also_fail)

    @property
    def summary(self) -> str:
        """One line."""
        return self.document.summary

    @property
    def expect(self) -> Expect:
        """What must be so."""
        return self.document.expect

    def vm(self, name: str) -> Vm:
        """The VM called `name`; "" is the first."""
        return next(vm for vm in self.vms if not name or vm.name == name)
