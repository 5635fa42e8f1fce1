"""The generated documents say what the source says, and the README names what exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from septum.explore.verdict import Counterexample, Outcome, Verdict
from septum.sim import Finding

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
    from septum.cli.main import app

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
