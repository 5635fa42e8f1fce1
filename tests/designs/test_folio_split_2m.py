"""folio-split-2m: folios of three sizes in one file, and what that changes against v3."""

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from septum.designs import Design, designs, on_v3
from septum.designs.proposals.folio_split_2m import FolioSplit2m, FolioSplit2mMm
from septum.scenarios.outcome import ScenarioOutcome
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import run_scenario

BOTH = ("folio-split-2m", "folio-split-2m-sept-first")

IN_1G = """
summary = "Things happen in a 1 GB folio."
[vm]
memory = "1G"
at = "0x100000000"
backing = "hugetlb-1g"
in-place = true
[guest]
vcpu0 = [{guest}]
[host]
vmm = [{host}]
{rest}
"""


def in_1g(design: str, *host: str, guest: tuple[str, ...] = (), rest: str = "") -> ScenarioOutcome:
    """The guest goes first, and where it waits for `go`, the host does."""
    text = IN_1G.format(
        guest=", ".join(f'"{op}"' for op in guest),
        host=", ".join(f'"{op}"' for op in host),
        rest=rest,
    )
    return run_scenario(read_scenario("in-1g", text, "in-1g"), design)


def results(outcome: ScenarioOutcome, actor: str) -> list[str]:
    return [r.result for r in outcome.results if r.actor == actor]


def promises(outcome: ScenarioOutcome) -> set[str]:
    return {finding.promise for finding in outcome.findings}


TWO_SHARED = (
    "set-attributes page 0 to shared",
    "set-attributes page 0 of frame 1 to shared",
    "write page 0",
    "set-attributes page 0 to private",
    "signal go",
)


@pytest.mark.parametrize("design", BOTH)
def test_what_is_not_shared_stays_large(design: str) -> None:
    """A page of frame 1 is shared throughout: in v3 every page of the GB is on its own then."""
    guest = ("wait go", "accept 2M frame 0 => any", "accept 2M frame 5 => any")
    v3, now = (in_1g(name, *TWO_SHARED, guest=guest) for name in ("v3", design))
    assert results(v3, "vcpu0")[1:] == ["PAGE_SIZE_MISMATCH"] * 2
    assert results(now, "vcpu0")[1:] == ["ok"] * 2
    assert now.held and now.counts["pages_2m"] == 2


@pytest.mark.parametrize("design", BOTH)
def test_all_private_is_1g_again(design: str) -> None:
    """The last page that comes back makes the folio whole: a memory failure takes all of it."""
    back = (*TWO_SHARED[:-1], "set-attributes page 0 of frame 1 to private")
    then = ("signal go", "wait there", "fail page 0")
    guest = ("wait go", "accept 2M frame 5", "signal there")
    whole = in_1g(design, *back, *then, guest=guest)
    parts = in_1g(design, *TWO_SHARED[:-1], *then, guest=guest)
    assert results(whole, "vcpu0") == results(parts, "vcpu0") == ["ok"] * 3
    assert [end.counts.get("pages_2m", 0) for end in (whole, parts)] == [0, 1]
    assert whole.held and parts.held


SECOND_STEP = '[failures]\ninject = ["alloc:gmem_split_entries @2"]'


def test_the_second_step_of_a_split_may_fail_too() -> None:
    """After v3's zap that is F3 again; before it nothing is lost."""
    guest = ("accept 2M frames 0-1", "signal there")
    host = ("wait there", "set-attributes page 1 to shared => any")
    outcomes = {d: in_1g(d, *host, guest=guest, rest=SECOND_STEP) for d in BOTH}
    assert {results(o, "host.vmm")[1] for o in outcomes.values()} == {"-ENOMEM at page 1"}
    assert [promises(o) for o in outcomes.values()] == [{"all-or-nothing"}, set()]
    assert [o.counts["pages_4k"] for o in outcomes.values()] == [511, 512]


def test_what_a_failed_split_of_a_fresh_folio_leaves_stays_longer() -> None:
    """F9: v3 makes 4 KB of it with the next conversion anywhere in the GB."""
    host = (
        "set-attributes page 1 to shared",
        "touch page 1 => any",
        "set-attributes page 0 of frame 1 to shared",
        "touch page 1 => any",
    )
    rest = {
        "v3": '[failures]\ninject = ["alloc:gmem_split_entries"]',
        "folio-split-2m": SECOND_STEP,
    }
    v3, now = (in_1g(design, *host, rest=text) for design, text in rest.items())
    assert v3.held and results(v3, "host.vmm")[3] == "ok"
    assert "large folio in a shared range" in now.findings[0].text


def test_a_memory_failure_takes_2m_of_a_gb_that_was_split() -> None:
    setup = ("wait there", "set-attributes page 0 to shared", "fail page 3 of frame 1")
    guest = ("accept 2M frames 0-2", "signal there")
    now = in_1g("folio-split-2m", *setup, guest=guest)
    assert now.held
    assert (now.counts["pages_2m"], now.counts["pages_4k"]) == (1, 511)


class PartsAreFreedAsHugetlb(FolioSplit2mMm):
    """Parts go back to the pool as if each were the folio that came from it."""

    __slots__ = ()

    def is_part(self, folio):
        return False


def test_parts_come_together_before_they_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the design's own accounting is for: without it the pool gets 512 folios for one."""
    units = on_v3(gmem=FolioSplit2m, mm=PartsAreFreedAsHugetlb)
    monkeypatch.setitem(designs(), "parts", Design("parts", "a test", "", units))
    host = ("set-attributes page 1 to shared", "touch page 1")
    assert in_1g("folio-split-2m", *host).held
    assert "teardown" in promises(in_1g("parts", *host))


STEP = st.tuples(st.integers(0, 2600), st.sampled_from([1, 2, 511, 512, 513, 1024]), st.booleans())


@settings(max_examples=6, deadline=None, phases=(Phase.explicit, Phase.generate))
@example(
    steps=[(298, 511, False), (2046, 512, False), (217, 512, True), (619, 1024, False)],
    design="folio-split-2m-sept-first",
)
@given(steps=st.lists(STEP, min_size=1, max_size=4), design=st.sampled_from(BOTH))
def test_any_conversions_end_as_where_folios_do_not_matter(
    steps: list[tuple[int, int, bool]], design: str
) -> None:
    """Here folios do not matter: in order-from-attributes. And all memory comes back."""
    host = [
        f"set-attributes pages {first}-{first + nr} to {'private' if private else 'shared'}"
        for first, nr, private in steps
    ]
    guest = ("accept 2M frames 0-4", "signal there")
    base, now = (
        in_1g(name, "wait there", *host, guest=guest) for name in ("order-from-attributes", design)
    )
    assert promises(now) == promises(base)
    if design == "folio-split-2m":
        for counter in ("splits", "pages_2m", "pages_4k", "seamcall.TDH.MEM.PAGE.REMOVE"):
            assert now.counts.get(counter) == base.counts.get(counter), counter
    else:
        # A size that nothing is mapped at has no count.
        assert now.counts.get("pages_2m", 0) <= base.counts.get("pages_2m", 0)
