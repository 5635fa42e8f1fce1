"""Writes docs/trace-format.md from the typed events: every event, every field.

python tools/trace_format.py            write the file
python tools/trace_format.py --check    exit 1 when the file is not what the source says
"""

import inspect
import sys

import msgspec
from generated import keep

from septum.sim.events import Event
from septum.trace.filters import BY_CONTENT, BY_TAG
from septum.trace.header import TraceEnd, TraceHeader
from septum.trace.registry import event_types

HEAD = """# The trace

Generated from the typed events by `python tools/trace_format.py`; a test keeps it true.

`septum run --trace FILE` writes JSON Lines: a header, one event a line, an end line. A name that
ends in `.gz` is compressed. The same run is the same file, byte for byte. Numbers are decimal;
addresses, entries and registers are the real 64-bit values.

```json
{"type":"kvm_exit","time_ns":54700,"task":"vcpu0","cpu":0,"vcpu_id":0,"exit_reason":"EPT_VIOLATION",...}
```

"""

ROOMS = {
    "septum.sim.events": "The scheduler",
    "septum.module.events": "The TDX module",
    "septum.linux.kvm.events": "KVM",
    "septum.vmm.events": "User space",
    "septum.guest.events": "The guest",
}
WORDS = {
    "time_ns": "the task's virtual time",
    "task": "who: `vmm0.vcpu1`, `vcpu0`, a host thread",
    "cpu": "the logical processor that it runs on",
    "schema": "what file this is",
    "schema_version": "changes when a reader of the last one would be wrong",
    "septum_version": "the version that wrote it",
    "scenario": "its name; `boot` for the standard boot",
    "design": "the host's design",
    "recipe": "parameters of the world",
    "schedule": "`round-robin`, `random` or `list`",
    "seed": "of a random schedule; the quantum of a round robin",
    "token": "replays the run",
    "only": "kinds of events that were kept; empty: all",
    "seamcall_leaves": "leaf number -> name",
    "tdcall_leaves": "leaf number -> name",
    "nr_events": "events in the file",
    "name": "of the choice point, such as `alloc:tdp_mmu_alloc_sp_for_split`",
    "value": "how it came out; 0 would be the ordinary way",
    "promise": "the promise that is broken",
    "text": "what was seen, in a sentence",
    "op": "`lock`, `unlock` or `wait`",
    "lock": "its name, with the VM",
    "mode": "`ex` or `sh`",
    "holders": "of a wait, who has the lock: task names with `, ` between them",
    "to": "the task that runs now",
    "at": "the kind of scheduling point",
    "preempted": "the one before could have gone on",
    "leaf": "leaf number",
    "version": "of the leaf",
    "rcx": "RCX as it went in",
    "rdx": "RDX as it went in",
    "r8": "R8 as it went in",
    "r9": "R9 as it went in",
    "r10": "R10 as it went in",
    "r11": "R11 as it went in",
    "r12": "R12 as it went in",
    "r13": "R13 as it went in",
    "out_rcx": "RCX as it came out",
    "out_rdx": "RDX as it came out",
    "out_r8": "R8 as it came out",
    "out_r9": "R9 as it came out",
    "out_r10": "R10 as it came out",
    "out_r11": "R11 as it came out",
    "out_r12": "R12 as it came out",
    "out_r13": "R13 as it came out",
    "rax": "RAX as TDH.VP.ENTER returns it",
    "td_exit.rcx": "RCX as TDH.VP.ENTER returns it",
    "td_exit.rdx": "RDX as TDH.VP.ENTER returns it",
    "td_exit.r8": "R8 as TDH.VP.ENTER returns it",
    "status": "the TDX status, RAX",
    "sept_child": "the first entry of the table that a DEMOTE made; -1: it made none",
    "sept": "the S-EPT entry at the call's GPA and level when it ended; -1: there is none",
    "td": "PFN of the TDR",
    "tdr": "PFN of the TDR",
    "vcpu": "number of the vCPU in its TD",
    "gpa": "guest physical address",
    "hpa": "host physical address",
    "access": "1 read, 2 write, 4 fetch",
    "outcome": "0 in the TD, else how it left: an OutcomeKind",
    "entry": "the S-EPT entry of the first",
    "nr_leaves": "so many neighbouring leaves",
    "vm": "number of the VM",
    "vcpu_id": "number of the vCPU in its VM",
    "gfn": "guest frame number, of 4 KB",
    "pfn": "host frame number, of 4 KB",
    "npages": "4 KB pages",
    "sept_leaves.level": "0 is 4 KB, 1 is 2 MB, 2 is 1 GB",
    "level": "1 is 4 KB, 2 is 2 MB, 3 is 1 GB",
    "spte": "the entry of the (mirror) page table",
    "old_spte": "the entry before",
    "new_spte": "the entry after",
    "sptep": "where the entry is",
    "as_id": "address space",
    "mirror": "of the mirror page table",
    "errno": "0 or negative",
    "cause": "why it was done",
    "size_bytes": "length of the range",
    "to_private": "else to shared",
    "ret": "0 or -errno",
    "start": "first host virtual address",
    "end": "host virtual address after the last",
    "fault_address": "GPA, with the shared bit of a shared access",
    "guest_rip": "0 for a TD",
    "rip": "0 for a TD",
    "exit_reason": "VMX exit reason",
    "info1": "exit qualification",
    "info2": "extended exit qualification: the accept level",
    "intr_info": "interrupt information",
    "error_code": "as the kernel's tracepoint has it",
    "requests": "pending requests of the vCPU",
    "reason": "KVM_EXIT_ number",
    "nr": "number of the hypercall",
    "a0": "first argument",
    "a1": "second argument",
    "a2": "third argument",
    "a3": "fourth argument",
    "attributes": "KVM_MEMORY_ATTRIBUTE_ bits",
    "slot": "number of the memslot",
    "base_gfn": "first GFN of the memslot",
    "deleted": "the memslot is gone",
    "order": "of the folios: 0 is 4 KB, 9 is 2 MB",
    "split": "the folios were split",
    "used_pages": "page tables in use",
    "phase": "a phase of the guest's program",
    "code": "what the guest reports",
}
"""Field, or event.field -> what it is. One that is not here has no words: this program says so."""
ADDED = {
    "seamcall": ("Lines of a file have `name`, the leaf in the specification's words."),
    "tdcall": "Lines of a file have `name`, the leaf in the specification's words.",
}


