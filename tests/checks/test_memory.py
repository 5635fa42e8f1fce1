"""`mapping-in-folio`, `guest-data` and `tlb`: frames, folios, contents and translations."""

from __future__ import annotations

from copy import copy

import pytest

from septum.abi.sept import FREE_ENTRY
from septum.checks.guest_data import first_wrong
from septum.checks.mapping_in_folio import piece_at
from septum.linux.kvm.types import Folio, KvmMemorySlot, SplitFolio
from septum.linux.ranges import range_store

HKID = 33


@pytest.fixture
def world(tiny):
    """Two accepted 2 MB pages and 4 KB pages in a third, with content."""
    world = tiny()
    world.map(0, 2)
    world.map(0x200, 2)
    for gfn in range(0x400, 0x404):
        world.map(gfn, 1)
    world.memory.write(0, 0x404, 0)
    world.machine.mem.fill(world.pfn_of(0x200), 512, HKID, 7)
    world.memory.last_token = 7
    world.memory.write(0x200 << 12, 512, 7)
    return world


class TestMappingInFolio:
    def test_holds(self, world):
        world.split(0)
        folio = world.inode.folios.pop(0x400)
        world.inode.split_folios[0x400] = SplitFolio(0x400, folio)
        assert world.found("mapping-in-folio") == []

    def test_a_folio_split_under_a_2m_leaf(self, world):
        folio = world.inode.folios.pop(0x200)
        world.inode.split_folios[0x200] = SplitFolio(0x200, folio)
        (text,) = world.found("mapping-in-folio")
        assert "2M leaf at GFN 0x200 maps PFN 0x40200, but the folio" in text
        assert "has 1 of its 512 pages" in text

    def test_each_kind_is_told(self, world):
        """A folio that is too small, and a memslot that ends under another leaf."""
        folio = world.inode.folios.pop(0)
        world.inode.split_folios[0] = SplitFolio(0, folio)
        world.map(0x800, 2)
        world.slot.npages = 0x900
        texts = world.found("mapping-in-folio")
        assert len(texts) == 2, texts
        assert any("but the folio at PFN" in text for text in texts)
        assert any("but the memslot ends at GFN" in text for text in texts)

    def test_unless_the_design_rests_on_contiguity(self, world):
        folio = world.inode.folios.pop(0x200)
        world.inode.split_folios[0x200] = SplitFolio(0x200, folio)
        checker = world.checker(["mapping-in-folio"])
        checker.mapping_may_exceed_folio = True
        checker.finish()
        assert world.texts() == []

    def test_or_a_conversion_goes_on(self, world):
        folio = world.inode.folios.pop(0x200)
        world.inode.split_folios[0x200] = SplitFolio(0x200, folio)
        world.inode.invalidate_lock.down_write()
        assert world.found("mapping-in-folio") == []

    def test_a_page_that_was_truncated(self, world):
        del world.inode.folios[0x200]
        assert "no page of guest_memfd is at index 0x200" in world.found("mapping-in-folio")[0]

    def test_one_small_page_gone_of_a_split_folio(self, world):
        world.split(0x200)
        folio = world.inode.folios.pop(0x200)
        split = world.inode.split_folios[0x200] = SplitFolio(0x200, folio)
        split.gone.add(0x2FF)
        assert "no page of guest_memfd is at index 0x2ff" in world.found("mapping-in-folio")[0]

    def test_a_small_page_that_is_put_into_a_split_folio(self, world):
        """Beside those that are alike and have no record of their own."""
        world.split(0x200)
        folio = world.inode.folios.pop(0x200)
        world.inode.split_folios[0x200] = SplitFolio(0x200, folio)
        checker = world.checker(["mapping-in-folio"])
        checker.look_now("before")
        assert world.texts() == []
        world.inode.folios[0x2FF] = Folio(0x90000, 0)
        checker.look_now("after")
        (text,) = world.texts()
        assert text.endswith(
            "PFN 0x90000 is what guest_memfd has at index 0x2ff, where PFN 0x402ff is mapped"
        )

    def test_pages_of_a_split_folio_that_go_between_looks(self, world):
        world.split(0x200)
        folio = world.inode.folios.pop(0x200)
        split = world.inode.split_folios[0x200] = SplitFolio(0x200, folio)
        checker = world.checker(["mapping-in-folio"])
        checker.look_now("before")
        assert world.texts() == []
        split.gone.add(0x2FF)
        checker.look_now("after")
        assert len(world.texts()) == 1

    def test_a_split_folio_ends_where_it_does(self, world):
        """That of 2 MB at the beginning of 1 GB has no more pages than its own."""
        inode = world.inode
        inode.folios.clear()
        inode.split_folios[0] = SplitFolio(0, Folio(0x40000, 9))
        assert piece_at(inode, 0x1FF) == (0x401FF, 1, 1)
        assert piece_at(inode, 0x200) is None
        inode.split_folios[0] = SplitFolio(0, Folio(0x40000, 18))
        assert piece_at(inode, 0x3FFFF) == (0x7FFFF, 1, 1)
        assert piece_at(inode, 0x40000) is None

    @pytest.mark.parametrize("gap", [0, 0x200])
    def test_leaves_in_two_slots(self, world, gap):
        """In neighbours all is well; what is between those that are apart has no slot."""
        world.slot.npages = 0x200
        other = KvmMemorySlot(2, 0x200 + gap, 0x600 - gap, 4, 0)
        other.gmem_file, other.gmem_pgoff = world.slot.gmem_file, 0x200 + gap
        world.kvm.memslots[2] = other
        texts = world.found("mapping-in-folio")
        if gap:
            (text,) = texts
            assert "leaf at GFN 0x200 maps PFN 0x40200, but no memslot with a" in text
        else:
            assert texts == []

    def test_another_frame(self, world):
        world.inode.folios[0x200] = Folio(0x80000, 9)
        assert (
            "PFN 0x80000 is what guest_memfd has at index 0x200"
            in world.found("mapping-in-folio")[0]
        )

    def test_shared_memory_under_a_leaf(self, world):
        range_store(world.inode.attributes, 0x210, 0x211, 0)
        assert "pages under it are shared: GFN 0x210 (1 page)" in world.found("mapping-in-folio")[0]

    def test_attributes_of_the_vm(self, world):
        world.host.params.vm_memory_attributes = True
        range_store(world.kvm.mem_attr_array, 0, 0x210, 8)
        assert "are shared" in world.found("mapping-in-folio")[0]

    @pytest.mark.parametrize("gfn", [0, 0x1FF, 0x200, 0x3FF])
    def test_a_page_that_has_failed(self, world, gfn):
        """Not while the one who reports it is about to unmap it."""
        bad = world.pfn_of(gfn)
        world.host.mm.state.poisoned.add(bad)
        checker = world.checker(["mapping-in-folio"])
        world.inode.invalidate_lock.down_read()
        checker.look_now("in the report")
        assert world.texts() == []
        world.inode.invalidate_lock.up_read()
        checker.look_now("after")
        (text,) = world.texts()
        first = gfn & -512
        assert text.endswith(
            f"the 2M leaf at GFN {first:#x} maps PFN {0x40000 + first:#x}, but PFN {bad:#x} has "
            "failed"
        )

    @pytest.mark.parametrize("beside", [-1, 4])
    def test_a_page_beside_that_has_failed(self, world, beside):
        world.unmap(0x200, 2)
        world.host.mm.state.poisoned.add(world.pfn_of(0x400) + beside)
        assert world.found("mapping-in-folio") == []

    def test_no_slot(self, world):
        del world.kvm.memslots[1]
        assert "no memslot" in world.found("mapping-in-folio")[0]

    def test_a_leaf_beyond_the_slot(self, world):
        world.slot.npages = 0x300
        for gfn in range(0x400, 0x404):
            world.set_sept(gfn, 1, FREE_ENTRY)
        assert "the memslot ends at GFN 0x300" in world.found("mapping-in-folio")[0]


