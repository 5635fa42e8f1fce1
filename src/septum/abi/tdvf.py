"""TDVF metadata: where a TD's firmware image says which memory exists before the first instruction.

Parses the descriptor that the VMM reads to build a TD, with the checks that QEMU makes before it
starts one. Facts only: no file is opened here. Source: QEMU hw/i386/tdvf.c, edk2 OvmfPkg
ResetVector, TDX Virtual Firmware Design Guide.

The image ends like this (offsets from the end of the file):

    ... payload | u16 length | GUID ...  entries, walked backwards from the footer
    -0x32         u16 length of the whole table, footer's 18 bytes included
    -0x30 .. -0x20  footer GUID 96b582de-...
    -0x20 .. 0      reset vector

The entry e47a6535-... holds a u32: the distance of the descriptor from the end of the file.
Old td-shim images have no table; there the u32 at -0x20 is the descriptor's file offset.
"""

import enum
import hashlib
import itertools
import struct
from collections.abc import Iterator
from uuid import UUID

import msgspec

from septum.abi.types import PAGE_SIZE
from septum.errors import InputError

FIRMWARE_END = 1 << 32
"""The image is one RAM block that ends at 4 GiB."""
FIRMWARE_ALIGN = 0x10000
"""QEMU's `-bios` takes images in whole 64 KiB only (x86_bios_rom_init)."""
FIRMWARE_MAX = 16 << 20
"""Above this size the image would reach down into the local APIC's page at 0xfee00000."""

GUID_TABLE_FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
GUID_TDX_METADATA_OFFSET = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
GUID_TDX_METADATA_MARKER = UUID("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae").bytes_le
TDVF_SIGNATURE = b"TDVF"
TDX_METADATA_VERSION = 1

RESET_VECTOR_SIZE = 0x20
GUID_SIZE = 16
GUIDED_ENTRY_OVERHEAD = GUID_SIZE + 2
DESCRIPTOR = struct.Struct("<4sIII")
SECTION = struct.Struct("<IIQQII")
FV_SIGNATURE = b"_FVH"
FV_SIGNATURE_OFFSET = 0x28

MR_EXTEND = 1 << 0
PAGE_AUG = 1 << 1

_USE_ANOTHER = "use an OVMF built with TDX support (Debian: package ovmf, /usr/share/ovmf/OVMF.fd)"
_REBUILD = "rebuild or replace the image"


class TdvfError(InputError):
    """One sentence: which file, where in it, what is wrong, and what would be right."""

    def __init__(self, name: str, wrong: str, remedy: str, *, offset: int | None = None) -> None:
        where = "" if offset is None else f" (see file offset {offset:#x})"
        super().__init__(f"{name}: {wrong}{where}; {remedy}.")
        self.name = name
        self.offset = offset


