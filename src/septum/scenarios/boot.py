"""The standard boot: a TD from a TDVF image, up to an idle Linux, and down to the last page.

Everything that the run depends on is in `BootRecipe` and the schedule, so that the two make its
replay token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.abi.leaves import TDH_MEM_PAGE_ADD, TDH_MR_EXTEND
from septum.checks import Checker, observed_units
from septum.designs import find_design
from septum.errors import InputError
from septum.guest.linux import LinuxGuest, check_linux_memory
from septum.guest.params import LinuxParams
from septum.guest.tdcpu import make_guest_cpus
from septum.module import PROFILES
from septum.scenarios.blamed import left_behind
from septum.scenarios.memory_map import Snapshots
from septum.sim import RunStopped
from septum.vmm.layout import check_memory_size, q35_layout
from septum.vmm.qemu import BACKINGS, STOP_SHUTDOWN, VmmConfig
from septum.vmm.world import World, recipe_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.abi.tdvf import TdvfImage
    from septum.checks.modes import Mode
    from septum.linux.kvm.types import Kvm
    from septum.report.result import PhaseRecord
    from septum.sim import Schedule

VCPUS_MAX = 256
MEASURED_MEMORY = 1 << 30
CHECK_RARELY = 8


class BootRecipe(msgspec.Struct, frozen=True, tag="boot"):
    """What is booted. `firmware_sha256` names the image; `backing` is that of guest memory.

    `vm_memory_attributes`: the VM holds the memory attributes (kvm.vm_memory_attributes=Y), else
    guest_memfd does.
    """

    memory_bytes: int
    nr_vcpus: int
    firmware_sha256: str
    design: str = "v3"
    backing: str = "thp"
    module: str = "1.5.28"
    dynamic_pamt: bool = False
    vm_memory_attributes: bool = True


def measurement(world: World, kvm: Kvm) -> bytes:
    """MRTD of a finalized TD, 48 bytes; empty before."""
    tdr = kvm.tdx.tdr_page
    td = world.module.tds.get(tdr) if tdr is not None else None
    return td.mrtd if td is not None else b""


def measure(image: TdvfImage, *, two_pass: bool = False) -> tuple[bytes, int, int]:
    """Build a TD from `image` as a VMM does, and take it down again.

    Returns (MRTD, number of PAGE.ADDs, number of MR.EXTENDs), all of it the module's own. Raises
    InputError when the TD cannot be built.
    """
    layout = q35_layout(MEASURED_MEMORY, image)
    world = World(recipe_for(MEASURED_MEMORY, 1))
    guest = LinuxGuest(layout, 1)
    cpus = make_guest_cpus(world.machine, guest)
    vmm = world.add_vm(layout, [cpu.context for cpu in cpus], VmmConfig(two_pass=two_pass))
    if vmm.build():
        raise InputError(f"{image.name}: no TD can be built from it: {vmm.fatal[0]}")
    mrtd = measurement(world, vmm.vm())
    counts = world.module.counts
    added, extended = counts[TDH_MEM_PAGE_ADD, 0], counts[TDH_MR_EXTEND, 0]
    vmm.teardown()
    return mrtd, added, extended


def check_boot(memory_bytes: int, nr_vcpus: int, backing: str, module: str = "1.5.28") -> None:
    """Raises InputError for what no boot can be given, whatever its firmware."""
    check_memory_size(memory_bytes)
    check_linux_memory(memory_bytes)
    if not 1 <= nr_vcpus <= VCPUS_MAX:
        raise InputError(f"--vcpus {nr_vcpus} is out of range; choose from 1 to {VCPUS_MAX}")
    if backing not in BACKINGS:
        raise InputError(f"--backing {backing!r}: choose from {', '.join(BACKINGS)}")
    if module not in PROFILES:
        raise InputError(f"--module {module!r}: choose from {', '.join(PROFILES)}")


class Boot:
    """A world with one Linux guest in it, and what is kept of its run.

    `login` is called at the guest's login with this object, before the VM is shut down.
    """

    __slots__ = (
        "checker",
        "extra",
        "guest",
        "image",
        "kvm",
        "login",
        "mrtd",
        "phases",
        "recipe",
        "snapshots",
        "vmm",
        "world",
    )

    def __init__(
        self,
        recipe: BootRecipe,
        image: TdvfImage,
        *,
        schedule: Schedule | None = None,
        check: Mode = "quiet",
        linux: LinuxParams | None = None,
    ) -> None:
        """Raises InputError for what cannot be booted."""
        check_boot(recipe.memory_bytes, recipe.nr_vcpus, recipe.backing, recipe.module)
        design = find_design(recipe.design)
        layout = q35_layout(recipe.memory_bytes, image)
        self.recipe = recipe
        self.image = image
        self.world = World(
            recipe_for(
                recipe.memory_bytes,
                recipe.nr_vcpus,
                recipe.backing,
                module=recipe.module,
                dynamic_pamt=recipe.dynamic_pamt,
                vm_memory_attributes=recipe.vm_memory_attributes,
            ),
            units=observed_units(design.units()),
            module=design.module_class(),
            schedule=schedule,
        )
        self.guest = LinuxGuest(layout, recipe.nr_vcpus, linux)
        cpus = make_guest_cpus(self.world.machine, self.guest)
        self.vmm = self.world.add_vm(
            layout, [cpu.context for cpu in cpus], VmmConfig(backing=recipe.backing)
        )
        self.checker = Checker(self.world, mode=check, guests=[self.guest], rarely=CHECK_RARELY)
        self.snapshots = Snapshots(self.world, layout)
        self.kvm: Kvm | None = None
        self.mrtd = b""
        self.extra: dict[str, int] = {}  # whatever `login` counted
        self.phases: list[PhaseRecord] = []  # known when events are recorded
        self.login: Callable[[Boot], None] | None = None

    def run(self) -> None:
        """From KVM_CREATE_VM to the last page. What was found is in `world.sim.findings`."""
        with left_behind(self.recipe.design):
            self._run()

    def _run(self) -> None:
        self.vmm.on_report = self._on_report
        self.checker.start()
        try:
            self.world.run()
        except RunStopped:
            # An endless retry, or an oops: tasks stand in the middle of things.
            self.checker.stopped()
        else:
            self.checker.finish()
        finally:
            self.world.close()

    def _on_report(self, code: int) -> None:
        """The guest says that it is up: look at it, then power off."""
        self.kvm = kvm = self.vmm.vm()
        self.mrtd = measurement(self.world, kvm)
        self.snapshots.take("login", "The guest's memory at login", kvm)
        if self.login is not None:
            self.login(self)
        self.vmm.stop(STOP_SHUTDOWN)

    @property
    def up(self) -> bool:
        """The guest came up."""
        return bool(self.vmm.reports)
