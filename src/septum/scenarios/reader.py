"""Reads scenario files. What is wrong with one is told with its file, line or key, and a remedy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar, get_args, get_type_hints

import msgspec

from septum.abi.types import PAGE_SHIFT
from septum.checks import PROMISES
from septum.errors import InputError
from septum.scenarios.area import HOW, Area, parse_area, parse_size
from septum.scenarios.counts import may_fit
from septum.scenarios.injections import InjectionError, parse_injection
from septum.scenarios.ops import VCPUS_MAX, Op, OpError, parse_guest_op, parse_host_op
from septum.scenarios.places import wrong
from septum.scenarios.scenario import (
    Document,
    Injection,
    Program,
    Scenario,
    Step,
    Vm,
    VmShape,
)
from septum.scenarios.sense import check_sense
from septum.scenarios.source import decode
from septum.scenarios.spelling import meant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T", Document, VmShape)

VMS_MAX = 4
MEMORY_MAX = 4 << 30
ONLY_VM = "vm"
PAGE_STATES = ("shared", "unmapped", "pending 4K", "pending 2M", "private 4K", "private 2M", "gone")
_TO_MEMORY = ("accept", "use", "write", "read", "touch", "verify")
"""What a guest does to memory that has to be there."""
_OF_MAPPING = ("write", "read", "touch", "discard", "pin", "unpin", "fail")
"""What user space does to the memory that it has: elsewhere there is something else, or nothing.
System calls and ioctls may be given any range, and say what they think of it."""


class _Reader:
    """One file on its way to a Scenario."""

    def __init__(self, name: str, text: str, where: str) -> None:
        self.name = name
        self.text = text
        self.where = where
        self.document = self._decode()
        self.shapes = self._shapes()
        self.several = list(self.shapes) != [ONLY_VM]

    def error(self, what: str, *, near: str = "", key: str = "", table: str = "") -> InputError:
        """`what` went wrong, at the line of the value `near`, or of `key` in `[table]`."""
        return wrong(self.where, self.text, what, near, key=key, table=table)

    def _decode(self) -> Document:
        return self._convert(decode(self.text, self.where), Document, "")

    def _convert(self, raw: object, kind: type[T], at: str) -> T:
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `$")
            key = (at + path.rstrip("`")).strip(".") or "the top level"
            unknown = re.search(r"unknown field `([^`]*)`", text)
            if unknown is not None:
                # Keys that exist, of the table that has the wrong one.
                raise self.error(
                    f"{key} has no key {unknown[1]!r}; {_known_keys(key)}",
                    key=unknown[1],
                    table=key,
                ) from None
            what = text[0].lower() + text[1:]
            table, _, last = key.rpartition(".")
            choices = ", ".join(_choices(kind, path.rstrip("`"))) if "enum" in what else ""
            remedy = (
                f"choose from {choices}" if choices else "docs/scenarios.md says what stands there"
            )
            raise self.error(
                f"{key}: {what}; {remedy}",
                key=last.split("[")[0],
                table=table,
            ) from None

    def _shapes(self) -> dict[str, VmShape]:
        tables = self.document.vm
        if tables and all(isinstance(value, dict) for value in tables.values()):
            shapes = {
                name: self._convert(value, VmShape, f"vm.{name}") for name, value in tables.items()
            }
        else:
            shapes = {ONLY_VM: self._convert(tables, VmShape, "vm")}
        for name in shapes:
            if name == "host" or re.fullmatch(r"[\w-]+", name) is None:
                raise self.error(
                    f"vm.{name}: no VM can have this name; take letters and digits, as in [vm.a]",
                    near="[vm",
                    table=f"vm.{name}",
                )
        if len(shapes) > VMS_MAX:
            raise self.error(f"{len(shapes)} VMs are too many; have at most {VMS_MAX}", near="[vm")
        return shapes

    # Programs

    def _op(self, line: str, parse: Callable[[str], Op], at: str) -> Op:
        try:
            return parse(line)
        except OpError as error:
            raise self.error(f"{at}: {error}", near=line) from None

    def _vcpu(self, actor: str, at: str, near: str = "") -> int:
        """The number of the vCPU `actor`; `near`: the step that it takes."""
        match = re.fullmatch(r"vcpu([0-9])", actor)
        if match is None or int(match[1]) >= VCPUS_MAX:
            raise self.error(
                f"{at}: {actor!r} is no vCPU; call it vcpu0 to vcpu{VCPUS_MAX - 1}",
                near=near,
                key=actor,
                table=at.rpartition(".")[0],
            )
        return int(match[1])

    def programs(self) -> tuple[Program, ...]:
        """Those of vCPUs, by VM, then those of the VMMs' threads."""
        found: list[Program] = []
        for key, value in self.document.guest.items():
            if isinstance(value, dict):
                if key not in self.shapes or not self.several:
                    raise self.error(
                        f"guest.{key}: no VM is called {key!r}; add a table [vm.{key}]",
                        key=key,
                        table=f"guest.{key}",
                    )
                for actor, lines in value.items():
                    at = f"guest.{key}.{actor}"
                    found.append(self._guest_program(key, actor, self._lines(lines, at), at))
            elif self.several:
                raise self.error(
                    f"guest.{key}: which VM's? Write [guest.{next(iter(self.shapes))}]",
                    near="[guest]",
                )
            else:
                at = f"guest.{key}"
                found.append(self._guest_program(ONLY_VM, key, self._lines(value, at), at))
        for name, lines in self.document.host.items():
            at = f"host.{name}"
            ops = [self._host_op(line, at) for line in self._lines(lines, at)]
            found.append(Program(f"host.{name}", ops[0].vm if ops else "", -1, tuple(ops)))
        return tuple(found)

    def _lines(self, value: object, at: str) -> list[str]:
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            return value
        raise self.error(
            f'{at}: a program is a list of lines; write {at.rpartition(".")[2]} = ["..."]',
            key=at.rpartition(".")[2],
            table=at.rpartition(".")[0],
        )

    def _guest_program(self, vm: str, actor: str, lines: list[str], at: str) -> Program:
        vcpu = self._vcpu(actor, at)
        ops = tuple(self._op(line, parse_guest_op, at) for line in lines)
        return Program(self._actor(vm, vcpu), vm, vcpu, ops)

    def _actor(self, vm: str, vcpu: int) -> str:
        return f"{vm}.vcpu{vcpu}" if self.several else f"vcpu{vcpu}"

    def _host_op(self, line: str, at: str) -> Op:
        op = self._op(line, parse_host_op, at)
        for each in (op, *op.alternatives):
            if each.vm and each.vm not in self.shapes:
                names = ", ".join(self.shapes)
                raise self.error(f"{at}: no VM is called {each.vm!r}; there is {names}", near=line)
        return op

    def steps(self, lines: list[str], at: str) -> tuple[Step, ...]:
        """`vcpu0: accept page 0`, `host: punch page 0`."""
        steps = []
        for line in lines:
            actor, colon, what = line.partition(": ")
            if not colon:
                raise self.error(
                    f"{at}: {line!r} does not say who does it; write `vcpu0: ...` or `host: ...`",
                    near=line,
                )
            if actor == "host":
                op = self._host_op(what, at)
                steps.append(Step("host", op.vm, -1, op))
                continue
            vm, dot, name = actor.rpartition(".")
            vm = vm if dot else ONLY_VM
            if vm not in self.shapes:
                first = next(iter(self.shapes))
                raise self.error(
                    f"{at}: no vCPU is called {actor!r}; write `{first}.vcpu0: ...`", near=line
                )
            vcpu = self._vcpu(name, at, line)
            op = self._op(what, parse_guest_op, at)
            steps.append(Step(self._actor(vm, vcpu), vm, vcpu, op))
        return tuple(steps)

    # VMs

    def _size(self, text: str, at: str) -> int:
        size = parse_size(text)
        if size is None or not size or size % 4096 or size > MEMORY_MAX:
            raise self.error(
                f"{at}: {text!r} is no size of memory; write whole pages up to 4G, like 2M",
                near=text,
            )
        return size

    def vms(self, used: dict[str, int]) -> tuple[Vm, ...]:
        """`used` is the number of vCPUs that programs name, by VM."""
        vms: list[Vm] = []
        for name, shape in self.shapes.items():
            at = f"vm.{name}" if self.several else "vm"
            memory = self._size(shape.memory, f"{at}.memory")
            slots = tuple(self._size(text, f"{at}.slots") for text in shape.slots) or (memory,)
            if sum(slots) != memory:
                raise self.error(
                    f"{at}.slots have {sum(slots) >> 10}K together and the memory"
                    f" {memory >> 10}K; make them equal",
                    key="slots",
                    table=at,
                )
            if shape.init_shared and (not shape.in_place or shape.backing.startswith("hugetlb")):
                raise self.error(
                    f"{at}.init-shared: memory that begins shared is in place, and not hugetlb's;"
                    ' add in-place = true and backing = "4k" or "thp"',
                    key="init-shared",
                    table=at,
                )
            if shape.later and name in used:
                raise self.error(
                    f"{at}.later: a VM that is built by a program has no programs of its own;"
                    " leave one of them out",
                    key="later",
                    table=at,
                )
            nr_vcpus = max(shape.vcpus, used.get(name, 0), 1)
            if 0 < shape.vcpus < nr_vcpus:
                raise self.error(
                    f"{at}.vcpus: {shape.vcpus} are too few for what"
                    f" vcpu{nr_vcpus - 1} does; leave it out, or write {nr_vcpus}",
                    key="vcpus",
                    table=at,
                )
            if nr_vcpus > VCPUS_MAX or shape.vcpus < 0:
                raise self.error(
                    f"{at}.vcpus: {shape.vcpus} is no number of vCPUs; write at most {VCPUS_MAX},"
                    " or 0 for as many as programs need",
                    key="vcpus",
                    table=at,
                )
            if shape.shares_memory_with and shape.shares_memory_with not in [v.name for v in vms]:
                raise self.error(
                    f"{at}.shares-memory-with: {shape.shares_memory_with!r} is no VM above it;"
                    " name one of those",
                    near=shape.shares_memory_with,
                )
            vms.append(
                Vm(
                    name,
                    shape,
                    self._gpa(shape, at),
                    memory,
                    slots,
                    self._image(shape, at),
                    nr_vcpus,
                )
            )
        return tuple(vms)

    def _gpa(self, shape: VmShape, at: str) -> int:
        try:
            gpa = int(shape.at, 0)
        except ValueError:
            gpa = -1
        if gpa < 0 or gpa % 4096 or gpa >= 1 << 46 or gpa <= 0xFFFFFFFF < gpa + MEMORY_MAX // 2**11:
            raise self.error(
                f"{at}.at: {shape.at!r} is no place for memory; write an address of whole pages"
                " away from 4 GiB, such as 0x80000000",
                near=shape.at,
            )
        return gpa

    def _image(self, shape: VmShape, at: str) -> tuple[Area, ...]:
        areas = []
        for text in shape.image:
            area = parse_area(text)
            if area is None or area.absolute:
                raise self.error(f"{at}.image: {text!r} names no pages; {HOW}", near=text)
            areas.append(area)
        return tuple(areas)

    # Failures and expectations

    def injections(self) -> tuple[Injection, ...]:
        """`alloc:mem_attr_array @2`, `seamcall:TDH.MEM.RANGE.BLOCK=busy`."""
        found = []
        for text in self.document.failures.inject:
            try:
                found.append(parse_injection(text))
            except InjectionError as error:
                raise self.error(f"failures.inject: {error}", near=text) from None
        return tuple(found)

    def check_expect(self) -> tuple[tuple[str, str, Area, str], ...]:
        """Look at the names in [expect]; returns the pages."""
        expect = self.document.expect
        for entry in (*expect.broken, *expect.may_break):
            name = entry.partition(": ")[0]
            if name not in PROMISES:
                raise self.error(
                    f"expect: no promise is called {name!r};"
                    f" {meant(name, PROMISES, 'there are ' + ', '.join(PROMISES))}",
                    near=name,
                )
        for name in expect.dead if isinstance(expect.dead, list) else ():
            if name not in self.shapes:
                raise self.error(
                    f"expect.dead: no VM is called {name!r}; there is {', '.join(self.shapes)}",
                    near=name,
                )
        for key, value in expect.counts.items():
            if not may_fit(key, value):
                raise self.error(
                    f"expect.counts: {key!r} is {value!r}, which nothing can be; write a number,"
                    " `1..3` or `>= 1`",
                    key=key,
                )
        for name, parts in (("ends", expect.ends), ("may-end", expect.may_end)):
            if not all(part.strip() for part in parts):
                raise self.error(
                    f"expect.{name}: '' is a part of all that a VMM says; give more of it",
                    key=name,
                    table="expect",
                )
        return tuple(self._page(key, state) for key, state in expect.pages.items())

    def _page(self, key: str, state: str) -> tuple[str, str, Area, str]:
        vm, colon, text = key.partition(": ")
        area = parse_area(text if colon else key)
        vm = vm if colon else next(iter(self.shapes))
        if area is None or vm not in self.shapes:
            raise self.error(f"expect.pages: {key!r} names no pages; {HOW}", key=key)
        for part in state.split(" or "):
            if part not in PAGE_STATES:
                raise self.error(
                    f"expect.pages: a page cannot be {part!r};"
                    f" {meant(part, PAGE_STATES, 'it is ' + ', '.join(PAGE_STATES))}",
                    near=state,
                )
        return key, vm, area, state

    def _use(self, used: dict[str, int], vm: str, vcpu: int, ops: tuple[Op, ...]) -> None:
        """Note the vCPUs that a program is of, or names."""
        if vcpu >= 0:
            used[vm] = max(used.get(vm, 0), vcpu + 1)
            return
        for op in ops:
            for each in (op, *op.alternatives):
                if each.verb in ("prefault", "wake", "interrupt"):
                    name = each.vm or next(iter(self.shapes))
                    used[name] = max(used.get(name, 0), each.number + 1)

    def _inside(self, vm: Vm, area: Area, what: str, near: str) -> None:
        """Raises InputError where the area is not in the VM's memory."""
        offset = area.offset(vm.gpa)
        if offset < 0 or offset + area.size(vm.memory_bytes) > vm.memory_bytes:
            of = f"[vm.{vm.name}]" if self.several else "[vm]"
            raise self.error(
                f"{what} is beyond the VM's memory, {vm.memory_bytes >> PAGE_SHIFT} pages at"
                f" {vm.gpa:#x}; name pages of it, or give {of} more `memory`",
                near=near,
            )

    def _check_areas(self, actors: Iterable[Program | Step], scenario: Scenario) -> None:
        """No guest waits for memory that its VM does not have, no VMM writes beyond it, no
        expectation is of none."""
        for actor in actors:
            verbs = _TO_MEMORY if actor.vcpu >= 0 else _OF_MAPPING
            for op in actor.ops if isinstance(actor, Program) else (actor.op,):
                for each in (op, *op.alternatives):
                    if each.verb not in verbs:
                        continue
                    name = actor.vm if actor.vcpu >= 0 else each.vm or scenario.vms[0].name
                    vm = scenario.vm(name)
                    if actor.vcpu < 0 or vm.shape.on_fault != "stop":
                        self._inside(vm, each.area, f"{_name_of(actor)}: `{each.text}`", each.text)
        for key, name, area, _ in scenario.pages:
            self._inside(scenario.vm(name), area, f"expect.pages: {key!r}", key)
        for vm in scenario.vms:
            for area, text in zip(vm.image, vm.shape.image, strict=True):
                self._inside(vm, area, f"vm.image: {text!r}", text)

    def scenario(self) -> Scenario:
        """All of it."""
        programs = self.programs()
        setup = self.steps(self.document.setup, "setup")
        after = self.steps(self.document.after, "after")
        used: dict[str, int] = {}
        for program in programs:
            self._use(used, program.vm, program.vcpu, program.ops)
        for step in (*setup, *after):
            self._use(used, step.vm, step.vcpu, (step.op,))
        names = [program.name for program in programs]
        if not programs and not setup and not after:
            raise self.error("nothing happens in it; add a table [guest] or [host]")
        assert len(set(names)) == len(names)
        scenario = Scenario(
            name=self.name,
            document=self.document,
            vms=self.vms(used),
            setup=setup,
            programs=programs,
            after=after,
            injections=self.injections(),
            pages=self.check_expect(),
            text=self.text,
            where=self.where,
        )
        self._check_areas((*programs, *setup, *after), scenario)
        check_sense(scenario)
        return scenario


def _name_of(actor: Program | Step) -> str:
    return actor.name if isinstance(actor, Program) else actor.actor


def _choices(kind: type, path: str) -> tuple[str, ...]:
    """The values of the field at `path` in a struct, as in `.kernel.attributes`, if it has few."""
    for part in path.strip(".").split("."):
        kind = get_type_hints(kind).get(part.replace("-", "_"), str)
    return get_args(kind)


def _known_keys(key: str) -> str:
    from septum.scenarios import scenario as kinds

    tables: dict[str, type[msgspec.Struct]] = {
        "the top level": kinds.Document,
        "machine": kinds.Machine,
        "kernel": kinds.Kernel,
        "failures": kinds.Failures,
        "expect": kinds.Expect,
    }
    kind = tables.get(key, kinds.VmShape if key.startswith("vm") else None)
    if kind is None:
        return "docs/scenarios.md lists the keys"
    return f"it has {', '.join(field.encode_name for field in msgspec.structs.fields(kind))}"


def read_scenario(name: str, text: str, where: str) -> Scenario:
    """The scenario in `text`, which is called `name` and came from `where`. Raises InputError."""
    return _Reader(name, text, where).scenario()
