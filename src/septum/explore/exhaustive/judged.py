"""The ends of runs that were judged: by the state in which a run ended, and whether anything had
failed before by the schedule's choice. A scenario expects less of a run in which something did."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.sim import Finding


class JudgedEnds:
    """What broke where a real run ended; None: nothing."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[int, Finding | None] = {}  # by the state, or by its complement: failed

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def clear(self) -> None:
        """Forget all."""
        self._found.clear()

    def add(self, value: int, failed: bool, finding: Finding | None) -> int:
        """A run ended in the state `value`. Returns what stands for this end."""
        end = ~value if failed else value
        self._found[end] = finding
        return end

    def update(self, others: Iterable[tuple[int, Finding | None]]) -> None:
        """Ends that other workers judged, by what stands for them."""
        self._found.update(others)

    def knows(self, value: int, failed: bool) -> bool:
        """Whether it is known what breaks. Where nothing does without a failure, nothing does after
        one."""
        found = self._found
        if failed:
            return ~value in found or (value in found and found[value] is None)
        return value in found

    def finding(self, value: int, failed: bool) -> Finding | None:
        """What breaks in an end that is known."""
        return self._found.get(~value) if failed else self._found[value]
