"""Where what a step touches is told better than by slots: locks, page tables, physical memory.

Also the few facts about the model that the tracker takes from here: which words are counts of
shared holders, which objects go by what they stand for, and which numbers nobody acts upon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from septum.explore.tracking.footprint import IS, IX, S, X
from septum.explore.tracking.observing import observers
from septum.explore.tracking.reached import reached_hooks
from septum.sim.locks import RwLock, WaitQueue, _Exclusive, _Lock, _ReaderWriter
from septum.sim.sim import Sim
from septum.sim.task import Coroutine

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.tracking.track import Tracker

    Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

# Host-priority lock words: adding or taking away a reader (4) while nobody has or wants it
# exclusively (bits 1:0) commutes with the same by another. Who looks at the count writes then.
COUNTING_WORDS = frozenset(
    (
        ("PamtEntry", "lock"),
        ("PamtEntry1G", "lock"),
        ("PamtEntry2M", "lock"),
        ("HpLock", "lock"),
    )
)

KEYED = {"PamtEntry": "pfn", "Td": "tdr_pfn"}
"""Classes of objects that stand for something that is always there, and the slots that say which:
records that are made when they are first needed, by whoever comes first, and what a TDR page holds,
which promises remember for longer than the model does."""

HUSHABLE = frozenset(
    [("TablePage", name) for name in ("entry", "set_entry", "set_lock", "try_cmpxchg")]
    + [("TablePage", name) for name in ("values", "uniform")]
    + [("PlainLock", name) for name in ("try_sh", "try_ex", "unlock_sh", "unlock_ex")]
    + [("PhysMem", name) for name in ("read", "write", "fill", "token_of", "key_of", "movdir64b")]
)
"""Methods whose wrappers do nothing but log."""

AS_ONE = frozenset(("TablePage", "FrameBlock", "Srcu"))
"""Classes of which one location stands for all slots."""

# Who looks on and never changes the world. What a promise reads is none of the step's own accesses:
# that promises look is one (VIEW).
OBSERVERS = ("septum.checks", "septum.trace")

# Slots whose contents make no step depend on another, by class: statistics that no code of the
# model acts upon, caches of pure functions, and the pool of unused register sets.
STATISTICS = frozenset(
    (
        ("TablePage", "written"),  # read by the checks alone
        ("Writes", "nr"),
        ("Td", "tsc_offset"),  # of virtual time
        ("KvmTdx", "tsc_offset"),
        ("Vcpu", "nr_retired"),  # read by the checks alone
        ("GuestCpu", "counts"),
        ("KvmStats", "values"),
        ("Module", "counts"),
        ("Failures", "_allowed"),
        ("Mm", "_choice_names"),
        ("MmUser", "_choice_names"),
        ("TdxArchState", "regs_pool"),
        ("Vmm", "exits"),
        ("MmState", "nr_free_pages"),
        ("MmState", "site_of"),
        ("PhysMem", "nr_changes"),  # read by the checks alone
        ("PhysMem", "_bytes"),  # told by frame
        ("PhysMem", "_blocks"),
        ("Record", "results"),
        ("Record", "under_way"),
        ("Record", "faults"),
        ("KvmMainState", "cause"),
        ("RangeLocks", "released"),  # virtual times
    )
)


def is_statistic(kind: type, slot: str) -> bool:
    """Whether a slot of `kind`, or of a base of it, is in STATISTICS."""
    return any((base.__name__, slot) in STATISTICS for base in kind.__mro__)


def specials(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    """(class, method, wrapper) of everything that is told by hand."""
    return [
        *_locks(tracker),
        *_scheduler(tracker),
        *_srcu(tracker),
        *_tables(tracker),
        *_memory(tracker),
        *_plain_locks(tracker),
        *observers(tracker),
        *reached_hooks(tracker),
    ]


def _locks(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    """A lock's location is its list of waiters, which the scheduler knows, too."""
    append = tracker.log.append
    touch = tracker.touch

    def takes(kind: int, exclusive: bool) -> Wrap:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(lock: Any) -> None:
                location = id(lock.waiters) << 10
                touch(lock)
                append(location | kind)
                method(lock)
                append(location | kind)
                tracker.steps.took(lock, exclusive)

            return call

        return wrap

    def gives(kind: int) -> Wrap:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(lock: Any) -> Any:
                touch(lock)
                tracker.steps.drops(lock)
                append(id(lock.waiters) << 10 | kind)
                return method(lock)

            return call

        return wrap

    def tries(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(lock: Any) -> Any:
            touch(lock)
            result = method(lock)
            append(id(lock.waiters) << 10 | (X if result else S))
            if result:
                tracker.steps.took(lock, True)
            return result

        return call

    def looks(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(lock: Any) -> Any:
            touch(lock)
            append(id(lock.waiters) << 10 | S)
            return method(lock)

        return call

    return [
        (_Exclusive, "_take", takes(X, True)),
        (_Exclusive, "_try", tries),
        (_Exclusive, "_drop", gives(X)),
        (_Exclusive, "locked", looks),
        (_ReaderWriter, "_read", takes(IX, False)),
        (_ReaderWriter, "_unread", gives(IX)),
        (_ReaderWriter, "_write", takes(X, True)),
        (_ReaderWriter, "_unwrite", gives(X)),
        (RwLock, "is_contended", looks),
    ]


def waits(told: bool) -> int:
    """How who waits touches what it waits for. `told`: it is of the built world, of which every
    look tells who waits; of others that somebody waits now is news."""
    return S if told else X


def _scheduler(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    append = tracker.log.append
    touch = tracker.touch

    def wrap_spin(method: Callable[..., Any]) -> Callable[..., Any]:
        def spin_until(wq: WaitQueue, pred: Callable[[], bool]) -> None:
            touch(wq)
            method(wq, pred)

        return spin_until

    def wrap_block(method: Callable[..., Any]) -> Callable[..., Any]:
        def block(sim: Sim, waiters: list[Any], reason: str) -> None:
            append(id(waiters) << 10 | waits(id(waiters) << 8 in tracker.waiting_at))
            method(sim, waiters, reason)

        return block

    def wrap_wake(method: Callable[..., Any]) -> Callable[..., Any]:
        def wake_up_all(wq: WaitQueue, *args: Any, **named: Any) -> None:
            append(id(wq.waiters) << 10 | IX)
            method(wq, *args, **named)

        return wake_up_all

    def wrap_init(method: Callable[..., Any]) -> Callable[..., Any]:
        def init(of: Any, *args: object) -> None:
            method(of, *args)
            if not tracker.unseen:
                tracker.names.give(of, type(of))

        return init

    def wrap_active(method: Callable[..., Any]) -> Callable[..., Any]:
        def active(wq: WaitQueue) -> Any:
            # Waiting is told as a look, and waking as a change of a part: this meets both.
            append(id(wq.waiters) << 10 | X)
            return method(wq)

        return active

    def wrap_resume(method: Callable[..., Any]) -> Callable[..., Any]:
        resumed = tracker.stacks.resumed

        def resume(coroutine: Coroutine, *args: object) -> Any:
            resumed[tracker.sim.current.index] = coroutine
            return method(coroutine, *args)

        return resume

    return [
        (Coroutine, "resume", wrap_resume),
        (Sim, "block", wrap_block),
        (_Lock, "__init__", wrap_init),
        (WaitQueue, "__init__", wrap_init),
        (WaitQueue, "active", wrap_active),
        (WaitQueue, "wake_up_all", wrap_wake),
        (WaitQueue, "spin_until", wrap_spin),
    ]


def _srcu(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    """Readers of SRCU come and go without meeting; who waits for them meets them all."""
    from septum.linux.srcu import Srcu

    log = tracker.log
    append = log.append

    def reader(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(srcu: Any, *args: int) -> Any:
            mark = len(log)
            result = method(srcu, *args)
            counts, waiters = srcu.nr_readers, srcu.wq.waiters
            del log[mark:]
            append(id(srcu) << 10 | IX)
            append(id(counts) << 10 | IX)
            if args:  # the last to go wakes whoever waits; nothing else tells who is the last
                append(id(waiters) << 10 | IX)
            return result

        return call

    def synchronize(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(srcu: Any) -> None:
            append(id(srcu) << 10 | X)
            method(srcu)

        return call

    return [
        (Srcu, "read_lock", reader),
        (Srcu, "read_unlock", reader),
        (Srcu, "synchronize", synchronize),
    ]


def _plain_locks(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    """The module's plain locks: shared holders do not meet, unless an attempt fails."""
    from septum.module.locks import PlainLock

    log = tracker.log

    def told(kind: int, failed: int) -> Wrap:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(lock: object) -> Any:
                mark = len(log)
                result = method(lock)
                del log[mark:]
                log.append(id(lock) << 10 | (failed if result is False else kind))
                return result

            return call

        return wrap

    return [
        (PlainLock, "try_sh", told(IX, X)),
        (PlainLock, "try_ex", told(X, S)),
        (PlainLock, "unlock_sh", told(IX, IX)),
        (PlainLock, "unlock_ex", told(X, X)),
    ]


def _all_of(tracker: Tracker, kind: int) -> Wrap:
    """A method that touches the whole of its object."""
    log = tracker.log
    append = log.append

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(table: object, *args: object) -> Any:
            mark = len(log)
            result = method(table, *args)
            del log[mark:]
            append(id(table) << 10 | kind)
            return result

        return call

    return wrap


def _tables(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    """Page tables by entry."""
    from septum.machine.tables import TablePage

    log = tracker.log
    append = log.append
    location_of = tracker.part_location

    def element(part: int, whole: int) -> Wrap:
        """A method whose first argument says which element it touches."""

        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(table: object, index: int, *args: object) -> Any:
                mark = len(log)
                result = method(table, index, *args)
                del log[mark:]
                append(id(table) << 10 | whole)
                append(location_of(table, index) << 2 | part)
                return result

            return call

        return wrap

    return [
        (TablePage, "entry", element(S, IS)),
        (TablePage, "set_entry", element(X, IX)),
        (TablePage, "set_lock", element(X, IX)),
        (TablePage, "try_cmpxchg", element(X, IX)),
        (TablePage, "fill", _all_of(tracker, X)),
        (TablePage, "uniform", _all_of(tracker, S)),
        (TablePage, "values", _all_of(tracker, S)),
    ]


def _memory(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    """Physical memory by frame."""
    from septum.machine.mem import PhysMem

    log = tracker.log
    append = log.append
    location_of = tracker.part_location

    def frames(kind: int, count_at: int | None) -> Wrap:
        """A method on frames from its first argument on; argument `count_at` says how many."""
        part = X if kind == X else S
        whole = IX if kind == X else IS

        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(mem: object, pfn: int, *args: Any) -> Any:
                mark = len(log)
                result = method(mem, pfn, *args)
                del log[mark:]
                count = args[count_at] if count_at is not None and len(args) > count_at else 1
                append(id(mem) << 10 | whole)
                end = pfn + count
                while pfn < end:
                    block = location_of(mem, ~(pfn >> 9)) << 2
                    if not pfn & 511 and end - pfn >= 512:
                        append(block | part)
                        pfn += 512
                    else:
                        append(block | whole)
                        append(location_of(mem, pfn) << 2 | part)
                        pfn += 1
                return result

            return call

        return wrap

    def copy(method: Callable[..., Any]) -> Callable[..., Any]:
        def copy_page(mem: object, to: int, to_hkid: int, source: int, source_hkid: int) -> None:
            mark = len(log)
            method(mem, to, to_hkid, source, source_hkid)
            del log[mark:]
            for pfn, whole, part in ((to, IX, X), (source, IS, S)):
                append(id(mem) << 10 | whole)
                append(location_of(mem, ~(pfn >> 9)) << 2 | whole)
                append(location_of(mem, pfn) << 2 | part)

        return copy_page

    return [
        (PhysMem, "read", frames(S, None)),
        (PhysMem, "write", frames(X, None)),
        (PhysMem, "fill", frames(X, 0)),
        (PhysMem, "load_bytes", frames(X, None)),
        (PhysMem, "page_bytes", frames(S, None)),
        (PhysMem, "copy_page", copy),
        (PhysMem, "clflush", frames(X, 0)),
        (PhysMem, "wbinvd_page", frames(X, None)),
        (PhysMem, "wbinvd_pages", frames(X, 0)),
        (PhysMem, "movdir64b", frames(X, 0)),
        (PhysMem, "wbinvd", _all_of(tracker, X)),
        (PhysMem, "token_of", frames(S, None)),
        (PhysMem, "key_of", frames(S, None)),
        (PhysMem, "dirty_of", frames(S, None)),
    ]
