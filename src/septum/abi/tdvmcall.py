"""TDG.VP.VMCALL sub-functions (R11) and statuses (R10) of the guest-host interface.

Source: Intel GHCI for TDX; arch/x86/include/asm/shared/tdx.h.
"""

TDVMCALL_HLT = 12
TDVMCALL_IO = 30
TDVMCALL_MAP_GPA = 0x10001
TDVMCALL_GET_QUOTE = 0x10002
TDVMCALL_REPORT_FATAL_ERROR = 0x10003

TDVMCALL_STATUS_SUCCESS = 0
TDVMCALL_STATUS_RETRY = 1
TDVMCALL_STATUS_INVALID_OPERAND = 0x80000000_00000000
TDVMCALL_STATUS_GPA_INUSE = 0x80000000_00000001
TDVMCALL_STATUS_ALIGN_ERROR = 0x80000000_00000002

TDVMCALL_EXPOSED_REGS = 0xFC00
"""RCX of TDG.VP.VMCALL: R10 to R15 are passed to the host."""

IO_WRITE = 1
PORT_ACPI_PM1A_CNT = 0x604
"""q35's power management port; QEMU shuts the machine down when S5 is written to it."""
ACPI_S5_SLEEP = 0x2000
PORT_DEBUG_EXIT = 0xF4
"""QEMU's isa-debug-exit port. Guests of this model write a report code to it."""
REPORT_BOOT_DONE = 1
"""Report code: the guest has booted and idles from here on."""
REPORT_SCRIPT_DONE = 2
"""Report code: a scripted guest has run its last operation."""
