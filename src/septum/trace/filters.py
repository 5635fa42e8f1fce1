"""Selects events by categories for `--only`, such as `seamcall,split,conversion`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_HC_MAP_GPA_RANGE
from septum.abi.leaves import TDG_MEM_PAGE_ACCEPT, TDH_MEM_PAGE_DEMOTE
from septum.errors import InputError
from septum.trace.registry import event_tag, event_types

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.sim.events import Event

    Predicate = Callable[[Event], bool]

BY_TAG: dict[str, tuple[str, ...]] = {
    "access": ("guest_access",),
    "attributes": ("kvm_memory_attributes",),
    "choice": ("choice",),
    "conversion": ("conversion", "kvm_hypercall"),
    "entry": ("kvm_entry",),
    "exit": ("kvm_exit", "kvm_userspace_exit", "td_exit"),
    "fault": ("kvm_page_fault", "kvm_mmu_spte_requested", "kvm_mmu_set_spte"),
    "finding": ("finding",),
    "folio": ("kvm_gmem_folio",),
    "lock": ("lock",),
    "memslot": ("kvm_memslot",),
    "phase": ("guest_phase", "guest_report"),
    "seamcall": ("seamcall",),
    "split": ("kvm_mmu_split_huge_page",),
    "spte": (
        "kvm_tdp_mmu_spte_changed",
        "kvm_mmu_get_page",
        "kvm_mmu_prepare_zap_page",
        "kvm_mmu_zap_all_fast",
        "kvm_unmap_hva_range",
    ),
    "switch": ("switch",),
    "tdcall": ("tdcall",),
}
"""Category -> tags of the events that are in it whatever they hold."""


def _is_accept(event: Event) -> bool:
    return getattr(event, "leaf", None) == TDG_MEM_PAGE_ACCEPT


def _is_split_call(event: Event) -> bool:
    return getattr(event, "leaf", None) == TDH_MEM_PAGE_DEMOTE


def _is_map_gpa(event: Event) -> bool:
    return getattr(event, "nr", None) == KVM_HC_MAP_GPA_RANGE


BY_CONTENT: dict[str, tuple[tuple[str, Predicate], ...]] = {
    "accept": (("tdcall", _is_accept),),
    "conversion": (("kvm_hypercall", _is_map_gpa),),
    "split": (("seamcall", _is_split_call),),
}
"""Category -> (tag, test) of events that are in it only if the test says so."""

ALL = "all"
QUIET_TAGS = frozenset(("switch",))
"""Left out unless `--only` names them: most events of a long run, and of use to a search only."""


def categories() -> list[str]:
    """The words that `--only` knows in addition to `all` and the tags of events."""
    return sorted(BY_TAG.keys() | BY_CONTENT.keys())


def parse_only(text: str) -> list[str]:
    """The words of `--only`, each a category, a tag or `all`. Raises InputError for another."""
    words = [word.strip().lower().removesuffix("s") for word in text.split(",") if word.strip()]
    known = {*categories(), *event_types(), ALL}
    found = []
    for word in words:
        match = next((name for name in (word, f"{word}s") if name in known), None)
        if match is None:
            raise InputError(
                f"--only {word!r} is no kind of event; choose from {', '.join(categories())}, "
                f"{ALL}, or an event's own name such as kvm_exit"
            )
        found.append(match)
    return found


def make_filter(words: list[str]) -> Predicate:
    """Whether an event is wanted; without words, all but scheduler switches are."""
    if ALL in words:
        return _every
    tags: set[str] = set()
    tests: dict[str, list[Predicate]] = {}
    if not words:
        tags = set(event_types()) - QUIET_TAGS
    for word in words:
        conditional = dict(BY_CONTENT.get(word, ()))
        tags.update(tag for tag in BY_TAG.get(word, ()) if tag not in conditional)
        if word in event_types():
            tags.add(word)
        for tag, test in conditional.items():
            tests.setdefault(tag, []).append(test)
    return EventFilter(frozenset(tags), tests)


def _every(event: Event) -> bool:
    return True


class EventFilter:
    """Wants events of some tags, and of others if one of their tests passes."""

    __slots__ = ("tests", "types")

    def __init__(self, tags: frozenset[str], tests: dict[str, list[Predicate]]) -> None:
        types = event_types()
        self.types = frozenset(types[tag] for tag in tags if tag in types)
        self.tests = {types[tag]: made for tag, made in tests.items() if tag in types}

    def __call__(self, event: Event) -> bool:
        cls = type(event)
        if cls in self.types:
            return True
        tests = self.tests.get(cls)
        return tests is not None and any(test(event) for test in tests)


@cache
def tag_of(cls: type[Event]) -> str:
    """`event_tag`, remembered: renderings ask for every event."""
    return event_tag(cls)
