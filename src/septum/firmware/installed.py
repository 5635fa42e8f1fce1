"""Where distributions put OVMF images, and which of them carry TDX metadata."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from septum.abi.tdvf import TdvfError, TdvfImage, parse_tdvf

DESCRIPTOR_DIRS = ("usr/share/qemu/firmware", "etc/qemu/firmware")
"""QEMU's firmware descriptors; one that lists the feature "intel-tdx" names its image."""

WELL_KNOWN_PATHS = (
    "usr/share/ovmf/OVMF.inteltdx.ms.fd",
    "usr/share/ovmf/OVMF.inteltdx.fd",
    "usr/share/OVMF/OVMF.inteltdx.fd",
    "usr/share/edk2/ovmf/OVMF.inteltdx.fd",
    "usr/share/edk2/ovmf/OVMF.inteltdx.secboot.fd",
    "usr/share/ovmf/OVMF.fd",
    "usr/share/qemu/OVMF.fd",
    "usr/share/edk2/x64/OVMF.4m.fd",
    "usr/share/edk2-ovmf/OVMF.fd",
    "usr/share/qemu/ovmf-x86_64.bin",
)


def candidates(root: Path) -> Iterator[Path]:
    """Existing image files below `root`, the likeliest first, each once, in a fixed order."""
    seen: set[Path] = set()
    for path in [*_descriptor_paths(root), *(root / p for p in WELL_KNOWN_PATHS)]:
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        yield path


def _descriptor_paths(root: Path) -> Iterator[Path]:
    """Images that QEMU firmware descriptors name for Intel TDX."""
    for directory in DESCRIPTOR_DIRS:
        folder = root / directory
        if not folder.is_dir():
            continue
        for descriptor in sorted(folder.glob("*.json")):
            filename = _tdx_filename(descriptor)
            if filename:
                yield root / filename.lstrip("/")


class _Mapping(msgspec.Struct):
    filename: str = ""


class _Descriptor(msgspec.Struct):
    mapping: _Mapping = msgspec.field(default_factory=_Mapping)
    features: list[str] = msgspec.field(default_factory=list)


def _tdx_filename(descriptor: Path) -> str:
    """The image of a descriptor for TDX; "" for other descriptors and unreadable files."""
    try:
        read = msgspec.json.decode(descriptor.read_bytes(), type=_Descriptor)
    except (OSError, msgspec.MsgspecError):
        return ""
    return read.mapping.filename if "intel-tdx" in read.features else ""


def find_image(root: Path) -> tuple[Path | None, TdvfImage | None, list[str]]:
    """The first image with TDX metadata below `root`, and a sentence for each that was refused."""
    refused: list[str] = []
    for path in candidates(root):
        try:
            return path, parse_tdvf(path.read_bytes(), str(path)), refused
        except TdvfError as error:
            refused.append(str(error))
        except OSError as error:
            refused.append(f"{path}: cannot be read ({error.strerror}).")
    return None, None, refused
