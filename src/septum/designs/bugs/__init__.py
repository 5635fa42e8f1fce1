"""Hosts and modules with one bug that somebody could write: what a search must find."""

from septum.designs.bugs import dpamt, gmem, invalidation, life, mirror, module, shared, tlb
from septum.designs.registry import Design

SUBJECTS: dict[str, tuple[Design, ...]] = {
    "TLBs and kicks": tlb.DESIGNS,
    "The mirror page table": mirror.DESIGNS,
    "Invalidation": invalidation.DESIGNS,
    "Dynamic PAMT": dpamt.DESIGNS,
    "guest_memfd": gmem.DESIGNS,
    "Shared memory and memslots": shared.DESIGNS,
    "The end of a VM": life.DESIGNS,
    "The TDX module": module.DESIGNS,
}
"""The designs by subject, in reading order."""

DESIGNS: tuple[Design, ...] = tuple(design for group in SUBJECTS.values() for design in group)
