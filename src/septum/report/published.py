"""The run's figures beside those that were published for TDX huge pages, and why they differ.

Source: Yan Zhao on the kvm list, June and July 2025: a TD of 4 GiB with 8 vCPUs, boot to login.
"""

from __future__ import annotations

import msgspec

from septum.report.result import RunResult
from septum.words import count_text, plural, size_text

PUBLISHED_MEMORY_BYTES = 4 << 30
PUBLISHED_NR_VCPUS = 8
SOURCE = "4 GiB, 8 vCPUs, boot to login: Yan Zhao, kvm list, 2025-06-26 and later"

# Counters of the host (KvmStats).
PAGES_2M = "pages_2m"
ACCEPT_4K = "ept_violation.accept.4k"
ACCEPT_2M = "ept_violation.accept.2m"
ACCEPT_4K_WHERE_2M = "accept_level.4k_where_2m"
"""4K accepts of pages that KVM could have mapped at 2M. A run without it is judged by ACCEPT_4K."""
CHECKED = "accept_level.checked"
WRITE_LOCK = "accept_level.write_lock"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One published number, ours (None: the run does not tell), and one sentence on both."""

    name: str
    what: str
    published: int
    ours: int | None
    why: str


def _elsewhere(result: RunResult) -> str:
    """What of this run is not as it was for the published figures."""
    if (result.memory_bytes, result.nr_vcpus) == (PUBLISHED_MEMORY_BYTES, PUBLISHED_NR_VCPUS):
        return ""
    return f"This guest has {size_text(result.memory_bytes)} and {plural(result.nr_vcpus, 'vCPU')}."


def _why(ours: int | None, published: int, difference: str, agreement: str, elsewhere: str) -> str:
    if ours is None:
        return "The run did not get that far."
    if ours == published:
        return agreement
    return f"{elsewhere} {difference}".strip()


def figures(result: RunResult) -> list[Figure]:
    """The published figures, in the order of the report."""
    snapshot = next((s for s in result.snapshots if s.name == result.published_from), None)
    stats = snapshot.stats if snapshot is not None else None
    elsewhere = _elsewhere(result)
    return [
        _mappings(stats, elsewhere),
        _accepts(stats, elsewhere),
        _write_locks(stats, elsewhere),
        _write_locks_unchecked(stats, elsewhere),
    ]


def _get(stats: dict[str, int] | None, *names: str) -> int | None:
    """The first of the counters that there is; 0 when the run counted none of them."""
    if stats is None:
        return None
    return next((stats[name] for name in names if name in stats), 0)


def _mappings(stats: dict[str, int] | None, elsewhere: str) -> Figure:
    ours = _get(stats, PAGES_2M)
    fitted = (
        "the number of early 4 MiB accepts for each vCPU is fitted to this figure and to one more,"
        " and where swiotlb and drivers' buffers lie is assumed"
    )
    difference = f"No prediction: {fitted}."
    if not elsewhere:
        difference += (
            " The fit counts the 16 accepts of 4 MiB that watermarks drive (32 mappings) as later"
            " than login; here they come before it."
        )
    return Figure(
        name="mappings-2m",
        what="2M mappings at login",
        published=1143,
        ours=ours,
        why=_why(ours, 1143, difference, f"No proof: {fitted}.", elsewhere),
    )


def _accepts(stats: dict[str, int] | None, elsewhere: str) -> Figure:
    ours = _get(stats, ACCEPT_4K_WHERE_2M, ACCEPT_4K)
    difference = (
        "Hers has 506 pages of the firmware's frame at 0x800000, 1,606 flips of three DMA pages (by"
        " an edk2 without a DMA pool), 512 pages of a frame whose caller is not known, and 86 more;"
        " ours has what this image and the model's drivers make."
    )
    if stats is not None and ACCEPT_4K_WHERE_2M not in stats:
        difference = f"Ours are all 4K accepts that KVM saw. {difference}"
    return Figure(
        name="accepts-4k",
        what="4K accepts where 2M was possible",
        published=2710,
        ours=ours,
        why=_why(ours, 2710, difference, "The same number, from assumed places.", elsewhere),
    )


def _write_locks(stats: dict[str, int] | None, elsewhere: str) -> Figure:
    ours = _get(stats, WRITE_LOCK)
    difference = (
        "With the check first, the lock is taken once for each 2 MB frame that the guest begins"
        " to accept at 4K; hers began so many, ours as many as its firmware and drivers touch."
    )
    return Figure(
        name="write-lock-checked",
        what="mmu_lock taken for writing, cheap check first",
        published=11,
        ours=ours,
        why=_why(ours, 11, difference, "One for each 2 MB frame accepted at 4K.", elsewhere),
    )


def _write_locks_unchecked(stats: dict[str, int] | None, elsewhere: str) -> Figure:
    ours = _get(stats, CHECKED)
    at_4k = _get(stats, ACCEPT_4K) or 0
    at_2m = _get(stats, ACCEPT_2M) or 0
    difference = (
        "Without the check, every accept that faults takes it:"
        f" ours are {count_text(at_4k)} at 4K and {count_text(at_2m)} at 2M; what made hers so many"
        " was not published."
    )
    return Figure(
        name="write-lock-unchecked",
        what="mmu_lock taken for writing, without it",
        published=17626,
        ours=ours,
        why=_why(ours, 17626, difference, "One for each accept that faults.", elsewhere),
    )
