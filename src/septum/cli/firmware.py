"""`septum firmware`: what an image says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.tdvf import describe
from septum.firmware.acquire import acquire_firmware
from septum.json_text import json_text

if TYPE_CHECKING:
    from pathlib import Path


def print_firmware(path: Path | None, *, as_json: bool) -> int:
    """Print the TDVF metadata of `path`, or of the image that `run` would use.

    Raises InputError (TdvfError) when the file is of no use.
    """
    firmware = acquire_firmware(path)
    if as_json:
        body = {
            "schema": "septum.firmware/1",
            "source": firmware.source.value,
            "path": firmware.path,
            "sections": firmware.image.sections,
            "passed_over": firmware.passed_over,
        }
        print(json_text(body))
        return 0
    for line in firmware.passed_over:
        print(line)
    print(firmware.sentence)
    print("\n".join(describe(firmware.image)))
    return 0
