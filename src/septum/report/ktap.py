"""Results as the kernel's test tools read them: the Kernel Test Anything Protocol, version 1.

Source: Documentation/dev-tools/ktap.rst.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

VERSION = "KTAP version 1"
INDENT = "  "


class Case(msgspec.Struct, frozen=True):
    """One test: its own subtests, or a leaf.

    `directive` is SKIP, XFAIL, TIMEOUT or ERROR, `data` what it says; `diagnostics` are lines that
    come before the result. A case with subtests is ok when all of them are, and itself is.
    """

    name: str
    ok: bool = True
    directive: str = ""
    data: str = ""
    diagnostics: Sequence[str] = ()
    subtests: Sequence[Case] = ()

    @property
    def passed(self) -> bool:
        """This and all below."""
        return self.ok and all(case.passed for case in self.subtests)


def ktap_lines(cases: Sequence[Case]) -> Iterator[str]:
    """The lines of a whole output, without line ends."""
    yield VERSION
    yield f"1..{len(cases)}"
    for number, case in enumerate(cases, 1):
        if case.subtests:
            yield from (f"{INDENT}{line}" for line in ktap_lines(case.subtests))
        yield from (f"# {line}".rstrip() for line in case.diagnostics)
        yield _result(number, case)


def _result(number: int, case: Case) -> str:
    said = " ".join(word for word in (case.directive, *case.data.split()) if word)
    line = f"{'ok' if case.passed else 'not ok'} {number} {_name(case.name)}"
    return f"{line} # {said}" if said else line


def _name(name: str) -> str:
    """A description may not have a hash sign, nor look like more than one line."""
    return " ".join(name.replace("#", "").split())
