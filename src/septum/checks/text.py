"""Words for findings: GFNs, levels and S-EPT entries as one reads them in kernel logs."""

from septum.abi.sept import state_name
from septum.words import LEVELS


def pages_text(start: int, end: int) -> str:
    """A range of GFNs and how many pages it is."""
    if end == start + 1:
        return f"GFN {start:#x} (1 page)"
    return f"GFNs [{start:#x}, {end:#x}) ({end - start} pages)"


def agree(nr: int, one: str, many: str) -> str:
    """The word that goes with `nr` things: page or pages, is or are."""
    return one if nr == 1 else many


def level_text(level: int) -> str:
    """A KVM page level as 4K, 2M, 1G."""
    return LEVELS.get(level, f"level {level}")


def entry_text(entry: int, hpa_mask: int) -> str:
    """An S-EPT entry: its state and, if it points anywhere, the PFN."""
    name = state_name(entry & ~1)
    if name in ("FREE", "REMOVED"):
        return name
    return f"{name} PFN {(entry & hpa_mask) >> 12:#x}"
