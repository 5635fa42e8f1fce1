"""The PAMT: one entry per 4 KB, 2 MB and 1 GB page of each TDMR, static or dynamic.

An entry holds a lock, a page type, an owner and BEPOCH. The 512 4 KB entries of a 2 MB range are
one record (`child_*`) until they differ; those that do are in `children`.

    entry:      lock 15:0, type 20:16, owner 63:24 (HPA 51:12); BEPOCH
    PAMT node:  lock 15:0, type 20:16, page 0 63:28;            count 9:0, page 1 63:28

In static mode every 4 KB page has an entry. In dynamic mode a 2 MB range has entries for its 4 KB
pages only while it has a page pair (type PAMT); one bit per 4 KB page marks PAMT pages and
reserved pages. Source: TDX module 1.5.25, pamt_manager.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.status import (
    TDX_MISSING_PAMT_PAGE_PAIR,
    TDX_OPERAND_ADDR_RANGE_ERROR,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_PAGE_METADATA_INCORRECT,
)
from septum.module.locks import (
    BUSY_FOR_SHARED,
    EX,
    HP,
    READER,
    hp_lock_ex,
    hp_lock_sh,
    hp_promote,
    hp_unlock_ex,
    hp_unlock_sh,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.machine import MachineConfig

PT_NDA = 0
PT_RSVD = 1
PT_REG = 3
PT_TDR = 4
PT_TDCX = 5
PT_TDVPR = 6
PT_EPT = 8
PT_PAMT = 15
PAGE_TYPE_NAMES = {
    PT_NDA: "NDA",
    PT_RSVD: "RSVD",
    PT_REG: "REG",
    PT_TDR: "TDR",
    PT_TDCX: "TDCX",
    PT_TDVPR: "TDVPR",
    PT_EPT: "EPT",
    PT_PAMT: "PAMT",
}

MAX_PA_BITS = 0xFFF << 52
"""Bits above the module's constant 52-bit maximum physical address."""
PAMT_REMOVAL_HINT = 1 << 62


class PamtEntry:
    """The entry of the 4 KB page `pfn`. `owner` is the PFN of the TDR."""

    __slots__ = ("bepoch", "lock", "owner", "pfn", "pt")

    def __init__(self, pfn: int, pt: int, owner: int, bepoch: int) -> None:
        self.pfn = pfn
        self.lock = 0
        self.pt = pt
        self.owner = owner
        self.bepoch = bepoch


class PamtEntry1G:
    """The entry of one 1 GB page of a TDMR."""

    __slots__ = ("bepoch", "hpa", "lock", "owner", "pt")

    def __init__(self, hpa: int) -> None:
        self.hpa = hpa
        self.lock = 0
        self.pt = PT_NDA
        self.owner = 0
        self.bepoch = 0


class PamtEntry2M:
    """The entry of one 2 MB page, and the entries of its 4 KB pages.

    `used` is the number of 4 KB entries that are not NDA; in dynamic mode, the node's page count.
    `bitmap` has bit i set when 4 KB page i is a PAMT page or reserved (dynamic mode only).
    """

    __slots__ = (
        "bepoch",
        "bitmap",
        "child_bepoch",
        "child_owner",
        "child_pt",
        "children",
        "hpa",
        "lock",
        "owner",
        "page0",
        "page1",
        "parent",
        "pt",
        "used",
    )

    def __init__(self, hpa: int, parent: PamtEntry1G) -> None:
        self.hpa = hpa
        self.parent = parent
        self.lock = 0
        self.pt = PT_NDA
        self.owner = 0
        self.bepoch = 0
        self.children: dict[int, PamtEntry] = {}
        self.child_pt = PT_NDA
        self.child_owner = 0
        self.child_bepoch = 0
        self.used = 0
        self.bitmap = 0
        self.page0 = 0
        self.page1 = 0

    def child(self, index: int) -> PamtEntry:
        """The entry of 4 KB page `index`, as a record of its own from now on."""
        entry = self.children.get(index)
        if entry is None:
            pfn = (self.hpa >> 12) + index
            entry = PamtEntry(pfn, self.child_pt, self.child_owner, self.child_bepoch)
            self.children[index] = entry
        return entry

    def child_type(self, index: int) -> int:
        """The page type of 4 KB page `index`."""
        entry = self.children.get(index)
        return self.child_pt if entry is None else entry.pt

    def fill_children(self, pt: int, owner: int, bepoch: int) -> None:
        """Write all 512 4 KB entries alike."""
        self.children.clear()
        self.child_pt = pt
        self.child_owner = owner
        self.child_bepoch = bepoch

    def set_pages(self, page0: int, page1: int) -> None:
        """Store a page pair. Page 0's address overlays all but 4 bits of the owner field."""
        self.page0 = page0
        self.page1 = page1
        self.owner = page0 >> 12 << 4 | self.owner & 0xF


