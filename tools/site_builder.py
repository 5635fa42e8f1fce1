"""Builds the documentation as a site: python tools/site_builder.py [FOLDER]

The pages are those of docs/ that exist, in the order of NAV; a page that NAV does not know comes
last. Links are checked (strict), and nothing is fetched when a page is looked at.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"

NAV: dict[str, tuple[str, ...]] = {
    "Start": ("index", "tutorial", "reading-guide"),
    "The v3 series": ("series", "findings", "designs", "seeded-bugs", "verdicts", "coverage"),
    "Use it": ("scenarios", "search", "page", "pytest", "your-own-design", "compare"),
    "Reference": ("promises", "fidelity", "trace-format", "formats"),
}


def pages(docs: Path) -> dict[str, list[str]]:
    """Section -> pages that exist, without their suffix."""
    there = {path.stem for path in docs.glob("*.md")}
    nav = {title: [name for name in names if name in there] for title, names in NAV.items()}
    rest = sorted(there - {name for names in nav.values() for name in names})
    return {title: names for title, names in {**nav, "More": rest}.items() if names}


def config(docs: Path) -> str:
    """The text of zensical.toml, to lie beside `docs`. TOML has JSON's strings and lists."""
    sections = ",\n  ".join(
        f"{{{json.dumps(title)} = {json.dumps([f'{name}.md' for name in names])}}}"
        for title, names in pages(docs).items()
    )
    return f"""\
[project]
site_name = "Septum"
site_description = "An executable model of KVM's private huge pages for TDX guests"
docs_dir = {json.dumps(docs.name)}
site_dir = "site"
use_directory_urls = false
nav = [
  {sections},
]

[project.theme]
font = false
features = ["navigation.sections", "content.code.copy"]

[[project.theme.palette]]
scheme = "default"
toggle.icon = "lucide/sun"
toggle.name = "Dark"

[[project.theme.palette]]
scheme = "slate"
toggle.icon = "lucide/moon"
toggle.name = "Light"
"""


def build(site: Path, docs: Path = ROOT / "docs") -> int:
    """Build into `site`; the exit code of the generator, not 0 when a link leads nowhere."""
    work = site.parent / f".{site.name}.work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.copytree(docs, work / "docs")
    path = work / "zensical.toml"
    path.write_text(config(work / "docs"))
    zensical = Path(sys.executable).with_name("zensical")
    done = subprocess.run(
        [str(zensical), "build", "--strict", "--clean", "--config-file", str(path)],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.returncode:
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(work / "site", site)
    shutil.rmtree(work, ignore_errors=True)
    if done.returncode:
        print(done.stdout, done.stderr.partition("Traceback")[0], sep="\n", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else BUILD / "site"
    code = build(target)
    if not code:
        print(f"the site is in {target}")
    sys.exit(code)
