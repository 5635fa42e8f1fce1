"""Writes TDVF images: the small one that Septum boots when no real firmware can be had.

The section list has the kinds, order and addresses of edk2's OVMF (facts: bookworm's 2 MiB image),
so that such a TD goes through the same memory layout as a real one. The image holds no code.
"""

import struct
from collections.abc import Sequence

from septum.abi.tdvf import (
    DESCRIPTOR,
    FIRMWARE_END,
    FV_SIGNATURE,
    FV_SIGNATURE_OFFSET,
    GUID_SIZE,
    GUID_TABLE_FOOTER,
    GUID_TDX_METADATA_MARKER,
    GUID_TDX_METADATA_OFFSET,
    GUIDED_ENTRY_OVERHEAD,
    MR_EXTEND,
    RESET_VECTOR_SIZE,
    SECTION,
    TDVF_SIGNATURE,
    TDX_METADATA_VERSION,
    Footer,
    SectionType,
    TdvfSection,
)
from septum.abi.types import PAGE_SIZE, U64_MASK

SYNTHETIC_SIZE = 2 << 20
SYNTHETIC_VARS_SIZE = 128 << 10
_TRAILER_SIZE = PAGE_SIZE


def edk2_sections(image_size: int, vars_size: int) -> tuple[TdvfSection, ...]:
    """The six sections of an edk2 OVMF; of its `image_size` bytes `vars_size` are variables."""
    base = FIRMWARE_END - image_size
    code_size = image_size - vars_size
    bfv, cfv, hob, temp = (
        SectionType.BFV,
        SectionType.CFV,
        SectionType.TD_HOB,
        SectionType.TEMP_MEM,
    )
    return (
        TdvfSection(vars_size, code_size, base + vars_size, code_size, bfv, MR_EXTEND),
        TdvfSection(0, vars_size, base, vars_size, cfv),
        TdvfSection(0, 0, 0x810000, 0x10000, temp),
        TdvfSection(0, 0, 0x80B000, 0x2000, temp),
        TdvfSection(0, 0, 0x809000, 0x2000, hob),
        TdvfSection(0, 0, 0x800000, 0x6000, temp),
    )


def build_tdvf(
    sections: Sequence[TdvfSection],
    size_bytes: int,
    *,
    footer: Footer = Footer.GUIDED_TABLE,
    version: int = TDX_METADATA_VERSION,
    length: int | None = None,
    signature: bytes = TDVF_SIGNATURE,
) -> bytes:
    """An image of `size_bytes` that lists `sections`; nothing is checked, so it can also be wrong.

    Every page starts with its own file offset, so that no two pages are equal and measurements
    depend on where a page went. `version`, `length` and `signature` replace the right values.
    """
    image = bytearray(size_bytes)
    for offset in range(0, size_bytes, PAGE_SIZE):
        struct.pack_into("<Q", image, offset, _mix(offset))
    image[FV_SIGNATURE_OFFSET : FV_SIGNATURE_OFFSET + 4] = FV_SIGNATURE
    offset = size_bytes - _TRAILER_SIZE
    image[offset - GUID_SIZE : offset] = GUID_TDX_METADATA_MARKER
    true_length = DESCRIPTOR.size + SECTION.size * len(sections)
    DESCRIPTOR.pack_into(
        image,
        offset,
        signature,
        true_length if length is None else length,
        version,
        len(sections),
    )
    for i, s in enumerate(sections):
        SECTION.pack_into(
            image,
            offset + DESCRIPTOR.size + i * SECTION.size,
            s.data_offset,
            s.raw_size,
            s.memory_address,
            s.memory_size,
            s.type,
            s.attributes,
        )
    if footer is Footer.TD_SHIM_OFFSET:
        struct.pack_into("<I", image, size_bytes - RESET_VECTOR_SIZE, offset)
        return bytes(image)
    entry = struct.pack("<IH", size_bytes - offset, 4 + GUIDED_ENTRY_OVERHEAD)
    entry += GUID_TDX_METADATA_OFFSET
    table = entry + struct.pack("<H", len(entry) + GUIDED_ENTRY_OVERHEAD) + GUID_TABLE_FOOTER
    end = size_bytes - RESET_VECTOR_SIZE
    image[end - len(table) : end] = table
    return bytes(image)


def synthetic_tdvf() -> bytes:
    """Septum's own 2 MiB image; always the same bytes."""
    return build_tdvf(edk2_sections(SYNTHETIC_SIZE, SYNTHETIC_VARS_SIZE), SYNTHETIC_SIZE)


def _mix(value: int) -> int:
    """A 64-bit value that looks like nothing else (splitmix64's finalizer)."""
    value = (value + 0x9E3779B97F4A7C15) & U64_MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & U64_MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & U64_MASK
    return value ^ (value >> 31)
