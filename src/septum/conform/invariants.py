"""What must hold in the module between any two calls, recomputed from the ground truth.

The module keeps Secure EPT, PAMT, counters and locks separately; here each is derived from the
others: every S-EPT entry from the PAMT entry of its page and back, CHLDCNT and page counts by
counting, lock words from the vCPUs that are inside a TD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import sept
from septum.module.locks import HP, READER
from septum.module.pamt import (
    PAGE_TYPE_NAMES,
    PT_EPT,
    PT_NDA,
    PT_PAMT,
    PT_REG,
    PT_RSVD,
    PT_TDCX,
    PT_TDR,
    PT_TDVPR,
)
from septum.module.state import (
    HKID_ASSIGNED,
    HKID_FLUSHED,
    HKID_FREE,
    HKID_RESERVED,
    NO_LP,
    TD_BLOCKED,
    TD_TEARDOWN,
    Vcpu,
)

if TYPE_CHECKING:
    from septum.conform.testbed import Testbed
    from septum.machine import TablePage
    from septum.module import Module
    from septum.module.pamt import AnyEntry, PamtEntry2M
    from septum.module.state import Td

_OWNED = frozenset({PT_REG, PT_TDCX, PT_TDVPR, PT_EPT})


class Sweep:
    """One look at the whole module. `broken` collects sentences; empty means that all holds."""

    def __init__(self, bed: Testbed) -> None:
        self.module: Module = bed.module
        self.lps = bed.machine.lps
        self.tables = bed.machine.tables
        self.hkid_mask = bed.hkid_mask
        self.broken: list[str] = []
        self.roles: dict[int, str] = {}  # PFN << 2 | level -> what the page is
        self.counted: dict[int, int] = {}  # TDR PFN -> 4 KB pages that the PAMT says it owns
        self.reached: dict[int, int] = {}  # TDR PFN -> 4 KB pages that its structures reach

    def run(self) -> list[str]:
        """Check everything."""
        readers = expected_readers(self.module, self.lps)
        for entry in self.module.pamt.entries_2m():
            self._pamt_2m(entry, readers)
        self._bitmap()
        for td in self.module.tds.values():
            self._td(td)
        self._vcpus()
        self._keys()
        return self.broken

    def _say(self, text: str) -> None:
        self.broken.append(text)

    # ---- PAMT

    def _pamt_2m(self, leaf: PamtEntry2M, readers: dict[int, int]) -> None:
        pamt = self.module.pamt
        top = leaf.parent
        for what, entry in (("1G", top), ("2M", leaf)):
            self._lock(f"{what} PAMT entry {entry.hpa:#x}", entry, readers)
        if top.pt != PT_NDA:
            if leaf.hpa == top.hpa:
                self._count(top.pt, top.owner, 512 * 512, top.hpa)
            return
        if leaf.pt == PT_REG:
            self._count(leaf.pt, leaf.owner, 512, leaf.hpa)
        has_children = leaf.pt == (PT_PAMT if pamt.dynamic else PT_NDA)
        used = 0
        template_pages = 512 - len(leaf.children)
        for index, child in leaf.children.items():
            self._lock(f"PAMT entry {leaf.hpa + (index << 12):#x}", child, readers)
            if child.pt != PT_NDA:
                used += 1
                if has_children:
                    self._count(child.pt, child.owner, 1, leaf.hpa + (index << 12))
        if leaf.child_pt != PT_NDA:
            used += template_pages
            if has_children and template_pages:
                self._count(leaf.child_pt, leaf.child_owner, template_pages, leaf.hpa)
        if used != leaf.used:
            self._say(f"2M range {leaf.hpa:#x}: {used} pages are not NDA, its count is {leaf.used}")
        if used and not has_children:
            self._say(
                f"2M range {leaf.hpa:#x} is {PAGE_TYPE_NAMES[leaf.pt]} and {used} of its 4K pages "
                "are in use"
            )

    def _lock(self, what: str, entry: AnyEntry, readers: dict[int, int]) -> None:
        expected = readers.get(id(entry), 0) * READER
        if entry.lock & ~HP != expected:
            self._say(f"{what}: lock word {entry.lock:#x}, {expected:#x} expected between calls")

    def _count(self, page_type: int, owner: int, pages: int, hpa: int) -> None:
        if page_type in (PT_RSVD, PT_TDR):
            if page_type == PT_TDR and hpa >> 12 not in self.module.tds:
                self._say(f"page {hpa:#x} has type TDR but is no TD")
            return
        if page_type not in _OWNED:
            self._say(f"page {hpa:#x} has type {PAGE_TYPE_NAMES.get(page_type, page_type)}")
        elif owner not in self.module.tds:
            self._say(f"page {hpa:#x} is owned by {owner << 12:#x}, which is no TD")
        self.counted[owner] = self.counted.get(owner, 0) + pages

    def _bitmap(self) -> None:
        pamt = self.module.pamt
        if not pamt.dynamic:
            return
        pair_pages: set[int] = set()
        marked: set[int] = set()
        for leaf in pamt.entries_2m():
            if leaf.pt == PT_PAMT:
                pair_pages |= {leaf.page0 >> 12, leaf.page1 >> 12}
            bits, index = leaf.bitmap, 0
            while bits:
                if bits & 1:
                    marked.add((leaf.hpa >> 12) + index)
                bits >>= 1
                index += 1
        reserved = {
            pfn
            for tdmr in self.module.machine.config.tdmrs
            for offset, size in tdmr.reserved
            for pfn in range(tdmr.base + offset >> 12, tdmr.base + offset + size >> 12)
        }
        for pfn in sorted(pair_pages - marked):
            self._say(f"PAMT page {pfn << 12:#x} has no bitmap bit")
        for pfn in sorted(marked - pair_pages - reserved):
            self._say(f"page {pfn << 12:#x} has a bitmap bit but is no PAMT page")
        for pfn in sorted(pair_pages):
            above = pamt.entry_2m(pfn << 12)
            assert above is not None
            found = above.child_type(pfn & 511) if above.pt == PT_PAMT else above.pt
            if found != PT_NDA or above.parent.pt != PT_NDA:
                self._say(f"PAMT page {pfn << 12:#x} is also in use: type {found}")

    # ---- TDs

    def _page(self, td: Td, hpa: int, level: int, page_type: int, what: str) -> None:
        """`what` of `td` uses a page: its PAMT entry must say so, and nothing else may use it."""
        pfn = hpa >> 12
        other = self.roles.get(pfn << 2 | level)
        if other is not None:
            self._say(f"page {hpa:#x} is {what} and also {other}")
        self.roles[pfn << 2 | level] = what
        self.reached[td.tdr_pfn] = self.reached.get(td.tdr_pfn, 0) + (1 << 9 * level)
        found = self.module.pamt.lookup(hpa)
        if found is None or found[:3] != (level, page_type, td.tdr_pfn):
            self._say(
                f"{what} uses page {hpa:#x} at level {level} as "
                f"{PAGE_TYPE_NAMES[page_type]} of {td.tdr_hpa:#x}, but its PAMT entry is {found}"
            )

    def _td(self, td: Td) -> None:
        name = f"TD {td.tdr_hpa:#x}"
        found = self.module.pamt.lookup(td.tdr_hpa)
        if found is None or found[:2] != (0, PT_TDR):
            self._say(f"{name}: the PAMT entry of its TDR is {found}")
        for what, word in (
            ("op_state", td.op_state_lock.lock & ~HP),
            ("S-EPT tree", td.sept_lock.lock & ~HP),
            ("epoch", td.epoch_lock.word),
        ):
            if word:
                self._say(f"{name}: {what} lock word {word:#x} between calls")
        if self.counted.get(td.tdr_pfn, 0) != td.chldcnt:
            self._say(
                f"{name}: CHLDCNT {td.chldcnt}, but the PAMT says that it owns "
                f"{self.counted.get(td.tdr_pfn, 0)} pages"
            )
        if td.lifecycle == TD_TEARDOWN:
            return  # its pages are reclaimed in any order, whatever its tables still say
        for hpa in td.tdcx:
            self._page(td, hpa, 0, PT_TDCX, f"{name} TDCX")
        for vcpu in self.module.vcpus.values():
            if vcpu.td is td:
                for index, hpa in enumerate(vcpu.pages):
                    kind = PT_TDCX if index else PT_TDVPR
                    self._page(td, hpa, 0, kind, f"vCPU {vcpu.tdvpr_hpa:#x} page {index}")
        if td.root is not None:
            self._table(td, td.root, td.root_level, 0)
        if self.reached.get(td.tdr_pfn, 0) != td.chldcnt:
            self._say(
                f"{name}: CHLDCNT {td.chldcnt}, but its structures reach "
                f"{self.reached.get(td.tdr_pfn, 0)} pages"
            )

    def _table(self, td: Td, page: TablePage, level: int, gpa: int) -> None:
        template = page.uniform()
        if template == (sept.FREE_ENTRY, 0):
            return
        for index, entry in enumerate(page.values()):
            if entry & ~sept.HP == sept.FREE_ENTRY:
                continue
            self._entry(td, entry, level, gpa + (index << 12 + 9 * level))

    def _entry(self, td: Td, entry: int, level: int, gpa: int) -> None:
        where = f"S-EPT entry of GPA {gpa:#x} level {level} ({entry:#x})"
        state = entry & sept.STATE_MASK
        if entry & sept.LOCK:
            self._say(f"{where} is locked between calls")
        if entry & self.hkid_mask != td.hkid_bits:
            self._say(f"{where} has another HKID than the TD")
        readable = state in (sept.STATE_MAPPED, sept.STATE_NL_MAPPED)
        if entry & sept.RWX != (sept.RWX if readable else 0):
            self._say(f"{where}: permissions do not fit its state")
        hpa = entry & sept.HPA_MASK & ~self.hkid_mask
        if state in (sept.STATE_NL_MAPPED, sept.STATE_NL_BLOCKED):
            self._page(td, hpa, 0, PT_EPT, f"S-EPT page below GPA {gpa:#x} level {level}")
            child = self.tables.get(hpa >> 12)
            if child is None or level == 0:
                self._say(f"{where} has no table below it")
            else:
                self._table(td, child, level - 1, gpa)
        elif state in (
            sept.STATE_MAPPED,
            sept.STATE_BLOCKED,
            sept.STATE_PENDING,
            sept.STATE_PENDING_BLOCKED,
        ):
            counter = hpa & ((1 << 12 + 9 * level) - 1)
            if counter and (state != sept.STATE_PENDING or level != 1):
                self._say(f"{where} has low address bits")
            self._page(td, hpa - counter, level, PT_REG, f"GPA {gpa:#x} level {level}")
        else:
            self._say(f"{where} is in no state that a host can reach")

    # ---- vCPUs and keys

    def _vcpus(self) -> None:
        inside: dict[tuple[int, int], int] = {}
        associated: dict[int, int] = {}
        for lp in self.lps:
            vcpu = lp.guest
            if isinstance(vcpu, Vcpu):
                key = vcpu.td.tdr_pfn, vcpu.vcpu_epoch & 1
                inside[key] = inside.get(key, 0) + 1
                if not vcpu.td.td_epoch - 1 <= vcpu.vcpu_epoch <= vcpu.td.td_epoch:
                    self._say(
                        f"vCPU {vcpu.tdvpr_hpa:#x} runs in epoch {vcpu.vcpu_epoch}, "
                        f"TD_EPOCH is {vcpu.td.td_epoch}"
                    )
        for vcpu in self.module.vcpus.values():
            if vcpu.assoc_lp != NO_LP:
                associated[vcpu.td.tdr_pfn] = associated.get(vcpu.td.tdr_pfn, 0) + 1
        for pfn, td in self.module.tds.items():
            if td.lifecycle == TD_TEARDOWN:
                continue
            refcount = [inside.get((pfn, 0), 0), inside.get((pfn, 1), 0)]
            if td.refcount != refcount:
                self._say(f"TD {td.tdr_hpa:#x}: REFCOUNT {td.refcount}, inside {refcount}")
            if td.num_assoc_vcpus != associated.get(pfn, 0):
                self._say(
                    f"TD {td.tdr_hpa:#x}: {td.num_assoc_vcpus} associated vCPUs, counted "
                    f"{associated.get(pfn, 0)}"
                )

    def _keys(self) -> None:
        kot = self.module.kot
        if kot.lock.word:
            self._say(f"KOT lock word {kot.lock.word:#x} between calls")
        users: dict[int, int] = {}
        for td in self.module.tds.values():
            if td.lifecycle == TD_TEARDOWN:
                continue
            if td.hkid in users:
                self._say(f"two TDs own HKID {td.hkid}")
            users[td.hkid] = HKID_FLUSHED if td.lifecycle == TD_BLOCKED else HKID_ASSIGNED
        for hkid, entry in kot.entries.items():
            if entry.state != HKID_RESERVED and entry.state != users.get(hkid, HKID_FREE):
                self._say(
                    f"HKID {hkid}: state {entry.state}, {users.get(hkid, HKID_FREE)} expected"
                )


def expected_readers(module: Module, lps: object) -> dict[int, int]:
    """id of PAMT entry -> shared holds of vCPUs that are inside a TD.

    VP.ENTER keeps the walk to TDVPR and the TDR's own entry shared until the TD exit.
    """
    readers: dict[int, int] = {}
    assert isinstance(lps, list)
    for lp in lps:
        vcpu = lp.guest
        if isinstance(vcpu, Vcpu):
            leaf = module.pamt.entry_2m(vcpu.tdvpr_hpa)
            assert leaf is not None
            for entry in (
                leaf.parent,
                leaf,
                leaf.child(vcpu.tdvpr_hpa >> 12 & 511),
                vcpu.td.p4k,
            ):
                readers[id(entry)] = readers.get(id(entry), 0) + 1
    return readers


def broken_invariants(bed: Testbed) -> list[str]:
    """Every invariant that does not hold, as sentences. Call only between module calls."""
    return Sweep(bed).run()
