"""Module versions as small profiles: what differs between them and is visible to software."""

import msgspec

from septum.abi.features import (
    TDX_FEATURES0_DYNAMIC_PAMT,
    TDX_FEATURES0_ENHANCE_DEMOTE_INTERRUPTIBILITY,
    TDX_FEATURES0_HOST_PRIORITY_LOCKS,
    TDX_FEATURES0_MAXGPA_VIRT,
    TDX_FEATURES0_MAXPA_VIRT,
    TDX_FEATURES0_NO_RBP_MOD,
    TDX_FEATURES0_PENDING_EPT_VIOLATION_V2,
    TDX_FEATURES0_RELAXED_MEM_MNG_CONCURRENCY,
    TDX_FEATURES0_TD_ENTRY_ENHANCEMENTS,
    TDX_FEATURES0_TD_PRESERVING,
    TDX_FEATURES0_TOPOLOGY_ENUM,
)


class ModuleProfile(msgspec.Struct, frozen=True):
    """One module version. `features0` is the value of the global field TDX_FEATURES0."""

    name: str
    major: int
    minor: int
    update: int
    has_dynamic_pamt: bool
    demote_interruptible: bool
    tree_has_host_priority: bool
    """A host call that fails on the S-EPT tree makes interruptible leaves give way."""
    promote_tree_exclusive: bool
    zero_step_tree_exclusive: bool
    """Zero-step mitigation takes the S-EPT tree exclusively, so that VP.ENTER meets every host call
    that has it."""
    features0: int


# MODEL: only the bits of what is modelled (no migration, no partitioning, no service TDs).
_FEATURES0_1_5 = (
    TDX_FEATURES0_TD_PRESERVING
    | TDX_FEATURES0_RELAXED_MEM_MNG_CONCURRENCY
    | TDX_FEATURES0_TD_ENTRY_ENHANCEMENTS
    | TDX_FEATURES0_HOST_PRIORITY_LOCKS
    | TDX_FEATURES0_PENDING_EPT_VIOLATION_V2
    | TDX_FEATURES0_NO_RBP_MOD
)
_FEATURES0_1_5_25 = (
    _FEATURES0_1_5
    | TDX_FEATURES0_TOPOLOGY_ENUM
    | TDX_FEATURES0_MAXPA_VIRT
    | TDX_FEATURES0_MAXGPA_VIRT
    | TDX_FEATURES0_DYNAMIC_PAMT
)

PROFILES: dict[str, ModuleProfile] = {
    profile.name: profile
    for profile in (
        # MODEL: 1.5.01 is 1.5.25 without Dynamic PAMT and host priority on the S-EPT tree, and with
        # other tree locks of PROMOTE and zero-step mitigation. Not modelled: what its statuses lack
        # in details (OP_STATE, vCPU state), the operand id of UNBLOCK's TDX_TLB_TRACKING_NOT_DONE
        # (SEPT_TREE), that it allows GPAs above the platform's width, and that who changes an S-EPT
        # entry wipes the host priority that was set meanwhile.
        ModuleProfile("1.5.01", 1, 5, 1, False, True, False, False, True, _FEATURES0_1_5),
        ModuleProfile("1.5.25", 1, 5, 25, True, True, True, True, False, _FEATURES0_1_5_25),
        # MODEL: 1.5.28 is 1.5.25 plus feature bit 51; nothing else of it is public. With the bit,
        # DEMOTE polls neither for interrupts nor for a waiting host (TDX_INTERRUPTED_BUSY).
        ModuleProfile(
            "1.5.28",
            1,
            5,
            28,
            True,
            False,
            True,
            True,
            False,
            _FEATURES0_1_5_25 | TDX_FEATURES0_ENHANCE_DEMOTE_INTERRUPTIBILITY,
        ),
    )
}
DEFAULT_PROFILE = PROFILES["1.5.28"]
