"""TDVF metadata: right images are read in full, and each wrong one is refused in one sentence."""

import struct
from collections.abc import Callable

import pytest

from septum.abi import tdvf
from septum.abi.tdvf import (
    DESCRIPTOR,
    MR_EXTEND,
    Footer,
    SectionType,
    TdvfError,
    TdvfSection,
    describe,
    guided_table_entries,
    parse_tdvf,
)
from septum.abi.tdvf_build import SYNTHETIC_SIZE, build_tdvf, edk2_sections, synthetic_tdvf

SECTIONS = edk2_sections(SYNTHETIC_SIZE, 128 << 10)


def image_with(index: int, **changes: int) -> bytes:
    """The synthetic image with one section changed."""
    sections = list(SECTIONS)
    old = sections[index]
    fields = {name: getattr(old, name) for name in TdvfSection.__struct_fields__}
    sections[index] = TdvfSection(**{**fields, **changes})
    return build_tdvf(sections, SYNTHETIC_SIZE)


def test_synthetic_image_has_the_layout_of_bookworm_ovmf() -> None:
    """The figures are those of Debian's OVMF.fd: 6 sections, 538 pages, 7680 extends."""
    image = parse_tdvf(synthetic_tdvf(), "own")
    assert [s.type_name for s in image.sections] == [
        "BFV", "CFV", "TEMP_MEM", "TEMP_MEM", "TD_HOB", "TEMP_MEM",
    ]  # fmt: skip
    assert image.nr_pages_added == 538
    assert image.nr_extends == 7680
    assert image.load_gpa == 0xFFE00000
    assert image.sections[0].memory_address == 0xFFE20000
    assert image.hob_section.memory_address == 0x809000
    assert image.has_marker
    assert image.footer is Footer.GUIDED_TABLE
    assert synthetic_tdvf() == synthetic_tdvf()


def test_pages_are_the_files_bytes_and_zeros_beyond() -> None:
    data = image_with(0, raw_size=0x2800)
    image = parse_tdvf(data, "short")
    bfv = image.sections[0]
    assert image.page(bfv, 1) == data[0x21000:0x22000]
    assert image.page(bfv, 2) == data[0x22000:0x22800] + bytes(0x800)
    assert image.page(bfv, 3) == bytes(0x1000)
    temp = image.sections[2]
    assert list(image.pages(temp)) == [(0x810000 + i * 0x1000, bytes(0x1000)) for i in range(16)]


def test_td_shim_footer_is_found() -> None:
    image = parse_tdvf(build_tdvf(SECTIONS, SYNTHETIC_SIZE, footer=Footer.TD_SHIM_OFFSET), "shim")
    assert image.footer is Footer.TD_SHIM_OFFSET
    assert image.sections == SECTIONS


def test_describe_shows_every_section() -> None:
    lines = describe(parse_tdvf(synthetic_tdvf(), "own"))
    assert len(lines) == 3 + 6 + 1
    assert all(len(line) <= 100 for line in lines)
    assert "MR.EXTEND" in lines[3]
    assert lines[-1] == "538 pages to add, 7680 extends of 256 bytes into MRTD"


def no_tdx_entry(data: bytes) -> bytes:
    return data.replace(tdvf.GUID_TDX_METADATA_OFFSET, bytes(16))


def without_footer(data: bytes) -> bytes:
    return data.replace(tdvf.GUID_TABLE_FOOTER, bytes(16))


def not_firmware(data: bytes) -> bytes:
    return without_footer(data).replace(tdvf.FV_SIGNATURE, bytes(4))


