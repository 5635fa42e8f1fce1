"""Variants of the host. The base is the v3 series; every other design is a diff on top of it.

A design names the unit classes that its host is built from. One that changes a function
subclasses the unit which has it and overrides that function, nothing else.
"""

from septum.designs.registry import (
    KINDS,
    Design,
    design_names,
    designs,
    find_design,
    in_order,
    on_v3,
)

__all__ = ["KINDS", "Design", "design_names", "designs", "find_design", "in_order", "on_v3"]
