"""What recorded runs reach: told by the calls themselves, as nobody watches a run whose steps are
recorded (who watches looks at more than the model does)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from septum.abi.leaves import GPA_LEAVES, SEAMCALL_NAMES
from septum.abi.sept import state_name
from septum.abi.status import STATUS_MASK, status_name
from septum.sim.locks import _Lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.track import Tracker

    Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

LEAF_MASK = 0xFFFF


def reached_hooks(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    """(class, method, wrapper) of what tells: calls with their statuses and the S-EPT state that
    they met, waits with whoever was in the way."""
    from septum.module import Module
    from septum.module.telling import sept_entry

    log = tracker.log

    def seamcall(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(m: Any, lp: Any, regs: Any) -> None:
            leaf = regs.rax & LEAF_MASK
            state = ""
            if leaf in GPA_LEAVES:
                mark = len(log)
                entry = sept_entry(m, m.td_by_hpa.get(regs.rdx & ~0xFFF), regs.rcx)
                state = state_name(entry) if entry >= 0 else "none"
                del log[mark:]
            method(m, lp, regs)
            if leaf:
                status = status_name(regs.rax & STATUS_MASK)
                name = SEAMCALL_NAMES.get(leaf, hex(leaf))
                tracker.reach(f"call:{name}:{status}")
                if state:
                    tracker.reach(f"sept:{state}:{name}:{status}")

        return call

    def tdcall(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(m: Any, lp: Any, regs: Any) -> None:
            leaf = regs.rax & LEAF_MASK
            method(m, lp, regs)
            tracker.reach(f"tdcall:{leaf:#x}:{status_name(regs.rax & STATUS_MASK)}")

        return call

    def wait(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(lock: Any, mode: str) -> None:
            tracker.reach(f"wait:{lock.name}:{mode}")
            owner = getattr(lock, "owner", None) or getattr(lock, "writer", None)
            holders = [owner] if owner is not None else getattr(lock, "readers", [])
            for holder in holders:
                tracker.reach(f"contend:{lock.name}:{tracker.sim.current.name}:{holder.name}")
            method(lock, mode)

        return call

    return [
        (Module, "seamcall", seamcall),
        (Module, "tdcall", tdcall),
        (_Lock, "_wait", wait),
    ]
