"""`no-bug` and `teardown`, and what the checker itself promises."""

from __future__ import annotations

from copy import copy
from types import SimpleNamespace

import pytest

from septum.checks import PROMISES, consequence, find_promises, sentence
from septum.checks.history import VmHistory
from septum.checks.view import VmView
from septum.errors import InputError
from septum.linux.mm.state import PMD_ORDER, HugetlbPool
from septum.module.pamt import PT_NDA, PT_REG, PT_TDCX, PT_TDR
from septum.module.state import HKID_ASSIGNED, HKID_FREE

HKID = 33


@pytest.fixture
def world(tiny):
    world = tiny()
    world.map(0, 2)
    return world


def leave(world):
    """The VM goes away as it should: nothing is left."""
    module = world.module
    for leaf in module.pamt.entries_2m():
        leaf.pt = leaf.parent.pt = 0
        leaf.fill_children(0, 0, 0)
    module.tds.clear()
    module.kot.entries[HKID].state = HKID_FREE
    world.host.x86_tdx.state.keyid_ida.discard(HKID)
    world.machine.mem.wbinvd()
    world.host.kvms.clear()
    world.kvm.memslots.clear()
    world.kvm.tdx.tdr_page = None
    world.kvm.tdx.hkid = -1


def torn_down(world):
    checker = world.checker(["teardown"])
    checker.quiet_point("alive")
    return checker


