"""v3 with one patch left out, for each patch whose absence can be seen.

Each reads like a revert: it overrides what the patch changed, and nothing else. docs/designs.md
has the table, and says why the others have no design.
"""

from septum.designs.ablations import accept, dpamt, split, turn_on, wrappers, zap
from septum.designs.registry import Design

DESIGNS: tuple[Design, ...] = (
    *wrappers.DESIGNS,
    *split.DESIGNS,
    *accept.DESIGNS,
    *zap.DESIGNS,
    *dpamt.DESIGNS,
    *turn_on.DESIGNS,
)
