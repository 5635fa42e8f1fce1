"""Statuses in words."""

import pytest

from septum.abi.status import TDX_SW_ERROR, status_name


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (0, "TDX_SUCCESS"),
        (0x8000020000000001, "TDX_OPERAND_BUSY|RCX"),
        (0xC0000B0B00000001, "TDX_PAGE_SIZE_MISMATCH|1"),
        (TDX_SW_ERROR, "TDX_SW_ERROR"),
        (0xC0FFEE0000000000, "0xc0ffee0000000000"),
    ],
)
def test_a_status_by_its_name(status: int, name: str) -> None:
    """With the operand at fault; what the kernel returns of its own, too; else the number."""
    assert status_name(status) == name
