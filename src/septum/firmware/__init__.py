"""Obtaining a TDVF image to boot: the one named, an installed one, Debian's, or Septum's own."""

from septum.firmware.acquire import Firmware, FirmwareSource, acquire_firmware, read_firmware

__all__ = ["Firmware", "FirmwareSource", "acquire_firmware", "read_firmware"]
