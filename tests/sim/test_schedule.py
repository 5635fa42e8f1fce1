"""A run is a function of its schedule, and its token brings it back."""

import zlib
from base64 import urlsafe_b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from septum.sim import (
    ListSchedule,
    Mutex,
    RandomSchedule,
    RoundRobin,
    Schedule,
    Sim,
    decode_token,
    encode_token,
)


def interleaving(schedule: Schedule, nr_tasks: int = 3, steps: int = 4) -> tuple[list[str], Sim]:
    """Tasks that log at every scheduling point, half of them under a mutex."""
    sim = Sim(schedule)
    mutex = Mutex(sim, "m")
    log: list[str] = []

    def body(name: str) -> None:
        for step in range(steps):
            if step % 2:
                with mutex:
                    log.append(f"{name}{step}")
                    sim.point("inside")
            else:
                log.append(f"{name}{step}")
                sim.point("outside")
            if sim.choose("odd"):
                log.append("injected")

    for name in "abcd"[:nr_tasks]:
        sim.spawn(name, lambda name=name: body(name))
    sim.run()
    return log, sim


@given(st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_interleaving(seed: int) -> None:
    assert interleaving(RandomSchedule(seed))[0] == interleaving(RandomSchedule(seed))[0]


@given(st.integers(0, 2**32))
def test_recorded_answers_replay_a_random_run_step_for_step(seed: int) -> None:
    log, sim = interleaving(RandomSchedule(seed))
    replay = ListSchedule(list(sim.answers))
    assert interleaving(replay)[0] == log
    assert replay.misfits == 0


def test_different_seeds_do_reach_different_interleavings() -> None:
    assert len({tuple(interleaving(RandomSchedule(seed))[0]) for seed in range(20)}) > 10


def test_round_robin_alternates() -> None:
    log, _ = interleaving(RoundRobin(), nr_tasks=2, steps=1)
    assert log == ["a0", "b0"]


def test_an_injected_choice_comes_out() -> None:
    log, _ = interleaving(ListSchedule([1]), nr_tasks=1, steps=1)
    assert log == ["a0", "injected"]


def test_answers_that_do_not_fit_are_counted() -> None:
    replay = ListSchedule([7, 0, 0])
    interleaving(replay, nr_tasks=2, steps=1)
    assert replay.misfits == 1


@given(
    st.text(max_size=8),
    st.binary(max_size=40),
    st.sampled_from(
        [
            RoundRobin(3),
            RandomSchedule(99),
            ListSchedule([0, 1, 2, 300]),
            ListSchedule([0, 1, 1], 1, [2]),
        ]
    ),
)
def test_tokens_round_trip(version: str, recipe: bytes, schedule: Schedule) -> None:
    token = encode_token(version, recipe, schedule)
    got_version, got_recipe, got = decode_token(token)
    assert (got_version, got_recipe, got.spec()) == (version, recipe, schedule.spec())
    if isinstance(schedule, ListSchedule):
        assert isinstance(got, ListSchedule)
        assert got.answers == schedule.answers
    assert got.for_nothing() == schedule.for_nothing()


def test_a_token_of_old_is_read_and_made_as_ever() -> None:
    """What lets others run at no cost takes no room where there is none of it."""
    old = "septum1.eNqbutDoCFNS0pKczOISxsmMDIwAQEIF6Q"
    new = encode_token("2", b"bb", ListSchedule([1, 0, 1], 1))
    inside, today = (zlib.decompress(urlsafe_b64decode(token[8:] + "==")) for token in (old, new))
    assert inside == today
    assert decode_token(old)[2].given() == [1, 0, 1]
    assert decode_token(old)[2].for_nothing() == []


@pytest.mark.parametrize("text", ["", "abc", "septum1.", "septum1.!!", "septum1.AAAA"])
def test_a_bad_token_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="token"):
        decode_token(text)


class _InVain(RoundRobin):
    """Stays, until told that the current task tries in vain; keeps what it was told."""

    __slots__ = ("asked", "sim")

    def pick(self, n: int, forced: bool) -> int:
        self.asked.append(self.sim.current.in_vain)
        # Only who tries in vain is worth being asked about.
        self.sim.skip_points(1000)
        return 0 if forced or not self.sim.current.in_vain else 1


def test_who_tries_again_with_nobody_in_between_tries_in_vain() -> None:
    """A retry before which the task made a whole attempt with nobody in between ends what the
    schedule said of the next points; the first retry of a task, of which that is not known, and
    other points do not."""
    schedule = _InVain()
    sim = schedule.sim = Sim(schedule)
    schedule.asked = []
    log: list[str] = []
    done = []

    def spins() -> None:
        while not done:
            log.append("try")
            sim.retry("cond_resched")

    def works() -> None:
        for _ in range(2):
            log.append("work")
            sim.retry("cond_resched")
            sim.point("other")
            sim.retry("cond_resched")
        done.append(True)

    sim.spawn("spins", spins)
    sim.spawn("works", works)
    sim.run()
    assert log == ["try", "try", "work", "try", "work", "try", "try"]
    # At the beginning, then at each retry in vain and at no other point.
    assert schedule.asked == [False, *[True] * 7]
    assert not any(task.in_vain for task in sim.tasks)
