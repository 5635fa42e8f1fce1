"""The generated documents say what the source says, and the README names what exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from septum.cli.main import app
from septum.explore.verdict import Counterexample, Outcome, Verdict
from septum.scenarios.boot import check_boot
from septum.sim import Finding
from septum.vmm.layout import parse_memory_size

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tool", ["fidelity", "promises", "trace_format", "bugs"])
def test_generated_documents_are_current(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_document_that_is_linked_exists() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links {link}"


def test_every_command_of_the_readme_exists() -> None:
    from septum.cli.app import module_app

    names = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    names |= {f"module {c.name}" for c in module_app.registered_commands}
    told = re.findall(r"^\| `septum ((?:module )?[a-z-]+)", (ROOT / "README.md").read_text(), re.M)
    assert set(told) <= names
    assert len(told) > 5


def test_every_file_named_in_the_reading_guide_exists() -> None:
    guide = (ROOT / "docs" / "reading-guide.md").read_text()
    for name in set(re.findall(r"`((?:linux|module)/[a-z_/0-9]+\.py)`", guide)):
        assert (ROOT / "src" / "septum" / name).exists(), name


def test_every_field_of_a_verdict_is_told() -> None:
    """docs/formats.md names all that `septum explore --json` prints, and nothing else."""
    section = (ROOT / "docs" / "formats.md").read_text().partition("## JSON of a search")[2]
    told = set(re.findall(r"`([a-z_]+)`", section)) - set(map(str, Outcome))
    fields = {
        field for kind in (Verdict, Counterexample, Finding) for field in kind.__struct_fields__
    }
    assert told == fields


def shown_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of each command that a document shows in full."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = re.sub(r"\\\n\s*", " ", page.read_text())
        for command in re.findall(r"(?:`|^    |^\$ |^)septum ([a-z-]+[^`\n]*)", text, re.M):
            words = command.partition("   #")[0].split()
            if not any(mark in command for mark in ("[", "...", "'", "FORMAT")):
                found.append((page.name, words))
    return found


def test_every_command_that_a_document_shows_is_one() -> None:
    """Its options exist, and what it says of a boot a boot can be given."""
    commands = typer.main.get_command(app).commands
    shown = shown_commands()
    assert len(shown) > 40
    for page, (name, *words) in shown:
        command = commands[name]
        if name == "module" and words:
            command = command.commands[words[0]]
        options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, (page, name, words)
        if "--memory" in words:
            memory = words[words.index("--memory") + 1]
            check_boot(parse_memory_size(memory), 1, "thp")