class TestGuestData:
    def test_holds(self, world):
        assert world.found("guest-data") == []

    def test_zeroed_behind_the_guest(self, world):
        world.machine.mem.write(world.pfn_of(0x2AA), HKID, 0)
        (text,) = world.found("guest-data")
        assert "GFN 0x2aa, where the guest wrote 0x7, is PFN 0x402aa, which holds 0x0" in text

    def test_a_whole_frame_replaced(self, world):
        world.machine.mem.fill(world.pfn_of(0x200), 512, HKID, 3)
        assert "GFN 0x200" in world.found("guest-data")[0]

    def test_written_by_the_host(self, world):
        world.machine.mem.write(world.pfn_of(0x201), 0, 7)
        assert "written with HKID 0 and not with the TD's 33" in world.found("guest-data")[0]

    def test_mapped_to_another_frame(self, world):
        world.set_sept(0x200, 2, world.leaf(world.pfn_of(0)))
        assert len(world.found("guest-data")) == 1

    def test_gone(self, world):
        world.set_sept(0x200, 2, FREE_ENTRY)
        (text,) = world.found("guest-data")
        assert "GFNs [0x200, 0x400) (512 pages), which the guest wrote" in text
        assert text.endswith("are mapped to no frame")

    def test_one_page_gone(self, world):
        world.memory.write(0x403 << 12, 1, 7)
        world.machine.mem.write(world.pfn_of(0x403), HKID, 7)
        world.set_sept(0x403, 1, FREE_ENTRY)
        (text,) = world.found("guest-data")
        assert "GFN 0x403 (1 page), which the guest wrote" in text
        assert text.endswith("is mapped to no frame")

    def test_a_write_under_way_is_the_guests_own(self, world):
        world.memory.last_token = 8
        world.machine.mem.write(world.pfn_of(0x201), HKID, 8)
        assert world.found("guest-data") == []

    @pytest.mark.parametrize(
        ("found", "token", "last_token", "right"),
        [
            *((7, 7, 7, 1), (8, 7, 9, 1), (9, 7, 9, 1), (6, 7, 9, 0), (10, 7, 9, 0)),
            # A page of the image that the TD was built with: all tokens of the guest are newer.
            *((10, 10, 9, 1), (9, 10, 9, 1), (1, 10, 9, 1), (0, 10, 9, 0), (11, 10, 9, 0)),
        ],
    )
    def test_which_tokens_are_right(self, world, found, token, last_token, right):
        """That which it recorded, and its own that are newer; in one frame as in all 512."""
        mem = world.machine.mem
        for nr in (512, 511):
            mem.fill(0x60000, 512, HKID, token)
            mem.fill(0x60000 + 512 - nr, nr, HKID, found)
            wrong = first_wrong(mem, 0x60000, 512, token, HKID, last_token)
            assert wrong == (-1 if right else 512 - nr)

    def test_a_frame_that_was_never_written(self, world):
        assert first_wrong(world.machine.mem, 0x60000, 512, 0, HKID, 7) == 0

    def test_after_the_key_is_gone_there_is_nothing_to_read(self, world):
        world.td.lifecycle = 2
        assert world.found("guest-data") == []

    def test_a_vm_whose_guest_is_not_known(self, world):
        world.guests.clear()
        world.machine.mem.write(world.pfn_of(0x2AA), HKID, 0)
        assert world.found("guest-data") == []

    def test_given_up_or_taken(self, world):
        checker = world.checker(["guest-data"])
        world.memory.forget(0x200 << 12, 256)
        op = world.begin(checker, "punch_hole", 0x300, 0x400)
        world.set_sept(0x200, 2, FREE_ENTRY)
        checker.operation_end(op, 0)
        checker.finish()
        assert world.texts() == []


