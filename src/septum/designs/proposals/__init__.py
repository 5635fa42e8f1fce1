"""What the review of v3 proposed, and what came after it. One proposal a file."""

from septum.designs.proposals import (
    accept_to_level,
    folio_first,
    gmem_convert_hook,
    head_tail,
    no_vm_attributes,
    one_hook,
    pamt_at_alloc,
    pfn_wrappers,
    promotion,
    punch_whole,
    restartable,
    rfc_v5,
    seven_steps,
    shared_demote,
    split_sept_first,
    unmap_first,
)
from septum.designs.registry import Design

DESIGNS: tuple[Design, ...] = (
    split_sept_first.DESIGN,
    folio_first.DESIGN,
    folio_first.BY_PFN,
    seven_steps.DESIGN,
    pfn_wrappers.DESIGN,
    unmap_first.DESIGN,
    head_tail.DESIGN,
    accept_to_level.DESIGN,
    accept_to_level.VCPU_ROOT,
    one_hook.DESIGN,
    gmem_convert_hook.DESIGN,
    no_vm_attributes.DESIGN,
    punch_whole.DESIGN,
    pamt_at_alloc.DESIGN,
    shared_demote.UNBLOCK,
    shared_demote.NON_BLOCKING,
    promotion.DESIGN,
    restartable.FATAL,
    restartable.RETRY,
    rfc_v5.DESIGN,
)
