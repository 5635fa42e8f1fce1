"""Where errors of the host begin: told by the error numbers themselves.

Kernel code returns `-ENOMEM`, and the model's does, too. While a search watches, the error numbers
that the modules of the host have imported are some that tell when they are negated, unless that is
for a comparison. So no function is wrapped, no run is slower, and a path that makes no error costs
nothing.
"""

from __future__ import annotations

import dis
import sys
from typing import TYPE_CHECKING

from septum.abi import errno
from septum.trace.via import KERNEL, kernel_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

ENTRY_DEPTH = 64
"""So many kernel functions at most are on a stack."""

NUMBERS = {name: value for value, name in errno.ERRNO_NAMES.items()}


def entry_of() -> str:
    """The outermost kernel function on the stack: what the task was in."""
    return kernel_path(ENTRY_DEPTH).split(" < ")[-1]


class _Telling(int):
    """An error number that tells when it is negated."""

    __slots__ = ()
    tell: Callable[[FrameType, int], None]

    def __neg__(self) -> int:
        value = int.__neg__(self)
        self.tell(sys._getframe(1), value)
        return value


class ErrorPaths:
    """Tells `reach` of errors, as `error:FUNCTION:-ERRNO:ENTRY`: the function that the error began
    in, and the outermost kernel function on the stack, if that is another."""

    __slots__ = ("_compared", "_installed", "_numbers", "_reach")

    def __init__(self, reach: Callable[[str], None]) -> None:
        self._reach = reach
        self._compared: dict[tuple[CodeType, int], bool] = {}
        self._installed: list[tuple[dict[str, object], str, int]] = []
        kind = type("Telling", (_Telling,), {"tell": staticmethod(self._tell)})
        self._numbers = {name: kind(value) for name, value in NUMBERS.items()}

    def install(self) -> None:
        """From now on tell. Modules that are imported later do not: a host is built by then."""
        for name, module in list(sys.modules.items()):
            if name.startswith(KERNEL):
                names = vars(module)
                for number in names.keys() & NUMBERS.keys():
                    self._installed.append((names, number, names[number]))
                    names[number] = self._numbers[number]

    def uninstall(self) -> None:
        """Put the numbers back."""
        for names, number, value in self._installed:
            names[number] = value
        self._installed.clear()

    def _tell(self, frame: FrameType, value: int) -> None:
        if self._is_compared(frame.f_code, frame.f_lasti):
            return
        word = errno.errno_name(value)
        begins = frame.f_code.co_name
        entry = entry_of()
        self._reach(f"error:{begins}:{word}" + (f":{entry}" if entry not in (begins, "") else ""))

    def _is_compared(self, code: CodeType, at: int) -> bool:
        """Whether the instruction after number `at` of `code` compares."""
        known = self._compared.get((code, at))
        if known is None:
            following = (one.opname for one in dis.get_instructions(code) if one.offset > at)
            known = next(following, "") in ("COMPARE_OP", "CONTAINS_OP")
            self._compared[code, at] = known
        return known