class TestTeardown:
    def test_holds(self, world):
        checker = torn_down(world)
        leave(world)
        assert checker.finish() == {"teardown": "held"}

    def test_a_leaf_is_left(self, world):
        checker = torn_down(world)
        leave(world)
        leaf = world.module.pamt.entry_2m(world.pfn_of(0x200) << 12)
        leaf.pt, leaf.owner = 3, world.td_pfn
        checker.finish()
        (text,) = world.texts()
        assert "1 page is still its own, PFN 0x40200 (2M, REG)" in text

    def test_a_key_of_an_attempt_that_failed_is_left(self, world):
        checker = torn_down(world)
        leave(world)
        world.host.x86_tdx.state.keyid_ida.add(HKID + 1)
        checker.finish()
        (text,) = world.texts()
        assert "vm0 was the last VM, and 1 HKID was never freed, 34" in text

    def test_huge_pages_stay_reserved(self, world):
        pools = world.host.mm.state.pools
        pools[PMD_ORDER] = HugetlbPool(PMD_ORDER)
        pools[PMD_ORDER].resv_huge_pages = 1
        checker = torn_down(world)
        pools[PMD_ORDER].resv_huge_pages = 3
        leave(world)
        checker.finish()
        (text,) = world.texts()
        assert "of the huge pages of order 9 2 are still reserved for a guest_memfd" in text

    def test_what_is_reserved_with_a_page_that_failed_stays(self, world):
        pools = world.host.mm.state.pools
        pools[PMD_ORDER] = HugetlbPool(PMD_ORDER)
        checker = torn_down(world)
        pools[PMD_ORDER].resv_huge_pages = 1
        world.host.mm.state.poisoned.add(0x40200)
        leave(world)
        assert checker.finish() == {"teardown": "held"}

    def test_a_small_page_is_left(self, world):
        checker = torn_down(world)
        leave(world)
        child = world.module.pamt.entry_2m(world.pfn_of(0x203) << 12).child(3)
        child.pt, child.owner = 3, world.td_pfn
        checker.finish()
        assert "PFN 0x40203 (4K, REG)" in world.texts()[0]

    def test_the_tdr_is_left(self, world):
        checker = torn_down(world)
        td = world.td
        leave(world)
        world.module.tds[world.td_pfn] = td
        checker.finish()
        assert "TDR page" in world.texts()[0]

    def test_what_it_kept_is_known_though_nobody_looked_meanwhile(self, world):
        """It was no TD when promises were looked at last, and is gone."""
        tdx, td = world.kvm.tdx, world.td
        tdx.tdr_page, pfn, tdx.hkid, hkid = None, tdx.tdr_page, -1, tdx.hkid
        checker = torn_down(world)
        leave(world)
        tdx.tdr_page, tdx.hkid = pfn, hkid
        world.module.tds[pfn] = td
        world.host.x86_tdx.state.keyid_ida.add(HKID)
        checker.finish()
        told = " ".join(world.texts())
        assert "its TDR page" in told
        assert "the kernel lost HKID 33" in told

    def test_another_vm_has_the_page_of_its_tdr(self, world):
        """It was given back, and is a page of another kind now."""
        checker = torn_down(world)
        leave(world)
        child = world.module.pamt.entry_2m(world.td_pfn << 12).child(world.td_pfn & 511)
        child.pt, child.owner = PT_TDCX, 0x999
        assert checker.finish() == {"teardown": "held"}

    def test_the_page_of_its_tdr_is_left(self, world):
        checker = torn_down(world)
        leave(world)
        child = world.module.pamt.entry_2m(world.td_pfn << 12).child(world.td_pfn & 511)
        child.pt = PT_TDR
        checker.finish()
        assert f"1 page is still its own, PFN {world.td_pfn:#x} (4K, TDR)" in world.texts()[0]

    def test_another_td_is_where_it_was(self, world):
        """With its TDR page, its key id, pages and dirty lines of its own."""
        checker = torn_down(world)
        leave(world)
        other = copy(world.td)
        world.module.tds[world.td_pfn] = other
        world.module.kot.entries[HKID].state = HKID_ASSIGNED
        world.host.x86_tdx.state.keyid_ida.add(HKID)
        child = world.module.pamt.entry_2m(world.pfn_of(0x203) << 12).child(3)
        child.pt, child.owner = PT_REG, world.td_pfn
        world.machine.mem.write(world.pfn_of(0x203), HKID, 1)
        assert checker.finish() == {"teardown": "held"}

    def test_another_vm_is_about_to_get_its_key_id(self, world):
        checker = torn_down(world)
        leave(world)
        world.host.x86_tdx.state.keyid_ida.add(HKID)
        other = SimpleNamespace(
            id=7, tdx=SimpleNamespace(hkid=HKID, tdr_page=None), vm_bugged=False
        )
        checker.where = "here"
        world.host.kvms[7] = other
        checker._vms[7] = VmView(world, other, None)
        checker._histories[7] = VmHistory()
        checker._meet_vms()
        assert not world.texts()

    def test_the_kernel_keeps_the_key_id(self, world):
        checker = torn_down(world)
        leave(world)
        world.host.x86_tdx.state.keyid_ida.add(HKID)
        checker.finish()
        assert "the kernel lost HKID 33" in world.texts()[0]

    def test_the_module_keeps_the_key_id(self, world):
        checker = torn_down(world)
        leave(world)
        world.module.kot.entries[HKID].state = 2
        checker.finish()
        assert "HKID 33 is in state 2" in world.texts()[0]

    def test_dirty_lines_are_left(self, world):
        checker = torn_down(world)
        leave(world)
        world.machine.mem.write(world.pfn_of(3), HKID, 1)
        checker.finish()
        assert "1 frame, PFN 0x40003, still has dirty lines" in world.texts()[0]

    def test_frames_are_not_reset_where_they_must_be(self, world):
        world.host.params.x86_bug_tdx_pw_mce = True
        checker = torn_down(world)
        leave(world)
        checker.finish()
        assert "512 frames, the first one PFN 0x40000, were not reset" in world.texts()[0]
        assert "not reset" in world.texts()[0]

    @pytest.mark.parametrize("but", ["", "no erratum", "allocated again", "never reclaimed"])
    def test_its_tdr_page_is_not_reset_where_it_must_be(self, tiny, but):
        """It had the module's own key. Who allocates it resets it; and as long as it is a TDR, one
        thing is told of it."""
        world = tiny()
        world.host.params.x86_bug_tdx_pw_mce = but != "no erratum"
        checker = torn_down(world)
        pfn, td = world.td_pfn, world.td
        leave(world)
        world.machine.mem.write(pfn, world.module.global_hkid, 0)
        world.machine.mem.wbinvd()
        if but == "allocated again":
            world.host.mm.state.site_of[pfn] = "host"
            checker.promises[0].outstanding[pfn] = (1, "host")
        elif but == "never reclaimed":
            world.module.tds[pfn] = td
        checker.finish()
        told = {
            "": f"PFN {pfn:#x}, which was its TDR page, was not reset after the module's HKID 32",
            "never reclaimed": f"its TDR page, PFN {pfn:#x}, was never reclaimed",
        }.get(but)
        assert [text.partition("vm0 is gone, and ")[2] for text in world.texts()] == (
            [told] if told else []
        )

    @pytest.mark.parametrize("whose", ["its own", "another's", "nobody's"])
    def test_a_1g_page_is_left(self, world, whose):
        checker = torn_down(world)
        leave(world)
        world.module.pamt.entry_2m(0x80200 << 12)
        top = world.module.pamt.entry_2m(0x80000 << 12).parent
        top.pt = PT_NDA if whose == "nobody's" else PT_REG
        top.owner = world.td_pfn + (whose == "another's")
        checker.finish()
        texts = [text.partition("vm0 is gone, and ")[2] for text in world.texts()]
        told = "in the PAMT 1 page is still its own, PFN 0x80000 (1G, REG)"
        assert texts == ([told] if whose == "its own" else [])

    @pytest.mark.parametrize("whose", ["its own", "another's", "nobody's"])
    def test_small_pages_that_are_alike_are_left(self, world, whose):
        """As of a frame whose huge page was split, in which one is another's now."""
        checker = torn_down(world)
        leave(world)
        leaf = world.module.pamt.entry_2m(0x80000 << 12)
        kind = PT_NDA if whose == "nobody's" else PT_REG
        leaf.fill_children(kind, world.td_pfn + (whose == "another's"), 0)
        other = leaf.child(0)
        other.owner = 0x999
        checker.finish()
        texts = [text.partition("vm0 is gone, and ")[2] for text in world.texts()]
        told = "in the PAMT 511 pages are still its own, the first one PFN 0x80001 (4K, REG)"
        assert texts == ([told] if whose == "its own" else [])

    def test_another_td_has_its_tdr_elsewhere(self, world):
        checker = torn_down(world)
        leave(world)
        child = world.module.pamt.entry_2m(0x80000 << 12).child(3)
        child.pt = PT_TDR
        assert checker.finish() == {"teardown": "held"}

    def test_another_td_has_another_key_id(self, world):
        """What the kernel lost is lost all the same."""
        checker = torn_down(world)
        leave(world)
        other = copy(world.td)
        other.hkid = HKID + 1
        world.module.tds[0x80000] = other
        world.host.x86_tdx.state.keyid_ida.add(HKID)
        checker.finish()
        assert [text.endswith("the kernel lost HKID 33") for text in world.texts()] == [True]

    def test_a_td_that_is_left_has_its_key_id(self, world):
        """That is told of it once."""
        checker = torn_down(world)
        td = world.td
        leave(world)
        world.module.tds[world.td_pfn] = td
        world.module.kot.entries[HKID].state = HKID_ASSIGNED
        checker.finish()
        assert ["TDR page" in text for text in world.texts()] == [True]

    def test_a_td_that_never_had_a_key_id(self, world):
        world.kvm.tdx.hkid = -1
        checker = torn_down(world)
        leave(world)
        world.machine.mem.write(world.pfn_of(3), 0, 1)  # the lines beside it are clean
        assert checker.finish() == {"teardown": "held"}

    @pytest.mark.parametrize("freed", [True, False])
    @pytest.mark.parametrize("told", ["at its end", "later"])
    def test_what_is_being_closed_is_freed_after_the_vm(self, world, freed, told):
        """The memory is looked for when the close has ended, also when there is a new VM then."""
        mm = world.host.mm
        checker = torn_down(world)
        pfn = mm.alloc_page("leaky")
        kvm = world.kvm
        op = world.begin(checker, "close", 0, 0x200)
        leave(world)
        checker.look_now("gone")
        assert world.texts() == []
        if freed:
            mm.free_page(pfn)
        checker.operation_end(op, 0)
        assert len(world.texts()) == (not freed)
        if told == "later":
            kvm.id = 1
            world.host.kvms[1] = kvm
        checker.finish()
        assert len(world.texts()) == (not freed)

    @pytest.mark.parametrize("other", ["on the list", "half destroyed"])
    def test_it_was_not_the_last_vm(self, world, other):
        """What is allocated may be the other's."""
        checker = torn_down(world)
        world.host.mm.alloc_page("leaky")
        op = world.begin(checker, "close", 0, 0x200)
        leave(world)
        checker._meet_vms()
        kvm = SimpleNamespace(id=7, tdx=world.kvm.tdx, memslots={}, vcpus=[])
        if other == "on the list":
            world.host.kvms[7] = kvm
        else:
            checker._vms[7] = VmView(world, kvm, None)
        checker._under_way.clear()
        checker.promises[0].operation_end(op)
        assert world.texts() == []

    def test_a_leak_is_told_of_before_the_next_vm(self, world):
        checker = torn_down(world)
        world.host.mm.alloc_page("leaky")
        leave(world)
        checker._meet_vms()
        assert len(world.texts()) == 1

    def test_an_allocation_is_never_freed(self, world):
        world.host.mm.alloc_page("before")
        checker = torn_down(world)
        world.host.mm.alloc_page("leaky")
        leave(world)
        checker.finish()
        (text,) = world.texts()
        assert "1 allocation of leaky was never freed, PFN" in text

    def test_what_has_failed_is_not_to_come_back(self, world):
        """And what is beside it is."""
        mm = world.host.mm
        checker = torn_down(world)
        for order, failed in ((0, True), (9, True), (0, False)):
            folio = mm.alloc_folio(order, "gmem")
            if failed:
                mm.get_hwpoison_page(folio)
                mm.folio_put(folio)
        leave(world)
        checker.finish()
        (text,) = world.texts()
        assert f"1 allocation of gmem was never freed, PFN {folio.pfn:#x}" in text

    @pytest.mark.parametrize("freed", ["all others", "all but one", "all but the last"])
    @pytest.mark.parametrize("bad", [0, 7, 511])
    def test_what_has_failed_of_a_folio_that_was_split(self, world, freed, bad):
        """It is kept for good, and no other page of the folio."""
        mm = world.host.mm
        checker = torn_down(world)
        folio = mm.alloc_folio(9, "gmem")
        folio.refcount = 513
        assert mm.split_folio(folio, "split")
        kept = {"all others": [], "all but one": [5], "all but the last": [510]}[freed]
        for at in range(512):
            if at != bad and at not in kept:
                mm.free_page(folio.pfn + at)
        # One that failed when it was free already, and one of somebody else.
        mm.state.poisoned |= {folio.pfn + at for at in (bad, 100, -1, 512)}
        leave(world)
        checker.finish()
        assert [
            f"of gmem was never freed, PFN {folio.pfn:#x}" in text for text in world.texts()
        ] == ([True] * len(kept))


