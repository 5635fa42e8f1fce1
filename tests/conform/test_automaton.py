"""The S-EPT entry automaton: exhaustive, equal to the facts, and followed on any walk."""

from __future__ import annotations

import functools
import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from septum.conform.automaton import CALLS, State, World, explore, facts_that_differ, state_of
from septum.conform.automaton_text import render_table, rows_to_json
from septum.conform.invariants import broken_invariants
from septum.conform.mutants import Applied, all_mutants


@functools.cache
def table(dynamic_pamt: bool) -> dict[tuple[State, str], str]:
    """(state, call) -> answer, as the search found them."""
    rows = explore(dynamic_pamt)
    found = {(state, call): answer for state, call, answer in rows}
    assert len(found) == len(rows)
    return found


def test_the_table_is_the_facts_table_and_more() -> None:
    rows = [(state, call, answer) for (state, call), answer in table(False).items()]
    assert facts_that_differ(rows) == []
    states = {state for state, _, _ in rows}
    assert {state.entry for state in states} == {
        "FREE",
        "NL_MAPPED",
        "NL_BLOCKED",
        "PENDING",
        "MAPPED",
        "PENDING_BLOCKED",
        "BLOCKED",
    }
    text = render_table(rows)
    assert "63 of 63 cells agree" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(json.loads(rows_to_json(rows))["rows"]) == len(rows)


REMOVE = """
TDH.MEM.PAGE.REMOVE
  TDX_EPT_ENTRY_STATE_INCORRECT|RCX
    - FREE or NL_MAPPED
    - NL_BLOCKED
  TDX_GPA_RANGE_NOT_BLOCKED|RCX
    - MAPPED or PENDING
  TDX_SUCCESS
    - BLOCKED or PENDING_BLOCKED, tracked
  TDX_TLB_TRACKING_NOT_DONE|RCX
    - BLOCKED or PENDING_BLOCKED, a vCPU runs since before or no TRACK since
"""


def test_the_table_reads_like_this() -> None:
    rows = [(state, call, answer) for (state, call), answer in table(False).items()]
    assert REMOVE in render_table(rows)


def test_dynamic_pamt_changes_no_answer() -> None:
    """Each call has the pages that it needs, so the automaton is the same."""
    assert table(True) == table(False)


def test_a_broken_module_has_another_table() -> None:
    (mutant,) = (m for m in all_mutants() if m.file == "common" and m.test == "found & LOCK")
    with Applied(mutant):
        try:
            rows = explore(False)
        except Exception:
            return  # the broken module cannot even be searched
    assert {(state, call): answer for state, call, answer in rows} != table(False)


class EntryWalk(RuleBasedStateMachine):
    """Any walk stays in the table: its state says all that the answers depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(dynamic_pamt=False)
        self.state = state_of(self.world)
        self.made = 0

    @rule(call=st.sampled_from(sorted(CALLS)))
    def any_call(self, call: str) -> None:
        self.make(call)

    @rule()
    def block_and_track(self) -> None:
        self.make("TDH.MEM.RANGE.BLOCK")
        self.make("TDH.MEM.TRACK")

    @precondition(lambda self: self.state.entry == "FREE")
    @rule()
    def map_large(self) -> None:
        self.make("TDH.MEM.PAGE.AUG")

    def make(self, call: str) -> None:
        answer = CALLS[call](self.world)
        self.made += 1
        if answer:
            assert table(False)[self.state, call] == answer
        self.state = state_of(self.world)

    @invariant()
    def the_state_is_known(self) -> None:
        assert (self.state, "TDH.MEM.SEPT.RD") in table(False)

    def teardown(self) -> None:
        assert broken_invariants(self.world.scene) == []


TestEntryWalk = EntryWalk.TestCase
TestEntryWalk.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
