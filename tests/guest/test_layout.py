"""QEMU's q35 layout against the table of real guests, and the HOB list against its sizes."""

import struct

import pytest

from septum.abi.tdvf import SectionType, TdvfSection, parse_tdvf
from septum.abi.tdvf_build import build_tdvf, edk2_sections, synthetic_tdvf
from septum.vmm.layout import (
    GuestLayout,
    LayoutError,
    ResourceType,
    parse_memory_size,
    q35_layout,
)

GIB = 1 << 30
FW_4M = parse_tdvf(build_tdvf(edk2_sections(4 << 20, 0x84000), 4 << 20), "4M")


def layout(memory: int) -> GuestLayout:
    return q35_layout(memory, FW_4M)


@pytest.mark.parametrize(
    ("gib", "pages_low", "pages_high"),
    [
        (1, 262144, 0),
        (2, 524288, 0),
        (3, 524288, 262144),
        (4, 524288, 524288),
        (64, 524288, 16252928),
        (512, 524288, 133693440),
        (1024, 524288, 267911168),
    ],
)
def test_slots_are_those_of_qemu(gib: int, pages_low: int, pages_high: int) -> None:
    slots = [
        (s.id, s.gpa >> 12, s.size_bytes >> 12, s.gmem_offset) for s in layout(gib * GIB).slots
    ]
    expected = [(1, 0, pages_low, 0)]
    if pages_high:
        expected.append((2, 0x100000, pages_high, 2 * GIB))
    expected.append((len(expected) + 1, 0xFFC00, 0x400, 0))
    assert slots == expected


def test_split_begins_at_2816_mib() -> None:
    assert [r.size_bytes for r in layout(0xB0000000 - 4096).ram[:-1]] == [0xB0000000 - 4096]
    assert [r.size_bytes for r in layout(0xB0000000).ram[:-1]] == [2 * GIB, 0x30000000]
    assert layout(4 * GIB).block_sizes == {"pc.ram": 4 * GIB, "pc.bios": 4 << 20}


def test_resources_are_ram_with_the_added_sections_cut_out() -> None:
    a, u = ResourceType.SYSTEM_MEMORY, ResourceType.UNACCEPTED
    assert [(r.gpa, r.end, r.type) for r in layout(4 * GIB).resources] == [
        (0, 0x800000, u),
        (0x800000, 0x806000, a),
        (0x806000, 0x809000, u),
        (0x809000, 0x80B000, a),
        (0x80B000, 0x80D000, a),
        (0x80D000, 0x810000, u),
        (0x810000, 0x820000, a),
        (0x820000, 0x80000000, u),
        (0x100000000, 0x180000000, u),
    ]


def test_hob_list_has_the_sizes_that_edk2_walks() -> None:
    guest = layout(4 * GIB)
    data = guest.hob_bytes()
    assert len(data) == 56 + 48 * 9 + 8
    kind, size, _, version = struct.unpack_from("<HHII", data)
    assert (kind, size, version) == (1, 56, 9)
    (end,) = struct.unpack_from("<Q", data, 48)
    assert end == 0x809000 + len(data)
    last = struct.unpack_from("<HHI16sIIQQ", data, 56 + 48 * 8)
    assert last == (3, 48, 0, bytes(16), 7, 7, 4 * GIB, 2 * GIB)
    assert struct.unpack_from("<HHI", data, len(data) - 8) == (0xFFFF, 8, 0)


def test_mmio_leaves_make_1025_user_exits() -> None:
    """One exit per 2 MiB of a range, at least one per call (KVM's MapGPA)."""
    exits = sum(
        (m.size_bytes // m.leaf_bytes) * max(1, m.leaf_bytes >> 21) for m in layout(4 * GIB).mmio
    )
    assert exits == 1025
    hole = layout(0xA0000000 + 0x1000).mmio
    assert (hole[0].gpa, hole[0].size_bytes, hole[0].leaf_bytes) == (
        0xA0200000,
        0x1FE00000,
        2 << 20,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 * GIB), ("512M", 512 << 20), ("0", 0), ("3", 3), ("1t", 1 << 40), ("2GiB", 2 * GIB)],
)
def test_memory_sizes_are_read(text: str, size: int) -> None:
    assert parse_memory_size(text) == size


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (0, "cannot have 0 bytes"),
        (3, "cannot have 3 bytes"),
        (4 * GIB + 5, "5 bytes too many"),
        (1 << 50, "1024 TiB"),
    ],
)
def test_impossible_sizes_are_one_sentence(memory: int, expected: str) -> None:
    with pytest.raises(LayoutError, match=expected) as refused:
        layout(memory)
    assert str(refused.value).endswith(".")


def test_text_that_is_no_size_is_refused() -> None:
    for text in ("", "4X", "-1G", "1.5G", "G"):
        with pytest.raises(LayoutError, match="not a memory size"):
            parse_memory_size(text)


def test_sections_outside_memory_are_refused() -> None:
    sections = list(edk2_sections(2 << 20, 128 << 10))
    sections[2] = TdvfSection(0, 0, 0x90000000, 0x1000, SectionType.TEMP_MEM)
    image = parse_tdvf(build_tdvf(sections, 2 << 20), "far")
    with pytest.raises(LayoutError, match="lies outside the memory"):
        q35_layout(4 * GIB, image)
    sections[2] = TdvfSection(0, 0, 0xFFE00000, 0x1000, SectionType.TEMP_MEM)
    sections[1] = TdvfSection(0, 0x1000, 0xFFE01000, 0x1000, SectionType.CFV)
    with pytest.raises(LayoutError, match="lies outside the memory"):
        q35_layout(4 * GIB, parse_tdvf(build_tdvf(sections, 2 << 20), "in-bios"))


def test_hob_section_that_is_too_small_is_refused() -> None:
    sections = list(edk2_sections(2 << 20, 128 << 10))
    sections[2:2] = [
        TdvfSection(0, 0, 0x900000 + i * 0x2000, 0x1000, SectionType.TEMP_MEM) for i in range(90)
    ]
    image = parse_tdvf(build_tdvf(sections, 2 << 20), "many")
    with pytest.raises(LayoutError, match="TD_HOB section has 8192"):
        q35_layout(4 * GIB, image)


def test_layout_of_the_own_image_works() -> None:
    assert q35_layout(GIB, parse_tdvf(synthetic_tdvf(), "own")).high_end == 4 * GIB
