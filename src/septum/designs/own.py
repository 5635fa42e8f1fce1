"""A user's own design: `PATH.py:Class`, where Class is a unit or module subclass, or names some.

A class that derives from a unit (or from the TDX module) goes into the slot of the class that it
derives from; all other slots are those of v3. A class that derives from none of them is a design
by its attributes: each that is a unit class goes into its slot, and `base` may name the design
whose slots the others are.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import re
import sys
import tokenize
import traceback
from dataclasses import fields, replace
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING

from septum.designs.ambient import ambient_use, outliving_use
from septum.designs.called import NEAR, names_called
from septum.designs.counted import counted_retry
from septum.designs.endless import WATCHDOG
from septum.designs.registry import Design, find_design
from septum.designs.results import wrong_result
from septum.designs.untouched import aside, model_functions, replaced_since
from septum.errors import EndlessLoop, InputError
from septum.inputs import read_written
from septum.linux.unit import Unit
from septum.module import Module
from septum.sim import is_raised
from septum.sim.parts import UnknownState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from septum.linux.host import HostUnits

_NAME = re.compile(r"(?P<path>.+\.py)(?::(?P<chosen>[^:@]*))?(?:@(?P<digest>[0-9a-f]{16}))?")
_FRAME = re.compile(r'File "(?P<path>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_RAISED = re.compile(
    r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Defect|Iteration|Exit|Interrupt)\b.*"
)
# A worker's error comes as the text of another one, which begins the line; so does what would end
# the process.
_OTHERS = ("septum.explore.workers.parallel.SearchDefect: ", "septum.sim.task.LeftError: ")
# Below `septum.designs`, so that traces show the file's functions and searches watch its classes.
_PARENT = "septum.designs.own_file"

_STEADY = (
    "a design may go by the state of the world alone: no clock, no random numbers, no variable of"
    " the file that outlives a run"
)
_COUNTED = (
    "sim.retry() says that nothing comes of another round before somebody else has run, and this"
    " loop counts its rounds where a search does not see that: count in a variable, by `while`"
)

_loaded: dict[Path, tuple[str, ModuleType]] = {}
_asked: set[type] = set()
"""The classes of files that are in the design that was asked for last, which is at work."""


def is_own(name: str) -> bool:
    """Whether `name` says a file, and not a design of the registry."""
    return _NAME.fullmatch(name) is not None


def own_file(name: str) -> str | None:
    """The file that the design's name says; None for one of the registry."""
    match = _NAME.fullmatch(name)
    return match["path"] if match is not None else None


