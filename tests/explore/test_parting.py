"""The last sentence of a story: what the nearest schedule that passes does, and at which step."""

import re

import pytest

from septum.explore import Options, Strategy
from septum.explore.api import Search
from septum.explore.command import stories
from septum.explore.stories.parting import Asked, first_difference, parting_words
from septum.explore.toybox import LOST_UPDATE
from septum.explore.toys import Toy

THEIRS = "In the nearest schedule that passes "
UNDISTURBED = Toy("undisturbed", [(("append", 1), ("check", 0, 0)), (("write", 0, 1),)])
ERROR_PATH = Toy("error-path", [(("append", 1), ("fail", 0, 2), ("check", 0, 0))])
NO_ERROR_PATH = Toy("no-error-path", [(("fail", 0, 2), ("inc", 0))], bad=[0])


@pytest.mark.parametrize(
    ("toy", "words"),
    [
        (UNDISTURBED, THEIRS + "t1 runs at the beginning, before t0 goes on."),
        (ERROR_PATH, THEIRS + "fail:0 is true at the beginning."),
        (NO_ERROR_PATH, "The nearest schedule that passes lets step 1 succeed."),
        (LOST_UPDATE, "The nearest schedule that passes lets t0 go on at step 1."),
    ],
    ids=lambda value: value.name if isinstance(value, Toy) else "",
)
def test_what_the_nearest_schedule_does(toy: Toy, words: str) -> None:
    search = Search(toy, Options(strategy=Strategy.EXHAUSTIVE, failures=1))
    search.start()
    verdict = search.run()
    (story,) = stories(verdict, search.runner, [])
    assert " ".join(story).endswith(f" {words} ")


ENDED = "has ended"


@pytest.mark.parametrize(
    ("ours", "theirs", "steps", "words"),
    [
        (Asked(1, "host", "vcpu0"), Asked(0, "host", "host"), (3, 2), "lets host go on at step 3."),
        (Asked(1, "host", "vcpu0"), Asked(2, "host", "vcpu1"), (3, 2),
         "vcpu1 runs, and not vcpu0, at step 3."),
        (Asked(0, "host", "host"), Asked(2, "host", "vcpu1"), (0, 2),
         "vcpu1 runs after step 2, while host is in kvm_gmem_zap."),
        (Asked(0, "host", "vcpu0", ENDED), Asked(1, "host", "vcpu1", ENDED), (0, 2),
         "vcpu1 runs, and not vcpu0, after step 2, when host has ended."),
        (Asked(0, "main", "vcpu0", "begins"), Asked(1, "main", "vcpu1", "begins"), (0, 0),
         "vcpu1 runs, and not vcpu0, at the beginning."),
        (Asked(0, "host", choice="alloc:sp"), Asked(1, "host", choice="alloc:sp"), (0, 2),
         "the allocation sp fails after step 2, in kvm_gmem_zap."),
        (Asked(1, "host", choice="alloc:sp"), Asked(0, "host", choice="alloc:sp"), (3, 2),
         "lets step 3 succeed."),
        (Asked(1, "host", choice="seamcall:TDH.MEM.TRACK"),
         Asked(2, "host", choice="seamcall:TDH.MEM.TRACK"), (3, 2),
         "TDH.MEM.TRACK returns TDX_OPERAND_INVALID at step 3, in kvm_gmem_zap."),
        (Asked(1, "host", choice="choose:host.0"), Asked(0, "host", choice="choose:host.0"),
         (3, 2), "host takes its alternative 1 at step 3."),
        (Asked(1, "host", "vcpu0"), None, (0, 2), "does something else after step 2."),
    ],
)  # fmt: skip
def test_every_way_to_part_has_words(
    ours: Asked, theirs: Asked | None, steps: tuple[int, int], words: str
) -> None:
    """Of tasks and numbered steps, and never of the schedule's answers."""
    said = parting_words(ours, theirs, *steps, "kvm_gmem_zap")
    assert re.match(r"(The|In the) nearest schedule that passes,? ", said)
    assert said.endswith(f" {words}")


def test_the_end_of_a_schedule_is_undisturbed() -> None:
    assert first_difference([0, 1], [0, 1, 0, 2]) == 3
    assert first_difference([0, 1, 1], [0]) == 1
