"""The invalidate_lock of a guest_memfd's mapping, by its kernel functions.

Source: include/linux/fs.h filemap_invalidate_lock() and its kin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.linux.kvm.gmem_trace import GmemTrace

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemInode


class GmemLock(GmemTrace):
    """Who changes what is private, or takes memory away, has the lock alone; who looks memory up
    shares it.

    The callers say for which indexes; the lock is one for the whole file.
    """

    __slots__ = ()

    def filemap_invalidate_lock(self, inode: GmemInode, start: int, end: int) -> None:
        """filemap_invalidate_lock(), for what is done to [start, end). May sleep."""
        inode.invalidate_lock.down_write()

    def filemap_invalidate_unlock(self, inode: GmemInode) -> None:
        """filemap_invalidate_unlock()."""
        inode.invalidate_lock.up_write()

    def filemap_invalidate_lock_shared(self, inode: GmemInode, start: int, end: int) -> None:
        """filemap_invalidate_lock_shared(), for a look at [start, end). May sleep."""
        inode.invalidate_lock.down_read()

    def filemap_invalidate_unlock_shared(self, inode: GmemInode) -> None:
        """filemap_invalidate_unlock_shared()."""
        inode.invalidate_lock.up_read()

    def filemap_invalidate_lock_held(self, inode: GmemInode) -> bool:
        """rwsem_is_locked(&inode->i_mapping->invalidate_lock), by the current task."""
        return inode.invalidate_lock.held()
