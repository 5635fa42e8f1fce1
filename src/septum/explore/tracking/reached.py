"""What recorded runs reach: told by the calls themselves, as nobody watches a run whose steps are
recorded (who watches looks at more than the model does)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from septum.abi.leaves import LEAF_MASK, TDH_VP_ENTER
from septum.module import Module
from septum.scenarios.failures import Failures
from septum.sim.locks import _Lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.tracking.track import Tracker

    Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def reached_hooks(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    """(class, method, wrapper) of what tells: calls with their statuses and the S-EPT state that
    they met, waits with whoever had the lock, failures that the scenario injects."""
    log = tracker.log
    sim = tracker.sim

    def seamcall(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(m: Any, lp: Any, regs: Any) -> None:
            mark = len(log)
            leaf = regs.rax & LEAF_MASK
            tracker.coverage.call_begins(sim.current.name)
            del log[mark:]
            method(m, lp, regs)
            if leaf != TDH_VP_ENTER:
                mark = len(log)
                tracker.coverage.seamcall(leaf, regs.rax, sim.current.name)
                del log[mark:]

        return call

    def vp_enter(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(m: Any, lp: Any, regs: Any) -> bool:
            entered: bool = method(m, lp, regs)
            # A TD that is entered leaves with the registers of its exit, and not with a status.
            if not entered:
                mark = len(log)
                tracker.coverage.seamcall(TDH_VP_ENTER, regs.rax, sim.current.name)
                del log[mark:]
            return entered

        return call

    def tdcall_step(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(m: Any, lp: Any, regs: Any) -> Any:
            mark = len(log)
            leaf = regs.rax & LEAF_MASK
            tracker.coverage.call_begins(sim.current.name)
            del log[mark:]
            outcome = method(m, lp, regs)
            mark = len(log)
            tracker.coverage.tdcall(leaf, outcome.kind, regs.rax, sim.current.name)
            del log[mark:]
            return outcome

        return call

    def settled(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(rules: Any, name: str) -> Any:
            value = method(rules, name)
            if value:
                tracker.coverage.reach(f"choice:{name}={value}")
            return value

        return call

    def wait(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(lock: Any, mode: str) -> None:
            mark = len(log)
            holders = [holder.name for holder in lock.holders()]
            tracker.coverage.waits(lock.name, mode, sim.current.name, holders)
            del log[mark:]
            method(lock, mode)

        return call

    return [
        (Module, "seamcall", seamcall),
        (Module, "vp_enter", vp_enter),
        (Module, "tdcall_step", tdcall_step),
        (_Lock, "_wait", wait),
        (Failures, "settled", settled),
    ]
