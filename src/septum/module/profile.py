"""Module versions as small profiles: what differs between them and is visible to software."""

import msgspec

TDX_FEATURES0_TD_PRESERVING = 1 << 1
TDX_FEATURES0_NO_RBP_MOD = 1 << 18
TDX_FEATURES0_DYNAMIC_PAMT = 1 << 36
TDX_FEATURES0_ENHANCED_DEMOTE_INTERRUPTIBILITY = 1 << 51


class ModuleProfile(msgspec.Struct, frozen=True):
    """One module version. `features0` is the value of the global field TDX_FEATURES0."""

    name: str
    minor: int
    update: int
    has_dynamic_pamt: bool
    demote_interruptible: bool
    features0: int


PROFILES: dict[str, ModuleProfile] = {
    p.name: p
    for p in (
        ModuleProfile("1.5.01", 5, 1, False, True, TDX_FEATURES0_NO_RBP_MOD),
        ModuleProfile(
            "1.5.25", 5, 25, True, True, TDX_FEATURES0_NO_RBP_MOD | TDX_FEATURES0_DYNAMIC_PAMT
        ),
        # MODEL: 1.5.28 is 1.5.25 plus feature bit 51; nothing else of it is public.
        ModuleProfile(
            "1.5.28",
            5,
            28,
            True,
            False,
            TDX_FEATURES0_NO_RBP_MOD
            | TDX_FEATURES0_DYNAMIC_PAMT
            | TDX_FEATURES0_ENHANCED_DEMOTE_INTERRUPTIBILITY,
        ),
    )
}
DEFAULT_PROFILE = PROFILES["1.5.28"]
