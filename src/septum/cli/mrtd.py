"""`septum mrtd`: the measurement of an image, by building a TD from it in the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.firmware.acquire import read_firmware
from septum.json_text import json_text
from septum.scenarios.boot import measure

if TYPE_CHECKING:
    from pathlib import Path


def print_mrtd(path: Path, *, two_pass: bool, as_json: bool) -> int:
    """Print MRTD and how many PAGE.ADDs and MR.EXTENDs made it.

    Raises InputError (TdvfError) when the file is of no use.
    """
    image = read_firmware(path)
    mrtd, added, extended = measure(image, two_pass=two_pass)
    order = "two_pass" if two_pass else "single_pass"
    if as_json:
        body = {
            "schema": "septum.mrtd/1",
            "image": str(path),
            "sha256": image.sha256,
            "order": order,
            "mrtd": mrtd.hex(),
            "page_adds": added,
            "mr_extends": extended,
        }
        print(json_text(body))
        return 0
    print(mrtd.hex())
    print(f"{order}: {added} TDH.MEM.PAGE.ADD, {extended} TDH.MR.EXTEND")
    return 0
