"""A package imports only from those below it: who reads the module need not know of Linux, who
reads the host need not know of checks, and nothing of the model knows that it is searched."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src" / "septum"

LAYERS = (
    "abi",  # facts
    "firmware",  # images: their format, and where they come from
    "sim",  # the scheduler
    "machine",  # hardware
    "module",  # the TDX module
    "linux",  # the host's kernel
    "vmm",  # user space: QEMU, and the world with all below it
    "guest",  # what runs in a TD
    "designs",  # variants of the host
    "checks",  # the promises
    "conform",  # the module by itself, held to recorded calls
    "scenarios",  # runs of small worlds, and the boot
    "explore",  # searches
    "trace",  # renderings of events
    "report",  # results, and how they are shown
    "compare",  # searches of designs, as a table
    "cli",
)
"""From the ground up."""

GROUND = {
    "__init__",
    "__main__",
    "codes",
    "errors",
    "inputs",
    "json_text",
    "outputs",
    "sigterm",
    "stamp",
    "stdout",
    "words",
}
"""Modules beside the packages, for all of them; they import none."""

EXCEPTIONS = {
    ("scenarios", "report.result"): "what a run made is written down where it is known",
    ("scenarios", "report.ktap"): "the same, as KTAP",
    ("scenarios", "trace.describe"): "the steps between states are named as a trace names them",
    ("scenarios", "trace.ladder"): "and those left out that it folds",
    ("explore", "trace.describe"): "a story tells a step in the words of the ladder",
    ("explore", "trace.ladder"): "and folds what the ladder folds",
    ("explore", "trace.via"): "and names the kernel's functions as the trace does",
    ("explore", "report.ktap"): "a verdict as KTAP",
    ("explore", "report.lines"): "the progress of a search, on the terminal",
}
"""(package, module that is above it): why."""

NARROW = {
    # The module is reached by SEAMCALLs alone, as a kernel reaches it.
    "linux": {"module": set()},
    # A guest knows the addresses that the firmware is told of, and nothing of who runs it.
    "guest": {"vmm": {"layout"}, "linux": set(), "module": set()},
    # A promise does not know whose host it judges.
    "checks": {"designs": set()},
}
"""What a package may import of one below it, where that is not all of it."""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module, without `septum.`, of all imports: those for types, those in functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "septum":
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif node.module.startswith("septum."):
                yield node.lineno, node.module.removeprefix("septum.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("septum."):
                    yield node.lineno, alias.name.removeprefix("septum.")


def package_of(module: str) -> str:
    return module.partition(".")[0]


def wrong(package: str, module: str) -> bool:
    """Whether `package` may not import `module`."""
    other, _, rest = module.partition(".")
    if other in (package, "__version__") or other in GROUND:
        return False
    if package in GROUND:
        return package != "__main__"
    if LAYERS.index(other) > LAYERS.index(package):
        return not any(
            package == who and (module == what or module.startswith(f"{what}."))
            for who, what in EXCEPTIONS
        )
    allowed = NARROW.get(package, {}).get(other)
    return allowed is not None and package_of(rest) not in allowed


def all_imports() -> Iterator[tuple[str, str, str]]:
    """(package, module, place) of every import of the tree."""
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES)
        package = name.parts[0] if len(name.parts) > 1 else path.stem
        for line, module in imports(path):
            yield package, module, f"{name}:{line}"


def test_the_layers_are_all_packages() -> None:
    packages = {path.parent.name for path in SOURCES.glob("*/__init__.py")}
    assert packages == set(LAYERS) and len(LAYERS) == len(packages)
    assert {path.stem for path in SOURCES.glob("*.py")} == GROUND


def test_nobody_imports_from_above() -> None:
    found = [
        f"{place}: {package} imports {module}"
        for package, module, place in all_imports()
        if wrong(package, module)
    ]
    assert not found, "\n".join(found)


def test_every_exception_is_needed() -> None:
    """One that was removed from the code goes from the list, too."""
    used = {
        exception
        for package, module, _ in all_imports()
        for exception in EXCEPTIONS
        if package == exception[0] and (module + ".").startswith(exception[1] + ".")
    }
    assert used == set(EXCEPTIONS)


@pytest.mark.parametrize(
    ("package", "module", "is_wrong"),
    [
        ("sim", "machine", True),
        ("module", "linux.kvm.mmu", True),
        ("linux", "module.module", True),
        ("linux", "machine.tables", False),
        ("guest", "vmm.qemu", True),
        ("guest", "vmm.layout", False),
        ("linux", "designs", True),
        ("checks", "explore.run", True),
        ("explore", "trace.perfetto", True),
        ("explore", "trace.describe", False),
        ("words", "errors", False),
        ("errors", "abi", True),
        ("cli", "abi", False),
    ],
)
def test_what_would_be_wrong_is_seen(package: str, module: str, is_wrong: bool) -> None:
    assert wrong(package, module) == is_wrong


def test_every_kind_of_import_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "import septum.module\n"
        "from septum import checks, __version__\n"
        "if TYPE_CHECKING:\n    from septum.linux.host import Host\n"
        "def f():\n    from septum.explore import Options\n"
    )
    assert sorted(imports(path)) == [
        (2, "module"),
        (3, "__version__"),
        (3, "checks"),
        (5, "linux.host"),
        (7, "explore"),
    ]
