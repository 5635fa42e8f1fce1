"""From a finished boot to the plain structure that reports are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum import __version__
from septum.abi.leaves import seamcall_name
from septum.abi.status import status_name
from septum.checks import PROMISES, consequence, sentence
from septum.designs import find_design
from septum.report.result import FindingRecord, LockRecord, PromiseResult, RunResult
from septum.vmm.qemu import STOP_SHUTDOWN

if TYPE_CHECKING:
    from septum.module import Module
    from septum.scenarios.boot import Boot


def seamcalls_by_name(module: Module) -> dict[str, dict[str, int]]:
    """Leaf -> status -> count, by the specification's names, leaves in numerical order."""
    named: dict[str, dict[str, int]] = {}
    for (leaf, status_class), count in sorted(module.counts.items()):
        name = status_name(status_class << 32)
        row = named.setdefault(seamcall_name(leaf), {})
        row[name] = row.get(name, 0) + count
    return named


def how_it_ended(boot: Boot) -> str:
    """In a few words, why the run ended."""
    vmm = boot.vmm
    if vmm.fatal:
        return "the VM died"
    if vmm.stop_reason == STOP_SHUTDOWN and boot.up:
        return "login reached, guest powered off, VM taken down"
    return vmm.stop_reason or "nothing could go on"


def promise_results(boot: Boot) -> list[PromiseResult]:
    """How each promise fared, in the order of the registry."""
    checker = boot.checker
    broken: dict[str, int] = {}
    for finding in boot.world.sim.findings:
        broken[finding.promise] = broken.get(finding.promise, 0) + 1
    results = [
        PromiseResult(
            name=promise.name,
            sentence=sentence(PROMISES[promise.name]),
            consequence=consequence(PROMISES[promise.name]),
            nr_looks=checker.nr_looks,
            nr_broken=broken.pop(promise.name, 0),
        )
        for promise in checker.promises
    ]
    results += [
        PromiseResult(name=name, sentence=f"The model reports `{name}` by itself.", nr_broken=count)
        for name, count in sorted(broken.items())
    ]
    return results


def run_result(boot: Boot, *, command: str, token: str, firmware: str) -> RunResult:
    """What a report of `boot` says. `command` and `token` reproduce the run."""
    sim = boot.world.sim
    kind, seed = sim.schedule.spec()
    recipe = boot.recipe
    design = find_design(recipe.design)
    login = boot.snapshots.taken[0] if boot.snapshots.taken else None
    locks = []
    if boot.kvm is not None:
        lock = boot.kvm.mmu_lock
        locks.append(
            LockRecord(
                name="mmu_lock",
                nr_read=lock.nr_read_locks,
                nr_write=lock.nr_write_locks,
                max_write_hold_ns=lock.max_write_hold_ns,
            )
        )
    return RunResult(
        septum_version=__version__,
        command=command,
        token=token,
        design=design.name,
        design_origin=design.origin,
        memory_bytes=recipe.memory_bytes,
        nr_vcpus=recipe.nr_vcpus,
        schedule=f"{kind}, quantum {seed}" if kind == "round-robin" else kind,
        seed=seed if kind == "random" else 0,
        module=recipe.module,
        firmware=firmware,
        mrtd=boot.mrtd.hex(),
        check=boot.checker.mode,
        ended=how_it_ended(boot),
        complete=boot.up or bool(boot.vmm.fatal),
        promises=promise_results(boot),
        findings=[
            FindingRecord(
                promise=f.promise, text=f.text, where=f.where, task=f.task, time_ns=f.time_ns
            )
            for f in sim.findings
        ],
        failures=list(boot.vmm.fatal),
        time_ns=sim.now_ns(),
        stats=login.stats if login is not None else {},
        seamcalls=seamcalls_by_name(boot.world.module),
        user_exits=dict(sorted(boot.vmm.exits.items())),
        locks=locks,
        phases=boot.phases,
        banks=boot.snapshots.banks(),
        snapshots=boot.snapshots.taken,
    )
