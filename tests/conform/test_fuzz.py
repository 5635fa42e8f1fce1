"""The fuzzer: what it promises of any call, and that its eyes are open."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from septum.abi import sept
from septum.conform.allowed import ALLOWED
from septum.conform.fuzz import fuzz_module, render_fuzz
from septum.conform.invariants import broken_invariants
from septum.conform.scene import (
    CONTROL,
    GPA,
    LARGE,
    SMALL,
    TDR,
    TDVPR,
    Scene,
    runnable_scene,
)
from septum.module.pamt import PT_EPT, PT_NDA, PT_REG


@pytest.mark.parametrize("seed", range(3))
def test_any_calls_keep_the_module_whole(seed: int) -> None:
    report = fuzz_module(15_000, seed, sweep_every=250)
    assert report.holds, render_fuzz(report)
    assert report.calls == 15_000
    assert report.sweeps >= 50


def test_a_run_is_a_function_of_its_seed() -> None:
    assert fuzz_module(3000, 7) == fuzz_module(3000, 7)
    assert fuzz_module(3000, 7).outcomes != fuzz_module(3000, 8).outcomes


def test_the_fuzzer_goes_deep() -> None:
    """The life of pages is reached, not only refusals."""
    outcomes = fuzz_module(40_000, 3).outcomes
    for call in ALLOWED:
        assert call in outcomes, call
    for call in ("AUG", "DEMOTE", "PROMOTE", "REMOVE", "RELOCATE"):
        assert outcomes[f"TDH.MEM.PAGE.{call}"].get("TDX_SUCCESS", 0) > 5, call
    assert outcomes["TDG.MEM.PAGE.ACCEPT"]["TDX_SUCCESS"] > 5
    assert outcomes["TDH.PHYMEM.PAGE.RECLAIM"]["TDX_SUCCESS"] > 50


def test_the_report_names_seed_and_json_has_a_version() -> None:
    report = fuzz_module(500, 11)
    assert "seed 11" in render_fuzz(report)
    assert json.loads(report.to_json())["version"] == 1


def world() -> Scene:
    """A TD with a vCPU inside, pages of both sizes and, with Dynamic PAMT, page pairs."""
    scene = runnable_scene(True)
    scene.aug(GPA, 1, LARGE)
    scene.add_sept(GPA + (2 << 20), 1)
    scene.aug(GPA + (2 << 20), 0, SMALL)
    assert scene.enter() is None
    return scene


def _td(scene: Scene) -> object:
    return scene.module.tds[TDR >> 12]


def _entry(scene: Scene, change: int) -> None:
    module = scene.module
    table = scene.machine.tables[0x4004_1000 >> 12]
    table.set_entry(0, table.entry(0) ^ change)
    assert module


def _set(name: str, value: object) -> Callable[[Scene], None]:
    return lambda scene: setattr(_td(scene), name, value)


def _pamt(scene: Scene, hpa: int, **fields: int) -> None:
    pamt = scene.module.pamt
    leaf = pamt.entry_2m(hpa)
    assert leaf is not None
    target = leaf if hpa == LARGE else leaf.child(hpa >> 12 & 511)
    for name, value in fields.items():
        setattr(target, name, value)


def _two_roles(scene: Scene) -> None:
    """The small page is mapped a second time."""
    table = scene.machine.tables[0x4004_2000 >> 12]
    table.set_entry(5, table.entry(0))


def _kot(scene: Scene) -> None:
    scene.module.kot.entries[33].state = 0


BROKEN: list[tuple[str, Callable[[Scene], None]]] = [
    ("is locked between calls", lambda s: _entry(s, sept.LOCK)),
    ("another HKID", lambda s: _entry(s, 1 << 40)),
    ("permissions do not fit", lambda s: _entry(s, sept.RWX)),
    ("no state that a host can reach", lambda s: _entry(s, sept.EXPORTED)),
    ("its PAMT entry is", lambda s: _entry(s, 1 << 21)),
    ("CHLDCNT", _set("chldcnt", 3)),
    ("REFCOUNT", _set("refcount", [0, 0])),
    ("runs in epoch", _set("td_epoch", 9)),
    ("associated vCPUs", _set("num_assoc_vcpus", 0)),
    ("is owned by 0x1000", lambda s: _pamt(s, SMALL, owner=1)),
    ("the PAMT says that it owns", lambda s: _pamt(s, SMALL, pt=PT_NDA)),
    ("as REG of", lambda s: _pamt(s, SMALL, pt=PT_EPT)),
    ("its count is 7", lambda s: setattr(s.module.pamt.entry_2m(SMALL), "used", 7)),
    ("of its 4K pages are in use", lambda s: _pamt(s, LARGE, child_pt=PT_REG, used=512)),
    ("lock word 0x4", lambda s: _pamt(s, LARGE, lock=4)),
    ("lock word 0x1", lambda s: _pamt(s, TDVPR, lock=1)),
    ("S-EPT tree lock word", lambda s: setattr(_td(s).sept_lock, "lock", 4)),  # type: ignore[attr-defined]
    ("op_state lock word", lambda s: setattr(_td(s).op_state_lock, "lock", 1)),  # type: ignore[attr-defined]
    ("KOT lock word", lambda s: setattr(s.module.kot.lock, "word", 1)),
    ("HKID 33: state", _kot),
    ("and also", _two_roles),
    ("has a bitmap bit", lambda s: setattr(s.module.pamt.entry_2m(LARGE), "bitmap", 1)),
    ("has no bitmap bit", lambda s: setattr(s.module.pamt.entry_2m(0x4040_0000), "bitmap", 0)),
    ("also in use", lambda s: setattr(s.module.pamt.entry_2m(0x4040_0000), "pt", PT_REG)),
    ("its TDR is", lambda s: _pamt(s, TDR, pt=PT_EPT)),
    ("but is no TD", lambda s: s.module.tds.clear()),
    ("has type PAMT", lambda s: _pamt(s, CONTROL + 0xFF000, pt=15)),
]


def test_a_whole_module_has_no_broken_invariant() -> None:
    assert broken_invariants(world()) == []


@pytest.mark.parametrize(("said", "damage"), BROKEN, ids=[said for said, _ in BROKEN])
def test_each_invariant_sees_what_it_is_for(said: str, damage: Callable[[Scene], None]) -> None:
    scene = world()
    damage(scene)
    assert any(said in text for text in broken_invariants(scene)), broken_invariants(scene)
