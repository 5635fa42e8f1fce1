"""TD_PARAMS, the 1024-byte structure that TDH.MNG.INIT reads.

0 ATTRIBUTES    8 XFAM            16 MAX_VCPUS    18 NUM_L2_VMS   19 MSR_CONFIG_CTLS
24 EPTP_CONTROLS  32 CONFIG_FLAGS  40 TSC_FREQUENCY (25 MHz units)
80 MRCONFIGID   128 MROWNER       176 MROWNERCONFIG (48 bytes each)
224 IA32_ARCH_CAPABILITIES_CONFIG 256 CPUID_CONFIG
"""

import struct

TD_PARAMS_SIZE = 1024
TD_PARAMS_ALIGNMENT = 1024
EPTP_CONTROLS_4_LEVEL = 0x1E
"""Memory type WB, page-walk length minus one = 3."""
EPTP_CONTROLS_5_LEVEL = 0x26


def pack_td_params(
    *,
    attributes: int = 0,
    xfam: int = 3,
    max_vcpus: int = 1,
    num_l2_vms: int = 0,
    eptp_controls: int = EPTP_CONTROLS_4_LEVEL,
    config_flags: int = 0,
    tsc_frequency: int = 100,
    mrconfigid: bytes = b"",
    mrowner: bytes = b"",
    mrownerconfig: bytes = b"",
) -> bytes:
    """The bytes of TD_PARAMS; what is not given is zero, or the least that INIT accepts."""
    head = struct.pack(
        "<QQHBB4xQQH38x",
        attributes,
        xfam,
        max_vcpus,
        num_l2_vms,
        0,
        eptp_controls,
        config_flags,
        tsc_frequency,
    )
    ids = b"".join(value.ljust(48, b"\0") for value in (mrconfigid, mrowner, mrownerconfig))
    return (head + ids).ljust(TD_PARAMS_SIZE, b"\0")