class TestTlb:
    @pytest.fixture
    def running(self, world):
        vcpu = world.enter(0)
        tlb = world.machine.lps[0].tlb
        tlb.insert(world.td_pfn, 0x200, 2, world.pfn_of(0x200), True, HKID)
        tlb.insert(world.td_pfn, 0x401, 1, world.pfn_of(0x401), True, HKID)
        return vcpu

    def test_holds(self, world, running):
        world.split(0x200)
        assert world.found("tlb") == []

    def test_a_page_removed(self, world, running):
        world.set_sept(0x401, 1, FREE_ENTRY)
        (text,) = world.found("tlb")
        assert "cpu0 can still use its 4K translation of GFN 0x401 to PFN 0x40401" in text

    def test_blocked_is_not_removed(self, world, running):
        world.set_sept(0x401, 1, world.leaf(world.pfn_of(0x401), blocked=True))
        assert world.found("tlb") == []

    def test_one_page_of_a_split_2m_removed(self, world, running):
        world.split(0x200)
        world.set_sept(0x2F0, 1, FREE_ENTRY)
        (text,) = world.found("tlb")
        assert "2M translation of GFN 0x200" in text
        assert "GFN 0x2f0 in it is not mapped" in text

    def test_another_frame(self, world, running):
        world.set_sept(0x401, 1, world.leaf(0x50000))
        assert "maps another frame" in world.found("tlb")[0]

    def test_out_of_the_guest_with_an_old_epoch_it_is_flushed_first(self, world, running):
        world.set_sept(0x401, 1, FREE_ENTRY)
        world.machine.lps[0].guest = None
        world.td.td_epoch += 1
        assert world.found("tlb") == []

    @pytest.mark.parametrize("where", ["in the guest", "out of it"])
    def test_another_td_is_where_it_ran(self, world, running, where):
        """It cannot use what is not its own."""
        world.set_sept(0x401, 1, FREE_ENTRY)
        running.td = copy(world.td)
        if where == "out of it":
            world.machine.lps[0].guest = None
        assert world.found("tlb") == []

    def test_no_td_is_where_it_ran(self, world, running):
        world.set_sept(0x401, 1, FREE_ENTRY)
        world.machine.lps[0].guest = object()
        assert world.found("tlb") == []

    def test_the_last_page_of_a_split_2m_removed(self, world, running):
        """After which nothing is mapped."""
        world.split(0x200)
        for gfn in (0x3FF, *range(0x400, 0x404)):
            world.set_sept(gfn, 1, FREE_ENTRY)
        texts = world.found("tlb")
        assert "GFN 0x3ff in it is not mapped any more" in texts[0]
        assert "GFN 0x401 in it is not mapped any more" in texts[1]

    def test_all_is_gone(self, world, running):
        world.td.root.fill(FREE_ENTRY, 0)
        assert len(world.found("tlb")) == 2

    def test_out_of_the_guest_with_this_epoch_it_is_not(self, world, running):
        world.set_sept(0x401, 1, FREE_ENTRY)
        world.machine.lps[0].guest = None
        assert len(world.found("tlb")) == 1