class SectionType(enum.IntEnum):
    """TDVF section types. QEMU builds a TD from the first four only."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMP_MEM = 3
    PERM_MEM = 4
    PAYLOAD = 5
    PAYLOAD_PARAM = 6
    TD_INFO = 7
    TD_PARAMS = 8


QEMU_SECTION_TYPES = (
    SectionType.BFV,
    SectionType.CFV,
    SectionType.TD_HOB,
    SectionType.TEMP_MEM,
)


class Footer(enum.Enum):
    """How the descriptor was found."""

    GUIDED_TABLE = "GUIDed table"
    TD_SHIM_OFFSET = "td-shim offset"


class TdvfSection(msgspec.Struct, frozen=True):
    """One section entry: `raw_size` bytes at `data_offset` of the file go to `memory_address`."""

    data_offset: int
    raw_size: int
    memory_address: int
    memory_size: int
    type: int
    attributes: int = 0

    @property
    def memory_end(self) -> int:
        return self.memory_address + self.memory_size

    @property
    def nr_pages(self) -> int:
        return self.memory_size // PAGE_SIZE

    @property
    def measured(self) -> bool:
        """MR.EXTEND: the contents go into MRTD, not only the addresses."""
        return bool(self.attributes & MR_EXTEND)

    @property
    def type_name(self) -> str:
        try:
            return SectionType(self.type).name
        except ValueError:
            return f"type {self.type}"


class TdvfImage(msgspec.Struct, frozen=True):
    """A firmware image whose TDX metadata passed every check."""

    name: str
    data: bytes
    descriptor_offset: int
    footer: Footer
    has_marker: bool
    sections: tuple[TdvfSection, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    @property
    def load_gpa(self) -> int:
        """Guest-physical address of the image's first byte."""
        return FIRMWARE_END - len(self.data)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def hob_section(self) -> TdvfSection:
        """The TD_HOB section; parsing made sure that there is one."""
        return next(s for s in self.sections if s.type == SectionType.TD_HOB)

    @property
    def nr_pages_added(self) -> int:
        """TDH.MEM.PAGE.ADD calls that the image needs: all sections, PAGE.AUG or not."""
        return sum(s.nr_pages for s in self.sections)

    @property
    def nr_extends(self) -> int:
        """TDH.MR.EXTEND calls (256 bytes each) that the measured sections need."""
        return sum(s.nr_pages * 16 for s in self.sections if s.measured)

    def page(self, section: TdvfSection, index: int) -> bytes:
        """The 4 KB of `section`'s page `index`; beyond the raw data there are zeros.

        MODEL: as the design guide says. QEMU would take whatever follows in the file.
        """
        start = index * PAGE_SIZE
        raw = self.data[
            section.data_offset + start : section.data_offset
            + min(max(section.raw_size, start), start + PAGE_SIZE)
        ]
        return raw if len(raw) == PAGE_SIZE else raw.ljust(PAGE_SIZE, b"\0")

    def pages(self, section: TdvfSection) -> Iterator[tuple[int, bytes]]:
        """(GPA, contents) of each page of `section`, ascending."""
        for index in range(section.nr_pages):
            yield section.memory_address + index * PAGE_SIZE, self.page(section, index)


def parse_tdvf(data: bytes, name: str) -> TdvfImage:
    """The image's TDX metadata, checked.

    Checks what QEMU checks (tdvf_parse_metadata, tdvf_parse_and_check_section_entry, that there is
    a TD_HOB) and what QEMU would only meet as a failing ioctl later: empty or overlapping
    sections and raw data beyond the file. Source: QEMU hw/i386/tdvf.c.

    Raises TdvfError, whose text is one sentence that names `name`.
    """
    if not data:
        raise TdvfError(name, "the file is empty", _USE_ANOTHER)
    offset, footer = _find_descriptor(data, name)
    sections = _read_descriptor(data, offset, name)
    table = offset + DESCRIPTOR.size
    for i, section in enumerate(sections):
        _check_section(
            section, f"section {i} ({section.type_name})", table + i * SECTION.size, name
        )
        _check_raw_data(section, i, table + i * SECTION.size, len(data), name)
    _check_overlap(sections, table, name)
    _check_size(data, name)
    if not any(s.type == SectionType.TD_HOB for s in sections):
        raise TdvfError(name, "no TD_HOB section is listed", _REBUILD, offset=offset)
    return TdvfImage(
        name=name,
        data=data,
        descriptor_offset=offset,
        footer=footer,
        has_marker=data[max(0, offset - GUID_SIZE) : offset] == GUID_TDX_METADATA_MARKER,
        sections=sections,
    )


def _check_size(data: bytes, name: str) -> None:
    """Source: QEMU x86_bios_rom_init; the upper limit keeps clear of the local APIC."""
    if len(data) % FIRMWARE_ALIGN:
        wrong = f"the image's size of {len(data)} bytes is not a multiple of 64 KiB"
        raise TdvfError(name, wrong, _USE_ANOTHER)
    if len(data) > FIRMWARE_MAX:
        wrong = (
            f"the image is {len(data) >> 20} MiB large, above the {FIRMWARE_MAX >> 20} MiB that"
            " fit below 4 GiB"
        )
        raise TdvfError(name, wrong, _USE_ANOTHER)


