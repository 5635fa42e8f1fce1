"""A SEAMCALL wrapper that v3 has no use for: what follows where a BLOCK was in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.leaves import TDH_MEM_RANGE_UNBLOCK
from septum.abi.regs import Regs
from septum.linux.x86.tdx import TdxArch

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmTdx
    from septum.linux.x86.tdx import SeamcallRet


class UnblockTdxArch(TdxArch):
    """The SEAMCALL wrappers with tdh_mem_range_unblock(), which was in the kernel until 6.17."""

    __slots__ = ()

    def tdh_mem_range_unblock(self, td: KvmTdx, gpa: int, level: int) -> SeamcallRet:
        """TDH.MEM.RANGE.UNBLOCK: (status, ext_err1, ext_err2)."""
        regs = Regs(rcx=gpa | level, rdx=self.tdx_tdr_pa(td))
        err = self.seamcall(TDH_MEM_RANGE_UNBLOCK, regs)
        return err, regs.rcx, regs.rdx
