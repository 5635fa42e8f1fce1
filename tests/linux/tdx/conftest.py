"""A whole small world with one TD that is built and not running, driven ioctl by ioctl."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from septum.abi.errno import errno_name
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.leaves import SEAMCALL_LEAVES
from septum.abi.sept import STATE_FREE, STATE_MASK, is_leaf
from septum.abi.tdvf import parse_tdvf
from septum.abi.tdvf_build import build_tdvf, edk2_sections
from septum.guest.script import Op, ScriptGuest
from septum.guest.tdcpu import make_guest_cpus
from septum.linux.host import HostUnits
from septum.linux.kvm.gmem_attrs import KvmMemoryAttributes2
from septum.linux.kvm.gmem_range import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from septum.linux.kvm.types import GmemFile, Kvm
from septum.module.views import sept_entry
from septum.sim import Schedule
from septum.vmm.layout import q35_layout
from septum.vmm.qemu import Vmm, VmmConfig
from septum.vmm.world import World, recipe_for

MB = 1 << 20
MB2 = 2 << 20
PAGE = 4096
PUNCH = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
IMAGE = parse_tdvf(build_tdvf(edk2_sections(0x10000, 0x8000), 0x10000), "small")
FREE_GPA = 32 * MB  # nothing of the image is here


class NamedChoices(Schedule):
    """Answers the choice points in `wanted`: name -> outcomes in order, then 0. Never switches
    unless it must."""

    def __init__(self) -> None:
        self.wanted: dict[str, list[int]] = {}

    def pick(self, n: int, forced: bool) -> int:
        return 0

    def choose(self, name: str, n: int) -> int:
        outcomes = self.wanted.get(name)
        return outcomes.pop(0) if outcomes else 0

    def spec(self) -> tuple[str, int]:
        return ("named", 0)


class Bench:
    """One TD of 64 MiB, finalized."""

    def __init__(
        self,
        backing: str = "thp",
        *,
        scripts: list[list[Op]] | None = None,
        units: HostUnits | None = None,
        in_place: bool = False,
        memory: int = 64 * MB,
        schedule: Schedule | None = None,
        build: bool = True,
        **recipe: object,
    ) -> None:
        self.choices = NamedChoices()
        self.guest = ScriptGuest(scripts if scripts is not None else [[]])
        nr = self.guest.nr_cpus
        options: dict[str, object] = {"nr_host_threads": 4, **recipe}
        self.world = World(
            recipe_for(memory, nr, backing, **options),
            units=units,
            schedule=schedule if schedule is not None else self.choices,
        )
        self.host = self.world.host
        self.sim = self.world.sim
        self.layout = q35_layout(memory, IMAGE)
        self.cpus = make_guest_cpus(self.world.machine, self.guest)
        config = VmmConfig(backing=backing, in_place=in_place)
        self.vmm: Vmm = self.world.add_vm(self.layout, [c.context for c in self.cpus], config)
        if build:
            assert self.vmm.build() == 0, self.vmm.fatal

    @property
    def kvm(self) -> Kvm:
        return self.vmm.vm()

    @property
    def gmem(self) -> GmemFile:
        return self.vmm.blocks["pc.ram"].gmem

    def ok(self, ret: int) -> None:
        assert ret == 0, errno_name(ret)

    def prefault(self, gpa: int, size: int = MB2) -> None:
        """KVM_PRE_FAULT_MEMORY of private memory: mapped as large as the host allows."""
        ret, _, left = self.host.main.kvm_vcpu_ioctl_pre_fault_memory(self.vmm.vcpus[0], gpa, size)
        assert (ret, left) == (0, 0), errno_name(ret)

    def set_attributes(self, gpa: int, size: int, *, private: bool) -> int:
        """Convert through whoever holds the attributes, without giving memory back."""
        attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
        if self.host.params.vm_memory_attributes:
            return self.host.main.kvm_vm_ioctl_set_memory_attributes(
                self.kvm, gpa, size, attributes
            )
        return self.convert_gmem(gpa, size, private=private)[0]

    def convert_gmem(self, gpa: int, size: int, *, private: bool) -> tuple[int, int]:
        """KVM_SET_MEMORY_ATTRIBUTES2: (errno, error offset)."""
        attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
        attrs = KvmMemoryAttributes2(gpa, size, attributes)
        return self.host.gmem.kvm_gmem_set_attributes(self.gmem, attrs), attrs.error_offset

    def punch(self, offset: int, size: int) -> int:
        """fallocate() of a hole in guest_memfd."""
        return self.host.gmem.kvm_gmem_fallocate(self.gmem, PUNCH, offset, size)

    def get_pfn(self, gfn: int) -> tuple[int, int, int]:
        """(errno, pfn, order) of a private page; the reference is dropped again."""
        slot = self.host.main.gfn_to_memslot(self.kvm, gfn)
        ret, pfn, folio, order = self.host.gmem.kvm_gmem_get_pfn(self.kvm, slot, gfn)
        if folio is not None:
            self.host.mm.folio_put(folio)
        return ret, pfn, order

    def walk(self, gpa: int) -> tuple[int, bool]:
        """(TDX level, is a leaf) of the S-EPT entry where a walk for `gpa` ends."""
        assert self.kvm.tdx.tdr_page is not None
        module = self.world.module
        level, entry = sept_entry(module, module.tds[self.kvm.tdx.tdr_page], gpa)
        return level, is_leaf(entry) and entry & STATE_MASK != STATE_FREE

    def seamcalls(self, action: Callable[[], object]) -> dict[str, int]:
        """How many SEAMCALLs of each leaf `action` makes."""
        before = dict(self.world.module.counts)
        action()
        made: dict[str, int] = {}
        names = {leaf: name for name, leaf in SEAMCALL_LEAVES.items()}
        for (leaf, _), count in self.world.module.counts.items():
            made[names[leaf]] = made.get(names[leaf], 0) + count
        for (leaf, _), count in before.items():
            made[names[leaf]] -= count
        return {name: count for name, count in made.items() if count}

    def texts(self) -> list[str]:
        """What was found so far."""
        return [f.text for f in self.sim.findings]

    def leftovers(self) -> list[tuple[int, int, str]]:
        """What is still allocated."""
        return list(self.host.mm.outstanding())

    def assert_nothing_left(self) -> None:
        """Every page is free, no PAMT pair is installed, every key id is back."""
        assert self.leftovers() == []
        state = self.host.mm.state
        assert self.host.mm.nr_free_pages == state.nr_total_pages
        assert self.host.x86_tdx.state.pamt_refcounts == {}
        assert self.host.x86_tdx.state.keyid_ida == set()
        assert not self.host.kvms


@pytest.fixture
def bench() -> Callable[..., Bench]:
    """Makes benches."""
    return Bench
