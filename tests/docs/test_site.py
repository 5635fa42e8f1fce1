"""The site builds from docs/ as it is, its links lead somewhere, and it is read without network."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import generated  # noqa: E402 - tools/ is no package
import site_builder  # noqa: E402

needs_zensical = pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None, reason="needs zensical: make docs"
)
FETCHED = re.compile(r"""<(?:link|script|img|iframe)\b[^>]*?(?:href|src)=["']?(https?:[^"'\s>]+)""")


@needs_zensical
def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    assert site_builder.build(site) == 0
    made = {path.stem for path in site.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= made
    for page in site.glob("*.html"):
        assert FETCHED.findall(page.read_text()) == [], page.name
    index = (site / "index.html").read_text()
    assert 'href="tutorial.html"' in index


@needs_zensical
def test_links_that_lead_nowhere_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Home\n\n[page](nowhere.md) [anchor](other.md#nowhere)\n")
    (docs / "other.md").write_text("# Other\n")
    assert site_builder.build(tmp_path / "site", docs) != 0
    said = capfd.readouterr().err
    assert "page does not exist" in said and "anchor does not exist" in said


def test_navigation_tolerates_what_is_there(tmp_path: Path) -> None:
    for name in ("index", "findings", "a-new-page"):
        (tmp_path / f"{name}.md").write_text("# x\n")
    assert site_builder.pages(tmp_path) == {
        "Start": ["index"],
        "The v3 series": ["findings"],
        "More": ["a-new-page"],
    }


def test_a_generated_page_that_is_out_of_date_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generated, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["tools/it.py", "--check"])
    assert generated.keep("it.md", "new\n") == 1
    assert "run: python tools/it.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["tools/it.py"])
    assert generated.keep("it.md", "new\n") == 0
    monkeypatch.setattr(sys, "argv", ["tools/it.py", "--check"])
    assert generated.keep("it.md", "new\n") == 0
