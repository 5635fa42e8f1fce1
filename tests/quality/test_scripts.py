"""Programs beside the package, which no other test runs: what they import is there."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("bench", "tools")
    for path in ROOT.glob(f"{folder}/*.py")
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_find_what_they_import(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str((ROOT / name).parent))
    runpy.run_path(str(ROOT / name), run_name="imported")
