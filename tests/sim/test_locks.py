"""Locks exclude, block, and notice what a kernel would notice."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from septum.sim import (
    Mutex,
    RandomSchedule,
    RunStopped,
    RwLock,
    RwSem,
    Sim,
    SpinLock,
    WaitQueue,
)


def run_tasks(sim: Sim, bodies: list[Callable[[], None]]) -> None:
    for number, body in enumerate(bodies):
        sim.spawn(f"t{number}", body)
    sim.run()


@given(st.integers(0, 2**32), st.sampled_from([Mutex, SpinLock]))
def test_exclusive_locks_exclude(seed: int, kind: type[Mutex] | type[SpinLock]) -> None:
    sim = Sim(RandomSchedule(seed))
    lock = kind(sim, "l")
    inside: list[int] = []
    overlaps: list[int] = []

    def body(number: int) -> None:
        for _ in range(3):
            with lock:
                overlaps.extend(inside)
                inside.append(number)
                sim.point("critical")
                inside.remove(number)

    run_tasks(sim, [lambda n=n: body(n) for n in range(3)])
    assert not overlaps
    assert not sim.findings


@given(st.integers(0, 2**32))
def test_a_writer_is_alone_and_readers_share(seed: int) -> None:
    sim = Sim(RandomSchedule(seed))
    lock = RwLock(sim, "mmu_lock")
    readers = writers = 0
    together = 0

    def reader() -> None:
        nonlocal readers, together
        for _ in range(3):
            lock.read_lock()
            readers += 1
            assert writers == 0
            together = max(together, readers)
            sim.point("read")
            readers -= 1
            lock.read_unlock()

    def writer() -> None:
        nonlocal writers
        for _ in range(2):
            lock.write_lock()
            writers += 1
            assert (readers, writers) == (0, 1)
            assert lock.held_write()
            sim.point("write")
            writers -= 1
            lock.write_unlock()

    run_tasks(sim, [reader, reader, writer, writer])
    assert lock.nr_write_locks == 4
    assert lock.nr_read_locks == 6


def test_readers_do_run_together_in_some_schedule() -> None:
    best = 0
    for seed in range(10):
        sim = Sim(RandomSchedule(seed))
        lock = RwSem(sim, "invalidate_lock")

        def reader(sim: Sim = sim, lock: RwSem = lock) -> None:
            nonlocal best
            lock.down_read()
            best = max(best, len(lock.readers))
            sim.point("read")
            lock.up_read()

        run_tasks(sim, [reader, reader])
    assert best == 2


def test_sleeping_under_a_spinning_lock_is_a_finding() -> None:
    sim = Sim()
    mutex, mmu_lock = Mutex(sim, "slots_lock"), RwLock(sim, "mmu_lock")

    def body() -> None:
        mmu_lock.write_lock()
        mutex.lock()
        mutex.unlock()
        mmu_lock.write_unlock()

    run_tasks(sim, [body])
    assert [f.promise for f in sim.findings] == ["locking"]
    assert "mmu_lock" in sim.findings[0].text


def test_an_abba_deadlock_is_a_finding_that_names_both() -> None:
    sim = Sim()
    a, b = Mutex(sim, "a"), Mutex(sim, "b")

    def take(first: Mutex, second: Mutex) -> None:
        with first, second:
            pass

    run_tasks(sim, [lambda: take(a, b), lambda: take(b, a)])
    assert [f.promise for f in sim.findings] == ["progress"]
    assert "t0 waits for b" in sim.findings[0].text
    assert "t1 waits for a" in sim.findings[0].text


def test_a_lock_that_nobody_gives_back() -> None:
    """Its task has ended, and who wants it waits for ever: both are findings."""
    sim = Sim()
    lock = Mutex(sim, "a")
    run_tasks(sim, [lock.lock])
    assert [(f.promise, f.text, f.task) for f in sim.findings] == [
        ("locking", "t0 has ended and still holds a", "t0")
    ]
    with pytest.raises(RunStopped):
        lock.lock()
    assert sim.findings[-1].text == "main waits for a for ever"


@pytest.mark.parametrize(
    ("kind", "take", "release", "what"),
    [
        (Mutex, "lock", "unlock", "l"),
        (SpinLock, "lock", "unlock", "l"),
        (RwLock, "write_lock", "read_unlock", "l for reading"),
        (RwLock, "read_lock", "write_unlock", "l for writing"),
        (RwSem, "down_write", "up_read", "l for reading"),
        (RwSem, "down_read", "up_write", "l for writing"),
    ],
)
def test_releasing_what_one_does_not_hold(kind: type, take: str, release: str, what: str) -> None:
    """A finding. Who has it keeps it; and who releases it may spin and sleep as before."""
    sim = Sim()
    lock, other = kind(sim, "l"), Mutex(sim, "m")
    spinning = SpinLock(sim, "s")
    getattr(lock, take)()
    held = [*sim.current.held]

    def releases() -> None:
        with spinning:
            getattr(lock, release)()
            with other:
                pass

    run_tasks(sim, [releases])
    assert [f.text for f in sim.findings] == [
        f"t0 releases {what}, which it does not hold",
        "mutex_lock(m) may sleep, in atomic context (held: s)",
    ]
    assert [task.name for task in lock.holders()] == ["main"] and sim.current.held == held


@pytest.mark.parametrize(
    ("kind", "first", "again", "text"),
    [
        (Mutex, "lock", "lock", "t0 takes l twice"),
        (SpinLock, "lock", "lock", "t0 takes l twice"),
        (RwLock, "write_lock", "write_lock", "t0 takes l twice"),
        (RwLock, "read_lock", "write_lock", "t0 takes l twice"),
        (RwLock, "write_lock", "read_lock", "t0 read-locks l while writing"),
        (RwSem, "down_write", "down_write", "t0 takes l twice"),
        (RwSem, "down_read", "down_write", "t0 takes l twice"),
        (RwSem, "down_write", "down_read", "t0 read-locks l while writing"),
    ],
)
def test_who_waits_for_himself_is_told_of(kind: type, first: str, again: str, text: str) -> None:
    """Before he does, for ever; who comes after another task is not."""
    sim = Sim()
    lock = kind(sim, "l")

    def body() -> None:
        getattr(lock, first)()
        getattr(lock, again)()

    run_tasks(sim, [body])
    found = [finding.text for finding in sim.findings]
    assert found[0] == text and found[-1].startswith("no task can go on: t0 waits for l"), found


@pytest.mark.parametrize(
    ("kind", "take", "give"),
    [(RwLock, "read_lock", "read_unlock"), (RwSem, "down_read", "up_read")],
)
def test_who_reads_twice_is_told_of(kind: type, take: str, give: str) -> None:
    """Though nobody waits here: a writer that came in between would, and so would the reader."""
    sim = Sim()
    lock = kind(sim, "l")

    def body() -> None:
        for name in (take, take, give, give, take, give):
            getattr(lock, name)()

    run_tasks(sim, [body])
    assert [finding.text for finding in sim.findings] == ["t0 read-locks l twice"]


@pytest.mark.parametrize("kind", [Mutex, SpinLock])
def test_a_try_lock_that_fails_leaves_all_as_it_was(kind: type[Mutex] | type[SpinLock]) -> None:
    sim = Sim()
    lock, mutex = kind(sim, "l"), Mutex(sim, "m")

    def body() -> None:
        assert not lock.trylock()
        assert lock.locked() and not lock.held()
        with mutex:
            pass

    lock.lock()
    run_tasks(sim, [body])
    assert sim.findings == []
    lock.unlock()
    points: list[str] = []
    sim.set_point_observer(points.append)
    run_tasks(sim, [lambda: (lock.trylock(), lock.unlock())[1]])
    assert points == ["trylock"]
    assert lock.trylock() and lock.held()
    assert [held for held, _ in sim.current.held] == [lock]
    assert bool(sim.current.atomic) == (kind is SpinLock)


def test_a_wait_queue_wakes_and_carries_the_wakers_time() -> None:
    sim = Sim()
    queue = WaitQueue(sim, "q")
    flag = False
    woken_at = -1

    def waiter() -> None:
        nonlocal woken_at
        queue.wait_event(lambda: flag)
        woken_at = sim.now_ns()

    def waker() -> None:
        nonlocal flag
        sim.point("before")
        sim.advance(700)
        flag = True
        queue.wake_up_all()

    run_tasks(sim, [waiter, waker])
    assert woken_at == 700


def test_lock_hand_over_takes_virtual_time_even_without_waiting() -> None:
    sim = Sim()
    lock = Mutex(sim, "m")

    def body() -> None:
        with lock:
            sim.advance(100)

    run_tasks(sim, [body, body, body])
    assert sim.now_ns() == 300


TAKEN = [
    (Mutex, "lock", "unlock"),
    (SpinLock, "lock", "unlock"),
    (RwLock, "read_lock", "read_unlock"),
    (RwLock, "write_lock", "write_unlock"),
    (RwSem, "down_read", "up_read"),
    (RwSem, "down_write", "up_write"),
]


@pytest.mark.parametrize(("kind", "take", "release"), TAKEN)
def test_what_taking_a_lock_is(kind: type, take: str, release: str) -> None:
    """A scheduling point, at which who sleeps must not be atomic; and who spins is, until it is
    given back, in whatever order."""
    sim = Sim()
    lock, outer = kind(sim, "l"), Mutex(sim, "m")
    spins = kind in (SpinLock, RwLock)
    name = {Mutex: "mutex_lock", SpinLock: "spin_lock"}.get(kind, take)
    points: list[str] = []
    sim.set_point_observer(points.append)

    def body() -> None:
        outer.lock()
        points.clear()
        getattr(lock, take)()
        assert points == [name]
        assert lock in [held for held, _ in sim.current.held]
        outer.unlock()
        assert [held for held, _ in sim.current.held] == [lock]
        assert sim.current.atomic == spins
        getattr(lock, release)()
        assert not sim.current.held and not sim.current.atomic
        sim.current.atomic += 1
        getattr(lock, take)()
        getattr(lock, release)()
        sim.current.atomic -= 1

    run_tasks(sim, [body])
    wrong = f"{name}(l) may sleep, in atomic context"
    assert [f.text.startswith(wrong) for f in sim.findings] == [True] * (not spins)


def test_who_waits_for_an_event_sleeps_unless_it_spins() -> None:
    sim = Sim()
    queue = WaitQueue(sim, "q")

    def body() -> None:
        sim.current.atomic += 1
        queue.spin_until(lambda: True)
        assert not sim.findings
        queue.wait_event(lambda: True)
        sim.current.atomic -= 1

    run_tasks(sim, [body])
    (finding,) = sim.findings
    assert finding.text.startswith("wait_event(q) may sleep, in atomic context")


@pytest.mark.parametrize(("kind", "take", "release"), TAKEN)
def test_who_holds_it(kind: type, take: str, release: str) -> None:
    """What lockdep_assert_held() and its like are told: of the current task, and in which mode."""
    sim = Sim()
    lock = kind(sim, "l")
    asked = [name for name in ("held", "held_read", "held_write") if hasattr(lock, name)]

    def says() -> set[str]:
        return {name for name in asked if getattr(lock, name)()}

    def other() -> None:
        assert says() == set()

    assert says() == set()
    getattr(lock, take)()
    mode = "held_read" if "read" in take else "held_write"
    assert says() == {"held", mode} & set(asked)
    run_tasks(sim, [other])
    getattr(lock, release)()
    assert says() == set()


@pytest.mark.parametrize(("kind", "take", "release"), TAKEN)
@pytest.mark.parametrize("later", ["write", "read"])
def test_who_takes_it_later_is_charged_the_wait(
    kind: type, take: str, release: str, later: str
) -> None:
    """Though nobody blocked: a task whose clock is behind. Readers do not wait for readers."""
    sim = Sim()
    lock = kind(sim, "l")
    if kind in (Mutex, SpinLock):
        second, back, waits = take, release, True
    else:
        second = f"{later}_lock" if kind is RwLock else f"down_{later}"
        back = f"{later}_unlock" if kind is RwLock else f"up_{later}"
        waits = "write" in take or later == "write"
    times: list[int] = []

    def first() -> None:
        getattr(lock, take)()
        sim.advance(100)
        getattr(lock, release)()

    def then() -> None:
        getattr(lock, second)()
        times.append(sim.now_ns())
        sim.advance(40)
        getattr(lock, back)()

    run_tasks(sim, [first, then])
    assert times == [100 * waits]
    if kind in (RwLock, RwSem):
        holds = [100] * ("write" in take) + [40] * (later == "write")
        assert lock.max_write_hold_ns == max(holds, default=0)


def test_a_lock_is_contended_while_somebody_waits() -> None:
    sim = Sim()
    lock = RwLock(sim, "mmu_lock")
    seen: list[bool] = []

    def holder() -> None:
        lock.read_lock()
        seen.append(lock.is_contended())
        sim.point("cond_resched")
        seen.append(lock.is_contended())
        lock.read_unlock()

    def writer() -> None:
        lock.write_lock()
        lock.write_unlock()

    run_tasks(sim, [holder, writer])
    assert seen == [False, True]


def test_who_reads_waits_for_a_writer_that_waits() -> None:
    """So that readers that come one after the other do not keep it out for ever."""
    sim = Sim()
    lock = RwLock(sim, "mmu_lock")
    order: list[str] = []

    def first() -> None:
        lock.read_lock()
        for _ in range(20):
            sim.point("cond_resched")
        lock.read_unlock()

    def writer() -> None:
        lock.write_lock()
        order.append("writer")
        lock.write_unlock()

    def second() -> None:
        for _ in range(5):
            sim.point("cond_resched")
        lock.read_lock()
        order.append("reader")
        lock.read_unlock()

    run_tasks(sim, [first, writer, second])
    assert order == ["writer", "reader"]
