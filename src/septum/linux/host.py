"""The host kernel: one object that gathers its units and the state that no VM owns.

A design is a set of unit classes (`HostUnits`); the base is the v3 series. What user space or the
boot command line chooses is `HostParams`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import FunctionType
from typing import TYPE_CHECKING

from septum.linux.rcu import Rcu

if TYPE_CHECKING:
    from septum.linux.kvm.guest_memfd import GuestMemfd
    from septum.linux.kvm.main import KvmMain
    from septum.linux.kvm.mmu import KvmMmu
    from septum.linux.kvm.tdp_mmu import TdpMmu
    from septum.linux.kvm.tdx import KvmTdxUnit
    from septum.linux.kvm.types import Kvm, KvmMmuPage
    from septum.linux.kvm.x86 import KvmX86
    from septum.linux.mm import Mm
    from septum.linux.x86.tdx import TdxArch
    from septum.machine import Machine

_BASE = ("septum.linux.", "septum.checks.", "builtins")
"""Where the base's units are from, and the layer that tells promises of what they do."""


@dataclass(slots=True)
class HostParams:
    """Module parameters and the switches of the v3 test tree.

    `vm_memory_attributes` false (N) means that guest_memfd holds the memory attributes. `fixup_*`
    are FIXUP patches 2, 3 and 4 of the v3 test tree; the first exports a symbol, no more.
    `nx_huge_pages` is off on parts without iTLB multihit, which is every part with TDX.
    `preempt_full`: rwlock_needbreak() looks for waiters, as in a fully preemptible kernel.
    """

    tdx: bool = True
    tdx_huge_page: bool = True
    vm_memory_attributes: bool = False
    tdp_mmu: bool = True
    nx_huge_pages: bool = False
    preempt_full: bool = False
    x86_bug_tdx_pw_mce: bool = False
    fixup_zap_before_split: bool = True
    fixup_merge_after_to_private: bool = True
    fixup_ignore_ugfn_alignment: bool = True


@dataclass(frozen=True, slots=True)
class HostUnits:
    """The classes a design builds its host from: one for each C file that takes part."""

    mmu: type[KvmMmu]
    tdp_mmu: type[TdpMmu]
    tdx: type[KvmTdxUnit]
    gmem: type[GuestMemfd]
    main: type[KvmMain]
    x86: type[KvmX86]
    x86_tdx: type[TdxArch]
    mm: type[Mm]

    def design_files(self) -> frozenset[str]:
        """The files with code of the design, rather than of the base."""
        return frozenset(
            function.__code__.co_filename
            for unit in fields(self)
            for base in getattr(self, unit.name).__mro__
            if not base.__module__.startswith(_BASE)
            for function in vars(base).values()
            if isinstance(function, FunctionType)
        )


def v3_units() -> HostUnits:
    """The unit classes of the v3 series as posted."""
    from septum.linux.kvm.guest_memfd import GuestMemfd
    from septum.linux.kvm.main import KvmMain
    from septum.linux.kvm.mmu import KvmMmu
    from septum.linux.kvm.tdp_mmu import TdpMmu
    from septum.linux.kvm.tdx import KvmTdxUnit
    from septum.linux.kvm.x86 import KvmX86
    from septum.linux.mm import Mm
    from septum.linux.x86.tdx import TdxArch

    return HostUnits(
        mmu=KvmMmu,
        tdp_mmu=TdpMmu,
        tdx=KvmTdxUnit,
        gmem=GuestMemfd,
        main=KvmMain,
        x86=KvmX86,
        x86_tdx=TdxArch,
        mm=Mm,
    )


class Host:
    """The host kernel. `host.<unit>.<function>` is a kernel function.

    State that belongs to no VM: `kvms` (vm_list, by id), `page_private` (struct page's private
    field of page-table pages: PFN -> struct kvm_mmu_page), and RCU as far as the TDP MMU needs
    it: `rcu` the read section, `rcu_readers` how many are open, `rcu_free_sps` page tables to free
    when there is none.
    `warned` are the sites whose WARN_ON_ONCE() has fired.
    """

    __slots__ = (
        "gmem",
        "kvms",
        "machine",
        "main",
        "mm",
        "mmu",
        "page_private",
        "params",
        "rcu",
        "rcu_free_sps",
        "rcu_readers",
        "sim",
        "tdp_mmu",
        "tdx",
        "warned",
        "x86",
        "x86_tdx",
    )

    def __init__(
        self,
        machine: Machine,
        units: HostUnits | None = None,
        params: HostParams | None = None,
    ) -> None:
        units = units if units is not None else v3_units()
        self.machine = machine
        self.sim = machine.sim
        self.sim.design_files = units.design_files()
        self.params = params if params is not None else HostParams()
        self.kvms: dict[int, Kvm] = {}
        self.page_private: dict[int, KvmMmuPage] = {}
        self.rcu = Rcu(self.sim, "rcu_read_lock")
        self.rcu_readers = 0
        self.rcu_free_sps: list[KvmMmuPage] = []
        self.warned: dict[str, bool] = {}
        self.mm = units.mm(self)
        self.x86_tdx = units.x86_tdx(self)
        self.main = units.main(self)
        self.x86 = units.x86(self)
        self.tdp_mmu = units.tdp_mmu(self)
        self.mmu = units.mmu(self)
        self.tdx = units.tdx(self)
        self.gmem = units.gmem(self)
