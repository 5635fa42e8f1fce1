"""Writes docs/promises.md from the promises' own docstrings.

python tools/promises.py            write the file
python tools/promises.py --check    exit 1 when the file is not what the source says
"""

import sys

from generated import keep

from septum.checks import PROMISES, consequence, sentence

HEAD = """# What a run is held to

Generated from the code by `python tools/promises.py`; a test keeps it true. A promise looks at the
whole world and never changes it: frames, Secure EPT, PAMT, TLBs and contents are compared with what
each layer believes. With `--check end` they look when the programs of a scenario have ended, behind
the steps of `after`, and when all VMs are gone, with `quiet` also between operations, with
`every-step` at every scheduling point.

"""


def page() -> str:
    """The whole document."""
    parts = [HEAD]
    for name, promise in PROMISES.items():
        parts.append(f"## `{name}`\n\n{sentence(promise)}\n\n{consequence(promise)}\n\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(keep("promises.md", page()))