def fields(cls: type[msgspec.Struct], without: tuple[str, ...] = ()) -> str:
    """A table of the fields: name, type, and the value when it is left out."""
    rows = []
    for field in msgspec.structs.fields(cls):
        if field.encode_name in without:
            continue
        kind = getattr(field.type, "__name__", str(field.type))
        if not isinstance(field.type, type) or getattr(field.type, "__args__", None):
            kind = str(field.type)
        default = "" if field.default is msgspec.NODEFAULT else f"`{field.default!r}`"
        kind = kind.replace("|", "or")
        tag = cls.__struct_config__.tag
        words = WORDS.get(f"{tag}.{field.encode_name}") or WORDS.get(field.encode_name)
        if words is None:
            raise SystemExit(f"{cls.__name__}.{field.encode_name}: say in WORDS what it is")
        rows.append(f"| `{field.encode_name}` | {kind} | {words} | {default} |")
    if not rows:
        return "No fields of its own.\n\n"
    return "| field | type | | default |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"


def doc(cls: type) -> str:
    """The class's docstring, as paragraphs."""
    return f"{inspect.cleandoc(cls.__doc__ or '')}\n\n"


def page() -> str:
    """The whole document."""
    common = tuple(field.encode_name for field in msgspec.structs.fields(Event))
    parts = [HEAD, "## Header and end\n\n", doc(TraceHeader), fields(TraceHeader)]
    parts += [doc(TraceEnd), fields(TraceEnd)]
    parts += ["## Every event\n\n", doc(Event), fields(Event)]
    parts.append(
        "Lines of a file have `via` where kernel functions are on the stack: the innermost ones,"
        " `callee < caller < ...`. "
        "`type` says which event it is: the titles below. `septum trace --only` takes these, or"
        " kinds of them:\n\n| kind | events |\n| --- | --- |\n"
    )
    for kind in sorted(BY_TAG):
        some = {tag for tag, _ in BY_CONTENT.get(kind, ())}
        tags = [f"`{tag}`" + (" (some)" if tag in some else "") for tag in BY_TAG[kind]]
        tags += [f"`{tag}` (some)" for tag in sorted(some - set(BY_TAG[kind]))]
        parts.append(f"| `{kind}` | {', '.join(tags)} |\n")
    for kind in sorted(set(BY_CONTENT) - set(BY_TAG)):
        tags = [f"`{tag}` (some)" for tag, _ in BY_CONTENT[kind]]
        parts.append(f"| `{kind}` | {', '.join(tags)} |\n")
    parts.append("\n")
    for module, title in ROOMS.items():
        parts.append(f"## {title}\n\n")
        for tag, cls in event_types().items():
            if cls.__module__ == module:
                parts += [f"### `{tag}`\n\n", doc(cls), fields(cls, common)]
                if tag in ADDED:
                    parts.append(f"{ADDED[tag]}\n\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(keep("trace-format.md", page()))
