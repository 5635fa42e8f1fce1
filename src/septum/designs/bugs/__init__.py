"""Hosts and modules with one bug that somebody could write: what a search must find."""

from septum.designs.bugs import dpamt, gmem, invalidation, life, mirror, module, tlb
from septum.designs.registry import Design

DESIGNS: tuple[Design, ...] = (
    *tlb.DESIGNS,
    *mirror.DESIGNS,
    *invalidation.DESIGNS,
    *dpamt.DESIGNS,
    *gmem.DESIGNS,
    *life.DESIGNS,
    *module.DESIGNS,
)
