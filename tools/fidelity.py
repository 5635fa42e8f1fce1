"""Writes docs/fidelity.md from the `MODEL:` notes in the source, so that none is forgotten.

python tools/fidelity.py            write the file
python tools/fidelity.py --check    exit 1 when the file is not what the source says
"""

import re
import sys
from pathlib import Path

from generated import keep

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "septum"

HEAD = """# Where the model is coarser than the real thing

Generated from the `MODEL:` notes in the source by `python tools/fidelity.py`; a test keeps it
true. Everything that is not listed here is meant to behave as the TDX module, the hardware or
the kernel does: a difference is a defect, and we want to hear of it.

"""

ROOMS = {
    "abi": "Facts (`septum.abi`)",
    "sim": "Scheduler (`septum.sim`)",
    "machine": "Machine (`septum.machine`)",
    "module": "TDX module (`septum.module`)",
    "linux": "Host kernel (`septum.linux`)",
    "vmm": "User space (`septum.vmm`)",
    "guest": "Guests (`septum.guest`)",
    "checks": "Promises (`septum.checks`)",
    "designs": "Other hosts (`septum.designs`)",
    "scenarios": "Small worlds (`septum.scenarios`)",
    "trace": "Renderings (`septum.trace`)",
}


def notes(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every MODEL: note of a file; a note ends with its comment or paragraph."""
    lines = path.read_text().splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        match = re.search(r"MODEL: ?(.*)", line)
        if match is None:
            continue
        comment = "#" in line[: match.start()]
        words = [match.group(1)]
        for following in lines[number:]:
            text = following.strip()
            if comment != text.startswith("#") or not text.lstrip("#").strip():
                break
            if '"""' in text:
                words.append(text.split('"""')[0])
                break
            words.append(text.lstrip("# "))
        text = " ".join(" ".join(words).split()).split('"""')[0].strip()
        found.append((number, text))
    return found


def page() -> str:
    """The whole document."""
    out = [HEAD]
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0]
        if room not in ROOMS and notes(path):
            raise SystemExit(f"{path}: the page has no part for `{room}`; add one to ROOMS")
    for room, title in ROOMS.items():
        rows = []
        for path in sorted((SOURCE / room).rglob("*.py")):
            name = path.relative_to(SOURCE).as_posix()
            rows += [f"- `{name}`: {text}" for _, text in notes(path)]
        if rows:
            out.append(f"## {title}\n\n" + "\n".join(rows) + "\n\n")
    return "".join(out).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(keep("fidelity.md", page()))