def own_design(name: str) -> Design:
    """The design `PATH.py:Class`; a digest behind it, `@...`, must be that of the file.

    Raises InputError: no such file or class, a file that does not import, or what is no unit.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    path = Path(match["path"])
    digest, module = _load(path, in_token=match["digest"] is not None)
    if match["digest"] not in (None, digest):
        raise InputError(
            f"{path} is not the file that the token was made with (it has digest {digest}, the"
            f" token {match['digest']}); a run replays with the file that made it"
        )
    chosen = _class_in(path, module, match["chosen"] or "")
    base, classes = _parts_of(path, chosen)
    units, module_class = _in_slots(path, base, classes)
    for kind in classes:
        _check_class(path, kind)
    _asked.clear()
    for kind in classes:
        _asked.update(kind.__mro__)
    return Design(
        f"{path}:{match['chosen']}",  # by which it is found again
        f"{path}, digest {digest}",
        _summary(chosen),
        lambda: units,
        kind="user",
        base=base.name,
        module=lambda: module_class,
        digest=digest,
    )


def _summary(chosen: type) -> str:
    said = chosen.__doc__ if isinstance(chosen.__doc__, str) else ""
    return (inspect.cleandoc(said).splitlines() or ["a design of your own"])[0]


# The file


def _load(path: Path, *, in_token: bool) -> tuple[str, ModuleType]:
    """(digest, module) of the file, which is read once in a process."""
    try:
        source = read_written(path)
    except OSError as error:
        hint = "; the token was made with a design in it" if in_token else ""
        raise InputError(f"{path}: the file cannot be read ({error.strerror}){hint}") from None
    except ValueError as error:
        raise InputError(f"{path} {error}; name a Python file with the design") from None
    digest = hashlib.sha256(source).hexdigest()[:16]
    where = path.resolve()
    known = _loaded.get(where)
    if known is not None and known[0] == digest:
        return known
    WATCHDOG.watch(str(path))
    module = ModuleType(f"{_PARENT}.{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    vars(module)["__builtins__"] = aside()
    _loaded[where] = digest, module
    find_design("v3").units()  # all of the model is there before the file can touch it
    model = model_functions()
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except BaseException as error:  # sys.exit(), too, would end the command as if all were well
        del _loaded[where], sys.modules[module.__name__]
        interrupts = isinstance(error, KeyboardInterrupt) and not is_raised(error)
        if interrupts or isinstance(error, EndlessLoop):
            raise
        raise InputError(f"{path} does not import: {_where(path, error)}") from None
    touched = replaced_since(model)
    if touched:
        raise InputError(
            f"{path} replaces {touched} of the model itself, which v3 would have, too; override it"
            " in a class of your own"
        )
    tree = ast.parse(source)
    found = ambient_use(tree, module)
    wrong = f"line {found[0]}: {found[1]}; {_STEADY}" if found is not None else ""
    if line := counted_retry(tree):
        wrong = wrong or f"line {line}: {_COUNTED}"
    if wrong:
        del _loaded[where], sys.modules[module.__name__]
        raise InputError(f"{path}, {wrong}")
    return _loaded[where]


def _where(path: Path, error: BaseException) -> str:
    """`line 3: SyntaxError: ...`."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            line = frame.lineno
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"line {line or 1}: {type(error).__name__}: {' '.join(text.split())}"


def own_source(design: Design) -> str:
    """The text of the file that a user's design is in; "" for a design of the registry."""
    match = _NAME.fullmatch(design.name)
    if match is None:
        return ""
    with tokenize.open(match["path"]) as file:  # in the encoding that it says it is in
        return file.read()


def blame(error: BaseException) -> str:
    """One sentence for an error that a user's design raised while it ran; "" for any other."""
    if not _loaded:
        return ""
    if isinstance(error, UnknownState):
        return f"{error}; a design keeps what it knows in lists, dicts, sets, or objects of its own"
    told = traceback.format_exception(error)
    lines = "".join(told).rstrip().splitlines()
    ours = {str(module.__file__) for _, module in _loaded.values()}
    all_frames = [frame for frame in map(_FRAME.search, lines) if frame]
    frames = [frame for frame in all_frames if frame["path"] in ours]
    raised = [line for line in lines if _RAISED.fullmatch(line)]
    text = raised[-1] if raised else ""
    for prefix in _OTHERS:
        text = text.removeprefix(prefix)
    if not frames:
        return _blame_for_result(all_frames, text or repr(error))
    last = frames[-1]
    return (
        f"{last['path']}, line {last['line']}, in {last['function']}: {text or repr(error)};"
        " a design that raises has no verdict"
    )


def _blame_for_result(frames: list[re.Match[str]], text: str) -> str:
    """One sentence for an error where an override was called, which has returned: what it returned
    may be it. "" where none was."""
    overrides = _overrides()
    for frame in frames[: -1 - NEAR : -1]:
        for name in sorted(names_called(frame["path"], int(frame["line"])) & overrides.keys()):
            return (
                f"{overrides[name]}: {frame['function']} calls it, and then fails ({text}); look at"
                f" what it returns beside what the {name} returns that it overrides"
            )
    return ""


def _overrides() -> dict[str, str]:
    """The place of each function of the files that overrides another one, by its name."""
    found: dict[str, str] = {}
    for _, module in _loaded.values():
        classes = list(_classes_of(vars(module), module.__name__, ""))
        for of in _asked.intersection(classes):
            for name, value in vars(of).items():
                if isinstance(value, FunctionType) and _overridden(of, classes, name) is not None:
                    line = value.__code__.co_firstlineno
                    found[name] = f"{module.__file__}, line {line}, in {name}"
    return found


