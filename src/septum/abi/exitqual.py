"""What a TD exit tells the host: exit reasons, exit qualification, extended exit qualification.

Extended exit qualification (RDX): type in bits 3:0; for ACCEPT and ATTR_WR, from bit 32 up:
requested level (34:32), level where it failed (37:35), state of the entry there (45:38), leaf (46).
Source: TDX module 1.5.25.
"""

EXIT_REASON_EXTERNAL_INTERRUPT = 1
EXIT_REASON_EPT_VIOLATION = 48
EXIT_REASON_TDCALL = 77

EXIT_QUAL_READ = 1 << 0
EXIT_QUAL_WRITE = 1 << 1
EXIT_QUAL_FETCH = 1 << 2
EXIT_QUAL_PERMISSIONS_SHIFT = 3
EXIT_QUAL_GLA_VALID = 1 << 7
EXIT_QUAL_GVA_TRANSLATED = 1 << 8
EXIT_QUAL_TD_CLEARED = 0x1F80
"""Bits 12:7, which the module clears before it shows the qualification to the host."""

EEQ_TYPE_MASK = 0xF
EEQ_NONE = 0
EEQ_ACCEPT = 1
EEQ_GPA_DETAILS = 2
EEQ_ATTR_WR = 5
EEQ_PENDING_EPT_VIOLATION = 6

EEQ_INFO_SHIFT = 32

# VM-entry interruption information.
INTR_INFO_VALID = 1 << 31
EVENT_VE = INTR_INFO_VALID | 3 << 8 | 20
EVENT_DF = INTR_INFO_VALID | 1 << 11 | 3 << 8 | 8
INTR_INFO_EXTERNAL = INTR_INFO_VALID


def eeq_ept(eeq_type: int, requested_level: int, level: int, arch_state: int, leaf: bool) -> int:
    """The extended exit qualification of an ACCEPT or ATTR.WR that could not be done."""
    info = requested_level | level << 3 | arch_state << 6 | leaf << 14
    return eeq_type | info << EEQ_INFO_SHIFT


def eeq_requested_level(eeq: int) -> int:
    """The level that the guest asked for, in an ACCEPT's extended exit qualification."""
    return eeq >> EEQ_INFO_SHIFT & 7
