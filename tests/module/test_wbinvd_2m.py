"""512 WBINVDs at once do what 512 calls do; refused whenever a call could fail or is watched."""

import pytest

from septum.abi.leaves import TDH_PHYMEM_PAGE_WBINVD
from septum.abi.regs import Regs
from septum.machine import Machine, MachineConfig, Tdmr
from septum.module import Module
from septum.module.locks import EX
from septum.module.pamt import PT_NDA, PT_REG
from septum.sim import Sim

GIB = 1 << 30
HPA = GIB + (8 << 20)
KEYED = HPA | 33 << 40


def make(dynamic: bool) -> tuple[Machine, Module]:
    machine = Machine(Sim(), MachineConfig(tdmrs=(Tdmr(base=GIB, size=GIB),), dynamic_pamt=dynamic))
    module = Module(machine)
    machine.seam = module
    machine.mem.fill(HPA >> 12, 512, 33, 7)
    assert module.pamt.entry_2m(HPA) is not None
    return machine, module


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_at_once_equals_one_by_one(dynamic: bool) -> None:
    at_once, module = make(dynamic)
    one_by_one, other = make(dynamic)
    assert at_once.wbinvd_2m(KEYED)
    for page in range(512):
        regs = Regs(rax=TDH_PHYMEM_PAGE_WBINVD, rcx=KEYED + (page << 12))
        one_by_one.seamcall(0, regs)
        assert regs.rax == 0
    assert module.counts == other.counts
    assert at_once.sim.now_ns() == one_by_one.sim.now_ns()
    for pfn in range(HPA >> 12, (HPA >> 12) + 512):
        assert at_once.mem.dirty_of(pfn) == one_by_one.mem.dirty_of(pfn) == -1


@pytest.mark.parametrize("mixed", [False, True], ids=["one key", "two keys"])
def test_lines_of_another_key_stay(mixed: bool) -> None:
    """What a host leaves in the cache that flushes with the key of another TD, or with its own."""
    at_once, _ = make(False)
    one_by_one, _ = make(False)
    for machine in (at_once, one_by_one):
        if mixed:
            machine.mem.write(HPA >> 12, 34, 7)
    for hkid, left in ((0, 33), (34, 33), (33, -1)):
        assert at_once.wbinvd_2m(HPA | hkid << 40)
        for page in range(512):
            regs = Regs(rax=TDH_PHYMEM_PAGE_WBINVD, rcx=HPA + (page << 12) | hkid << 40)
            one_by_one.seamcall(0, regs)
            assert regs.rax == 0
        for mem in (at_once.mem, one_by_one.mem):
            assert {mem.dirty_of((HPA >> 12) + page) for page in range(1, 512)} == {left}
            assert mem.dirty_of(HPA >> 12) == (left if not mixed else -1 if hkid else 34)


@pytest.mark.parametrize(
    "what", ["unaligned", "leaf", "one page", "locked", "page locked", "traced"]
)
def test_it_is_refused_when_a_call_could_fail_or_is_watched(what: str) -> None:
    machine, module = make(False)
    entry = module.pamt.entry_2m(HPA)
    assert entry is not None
    rcx = KEYED
    if what == "unaligned":
        rcx += 4096
    elif what == "leaf":
        entry.pt = PT_REG
    elif what == "one page":
        entry.child(5).pt = PT_REG
        entry.used += 1
    elif what == "locked":
        entry.lock = EX
    elif what == "page locked":
        entry.child(5).lock = EX
    else:
        machine.sim.set_sink(lambda event: None)
    assert not machine.wbinvd_2m(rcx)
    assert machine.mem.dirty_of(HPA >> 12) == 33
    assert module.counts == {}
    assert entry.parent.pt == PT_NDA