AnyEntry = PamtEntry | PamtEntry2M | PamtEntry1G
PamtWalk = tuple[int, "AnyEntry", "PamtEntry1G", "PamtEntry2M | None"]
"""Level reached, its entry (locked as asked), and the entries above (locked shared)."""


class Pamt:
    """The PAMT of all TDMRs."""

    __slots__ = ("_by_1g", "_by_2m", "_rsvd", "_tdmrs", "bad_pa", "dynamic", "hkid_mask")

    def __init__(self, config: MachineConfig, dynamic: bool) -> None:
        self.dynamic = dynamic
        self.hkid_mask = ((1 << config.hkid_bits) - 1) << config.hkid_shift
        # Bits that make a private HPA operand invalid: offset, HKID, above the maximum.
        self.bad_pa = 0xFFF | self.hkid_mask | MAX_PA_BITS
        self._tdmrs = tuple((t.base, t.base + t.size) for t in config.tdmrs)
        self._rsvd = tuple(
            (t.base + offset, t.base + offset + size)
            for t in config.tdmrs
            for offset, size in t.reserved
        )
        self._by_1g: dict[int, PamtEntry1G] = {}
        self._by_2m: dict[int, PamtEntry2M] = {}

    # ---- lookup

    def entry_2m(self, hpa: int) -> PamtEntry2M | None:
        """The 2 MB entry that covers `hpa` (without HKID); None outside every TDMR."""
        entry = self._by_2m.get(hpa >> 21)
        if entry is None:
            for base, end in self._tdmrs:
                if base <= hpa < end:
                    return self._make_2m(hpa)
        return entry

    def _make_2m(self, hpa: int) -> PamtEntry2M:
        parent = self._by_1g.get(hpa >> 30)
        if parent is None:
            parent = self._by_1g[hpa >> 30] = PamtEntry1G(hpa >> 30 << 30)
        base = hpa >> 21 << 21
        entry = self._by_2m[hpa >> 21] = PamtEntry2M(base, parent)
        for start, end in self._rsvd:
            for index in range(
                max(start, base) - base >> 12, (min(end, base + (2 << 20)) - base) >> 12
            ):
                if self.dynamic:
                    entry.bitmap |= 1 << index
                else:
                    entry.child(index).pt = PT_RSVD
                    entry.used += 1
        return entry

    def is_free_2m(self, hpa: int) -> bool:
        """No page of the 2 MB at `hpa` is in use, reserved, or locked by anybody else: every shared
        walk to one of them succeeds and finds type NDA."""
        entry = self._by_2m.get(hpa >> 21)
        return (
            entry is not None
            and entry.pt == PT_NDA
            and entry.parent.pt == PT_NDA
            and not entry.used
            and not entry.bitmap
            and not (entry.lock | entry.parent.lock) & BUSY_FOR_SHARED
            and not any(child.lock for child in entry.children.values())
        )

    def implicit(self, hpa: int, level: int) -> AnyEntry:
        """The entry of a page that is known to be in use, without locks or checks."""
        entry = self._by_2m[hpa >> 21]
        if level == 0:
            child = entry.children.get(hpa >> 12 & 511)
            return entry.child(hpa >> 12 & 511) if child is None else child
        return entry if level == 1 else entry.parent

    # ---- walks with locks
    # MODEL: a walk takes its two or three locks in one step; no other processor runs in between.

    def walk(self, hpa: int, target: int, exclusive: bool) -> PamtWalk | None:
        """Walk to the entry of `hpa` at level `target` (or the leaf above it), taking locks.

        None: some lock is busy; the walk has undone what it took.
        """
        leaf = self.entry_2m(hpa)
        assert leaf is not None
        top = leaf.parent
        if not hp_lock_sh(top):
            return None
        if top.pt != PT_NDA or target == 2:
            if exclusive and not hp_promote(top):
                hp_unlock_sh(top)
                return None
            return 2, top, top, None
        if not hp_lock_sh(leaf):
            hp_unlock_sh(top)
            return None
        if target == 1 or leaf.pt != (PT_PAMT if self.dynamic else PT_NDA):
            if exclusive and not hp_promote(leaf):
                hp_unlock_sh(leaf)
                hp_unlock_sh(top)
                return None
            return 1, leaf, top, leaf
        entry = leaf.child(hpa >> 12 & 511)
        if not (hp_lock_ex(entry) if exclusive else hp_lock_sh(entry)):
            hp_unlock_sh(leaf)
            hp_unlock_sh(top)
            return None
        return 0, entry, top, leaf

    def unwalk(self, walk: PamtWalk, exclusive: bool) -> None:
        """Drop the locks of a walk."""
        level, entry, top, leaf = walk
        if exclusive:
            entry.lock &= HP
        else:
            entry.lock -= READER
        if level == 0:
            assert leaf is not None
            leaf.lock -= READER
        if level < 2:
            top.lock -= READER

    def lock_page(
        self, hpa: int, operand: int, pt: int, level: int, exclusive: bool, to_target: bool = True
    ) -> PamtWalk | int:
        """Check an explicit private HPA operand and lock its PAMT entry.

        Order: alignment, HKID and maximum address; TDMR; locks; level and type; bitmap.
        Source: check_and_lock_explicit_private_hpa.
        """
        if hpa & (self.bad_pa | ((1 << 12 + 9 * level) - 1)):
            return TDX_OPERAND_INVALID | operand
        if self.entry_2m(hpa) is None:
            return TDX_OPERAND_ADDR_RANGE_ERROR | operand
        walk = self.walk(hpa, level, exclusive)
        if walk is None:
            return TDX_OPERAND_BUSY | operand
        reached, entry, _, leaf = walk
        if to_target and reached != level:
            self.unwalk(walk, exclusive)
            if self.dynamic and reached == 1 and entry.pt == PT_NDA and pt == PT_NDA:
                return TDX_MISSING_PAMT_PAGE_PAIR | operand
            return TDX_PAGE_METADATA_INCORRECT | operand
        if entry.pt != pt or (
            self.dynamic
            and pt == PT_NDA
            and leaf is not None
            and leaf.bitmap >> (hpa >> 12 & 511) & 1
        ):
            self.unwalk(walk, exclusive)
            return TDX_PAGE_METADATA_INCORRECT | operand
        return walk

    def lock_new_page(self, hpa: int, operand: int) -> PamtEntry2M | int:
        """Lock the entry of a free 4 KB page exclusively; returns the 2 MB entry above it.

        The free case is inlined; whatever is out of the ordinary goes through `lock_page`.
        """
        if not hpa & self.bad_pa:
            leaf = self._by_2m.get(hpa >> 21)
            if leaf is not None:
                top = leaf.parent
                index = hpa >> 12 & 511
                entry = leaf.children.get(index)
                if entry is None:
                    entry = leaf.child(index)
                if (
                    not (top.lock | leaf.lock) & BUSY_FOR_SHARED
                    and not entry.lock
                    and not top.pt | entry.pt
                    and leaf.pt == (PT_PAMT if self.dynamic else PT_NDA)
                    and not leaf.bitmap >> index & 1
                ):
                    top.lock += READER
                    leaf.lock += READER
                    entry.lock = EX
                    return leaf
        walk = self.lock_page(hpa, operand, PT_NDA, 0, True)
        if isinstance(walk, int):
            return walk
        leaf = walk[3]
        assert leaf is not None
        return leaf

    def unlock_new_page(self, leaf: PamtEntry2M, hpa: int) -> None:
        """Drop the locks that `lock_new_page` took."""
        leaf.children[hpa >> 12 & 511].lock &= HP
        leaf.lock -= READER
        leaf.parent.lock -= READER

    def lock_free_2m(self, hpa: int, operand: int) -> PamtEntry2M | int:
        """Lock the entry of an entirely free 2 MB page exclusively (MEM.PAGE.AUG of 2 MB)."""
        walk = self.lock_page(hpa, operand, PT_NDA, 1, True)
        if isinstance(walk, int):
            return walk
        leaf = walk[3]
        assert leaf is not None
        if leaf.bitmap if self.dynamic else leaf.used:
            self.unwalk(walk, True)
            return TDX_PAGE_METADATA_INCORRECT | operand
        return leaf

    def unlock_2m(self, leaf: PamtEntry2M) -> None:
        """Drop an exclusive hold on a 2 MB entry and the shared one above it."""
        leaf.lock &= HP
        leaf.parent.lock -= READER

    # ---- page counts

    def take(self, leaf: PamtEntry2M, hpa: int, pt: int, owner: int) -> PamtEntry:
        """A 4 KB page (locked by the caller) gets a type and an owner."""
        entry = leaf.children[hpa >> 12 & 511]
        entry.pt = pt
        entry.owner = owner
        leaf.used += 1
        return entry

    def release(self, hpa: int, level: int, entry: AnyEntry) -> int:
        """A page becomes NDA (its owner stays readable). Returns the removal hint, or 0."""
        entry.pt = PT_NDA
        if level:
            return 0
        leaf = self._by_2m[hpa >> 21]
        leaf.used -= 1
        if self.dynamic and not leaf.used:
            return PAMT_REMOVAL_HINT
        return 0

    # ---- the bitmap of PAMT pages

    def mark_pamt_page(self, hpa: int) -> bool:
        """Test and set the bitmap bit of a page; False when it was set."""
        leaf = self.entry_2m(hpa)
        assert leaf is not None
        bit = 1 << (hpa >> 12 & 511)
        if leaf.bitmap & bit:
            return False
        leaf.bitmap |= bit
        return True

    def unmark_pamt_page(self, hpa: int) -> None:
        """Clear the bitmap bit of a page."""
        leaf = self.entry_2m(hpa)
        assert leaf is not None
        leaf.bitmap &= ~(1 << (hpa >> 12 & 511))

    # ---- promote and demote

    def promote(self, hpa: int, level: int) -> PamtEntry2M | PamtEntry1G | None:
        """Merge the 512 entries below the entry of `hpa` at `level`; None when it is locked.

        Source: pamt_promote.
        """
        leaf = self._by_2m[hpa >> 21]
        if level == 2:
            top = leaf.parent
            if not hp_lock_ex(top):
                return None
            top.pt = PT_REG
            top.owner = leaf.owner
            if self.dynamic:
                top.bepoch = 0
            for index in range(512):
                self._by_2m[(hpa >> 21) + index].pt = PT_NDA
            hp_unlock_ex(top)
            return top
        if not hp_lock_ex(leaf):
            return None
        first = leaf.children.get(0)
        owner = leaf.child_owner if first is None else first.owner
        leaf.pt = PT_REG
        leaf.owner = owner
        if self.dynamic:
            leaf.bepoch = 0
            leaf.fill_children(PT_NDA, 0, 0)
            self.unmark_pamt_page(leaf.page0)
            self.unmark_pamt_page(leaf.page1)
        else:
            leaf.child_pt = PT_NDA
            for child in leaf.children.values():
                child.pt = PT_NDA
        leaf.used = 0
        hp_unlock_ex(leaf)
        return leaf

    def demote_static(self, leaf: PamtEntry2M) -> None:
        """Split a 2 MB entry into its array of 4 KB entries."""
        leaf.fill_children(PT_REG, leaf.owner, 0)
        leaf.used = 512
        leaf.pt = PT_NDA

    def demote_dynamic(self, leaf: PamtEntry2M, page0: int, page1: int) -> None:
        """Split a 2 MB entry into the 4 KB entries of its new page pair."""
        leaf.fill_children(PT_REG, leaf.owner, 0)
        leaf.used = 512
        leaf.pt = PT_PAMT
        leaf.set_pages(page0, page1)

    def demote_1g(self, top: PamtEntry1G) -> None:
        """Split a 1 GB entry into its 512 2 MB entries."""
        first = top.hpa >> 21
        for index in range(512):
            entry = self._by_2m.get(first + index)
            if entry is None:
                entry = self._make_2m((first + index) << 21)
            entry.pt = PT_REG
            entry.owner = top.owner
            entry.bepoch = 0
        top.pt = PT_NDA

    # ---- ground truth

    def lookup(self, hpa: int) -> tuple[int, int, int, int] | None:
        """(level, type, owner PFN, BEPOCH) of the leaf entry of `hpa`; None outside every TDMR.

        A 4 KB page without an entry (dynamic mode) shows the 2 MB entry above it; one whose
        bitmap bit is set shows type PAMT at level 0.
        """
        leaf = self.entry_2m(hpa)
        if leaf is None:
            return None
        index = hpa >> 12 & 511
        top = leaf.parent
        if top.pt != PT_NDA:
            return 2, top.pt, top.owner, top.bepoch
        if self.dynamic and leaf.bitmap >> index & 1:
            return 0, PT_PAMT, 0, 0
        if leaf.pt != (PT_PAMT if self.dynamic else PT_NDA):
            return 1, leaf.pt, leaf.owner, leaf.bepoch
        entry = leaf.children.get(index)
        if entry is None:
            return 0, leaf.child_pt, leaf.child_owner, leaf.child_bepoch
        return 0, entry.pt, entry.owner, entry.bepoch

    def entries_2m(self) -> Iterator[PamtEntry2M]:
        """Every 2 MB entry that was ever touched, in order of address."""
        for key in sorted(self._by_2m):
            yield self._by_2m[key]