def _classes_of(names: Mapping[str, object], module: str, within: str) -> Iterator[type]:
    """The file's classes, and those that stand in them."""
    for value in names.values():
        if not isinstance(value, type) or value.__module__ != module:
            continue
        if value.__qualname__.startswith(within):
            yield value
            yield from _classes_of(vars(value), module, f"{value.__qualname__}.")


def loaded_files() -> list[str]:
    """The files of users' designs that are loaded."""
    return list(dict.fromkeys(str(module.__file__) for _, module in _loaded.values()))


def unsteady_text(name: str) -> str:
    """What to say of the user's design called `name` when a schedule did not come out as before;
    "" for a design that is no user's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return ""
    path = Path(match["path"])
    _, module = _load(path, in_token=False)
    found = outliving_use(ast.parse(path.read_bytes()), module)
    look = f" (look at {found[1]} in line {found[0]})" if found is not None else ""
    return f"{name} is not deterministic, one schedule came out in two ways{look}; {_STEADY}"


# The class


def _class_in(path: Path, module: ModuleType, name: str) -> type:
    own = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    outer, *inner = name.split(".")
    found = own.get(outer)
    for part in inner:
        within = vars(found).get(part) if found is not None else None
        found = within if isinstance(within, type) else None
    if found is None:
        there = f"there is {', '.join(own)}" if own else "there is no class in it"
        asked = f"has no class {name!r}" if name else "needs the name of a class"
        example = f"; write {path}:{next(iter(own))}" if own and not name else ""
        raise InputError(f"{path} {asked}; {there}{example}")
    return found


def _parts_of(path: Path, chosen: type) -> tuple[Design, list[type]]:
    """The design underneath, and the classes that replace some of its own."""
    if issubclass(chosen, Unit | Module):
        return find_design("v3"), [chosen]
    attributes = [value for key, value in vars(chosen).items() if not key.startswith("__")]
    classes = [value for value in attributes if isinstance(value, type)]
    base = getattr(chosen, "base", "v3")
    if not isinstance(base, str) or is_own(base):
        raise InputError(f"{path}: {chosen.__name__}.base must be the name of a design")
    if not classes:
        raise InputError(
            f"{path}: {chosen.__name__} is not a unit class; derive it from one of"
            f" {', '.join(_slot_names())}, or give it attributes that are such classes"
        )
    try:
        return find_design(base), classes
    except InputError as error:
        raise InputError(f"{path}: {chosen.__name__}.base: {error}") from None


def _bases() -> dict[str, type]:
    """The slots of a design: their names, and the class of v3 in each."""
    units = find_design("v3").units()
    slots: dict[str, type] = {field.name: getattr(units, field.name) for field in fields(units)}
    slots["module"] = Module
    return slots


def _slot_names() -> list[str]:
    return [kind.__name__ for kind in _bases().values()]


def _in_slots(path: Path, base: Design, classes: list[type]) -> tuple[HostUnits, type[Module]]:
    slots = _bases()
    chosen: dict[str, type] = {}
    for kind in classes:
        names = [name for name, of in slots.items() if issubclass(kind, of)]
        if len(names) != 1:
            raise InputError(f"{path}: {kind.__name__} {_no_slot(kind, names)}")
        if names[0] in chosen:
            raise InputError(
                f"{path}: {chosen[names[0]].__name__} and {kind.__name__} both replace"
                f" {slots[names[0]].__name__}; let one derive from the other, and name that one"
            )
        chosen[names[0]] = kind
    module: type[Module] = chosen.pop("module", base.module_class())
    return replace(base.units(), **chosen), module


def _no_slot(kind: type, names: list[str]) -> str:
    """Why a class has no slot, and what to derive it from."""
    if names:
        return f"derives from the units of {len(names)} files; write a class for each"
    parts = [of for of in kind.__mro__[1:] if of not in (Unit, object)]
    whole = [of.__name__ for of in _bases().values() if any(issubclass(of, p) for p in parts)]
    if whole:
        return f"derives from a part of {whole[0]} only; derive it from {whole[0]}"
    return f"is not a unit class; derive it from one of {', '.join(_slot_names())}"


# What it overrides


def _check_class(path: Path, kind: type) -> None:
    """Refuse what cannot be meant. Raises InputError."""
    own = [of for of in kind.__mro__ if of.__module__ == kind.__module__]
    overrides = 0
    for of in own:
        slots = vars(of).get("__slots__")
        if slots is None:
            raise InputError(
                f"{path}: {of.__name__} needs the line `__slots__ = ()`, or a search could not"
                " see what its functions share"
            )
        if slots and "." in of.__qualname__:
            raise InputError(
                f"{path}: {of.__qualname__} has slots; a class with state must stand at the top"
                " level of the file"
            )
        if "__new__" in vars(of):
            raise InputError(
                f"{path}: {of.__name__}.__new__ would decide what is made of a unit; leave it out"
            )
        for name, value in vars(of).items():
            if name.startswith("__") and name.endswith("__"):
                continue
            theirs = _overridden(kind, own, name)
            if theirs is not None:
                overrides += 1
                _check_signature(path, of, name, value, theirs)
            elif isinstance(value, FunctionType):
                _check_typo(path, kind, own, of, name)
    if not overrides:
        raise InputError(f"{path}: {kind.__name__} overrides no function of its base, so it is v3")


def _overridden(kind: type, own: list[type], name: str) -> object | None:
    """What `name` is in the classes that the user's are built on."""
    for of in kind.__mro__:
        if of not in own and of is not object and name in vars(of):
            found: object = vars(of)[name]
            return found
    return None


