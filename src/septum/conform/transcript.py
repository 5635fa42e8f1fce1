"""Recorded SEAMCALL transcripts: their types, and a reader for plain or gzip JSON Lines.

One line is one transcript: the shape of a machine, then steps, each with the input registers, the
circumstances (`env`) and what the real module answered. Numbers are hexadecimal strings.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from septum.abi.leaves import SEAMCALL_LEAVES, TDCALL_LEAVES
from septum.errors import InputError
from septum.inputs import lines_of, no_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Hex = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{1,16}$")]

GPRS = (
    "rax",
    "rcx",
    "rdx",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rbx",
    "rsi",
    "rdi",
    "rbp",
)
COMPARED = ("rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13")
"""The registers that a transcript records. One that `out` does not list has its input value."""

VMEXIT_EXTINT = "VMEXIT.EXTINT"
GUEST_ACCESS = "GUEST.ACCESS"
TDH_VP_ENTER = "TDH.VP.ENTER"
_OTHER_CALLS = frozenset({VMEXIT_EXTINT, GUEST_ACCESS})


class TdmrConfig(msgspec.Struct, frozen=True):
    """A TDMR: `reserved` lists [offset, size] areas within it."""

    base: Hex
    size: Hex
    pamt_1g: Hex
    pamt_2m: Hex
    pamt_4k: Hex
    reserved: tuple[tuple[Hex, Hex], ...] = ()


class TranscriptConfig(msgspec.Struct, frozen=True):
    """The machine that a transcript was recorded on."""

    max_pa: int
    hkid_bits: int
    private_hkid_min: int
    private_hkid_max: int
    global_hkid: int
    dynamic_pamt: bool
    num_packages: int
    num_lps: int
    tdmrs: tuple[TdmrConfig, ...]
    seamrr: tuple[Hex, Hex]


class HeldLock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A module lock that another logical processor holds during the step."""

    obj: Literal["pamt", "op_state", "secure_ept", "epoch", "kot", "sept_entry"]
    mode: Literal["ex", "sh"] = "ex"
    td: Hex = "0x0"
    hpa: Hex = "0x0"
    gpa: Hex = "0x0"
    level: int = 0
    by: Literal["host", "guest"] = "host"


class Env(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Circumstances of one step: interrupts that wait, locks that are held."""

    interrupt_pending: bool = False
    guest_interrupt_pending: bool = False
    locks: tuple[HeldLock, ...] = ()


class TdParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The TD_PARAMS fields that a transcript sets; all others are zero."""

    attributes: Hex = "0x0"
    xfam: Hex = "0x0"
    max_vcpus: int = 0
    num_l2_vms: int = 0
    msr_config_ctls: int = 0
    eptp_controls: Hex = "0x0"
    config_flags: Hex = "0x0"
    tsc_frequency: int = 0


class StepMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Memory contents that the host prepared for the step."""

    td_params: TdParams | None = None


NO_ENV = Env()


class Step(msgspec.Struct, frozen=True):
    """One call and what the real module answered (`out`)."""

    call: str
    lp: int
    out: dict[str, str | bool]
    inputs: dict[str, Hex] = msgspec.field(name="in", default_factory=dict)
    version: int = 0
    env: Env = NO_ENV
    mem: StepMemory | None = None


class Transcript(msgspec.Struct, frozen=True):
    """One recorded run; `setup` and `steps` run one after the other."""

    id: str
    config: TranscriptConfig
    setup: tuple[Step, ...]
    steps: tuple[Step, ...]

    def all_steps(self) -> tuple[Step, ...]:
        """Every step in order; the first `len(self.setup)` are the setup."""
        return self.setup + self.steps


_DECODER = msgspec.json.Decoder(Transcript)


def read_transcripts(path: Path) -> Iterator[tuple[int, Transcript]]:
    """(line number, transcript) for each line of a plain or gzip JSON Lines file.

    Raises InputError that names the file, the line and the remedy.
    """
    number = 0
    what = no_file(path)
    if what:
        raise InputError(f"{path} is {what}; give a JSON Lines file of transcripts, plain or gzip")
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            for number, line in enumerate(lines_of(file), 1):
                if line.strip():
                    yield number, _decode(path, number, line)
    except (OSError, EOFError, zlib.error) as error:
        damaged = isinstance(error, EOFError | zlib.error | gzip.BadGzipFile)
        what = "damaged gzip" if damaged else "cannot be read"
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{path}: {f'after line {number}: ' if number else ''}{what} ({reason}); "
            "give a JSON Lines file of transcripts, plain or gzip"
        ) from error


def _decode(path: Path, number: int, line: bytes) -> Transcript:
    try:
        transcript = _DECODER.decode(line)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{path}: line {number}: not a transcript: {error}; the format is one object with "
            "id, config, setup and steps per line, numbers as 0x strings"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: line {number}: not JSON ({error}); "
            "each line must be one whole JSON object, so check that the file is complete"
        ) from error
    for index, step in enumerate(transcript.all_steps()):
        wrong = _step_error(transcript.config, step)
        if wrong:
            raise InputError(
                f"{path}: line {number}: transcript {transcript.id} step {index}: {wrong}"
            )
    return transcript


def _step_error(config: TranscriptConfig, step: Step) -> str:
    """What is wrong with a step, with its remedy; empty when nothing is."""
    if (
        step.call not in SEAMCALL_LEAVES
        and step.call not in TDCALL_LEAVES
        and step.call not in _OTHER_CALLS
    ):
        return (
            f"no leaf is called {step.call!r}; use the specification's names, such as "
            "TDH.MEM.PAGE.AUG"
        )
    if not 0 <= step.lp < config.num_lps:
        return f"lp {step.lp} is not one of the {config.num_lps} that the config has"
    known = ("gpa", "access") if step.call == GUEST_ACCESS else GPRS
    for name in step.inputs:
        if name not in known:
            return f"input {name!r} is unknown; a {step.call} step takes {', '.join(known)}"
    for name, value in step.out.items():
        if name in GPRS or name == "event":
            try:
                int(value if isinstance(value, str) else "", 16)
            except ValueError:
                return f'out.{name} is {value!r}; it must be a hexadecimal string such as "0x1"'
    return ""


def find_transcripts(environ: Mapping[str, str]) -> list[Path]:
    """Transcript files at hand: what SEPTUM_TRANSCRIPTS names, else ../shared/vectors.

    SEPTUM_TRANSCRIPTS is a file or a folder; the other folder is beside the checkout.
    """
    named = environ.get("SEPTUM_TRANSCRIPTS")
    where = Path(named) if named else Path(__file__).resolve().parents[4] / "shared" / "vectors"
    if where.is_dir():
        return sorted(p for p in where.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz")))
    if named and not where.exists():
        raise InputError(f"SEPTUM_TRANSCRIPTS={named}: no such file or folder")
    return [where] if where.is_file() else []
