"""What a run leaves for people: one plain structure, filled by the run command, from which text,
JSON and pictures are made. It refers to no live object of a world.

Times are virtual (ns). Counters carry their debugfs names, or Septum's own (see `KvmStats`).
"""

from __future__ import annotations

import enum

import msgspec

SCHEMA = "septum.report"
SCHEMA_VERSION = 1


class PageKind(enum.StrEnum):
    """What a guest page is, as Secure EPT and memory attributes together say."""

    PRIVATE_1G = "1g"
    """Private, accepted, mapped by a 1 GB leaf."""
    PRIVATE_2M = "2m"
    PRIVATE_4K = "4k"
    PENDING = "pending"
    """Private and in the Secure EPT at any level, but PENDING: the guest has not accepted it."""
    BLOCKED = "blocked"
    """In the Secure EPT, but blocked (PENDING_BLOCKED, too)."""
    SHARED = "shared"
    """The memory attribute is not private, whether or not the host has a page there."""
    UNACCEPTED = "unaccepted"
    """Private, and not in the Secure EPT."""


class Region(msgspec.Struct, frozen=True, array_like=True):
    """`nr_pages` 4 KB pages from `start_gfn` on that are all of one kind."""

    start_gfn: int
    nr_pages: int
    kind: PageKind


class Bank(msgspec.Struct, frozen=True):
    """One range of guest RAM, such as "RAM below 4 GiB"."""

    name: str
    gpa: int
    size_bytes: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's memory and KVM's statistics at one moment, such as "login" or "end".

    `stats` are the VM's counters with the sums of its vCPUs'. `regions` cover the banks without
    overlap, in order; a page of a bank that no region names is drawn as unaccepted.
    """

    name: str
    title: str
    time_ns: int
    stats: dict[str, int]
    regions: list[Region]


class PromiseResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one promise fared: its sentence, how often it was looked at, how often broken."""

    name: str
    sentence: str
    consequence: str = ""
    nr_looks: int = 0
    nr_broken: int = 0


class FindingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A `septum.sim.Finding`."""

    promise: str
    text: str
    where: str = ""
    task: str = ""
    time_ns: int = 0


class LockRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How often a lock was taken, and the longest time a writer held it."""

    name: str
    nr_read: int = 0
    nr_write: int = 0
    max_write_hold_ns: int = 0


class PhaseRecord(msgspec.Struct, frozen=True):
    """A phase of the guest, and when its first vCPU entered it."""

    name: str
    time_ns: int


class RunResult(msgspec.Struct, kw_only=True):
    """Everything that a report of one run says.

    `command` reproduces the run. `ended` says in a few words why it ended ("the guest powered
    off"); `complete` is false when a budget or an interrupt cut it short. `cause` is one sentence
    for the first finding; "" lets the report take the finding's own text. `seamcalls` maps
    leaf -> status -> count by the specification's names. `stats` are the
    counters at the end of the guest's life, before teardown. `published_from` names the snapshot
    that published figures "at login" are compared with; `picture` the one that the terminal draws.
    """

    schema: str = SCHEMA
    schema_version: int = SCHEMA_VERSION
    septum_version: str

    # What was run
    scenario: str = "boot"
    command: str
    token: str = ""
    design: str
    design_origin: str = ""
    memory_bytes: int
    nr_vcpus: int
    schedule: str = "round-robin"
    seed: int = 0
    module: str = ""
    firmware: str = ""
    mrtd: str = ""
    check: str = ""

    # How it ended
    ended: str = ""
    complete: bool = True
    cause: str = ""
    promises: list[PromiseResult] = []
    findings: list[FindingRecord] = []
    failures: list[str] = []
    """Why the VM ended other than by its own will (the VMM's `fatal`)."""

    # What was counted
    time_ns: int = 0
    stats: dict[str, int] = {}
    seamcalls: dict[str, dict[str, int]] = {}
    user_exits: dict[str, int] = {}
    locks: list[LockRecord] = []
    phases: list[PhaseRecord] = []
    nr_events: int = 0
    trace_file: str = ""

    # The guest's memory
    banks: list[Bank] = []
    snapshots: list[Snapshot] = []
    published_from: str = "login"
    picture: str = "login"

    @property
    def held(self) -> bool:
        """No promise was broken, and the VM did not die."""
        return not self.findings and not self.failures

    def snapshot(self, name: str) -> Snapshot | None:
        """The snapshot called `name`; the last one when there is none of that name."""
        for snapshot in self.snapshots:
            if snapshot.name == name:
                return snapshot
        return self.snapshots[-1] if self.snapshots else None
