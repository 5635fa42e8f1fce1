"""Sizes as people type them."""

from septum.abi.types import PAGE_SIZE, PMD_SIZE
from septum.errors import InputError

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as `4G`, `512M` or `0x40000000`.

    Raises InputError that names `option` when it is not one.
    """
    word = text.strip().upper().removesuffix("IB")
    unit = word[-1:] if word[-1:] in _UNITS and not word.startswith("0X") else ""
    digits = word.removesuffix(unit) if unit else word
    try:
        return int(digits, 0) * _UNITS[unit]
    except ValueError:
        raise InputError(
            f"{option} {text!r} is not a size; write a number with K, M, G or T, such as 4G"
        ) from None


def parse_memory(text: str, option: str = "--memory") -> int:
    """Bytes of guest memory: a multiple of 2 MiB from 64 MiB to 4 TiB.

    Raises InputError that says what would be right.
    """
    size_bytes = parse_size(text, option)
    if size_bytes % PAGE_SIZE or size_bytes % PMD_SIZE:
        raise InputError(
            f"{option} {text!r} is {size_bytes} bytes; guest memory is a multiple of 2M, such as 4G"
        )
    if not 64 << 20 <= size_bytes <= 4 << 40:
        raise InputError(f"{option} {text!r} is out of range; choose from 64M to 4T, such as 4G")
    return size_bytes
