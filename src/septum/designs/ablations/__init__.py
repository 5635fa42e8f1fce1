"""v3 with one patch left out, for each patch whose absence can be seen."""

from septum.designs.registry import Design

DESIGNS: tuple[Design, ...] = ()
