"""`septum run` and `septum replay`: boot, watch, report."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from septum import __version__
from septum.cli.exits import BROKEN, OK, UNDETERMINED
from septum.cli.scenario import replay_one
from septum.cli.watch import watched
from septum.designs import find_design
from septum.designs.own import own_file
from septum.errors import InputError
from septum.explore.emit import check_made
from septum.firmware.acquire import Firmware, acquire_firmware
from septum.outputs import ReportFolder, check_outputs, try_folder
from septum.report.files import REPORT_FILES, report_json, write_report
from septum.report.ktap import Case, ktap_lines
from septum.report.lines import print_lines
from septum.report.text import report_lines
from septum.scenarios.boot import Boot, BootRecipe, check_boot
from septum.scenarios.result import run_result
from septum.scenarios.run import ScenarioRecipe
from septum.scenarios.source import is_file, shown
from septum.sim import (
    RandomSchedule,
    RoundRobin,
    Schedule,
    decode_token,
    encode_token,
)
from septum.sim.schedule import SEARCHED
from septum.stamp import differs, stamp, version_of
from septum.stdout import read_or_not
from septum.trace.header import TraceHeader
from septum.trace.writer import TraceWriter
from septum.vmm.layout import parse_memory_size

if TYPE_CHECKING:
    from septum.checks.modes import Mode
    from septum.report.result import RunResult

# Long enough that a boot is not spent on switching tasks, short enough that vCPUs do meet.
QUANTUM = 2000

_MARKS = str.maketrans(dict.fromkeys(">#$'\"`\\", " "))
_BEFORE = re.compile(r"^(?:token:|replay:|again:|septumreplay)*", re.IGNORECASE)

REPORT = Path("septum-report")
"""Where the report of a boot is, if nobody says otherwise."""
TOY = b"toy:"
"""What the recipe of a toy of the explorer begins with."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `septum run` was asked for."""

    firmware: Path | None = None
    memory: str = "4G"
    vcpus: int = 8
    design: str = "v3"
    seed: int = 0
    schedule: str = "round-robin"
    check: Mode = "quiet"
    json: bool = False
    trace: Path | None = None
    report: Path = REPORT
    backing: str = "thp"
    module: str = "1.5.28"
    dynamic_pamt: bool = False
    gmem_attributes: bool = False
    ktap: bool = False

    def command(self) -> str:
        """The command line that runs the same again."""
        usual = RunOptions()
        words = ["septum", "run"]
        if self.firmware is not None:
            words += ["--firmware", str(self.firmware)]
        words += ["--memory", self.memory, "--vcpus", str(self.vcpus), "--design", self.design]
        if self.schedule == "random":
            words += ["--schedule", "random", "--seed", str(self.seed)]
        if self.backing != usual.backing:
            words += ["--backing", self.backing]
        if self.module != usual.module:
            words += ["--module", self.module]
        if self.dynamic_pamt:
            words.append("--dynamic-pamt")
        if self.gmem_attributes:
            words.append("--gmem-attributes")
        if self.check != usual.check:
            words += ["--check", self.check]
        return shlex.join(words)


def run_boot(options: RunOptions) -> int:
    """Boot as asked; returns the exit code. Raises InputError for what cannot be done."""
    memory_bytes = parse_memory_size(options.memory)
    # Before the firmware is looked for, which may be fetched.
    check_boot(memory_bytes, options.vcpus, options.backing, options.module)
    design = find_design(options.design).reference
    schedule = _schedule(options)
    check_outputs(
        [("--trace", options.trace)],
        [options.firmware, own_file(options.design)],
        ReportFolder(options.report, REPORT_FILES),
    )
    firmware = acquire_firmware(options.firmware)
    recipe = BootRecipe(
        memory_bytes=memory_bytes,
        nr_vcpus=options.vcpus,
        firmware_sha256=firmware.image.sha256,
        design=design,
        backing=options.backing,
        module=options.module,
        dynamic_pamt=options.dynamic_pamt,
        vm_memory_attributes=not options.gmem_attributes,
    )
    return _boot(recipe, firmware, schedule, options, options.command())


