"""The guest-physical address space that QEMU's q35 machine gives a TD.

RAM ranges, memory slots, the list of memory resources that the firmware is told of (the TD HOB),
and the MMIO holes. A function of memory size and firmware image only.
Source: QEMU hw/i386/pc_q35.c, hw/i386/tdvf-hob.c, target/i386/kvm/tdx.c.
"""

import enum
import re
import struct

import msgspec

from septum.abi.tdvf import SectionType, TdvfImage, TdvfSection
from septum.abi.types import PAGE_SIZE, PMD_SIZE, PUD_SIZE
from septum.errors import InputError

FOUR_GIB = 1 << 32
LOW_SPLIT_FROM = 0xB0000000
"""With this much RAM or more only 2 GiB of it lie below 4 GiB. Source: pc_q35_init."""
LOW_SPLIT_SIZE = 0x80000000
MMIO_END = 0xE0000000
"""Where the 32-bit PCI hole ends and PCIe configuration space begins (edk2, q35)."""
MMIO_START_MIN = 0x80000000
IOAPIC_GPA = 0xFEC00000
LAPIC_GPA = 0xFEE00000
LAPIC_SIZE = 1 << 20
MEMORY_MIN = 16 << 20
MEMORY_MAX = 1 << 44

HOB_TYPE_HANDOFF = 1
HOB_TYPE_RESOURCE = 3
HOB_TYPE_END = 0xFFFF
HOB_ATTRIBUTE = 7
HOB_HANDOFF_VERSION = 9
_HOB_HANDOFF = struct.Struct("<HHIIIQQQQQ")
_HOB_RESOURCE = struct.Struct("<HHI16sIIQQ")
_HOB_END = struct.Struct("<HHI")

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class LayoutError(InputError):
    """A memory size or an image that no TD can be built with; the text is one sentence."""


class ResourceType(enum.IntEnum):
    """EFI_RESOURCE_TYPE values that QEMU writes for RAM."""

    SYSTEM_MEMORY = 0
    UNACCEPTED = 7


class RamRange(msgspec.Struct, frozen=True):
    """RAM at `gpa`: bytes from `block_offset` on of the RAM block `block`."""

    name: str
    gpa: int
    size_bytes: int
    block: str
    block_offset: int

    @property
    def end(self) -> int:
        return self.gpa + self.size_bytes


class Slot(msgspec.Struct, frozen=True):
    """A KVM memory slot: a RAM range, backed by guest_memfd `block` from `gmem_offset` bytes on."""

    id: int
    gpa: int
    size_bytes: int
    block: str
    gmem_offset: int


class HobResource(msgspec.Struct, frozen=True):
    """One resource descriptor of the TD HOB: memory that is there, accepted or not."""

    gpa: int
    size_bytes: int
    type: ResourceType

    @property
    def end(self) -> int:
        return self.gpa + self.size_bytes


class MmioRegion(msgspec.Struct, frozen=True):
    """Address space without RAM that the firmware makes shared, one MapGPA per `leaf_bytes`."""

    name: str
    gpa: int
    size_bytes: int
    leaf_bytes: int


class GuestLayout(msgspec.Struct, frozen=True):
    """Where everything is in one guest."""

    memory_bytes: int
    firmware: TdvfImage
    ram: tuple[RamRange, ...]
    slots: tuple[Slot, ...]
    resources: tuple[HobResource, ...]
    mmio: tuple[MmioRegion, ...]

    @property
    def low_end(self) -> int:
        """First address above the RAM that lies below 4 GiB."""
        return self.ram[0].end

    @property
    def high_end(self) -> int:
        """First address above all RAM; 4 GiB when none lies above 4 GiB."""
        return max(FOUR_GIB, max(r.end for r in self.ram))

    @property
    def block_sizes(self) -> dict[str, int]:
        """Size in bytes of each RAM block, which is also that of its guest_memfd."""
        sizes: dict[str, int] = {}
        for r in self.ram:
            sizes[r.block] = max(sizes.get(r.block, 0), r.block_offset + r.size_bytes)
        return sizes

    def hob_bytes(self) -> bytes:
        """The HOB list as it lies in the TD_HOB section. Source: QEMU tdvf_hob_create."""
        return _hob_bytes(self.resources, self.firmware.hob_section)


