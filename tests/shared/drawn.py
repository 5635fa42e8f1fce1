"""Scenarios from dice: what nobody thought of, the same for the same seed.

One VM or two, whose memory may be one; VMs that are closed, destroyed, or built while others run;
memory that is closed under a call; slots that come and go. Nothing is expected of the results, or
that some operations come to `ok`, whether they do or not.
"""

import random
import re
from typing import NamedTuple

BACKINGS = ("hugetlb-2m", "hugetlb-2m", "thp", "4k")
FAILURES = ("alloc:*", "need_resched", "seamcall:*", "signal_pending:*", "*")


class Size(NamedTuple):
    """The most there is of each; `areas`: whether an operation may be about much memory."""

    vcpus: int = 2
    threads: int = 3
    operations: int = 4
    areas: bool = True
    failures: bool = False


LARGE = Size()
SMALL = Size(vcpus=2, threads=2, operations=1, areas=False, failures=True)
"""Small enough for every schedule to be tried, more often than not."""


def drawn_scenario(seed: int, size: Size = LARGE, *, expects: bool = False) -> str:
    """The text of a scenario. `expects`: half of its operations must come to `ok`."""
    text = _Dice(seed, size).scenario()
    if not expects:
        return text
    setup, *rest = re.split("(?=\\[machine\\])", text)
    dice = random.Random(~seed)
    return setup + re.sub(" => any", lambda _: dice.choice([" => any", ""]), "".join(rest))


class _Dice:
    """Draws the parts of one scenario."""

    def __init__(self, seed: int, size: Size) -> None:
        dice = random.Random(seed)
        self.random, self.choice, self.randint = dice.random, dice.choice, dice.randint
        self.number = seed
        self.size = size
        self.vms = ["a", "b"][: 1 + self.chance(0.4)]
        self.later = ["c"] if self.chance(0.3) else []

    def chance(self, likely: float) -> bool:
        return self.random() < likely

    def scenario(self) -> str:
        lines = [f'summary = "Drawn by dice from {self.number}."']
        if self.chance(0.4):
            lines.append('setup = ["a.vcpu0: use 4K pages 0-3 => any"]')
        lines += self._machine()
        in_place = self.chance(0.4)
        backing = self.choice(BACKINGS)
        lines += self._kernel(in_place)
        for vm in self.vms:
            lines += self._vm(vm, backing, in_place)
        for vm in self.later:
            lines += [f"[vm.{vm}]", 'memory = "4M"', "later = true", 'image = ["pages 0-3"]']
        for vm in self.vms:
            lines.append(f"[guest.{vm}]")
            for number in range(self._count(self.size.vcpus)):
                lines.append(f"vcpu{number} = {self._program(self._guest_operation)}")
        lines.append("[host]")
        for number in range(self._count(self.size.threads)):
            lines.append(f"thread{number} = {self._program(self._host_operation)}")
        if self.size.failures and self.chance(0.4):
            lines += ["[failures]", f'allow = ["{self.choice(FAILURES)}"]']
        return "\n".join(lines) + "\n"

    def _count(self, most: int) -> int:
        """Rather few."""
        return min(self.randint(1, most), self.randint(1, most))

    def _machine(self) -> list[str]:
        lines = ["[machine]"]
        if self.chance(0.5):
            lines.append("dynamic-pamt = true")
        if self.chance(0.3):
            lines.append("partial-write-erratum = true")
        return lines

    def _kernel(self, in_place: bool) -> list[str]:
        lines = ["[kernel]"]
        if not in_place and self.chance(0.5):
            lines.append('attributes = "vm"')
        if self.chance(0.15):
            lines.append("fixup-zap-before-split = false")
        if self.chance(0.1):
            lines.append("tdx-huge-page = false")
        return lines

    def _vm(self, vm: str, backing: str, in_place: bool) -> list[str]:
        lines = [f"[vm.{vm}]", 'memory = "4M"', f'backing = "{backing}"']
        if in_place:
            lines.append("in-place = true")
        if self.chance(0.85):
            lines.append("ve = true")
        if self.chance(0.3):
            lines.append('on-fault = "stop"')
        if self.chance(0.3):
            lines.append('slots = ["2M", "2M"]')
        if vm == "b" and self.chance(0.3):
            lines.append('shares-memory-with = "a"')
        return lines

    def _program(self, operation) -> str:  # type: ignore[no-untyped-def]
        made = [f'"{operation()} => any"' for _ in range(self._count(self.size.operations))]
        return f"[{', '.join(made)}]"

    def _area(self) -> str:
        if not self.size.areas:
            return self.choice(["page 0", "page 0", "page 1", "pages 0-2", "page 511"])
        first = self.choice([0, 1, 8, 500, 510, 512])
        return self.choice(
            [
                *(3 * [f"page {self.choice([0, 1, 2, 5, 511, 512, 1023])}"]),
                *(2 * [f"page {self.choice([0, 1])}"]),
                *(2 * [f"pages {first}-{first + self.choice([1, 7, 15])}"]),
                f"frame {self.choice([0, 1])}",
            ]
        )

    def _guest_operation(self) -> str:
        to = self.choice(["shared", "private"])
        level = self.choice(["4K", "2M"])
        what = self.choice(
            [
                *(f"use {level}", f"accept {level}", "accept", "touch", "write", "read"),
                *("convert", "write 0x44 shared", "read shared"),
            ]
        )
        return f"{what} {self._area()}" + (f" to {to}" if what == "convert" else "")

    def _host_operation(self) -> str:
        vm = self.choice([*self.vms, *self.later])
        to = self.choice(["shared", "private"])
        if self.later and self.chance(0.3):
            return f"build vm in {self.later[0]}"
        what = self.choice(
            [
                *(f"set-attributes {self._area()} to {to}", f"convert {self._area()} to {to}"),
                *(f"punch {self._area()}", f"allocate {self._area()}", f"touch {self._area()}"),
                *(f"fail {self._area()}", f"discard {self._area()}", "close memory", "close vm"),
                *("destroy vm", "delete slot 0", "create slot 0"),
                # A VM that is built later has no vCPU that a program may name.
                *(() if vm in self.later else (f"prefault {self._area()}", "interrupt vcpu0")),
            ]
        )
        return f"{what} in {vm}"