def replay_token(
    token: str,
    image: Path | None,
    *,
    trace: Path | None,
    json: bool,
    report: Path | None = None,
    emit_test: Path | None = None,
) -> int:
    """Run again what `token` stands for; returns the exit code. `emit_test`: a file for a pytest
    test of a scenario's run.

    Of one that another state of the model made, stderr says so. Raises InputError for a damaged
    token, one of another version, or a firmware that is not here.
    """
    packed, schedule = _decode(token)
    if packed.startswith(TOY):
        toy = _toy(packed)
        if emit_test is not None:
            raise InputError(f"--emit-test: the token is of {toy}, which has no tests")
        if json:
            raise InputError(f"--json: the token is of {toy}, which has no report; leave it out")
        _refuse_of_boot(toy, image, report)
        return _replay_toy(toy, schedule, trace)
    recipe, schedule = _run_of(packed, schedule)
    check_outputs(
        [("--trace", trace), ("--emit-test", emit_test)],
        [image, own_file(recipe.design)],
        ReportFolder(report or REPORT, REPORT_FILES) if isinstance(recipe, BootRecipe) else None,
    )
    if isinstance(recipe, ScenarioRecipe):
        if emit_test is not None:
            check_made(emit_test)
        _refuse_of_boot("a scenario", image, report)
        return replay_one(recipe, schedule, trace=trace, as_json=json, emit_test=emit_test)
    if emit_test is not None:
        raise InputError("--emit-test: the token is of a boot; a test replays a scenario's run")
    firmware = firmware_of(recipe, image)
    options = RunOptions(trace=trace, json=json, report=report or REPORT)
    command = ["septum", "replay", token]
    if image is not None:
        command += ["--firmware", str(image)]
    return _boot(recipe, firmware, schedule, options, shlex.join(command))


def _refuse_of_boot(of: str, image: Path | None, report: Path | None) -> None:
    """Raises InputError for what only the replay of a boot can be given."""
    if image is not None:
        raise InputError(
            f"--firmware {image}: the token is of {of}, which boots none; leave it out"
        )
    if report is not None:
        raise InputError(
            f"--report {report}: the folder is of a boot's report, and the token of {of};"
            " `septum report TOKEN --html FILE` makes a page of a scenario's run"
        )


def bare_token(text: str) -> str:
    """The token in what somebody copied: without line breaks, the marks of a quoting mail or of
    KTAP before its lines, quotes, the report's label, and the command before it."""
    words = "".join(text.translate(_MARKS).split())
    return _BEFORE.sub("", words)


def decode_run(token: str) -> tuple[BootRecipe | ScenarioRecipe, Schedule]:
    """What a replay token stands for, as it was copied (see `bare_token`).

    Raises InputError when it is damaged, of another version, or of a toy of the explorer.
    """
    return _run_of(*_decode(token))


def _run_of(packed: bytes, schedule: Schedule) -> tuple[BootRecipe | ScenarioRecipe, Schedule]:
    if packed.startswith(TOY):
        raise InputError(f"the token is of {_toy(packed)}: toys have no pictures; replay it")
    try:
        recipe = msgspec.msgpack.decode(packed, type=BootRecipe | ScenarioRecipe)
    except msgspec.MsgspecError as error:
        raise InputError(f"the token says nothing that this Septum can build ({error})") from None
    if isinstance(recipe, ScenarioRecipe) and schedule.spec() == ("list", SEARCHED):
        from septum.explore.replay import Again

        return recipe, Again(schedule.given(), schedule.for_nothing())
    return recipe, schedule


def _decode(token: str) -> tuple[bytes, Schedule]:
    try:
        stamped, packed, schedule = decode_token(bare_token(token))
    except ValueError as error:
        if is_file(Path(token)):
            raise InputError(
                f"{shown(token)} is a file; give the token that stands in it, or look at a trace"
                " with `septum report`"
            ) from None
        raise InputError(str(error)) from None
    version = version_of(stamped)
    if version != __version__:
        raise InputError(
            f"the token is of Septum {version}, this is {__version__}; "
            "a run replays on the version that made it"
        )
    note = differs(stamped)
    if note:
        print(f"septum: {note}", file=sys.stderr)
    return packed, schedule


