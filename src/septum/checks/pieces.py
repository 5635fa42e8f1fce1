"""What a guest_memfd has at an index: a folio, or a page of one that was split."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemInode

Piece = tuple[int, int, int]
"""(first PFN, pages of the folio that holds an index, pages left in it from the index on)."""


def piece_at(inode: GmemInode, index: int) -> Piece | None:
    """What the page cache has at `index`.

    Small folios that are alike are one piece, of single pages. None: nothing is there.
    """
    folios = inode.folios
    for order in (0, 9, 18):
        folio = folios.get(index >> order << order)
        if folio is not None and folio.order == order:
            nr_pages = folio.nr_pages
            within = index & (nr_pages - 1)
            return folio.pfn + within, nr_pages, nr_pages - within
    for order in (9, 18):
        split = inode.split_folios.get(index >> order << order)
        if split is not None and split.order == order:
            if index in split.gone:
                return None
            within = index - split.index
            left = split.nr_pages - within
            if split.gone or any(key in folios for key in _single(inode, index, left)):
                left = 1
            return split.pfn + within, 1, left
    return None


def _single(inode: GmemInode, index: int, nr: int) -> range | list[int]:
    """The indexes of small folios in [index, index + nr) that have a record of their own."""
    if len(inode.folios) < nr:
        return [key for key in inode.folios if index <= key < index + nr]
    return range(index, index + nr)