class TestNoBug:
    def test_holds(self, world):
        assert world.checker(["no-bug"]).finish() == {"no-bug": "held"}

    def test_a_bug_that_nobody_reported(self, world):
        world.kvm.vm_bugged = True
        assert world.checker(["no-bug"]).finish() == {"no-bug": "broken"}
        assert len(world.texts()) == 1

    def test_a_vm_without_a_td(self, world):
        world.module.tds.clear()
        assert world.checker(["no-bug"]).finish() == {"no-bug": "held"}

    def test_a_fatal_td(self, world):
        world.td.fatal = True
        assert world.checker(["no-bug"]).finish() == {"no-bug": "broken"}

    def test_what_the_model_reported_counts_once(self, world):
        world.kvm.vm_bugged = True
        world.sim.find("no-bug", "KVM_BUG_ON")
        assert world.checker(["no-bug"]).finish() == {"no-bug": "broken"}
        assert len(world.texts()) == 1


class TestChecker:
    @pytest.mark.parametrize("name", PROMISES)
    def test_each_promise_is_a_sentence_with_a_consequence(self, name):
        promise = PROMISES[name]
        assert promise.name == name
        assert sentence(promise).endswith(".")
        assert consequence(promise).startswith("On real hardware")

    @pytest.mark.parametrize("name", PROMISES)
    def test_an_honest_world_keeps_it(self, tiny, name):
        world = tiny()
        world.map(0, 2)
        world.map(0x200, 1)
        world.memory.write(0, 512, 0)
        world.enter(0)
        checker = world.checker([name])
        for gfn in (0, 0x200):
            world.quiet(checker, gfn, gfn + 1)
        assert checker.finish() == {name: "held"}
        assert world.texts() == []

    def test_an_unknown_promise(self):
        with pytest.raises(InputError, match="no promise is called 'x'"):
            find_promises(["x"])

    def test_a_cause_is_told_once(self, world):
        checker = world.checker(["mirror"])
        world.kvm.stat.add("pages_4k")
        for _ in range(3):
            checker.quiet_point("again")
        assert len(world.texts()) == 1

    def test_mode_end_looks_at_the_end_only(self, world):
        from septum.checks import Checker

        checker = Checker(world, ["mirror"], "end")
        checker.start()
        world.kvm.stat.add("pages_4k")
        checker.quiet_point("now")
        assert world.texts() == []
        assert checker.finish() == {"mirror": "broken"}

    def test_every_step_looks_at_scheduling_points(self, world):
        from septum.checks import Checker

        checker = Checker(world, ["mirror"], "every-step")
        checker.start()
        checker.quiet_point("before")

        def task():
            before = world.tables_for(0, 2)[1].entry(0)
            world.set_mirror(0, 2, 0)
            world.sim.point("x")
            world.set_mirror(0, 2, before)

        world.sim.spawn("task", task)
        world.sim.run()
        assert checker.finish() == {"mirror": "broken"}

    def test_it_changes_nothing(self, world):
        before = (world.sim.nr_points, world.sim.answers[:], dict(world.machine.tables))
        world.checker().finish()
        assert before == (world.sim.nr_points, world.sim.answers, world.machine.tables)
