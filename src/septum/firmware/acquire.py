"""Chooses the firmware of a run and says which one it is.

Order: the file given with --firmware, an installed OVMF with TDX metadata, Debian's `ovmf` package
from the cache or the mirror, Septum's own small image. Nothing is written outside the cache.
"""

import enum
import os
from pathlib import Path

import msgspec

from septum.abi.tdvf import TdvfError, TdvfImage, parse_tdvf
from septum.abi.tdvf_build import synthetic_tdvf
from septum.firmware.debian import DebianError, cached_image, fetch_image
from septum.firmware.installed import find_image
from septum.inputs import no_file

SYNTHETIC_NAME = "septum-tdvf"
IMAGE_MAX_BYTES = 64 << 20
"""More than any image has that goes below 4 GiB; of a larger file it is not read what it is."""


class FirmwareSource(enum.Enum):
    """Where an image came from."""

    OPTION = "given"
    INSTALLED = "installed"
    CACHED = "cached"
    FETCHED = "fetched"
    SYNTHETIC = "synthetic"


_SENTENCES = {
    FirmwareSource.OPTION: "Firmware: {path}, as given.",
    FirmwareSource.INSTALLED: "Firmware: {path}, installed here.",
    FirmwareSource.CACHED: "Firmware: {path}, from the Debian package fetched earlier.",
    FirmwareSource.FETCHED: "Firmware: {path}, from the Debian package fetched just now.",
    FirmwareSource.SYNTHETIC: (
        "Firmware: a 2 MiB TDVF image that Septum builds itself (edk2's memory sections, no code)."
    ),
}


class Firmware(msgspec.Struct, frozen=True):
    """The image of a run, where it came from, and why earlier choices were passed over."""

    image: TdvfImage
    source: FirmwareSource
    path: str
    """The file, or "" for the synthetic image."""
    passed_over: tuple[str, ...] = ()
    """One sentence for each image or source that could not be used."""

    @property
    def sentence(self) -> str:
        """Says which firmware is used."""
        return _SENTENCES[self.source].format(path=self.path)


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/septum/firmware`, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return cache / "septum" / "firmware"


def read_firmware(path: Path) -> TdvfImage:
    """The image in the file `path`. Raises TdvfError with one sentence if it is of no use."""
    what = no_file(path)
    if what:
        raise TdvfError(str(path), f"is {what}", "name a firmware image")
    try:
        with path.open("rb") as file:
            data = file.read(IMAGE_MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or "unknown error"
        raise TdvfError(str(path), f"cannot be read ({reason})", "name a firmware image") from error
    if len(data) > IMAGE_MAX_BYTES:
        mib = IMAGE_MAX_BYTES >> 20
        raise TdvfError(
            str(path), f"has more than {mib} MiB", "name a firmware image, which has few"
        )
    return parse_tdvf(data, str(path))


def acquire_firmware(
    given: Path | None = None,
    *,
    download: bool = True,
    root: Path = Path("/"),
    cache_dir: Path | None = None,
) -> Firmware:
    """The firmware to boot. A `given` file is used or raises TdvfError, the rest falls through.

    `download=False` forbids the network; `root` is where installed images are looked for.
    """
    if given is not None:
        return Firmware(read_firmware(given), FirmwareSource.OPTION, str(given))
    path, image, passed_over = find_image(root)
    if path is not None and image is not None:
        return Firmware(image, FirmwareSource.INSTALLED, str(path), tuple(passed_over))
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    path, image, refused = cached_image(cache_dir)
    passed_over += refused
    if path is not None and image is not None:
        return Firmware(image, FirmwareSource.CACHED, str(path), tuple(passed_over))
    if download:
        try:
            path, image = fetch_image(cache_dir)
            return Firmware(image, FirmwareSource.FETCHED, str(path), tuple(passed_over))
        except DebianError as error:
            passed_over.append(str(error))
    image = parse_tdvf(synthetic_tdvf(), SYNTHETIC_NAME)
    return Firmware(image, FirmwareSource.SYNTHETIC, "", tuple(passed_over))
