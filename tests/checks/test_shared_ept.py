"""`mapping-in-folio` of the shared EPT: what KVM's direct root maps is shared memory that is there.

Each host forgets the shared EPT in one place where KVM zaps it.
"""

import pytest

from septum.checks import consequence
from septum.checks.mapping_in_folio import MappingInFolio
from septum.designs import Design, designs, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.main import KvmMain
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.types import KVM_FILTER_PRIVATE
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import run_scenario

SCENARIO = """
summary = "A guest has shared pages mapped, and something happens to them."
[vm]
memory = "16K"
backing = "4k"
{vm}
[guest]
vcpu0 = ["write 0x11 shared pages 0-2", "signal mapped"]
[host]
vmm = ["wait mapped", "{then}"]
"""
IN_PLACE = "in-place = true\ninit-shared = true"
PER_VM = '[kernel]\nattributes = "vm"'


class FileForgets(GuestMemfd):
    """Conversions, holes and failures reach private mappings only."""

    def kvm_gmem_get_invalidate_filter(self, inode):
        return KVM_FILTER_PRIVATE


class AttributesForget(KvmMmu):
    """A range that becomes private is not unmapped from the shared EPT."""

    def _unmap_old_attributes(self, kvm, rng):
        rng.attr_filter = KVM_FILTER_PRIVATE
        return super()._unmap_old_attributes(kvm, rng)


class Deaf(KvmMain):
    """KVM does not hear what the memory management tells its MMU notifier."""

    def mmu_notifier_invalidate_range_start(self, start, end):
        return []


class SlotsForget(KvmMmu):
    """A slot goes and leaves its shared mappings behind."""

    def kvm_arch_flush_shadow_memslot(self, kvm, slot):
        """Nothing."""


def texts(
    monkeypatch,
    vm: str,
    then: str,
    setup: str = "",
    promise: str = "mapping-in-folio",
    **units: type,
) -> list[str]:
    """What a promise says of a host of these units."""
    monkeypatch.setitem(designs(), "broken", Design("broken", "", "", on_v3(**units)))
    text = f"{setup}\n{SCENARIO.format(vm=vm, then=then)}"
    outcome = run_scenario(read_scenario("mapped", text, "mapped"), "broken")
    return [f.text for f in outcome.findings if f.promise == promise]


TO_SHARED = 'setup = ["host: set-attributes pages 0-2 to shared"]'
CASES = {
    "converted": (IN_PLACE, "set-attributes page 0 to private", "", {"gmem": FileForgets}),
    "converted-per-vm": (
        PER_VM,
        "set-attributes page 0 to private",
        TO_SHARED,
        {"mmu": AttributesForget},
    ),
    "punched": (IN_PLACE, "punch page 0", "", {"gmem": FileForgets}),
    "failed": (IN_PLACE, "fail page 0", "", {"gmem": FileForgets}),
    "discarded": ("", "discard page 0", TO_SHARED, {"main": Deaf}),
    "deleted": (IN_PLACE, "delete slot 0", "", {"mmu": SlotsForget}),
}
WORDS = {
    "converted": "but pages under it are private: GFN 0x80000 (1 page)",
    "converted-per-vm": "but pages under it are private: GFN 0x80000 (1 page)",
    "punched": "but no page of guest_memfd is at index 0x0",
    "failed": "has failed",
    "discarded": "but no page of user space is at address 0x",
    "deleted": "but no memslot is there",
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_shared_ept_keeps_is_found(case, monkeypatch):
    vm, then, setup, units = CASES[case]
    assert texts(monkeypatch, vm, then, setup) == []
    found = texts(monkeypatch, vm, then, setup, **units)
    assert found, "nothing was found"
    assert "the 4K leaf of the shared EPT at GFN 0x80000 maps PFN 0x" in found[0]
    assert WORDS[case] in found[0]
    assert "as shared memory" in consequence(MappingInFolio, found[0])


def test_another_page_than_is_mapped(monkeypatch):
    """The page is given back and had again, unheard: a write of the VMM goes elsewhere."""
    then = 'discard pages 0-2", "write 0x22 page 1", "write 0x22 page 0'
    found = texts(monkeypatch, "", then, TO_SHARED, main=Deaf)
    assert "is what user space has at address 0x" in found[1]


def test_a_file_that_is_closed_under_a_slot(monkeypatch):
    found = texts(monkeypatch, IN_PLACE, "close memory", gmem=FileForgets)
    assert "but no guest_memfd is there" in found[0]


class NotFlushed(KvmMain):
    """The MMU notifier zaps, and lets vCPUs go on with what they have cached."""

    def kvm_flush_remote_tlbs(self, kvm):
        """Nothing."""


NOT_FLUSHED = {
    "discarded": ("", "discard page 0", TO_SHARED, "no page of user space is at address 0x"),
    "converted": (IN_PLACE, "set-attributes page 0 to private", "", "pages under it are private"),
    "punched": (IN_PLACE, "punch page 0", "", "no page of guest_memfd is at index 0x0"),
}


@pytest.mark.parametrize("case", NOT_FLUSHED)
def test_what_a_processor_has_cached_of_it_is_flushed_before(case, monkeypatch):
    vm, then, setup, why = NOT_FLUSHED[case]
    assert texts(monkeypatch, vm, then, setup, promise="tlb") == []
    found = texts(monkeypatch, vm, then, setup, promise="tlb", main=NotFlushed)
    assert "can still use its 4K translation of shared GFN 0x80000 to PFN" in found[0]
    assert why in found[0]