def parse_memory_size(text: str) -> int:
    """Bytes of a size like 4G, 512M or 2147483648. Raises LayoutError."""
    match = re.fullmatch(r"([0-9]{1,20})([KMGT]?)(?:i?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if match is None:
        said = text if len(text) <= 40 else f"{text[:40]}..."
        raise LayoutError(f"{said!r} is not a memory size; write it like 4G, 512M or 2147483648.")
    return int(match[1]) << _UNITS[match[2].upper()]


def check_memory_size(memory_bytes: int) -> None:
    """Raises LayoutError, in one sentence, for a size that no TD can have."""
    if memory_bytes < MEMORY_MIN:
        raise LayoutError(
            f"A TD cannot have {memory_bytes} bytes of memory; give at least"
            f" {MEMORY_MIN >> 20}M, where the firmware keeps its own pages."
        )
    if memory_bytes > MEMORY_MAX:
        raise LayoutError(
            f"A TD with {memory_bytes >> 40} TiB of memory is beyond this model;"
            f" give at most {MEMORY_MAX >> 40}T."
        )
    if memory_bytes % PAGE_SIZE:
        raise LayoutError(
            f"A TD's memory comes in whole 4 KiB pages, {memory_bytes} bytes are"
            f" {memory_bytes % PAGE_SIZE} bytes too many."
        )


def q35_layout(memory_bytes: int, firmware: TdvfImage) -> GuestLayout:
    """The layout of a TD with `memory_bytes` of RAM and `firmware`.

    Raises LayoutError when the size is impossible or a section lies outside memory.
    """
    check_memory_size(memory_bytes)
    ram = _ram_ranges(memory_bytes, firmware)
    _check_sections(firmware, ram)
    slots = tuple(
        Slot(i + 1, r.gpa, r.size_bytes, r.block, r.block_offset) for i, r in enumerate(ram)
    )
    resources = _resources(ram, firmware)
    _hob_bytes(resources, firmware.hob_section)
    return GuestLayout(memory_bytes, firmware, ram, slots, resources, _mmio(ram[0].end))


def _ram_ranges(memory_bytes: int, firmware: TdvfImage) -> tuple[RamRange, ...]:
    low = LOW_SPLIT_SIZE if memory_bytes >= LOW_SPLIT_FROM else memory_bytes
    ranges = [RamRange("ram-below-4g", 0, low, "pc.ram", 0)]
    if memory_bytes > low:
        ranges.append(RamRange("ram-above-4g", FOUR_GIB, memory_bytes - low, "pc.ram", low))
    ranges.append(RamRange("bios", firmware.load_gpa, firmware.size_bytes, "pc.bios", 0))
    return tuple(ranges)


def _check_sections(firmware: TdvfImage, ram: tuple[RamRange, ...]) -> None:
    """Every section must lie in one range; memory without contents must lie in RAM proper."""
    for i, s in enumerate(firmware.sections):
        in_bios = s.type in (SectionType.BFV, SectionType.CFV)
        home = [r for r in ram if r.gpa <= s.memory_address and s.memory_end <= r.end]
        if not home or (not in_bios and home[0].block == "pc.bios"):
            raise LayoutError(
                f"{firmware.name}: section {i} ({s.type_name}) at {s.memory_address:#x}"
                f"-{s.memory_end - 1:#x} lies outside the memory of this TD; give it more"
                " memory or use another image."
            )


def _resources(ram: tuple[RamRange, ...], firmware: TdvfImage) -> tuple[HobResource, ...]:
    """The e820 RAM ranges with TD_HOB and TEMP_MEM cut out, ascending.

    Source: QEMU tdx_accept_ram_range.
    """
    added = sorted(
        (s.memory_address, s.memory_end)
        for s in firmware.sections
        if s.type in (SectionType.TD_HOB, SectionType.TEMP_MEM)
    )
    resources: list[HobResource] = []
    for r in ram:
        if r.block == "pc.bios":
            continue
        at = r.gpa
        for start, end in added:
            if not r.gpa <= start < r.end:
                continue
            if at < start:
                resources.append(HobResource(at, start - at, ResourceType.UNACCEPTED))
            resources.append(HobResource(start, end - start, ResourceType.SYSTEM_MEMORY))
            at = end
        if at < r.end:
            resources.append(HobResource(at, r.end - at, ResourceType.UNACCEPTED))
    return tuple(resources)


def _hob_bytes(resources: tuple[HobResource, ...], section: TdvfSection) -> bytes:
    size = _HOB_HANDOFF.size + len(resources) * _HOB_RESOURCE.size + _HOB_END.size
    if size > section.memory_size:
        raise LayoutError(
            f"The list of {len(resources)} memory resources needs {size} bytes and the image's"
            f" TD_HOB section has {section.memory_size}; use an image with a larger one."
        )
    end = section.memory_address + size
    handoff = (HOB_TYPE_HANDOFF, _HOB_HANDOFF.size, 0, HOB_HANDOFF_VERSION, 0, 0, 0, 0, 0, end)
    parts = [_HOB_HANDOFF.pack(*handoff)]
    head = (HOB_TYPE_RESOURCE, _HOB_RESOURCE.size, 0, bytes(16))
    parts += [
        _HOB_RESOURCE.pack(*head, r.type, HOB_ATTRIBUTE, r.gpa, r.size_bytes) for r in resources
    ]
    parts.append(_HOB_END.pack(HOB_TYPE_END, _HOB_END.size, 0))
    return b"".join(parts)


def _mmio(low_end: int) -> tuple[MmioRegion, ...]:
    """The holes that DXE makes shared, with the size of the page-table leaf that maps each.

    [src] PCI hole, IOAPIC; [derived] local APIC in 4K leaves; [assumed] for RAM that does not
    end at 2 GiB: the hole begins at the RAM's end, 2 GiB at least.
    """
    start = max(MMIO_START_MIN, -(-low_end // PMD_SIZE) * PMD_SIZE)
    first_1g = -(-start // PUD_SIZE) * PUD_SIZE
    last_1g = MMIO_END // PUD_SIZE * PUD_SIZE
    pieces = [(start, min(first_1g, MMIO_END), PMD_SIZE)]
    if first_1g < last_1g:
        pieces.append((first_1g, last_1g, PUD_SIZE))
    pieces.append((max(start, last_1g, first_1g), MMIO_END, PMD_SIZE))
    regions = [MmioRegion("PCI hole", a, b - a, leaf) for a, b, leaf in pieces if a < b]
    regions.append(MmioRegion("IOAPIC", IOAPIC_GPA, PAGE_SIZE, PAGE_SIZE))
    regions.append(MmioRegion("local APIC", LAPIC_GPA, LAPIC_SIZE, PAGE_SIZE))
    return tuple(regions)