def distance_of(value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        image = bytearray(data)
        entries = guided_table_entries(data)
        assert entries is not None
        struct.pack_into("<I", image, entries[0][1], value)
        return bytes(image)

    return change


def code_only(data: bytes) -> bytes:
    return data[128 << 10 :]


def changed(**changes: object) -> bytes:
    return build_tdvf(SECTIONS, SYNTHETIC_SIZE, **changes)  # type: ignore[arg-type]


GOOD = synthetic_tdvf()
LENGTH = DESCRIPTOR.size + 32 * 6

WRONG = {
    "empty": (b"", "empty"),
    "tiny": (b"abc", "not a firmware image"),
    "noise": (not_firmware(GOOD), "not a firmware image"),
    "plain-uefi": (without_footer(GOOD), "UEFI firmware has no TDX metadata"),
    "no-tdx": (no_tdx_entry(GOOD), "OVMF has no TDX metadata"),
    "pointer-far": (distance_of(SYNTHETIC_SIZE + 1)(GOOD), "before the end of the file"),
    "pointer-near": (distance_of(8)(GOOD), "before the end of the file"),
    "pointer-elsewhere": (distance_of(0x3000)(GOOD), "signature is missing"),
    "signature": (changed(signature=b"TDVX"), "signature is missing"),
    "length-past-end": (changed(length=0x2000), "past the end of the file"),
    "length": (changed(length=LENGTH + 32), "does not match its 6 sections"),
    "version": (changed(version=2), "has version 2"),
    "one-section": (build_tdvf(SECTIONS[:1], SYNTHETIC_SIZE), "lists 1 sections"),
    "raw-above-memory": (image_with(0, memory_size=0x1000), "bytes of raw data for"),
    "address-misaligned": (image_with(2, memory_address=0x810800), "is misaligned"),
    "size-misaligned": (image_with(2, memory_size=0x10800), "is misaligned"),
    "payload": (image_with(2, type=SectionType.PAYLOAD), "(PAYLOAD) is of a type that QEMU"),
    "unknown-type": (image_with(2, type=77), "(type 77) is of a type that QEMU"),
    "bfv-empty": (image_with(0, raw_size=0), "has no raw data"),
    "hob-with-data": (image_with(4, raw_size=16), "where none belong"),
    "no-memory": (image_with(2, memory_size=0), "covers no memory"),
    "beyond-address-space": (image_with(2, memory_address=(1 << 64) - 0x1000), "above every"),
    "overlap": (image_with(3, memory_address=0x80A000), "overlaps section 4 (TD_HOB)"),
    "same-place": (image_with(5, memory_address=0x810000), "overlaps"),
    "beyond-file": (image_with(1, data_offset=0x1FF000), "of a file of 0x200000 bytes"),
    "code-only": (code_only(GOOD), "VARS file of 131072 bytes in front"),
    "no-hob": (image_with(4, type=SectionType.TEMP_MEM), "no TD_HOB section"),
    "too-large": (bytes(15 << 20) + GOOD, "17 MiB large"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_images_are_refused_in_one_sentence(case: str) -> None:
    data, expected = WRONG[case]
    with pytest.raises(TdvfError) as refused:
        parse_tdvf(data, "bad.fd")
    text = str(refused.value)
    assert expected in text
    assert text.startswith("bad.fd: ")
    assert text.endswith(".")
    assert "\n" not in text


def test_size_must_be_whole_64_kib() -> None:
    """x86_bios_rom_init refuses other sizes, with otherwise right metadata."""
    sections = (
        TdvfSection(0, 0x11000, 0xFFFEF000, 0x11000, SectionType.BFV, MR_EXTEND),
        TdvfSection(0, 0, 0x809000, 0x2000, SectionType.TD_HOB),
    )
    with pytest.raises(TdvfError, match="not a multiple of 64 KiB"):
        parse_tdvf(build_tdvf(sections, 0x11000), "odd.fd")


def test_every_cut_and_every_flipped_descriptor_byte_is_survived() -> None:
    """No input makes the parser raise anything but TdvfError."""
    small = build_tdvf(edk2_sections(0x20000, 0x10000), 0x20000)
    offset = parse_tdvf(small, "small").descriptor_offset
    tail = [*range(offset - 16, offset + LENGTH), *range(len(small) - 0x50, len(small) - 0x1C)]
    for position in tail:
        for value in (0, 0x7F, 0xFF):
            image = bytearray(small)
            image[position] = value
            try:
                parse_tdvf(bytes(image), "flipped")
            except TdvfError:
                continue
    for size in range(0x100):
        with pytest.raises(TdvfError):
            parse_tdvf(small[len(small) - size :], "cut")
