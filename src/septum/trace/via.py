"""Names for what an event only numbers: the SEAMCALL's leaf, and the kernel functions it came from.

The sink of a run is called where the event happens, so the host's functions are still on the
stack. The innermost few say which kernel path a SEAMCALL belongs to. A function that begins with
`_` is a joint of the model, which the kernel does not have: it is passed over.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from septum.abi.leaves import seamcall_name, tdcall_name
from septum.linux.kvm.events import KvmEntry, KvmExit
from septum.module.events import GuestAccessEvent, SeamcallEvent, TdcallEvent, TdExitEvent
from septum.sim.events import Event

if TYPE_CHECKING:
    from types import FrameType

KERNEL = ("septum.linux.", "septum.designs.")
TELLING = "septum.linux.kvm.gmem_trace"
"""Emits events for the functions that call it."""
_PLUMBING = frozenset(("seamcall", "seamcall_ret", "tdh_do_no_vcpus"))
DEPTH = 4
WITHOUT_VIA = (KvmEntry, KvmExit, TdExitEvent, GuestAccessEvent)
"""Events that come from the guest, or always from the same place in KVM."""


def kernel_path(depth: int = DEPTH) -> str:
    """The innermost `depth` kernel functions on the stack, "callee < caller < ..."."""
    names: list[str] = []
    at: FrameType | None = sys._getframe(1)
    while at is not None and len(names) < depth:
        module = at.f_globals.get("__name__", "")
        if module.startswith(KERNEL) and module != TELLING:
            name = at.f_code.co_name
            passed_over = name.startswith("_") or name in _PLUMBING
            if not passed_over and (not names or names[-1] != name):
                names.append(name)
        at = at.f_back
    return " < ".join(names)


def named(event: Event, encoder: msgspec.json.Encoder) -> Event | msgspec.Raw:
    """`event` itself, or its JSON with what only this moment tells added: `name` of a SEAMCALL or
    TDCALL, `via` where kernel functions are on the stack."""
    if isinstance(event, SeamcallEvent):
        extra = f',"name":"{seamcall_name(event.leaf)}","via":"{kernel_path()}"}}'
    elif isinstance(event, TdcallEvent):
        extra = f',"name":"{tdcall_name(event.leaf)}"}}'
    elif isinstance(event, WITHOUT_VIA):
        return event
    else:
        path = kernel_path()
        if not path:
            return event
        extra = f',"via":"{path}"}}'
    return msgspec.Raw(encoder.encode(event)[:-1] + extra.encode())
