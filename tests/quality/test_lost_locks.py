"""A lock or a second look that gets lost shows: in a scenario in which two calls meet at it.

Each case is the kernel with a few lines less. What the kernel's lockdep would say of the missing
lock does not count: that is heard of in any run.
"""

import importlib
from contextlib import closing
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

import pytest
from msgspec import structs

from septum.explore.api import Search
from septum.explore.replay import find_subject
from septum.explore.verdict import Verdict
from septum.explore.wanted import Wanted


class Lost(NamedTuple):
    """In a module of `septum.linux`, each text becomes another one: then `scenario` breaks in the
    words `cause`."""

    module: str
    edits: list[tuple[str, str]]
    scenario: str
    cause: str


LOST = {
    "slots_lock of a new slot": Lost(
        "kvm.main",
        [("with kvm.slots_lock:", "if True:")],
        "slot-create-against-attributes",
        "an invalidation ends that did not begin",
    ),
    "invalidate_lock of bind": Lost(
        "kvm.guest_memfd",
        [
            ("        self.filemap_invalidate_lock(inode, start, end)\n", ""),
            (
                "            self.filemap_invalidate_unlock(inode)\n            return -EINVAL",
                "            return -EINVAL",
            ),
            (
                "append((start, end, slot))\n        self.filemap_invalidate_unlock(inode)\n",
                "append((start, end, slot))\n",
            ),
        ],
        "slot-create-against-punch",
        "an invalidation ends that did not begin",
    ),
    "invalidate_lock of unbind": Lost(
        "kvm.guest_memfd",
        [
            ("self.filemap_invalidate_lock(f.inode, start, start + slot.npages)", "pass"),
            ("            self.filemap_invalidate_unlock(f.inode)\n", "            pass\n"),
        ],
        "slot-delete-against-punch",
        "was begun and never ended",
    ),
    "invalidate_lock of fallocate": Lost(
        "kvm.gmem_range",
        [
            ("        self.filemap_invalidate_lock_shared(inode, index, end)\n", ""),
            (
                'point("cond_resched")\n        self.filemap_invalidate_unlock_shared(inode)\n',
                'point("cond_resched")\n',
            ),
        ],
        "allocate-against-convert",
        "Spinning on folio",
    ),
    "mmu_lock of a notifier": Lost(
        "kvm.main_slots",
        [
            (
                "        kvm.mmu_lock.write_lock()\n        mmu.kvm_mmu_invalidate_begin(kvm)",
                "        mmu.kvm_mmu_invalidate_begin(kvm)",
            ),
            (
                "(kvm)\n        kvm.mmu_lock.write_unlock()",
                "(kvm)",
            ),
        ],
        "discard-twice",
        "leaf of the shared EPT",
    ),
    "folio lock of a fault of user space": Lost(
        "kvm.gmem_folio",
        [
            (
                "            self.folio_lock(folio)\n        return folio",
                "            pass\n        return folio",
            )
        ],
        "touch-against-write",
        "`read page 1` came to 0x0, not 0x5a",
    ),
    "folio lock of a fault of the guest": Lost(
        "kvm.gmem_folio",
        [
            (
                "            self.folio_lock(folio)\n        return folio",
                "            pass\n        return folio",
            )
        ],
        "fault-against-fault",
        "was last written with HKID 0 and not with the TD's",
    ),
    "folio lock of a hole": Lost(
        "kvm.gmem_folio",
        [("        self.folio_lock(folio)\n        self.unmap", "        self.unmap")],
        "touch-against-punch",
        "which has no references",
    ),
    "references that a split waits for": Lost(
        "kvm.gmem_folio",
        [("self.host.mm.state.wq.spin_until(lambda: folio.refcount == nr_pages)", "pass")],
        "finding-spinning-on-folio",
        "with 2 references where the page cache has 1",
    ),
    "prealloc_split_cache_lock of a pair": Lost(
        "kvm.tdx_split",
        [
            (
                "with kvm.tdx.prealloc_split_cache_lock:\n            return self.host",
                "if True:\n            return self.host",
            )
        ],
        "dpamt-fresh-against-topup",
        "two tasks change prealloc_split_cache.page_list at once",
    ),
    "the walk that begins again after it has yielded": Lost(
        "kvm.tdp_mmu_spte",
        [("        it.yielded = True\n        return True", "        return True")],
        "convert-yields-against-fault",
        "the 4K leaf at GFN 0x80002",
    ),
    "a page that is mapped already": Lost(
        "kvm.gmem_attrs",
        [
            (
                "        if index in inode.user_mapped:\n            self.host.mm.folio_put(folio)",
                "        if False:\n            pass",
            )
        ],
        "touch-twice",
        "was never freed",
    ),
}


def codes_of(code: CodeType) -> dict[str, CodeType]:
    """All functions in a module or a class, by their names."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    found = {one.co_qualname: one for one in inner}
    for one in inner:
        found |= codes_of(one)
    return found


def lose(lost: Lost, patch: pytest.MonkeyPatch) -> None:
    """The functions of its module are those of the changed text."""
    module = importlib.import_module(f"septum.linux.{lost.module}")
    path = Path(str(module.__file__))
    text = path.read_text(encoding="utf-8")
    for old, new in lost.edits:
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
    codes = codes_of(compile(text, str(path), "exec"))
    for one in [one for one in vars(module).values() if isinstance(one, type)]:
        for function in [one for one in vars(one).values() if isinstance(one, FunctionType)]:
            if function.__module__ == module.__name__:
                patch.setattr(function, "__code__", codes[function.__qualname__])


def search(lost: Lost) -> Verdict:
    """By random schedules, which come to each case soon: as it was met, neither made short nor
    told."""
    wanted = Wanted(strategy="random", ignore=("locking: lockdep: ",))
    subject = find_subject(lost.scenario)
    options = structs.replace(wanted.options(subject), shrink=False)
    with closing(Search(subject, options)) as search:
        return search.run()


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
def test_what_is_lost_shows(lost: Lost, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(lost, monkeypatch)
    (example,) = search(lost).counterexamples
    assert lost.cause in example.finding.text