def _toy(packed: bytes) -> str:
    return packed.decode(errors="replace")


def _replay_toy(name: str, schedule: Schedule, trace: Path | None) -> int:
    from septum.explore.replay import find_subject, replay_answers
    from septum.explore.stories.retell import retell_subject

    if trace is not None:
        raise InputError(f"{name} leaves no trace; replay it without --trace")
    finding = replay_answers(name, "", schedule.given())
    if finding is None:
        print(f"HELD: {name}")
        return OK
    story = retell_subject(find_subject(name), schedule)
    with read_or_not():
        print("\n".join([*story, ""]))
        print(f"BROKEN: {name}\n  {finding.promise}: {finding.text}")
    return BROKEN


def firmware_of(recipe: BootRecipe, image: Path | None) -> Firmware:
    """The firmware that a boot was made with. Raises InputError when another one is here."""
    firmware = acquire_firmware(image)
    if firmware.image.sha256 != recipe.firmware_sha256:
        raise InputError(
            f"the token's firmware has sha256 {recipe.firmware_sha256[:16]}..., the one found here "
            f"{firmware.image.sha256[:16]}...; name the same image with --firmware"
        )
    return firmware


def _schedule(options: RunOptions) -> Schedule:
    if options.schedule == "round-robin":
        return RoundRobin(QUANTUM)
    if options.schedule == "random":
        return RandomSchedule(options.seed)
    raise InputError(f"--schedule {options.schedule!r}: choose from round-robin, random")


def _boot(
    recipe: BootRecipe, firmware: Firmware, schedule: Schedule, options: RunOptions, command: str
) -> int:
    if not (options.json or options.ktap):
        for line in (*firmware.passed_over, firmware.sentence):
            print(line, file=sys.stderr)
    try_folder(options.report)
    boot = Boot(recipe, firmware.image, schedule=schedule, check=options.check)
    token = encode_token(stamp(), msgspec.msgpack.encode(recipe), schedule)
    nr_events = 0
    with watched(boot):
        if options.trace is None:
            boot.run()
        else:
            nr_events = record_boot(boot, token, options.trace)
    result = run_result(boot, command=command, token=token, firmware=firmware.sentence)
    if options.trace is not None:
        result.nr_events = nr_events
        result.trace_file = str(options.trace)
    return _show(result, options)


def record_boot(boot: Boot, token: str, path: Path) -> int:
    """Run with the event stream written to `path`; returns the number of events."""
    recipe = boot.recipe
    sim = boot.world.sim
    kind, seed = sim.schedule.spec()
    header = TraceHeader(
        septum_version=__version__,
        design=find_design(recipe.design).name,
        recipe=msgspec.structs.asdict(recipe),
        schedule=kind,
        seed=seed,
        token=token,
    )
    with TraceWriter(path, header) as writer:
        sim.set_sink(writer.write)
        boot.run()
        sim.set_sink(None)
    return writer.nr_events


def _show(result: RunResult, options: RunOptions) -> int:
    files = write_report(result, options.report)
    with read_or_not():
        if options.ktap:
            print("\n".join(ktap_lines([boot_case(result)])))
        elif options.json:
            sys.stdout.write(report_json(result))
        else:
            print_lines(report_lines(result, files), sys.stdout)
    if not result.held:
        return BROKEN
    return OK if result.complete else UNDETERMINED


def boot_case(result: RunResult) -> Case:
    """The boot as a KTAP test with a subtest for each promise."""
    texts = {finding.promise: finding.text for finding in reversed(result.findings)}
    subtests = [
        Case(promise.name, ok=not promise.nr_broken, data=texts.get(promise.name, ""))
        for promise in result.promises
    ]
    said = [result.ended, f"again: {result.command}", f"replay: septum replay {result.token}"]
    directive = "" if result.complete else "ERROR"
    return Case(
        f"boot:{result.design}", result.complete, directive, diagnostics=said, subtests=subtests
    )