def guided_table_entries(data: bytes) -> list[tuple[bytes, int, int]] | None:
    """(GUID, payload offset, payload size) from the footer backwards; None without a footer.

    Stops at an entry whose length cannot be right, as pc_system_parse_ovmf_flash does.
    """
    footer = len(data) - RESET_VECTOR_SIZE - GUID_SIZE
    if footer < 2 or data[footer : footer + GUID_SIZE] != GUID_TABLE_FOOTER:
        return None
    end = footer - 2
    (total,) = struct.unpack_from("<H", data, end)
    low = footer + GUID_SIZE - total
    entries: list[tuple[bytes, int, int]] = []
    while end - GUIDED_ENTRY_OVERHEAD >= max(low, 0):
        guid = data[end - GUID_SIZE : end]
        (length,) = struct.unpack_from("<H", data, end - GUIDED_ENTRY_OVERHEAD)
        if length < GUIDED_ENTRY_OVERHEAD or end - length < max(low, 0):
            break
        entries.append((guid, end - length, length - GUIDED_ENTRY_OVERHEAD))
        end -= length
    return entries


def _find_descriptor(data: bytes, name: str) -> tuple[int, Footer]:
    """File offset of the descriptor. Source: QEMU tdvf_get_metadata."""
    entries = guided_table_entries(data)
    if entries is None:
        offset = int.from_bytes(data[-RESET_VECTOR_SIZE:][:4], "little")
        if data[offset : offset + 4] == TDVF_SIGNATURE:
            return offset, Footer.TD_SHIM_OFFSET
        if data[FV_SIGNATURE_OFFSET : FV_SIGNATURE_OFFSET + 4] == FV_SIGNATURE:
            raise TdvfError(name, "this UEFI firmware has no TDX metadata", _USE_ANOTHER)
        raise TdvfError(
            name,
            "this is not a firmware image, it has neither the GUIDed table of OVMF nor a"
            " firmware volume",
            _USE_ANOTHER,
        )
    for guid, payload, size in entries:
        if guid != GUID_TDX_METADATA_OFFSET:
            continue
        if size != 4:
            wrong = f"the TDX metadata entry holds {size} bytes instead of 4"
            raise TdvfError(name, wrong, _REBUILD, offset=payload)
        (distance,) = struct.unpack_from("<I", data, payload)
        if distance > len(data) or distance < DESCRIPTOR.size:
            wrong = f"the TDX metadata entry points {distance:#x} bytes before the end of the file"
            raise TdvfError(name, wrong, _REBUILD, offset=payload)
        return len(data) - distance, Footer.GUIDED_TABLE
    raise TdvfError(name, "this OVMF has no TDX metadata", _USE_ANOTHER)


def _read_descriptor(data: bytes, offset: int, name: str) -> tuple[TdvfSection, ...]:
    """The section entries. Source: QEMU tdvf_get_metadata, tdvf_parse_metadata."""
    if offset + DESCRIPTOR.size > len(data):
        raise TdvfError(name, "the TDVF descriptor is cut off", _REBUILD, offset=offset)
    signature, length, version, count = DESCRIPTOR.unpack_from(data, offset)
    if signature != TDVF_SIGNATURE:
        raise TdvfError(name, "the TDVF signature is missing", _REBUILD, offset=offset)
    if offset + length > len(data):
        wrong = f"the TDVF descriptor's length of {length} bytes runs past the end of the file"
        raise TdvfError(name, wrong, _REBUILD, offset=offset)
    if version != TDX_METADATA_VERSION:
        wrong = f"the TDVF descriptor has version {version}, only version 1 is defined"
        raise TdvfError(name, wrong, _REBUILD, offset=offset)
    if count < 2:
        wrong = f"the TDVF descriptor lists {count} sections, at least 2 are needed"
        raise TdvfError(name, wrong, _REBUILD, offset=offset)
    if length != DESCRIPTOR.size + count * SECTION.size:
        wrong = (
            f"the TDVF descriptor's length of {length} bytes does not match its {count} sections,"
            f" which need {DESCRIPTOR.size + count * SECTION.size}"
        )
        raise TdvfError(name, wrong, _REBUILD, offset=offset)
    table = data[offset + DESCRIPTOR.size : offset + length]
    return tuple(TdvfSection(*fields) for fields in SECTION.iter_unpack(table))