def _check_signature(path: Path, of: type, name: str, mine: object, theirs: object) -> None:
    if isinstance(theirs, FunctionType) and (
        isinstance(mine, property) or not (callable(mine) or hasattr(mine, "__get__"))
    ):
        what = "a property" if isinstance(mine, property) else repr(mine)
        raise InputError(
            f"{path}: {of.__name__}.{name} is {what}, and what it overrides is a function; write"
            f" `def {name}(...)`"
        )
    if not isinstance(mine, FunctionType) or not isinstance(theirs, FunctionType):
        return
    wanted = inspect.signature(theirs)
    try:
        for args, kwargs in _calls(wanted):
            inspect.signature(mine).bind(*args, **kwargs)
    except TypeError as error:
        words = ", ".join(wanted.parameters)
        raise InputError(
            f"{path}, line {mine.__code__.co_firstlineno}: {of.__name__}.{name} cannot be called"
            f" as the function that it overrides, {name}({words}): {error}"
        ) from None
    wrong = wrong_result(ast.parse(path.read_bytes()), mine, theirs)
    if wrong:
        place = f"{path}, line {mine.__code__.co_firstlineno}"
        raise InputError(f"{place}: {of.__name__}.{name} {wrong}")


def _calls(wanted: inspect.Signature) -> Iterator[tuple[list[None], dict[str, None]]]:
    """Calls that the overridden function takes: with what it needs, and with all."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    for full in (False, True):
        chosen = [
            p for p in wanted.parameters.values() if full or p.default is inspect.Parameter.empty
        ]
        yield (
            [None for p in chosen if p.kind in positional],
            {p.name: None for p in chosen if p.kind is inspect.Parameter.KEYWORD_ONLY},
        )


def _check_typo(path: Path, kind: type, own: list[type], of: type, name: str) -> None:
    """A function that overrides nothing and that nobody calls, beside one of nearly that name."""
    used = {word for o in own for word in _names_used(o)}
    known = [word for word in dir(kind) if _overridden(kind, own, word) is not None]
    near = difflib.get_close_matches(name, known, 1, 0.85)
    if name not in used and near:
        raise InputError(
            f"{path}: {of.__name__}.{name} overrides nothing and nothing in the class calls it;"
            f" did you mean {near[0]}?"
        )


def _names_used(of: type) -> Iterator[str]:
    codes = [value.__code__ for value in vars(of).values() if isinstance(value, FunctionType)]
    while codes:
        code = codes.pop()
        yield from code.co_names
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
