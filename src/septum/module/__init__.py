"""The TDX module: TDR/TDCS/TDVPS, PAMT, Secure EPT, module locks, one function per leaf.

Other rooms reach it through `Module` alone: `seamcall` and `tdcall` with registers as on
hardware, and a few read-only views for the checks.
"""

from septum.module.module import Module
from septum.module.outcome import GuestOutcome, OutcomeKind
from septum.module.profile import PROFILES, ModuleProfile

__all__ = ["PROFILES", "GuestOutcome", "Module", "ModuleProfile", "OutcomeKind"]
