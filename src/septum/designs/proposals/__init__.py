"""What the review of v3 proposed, and what came after it."""

from septum.designs.registry import Design

DESIGNS: tuple[Design, ...] = ()