def _check_section(s: TdvfSection, which: str, offset: int, name: str) -> None:
    """Source: QEMU tdvf_parse_and_check_section_entry."""
    wrong = ""
    if s.memory_size < s.raw_size:
        wrong = f"has {s.raw_size:#x} bytes of raw data for {s.memory_size:#x} bytes of memory"
    elif s.memory_address % PAGE_SIZE:
        wrong = (
            f"is misaligned, its memory address {s.memory_address:#x} is not a multiple of 4 KiB"
        )
    elif s.memory_size % PAGE_SIZE:
        wrong = f"is misaligned, its memory size {s.memory_size:#x} is not a multiple of 4 KiB"
    elif s.type not in QEMU_SECTION_TYPES:
        wrong = "is of a type that QEMU does not build a TD from"
    elif s.type in (SectionType.BFV, SectionType.CFV) and not s.raw_size:
        wrong = "has no raw data"
    elif s.type in (SectionType.TD_HOB, SectionType.TEMP_MEM) and s.raw_size:
        wrong = f"has {s.raw_size:#x} bytes of raw data where none belong"
    elif not s.memory_size:
        wrong = "covers no memory"
    elif s.memory_end > 1 << 52:
        wrong = f"ends at {s.memory_end:#x}, above every guest-physical address"
    if wrong:
        raise TdvfError(name, f"{which} {wrong}", _REBUILD, offset=offset)


def _check_raw_data(s: TdvfSection, i: int, offset: int, size: int, name: str) -> None:
    end = s.data_offset + s.raw_size
    if not s.raw_size or end <= size:
        return
    remedy = _REBUILD
    if s.memory_end == FIRMWARE_END and s.raw_size == size:
        remedy = (
            f"a CODE file alone is not an image, put its VARS file of {end - size} bytes in front"
            " (cat VARS.fd CODE.fd > OVMF.fd)"
        )
    wrong = (
        f"section {i} ({s.type_name}) takes raw data up to {end:#x} of a file of {size:#x} bytes"
    )
    raise TdvfError(name, wrong, remedy, offset=offset)


def _check_overlap(sections: tuple[TdvfSection, ...], table: int, name: str) -> None:
    """The module adds a page once, so two sections cannot share one."""
    by_address = sorted(range(len(sections)), key=lambda i: sections[i].memory_address)
    for i, j in itertools.pairwise(by_address):
        a, b = sections[i], sections[j]
        if a.memory_end > b.memory_address:
            wrong = (
                f"section {j} ({b.type_name}) at {b.memory_address:#x} overlaps section {i}"
                f" ({a.type_name}), which ends at {a.memory_end:#x}"
            )
            raise TdvfError(name, wrong, _REBUILD, offset=table + j * SECTION.size)


def describe(image: TdvfImage) -> list[str]:
    """Lines that show the image to a person: `septum firmware` prints them."""
    found = f"TDVF descriptor at file offset {image.descriptor_offset:#x}"
    lines = [
        f"{image.name}: {image.size_bytes >> 10} KiB, sha256 {image.sha256}",
        f"{found} (found by {image.footer.value}), {len(image.sections)} sections",
        f"  {'type':<9}{'guest memory':<25}{'pages':>6}  {'file offset':<12}attributes",
    ]
    for s in image.sections:
        names = [
            n for bit, n in ((MR_EXTEND, "MR.EXTEND"), (PAGE_AUG, "PAGE.AUG")) if s.attributes & bit
        ]
        where = f"{s.data_offset:#x}" if s.raw_size else "-"
        memory = f"{s.memory_address:#x}-{s.memory_end - 1:#x}"
        attributes = ",".join(names) or "-"
        lines.append(f"  {s.type_name:<9}{memory:<25}{s.nr_pages:>6}  {where:<12}{attributes}")
    lines.append(
        f"{image.nr_pages_added} pages to add, {image.nr_extends} extends of 256 bytes into MRTD"
    )
    return lines
