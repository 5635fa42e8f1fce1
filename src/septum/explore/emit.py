"""A counterexample as a pytest test that fails until the host is mended."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.explore.verdict import Counterexample, Verdict

TEMPLATE = '''\
"""{summary}

Found by `{command}`.
The schedule is replayed as it was shrunk; when the promise holds on it, this test passes.
"""

from septum.explore.replay import replay_answers

ANSWERS = {answers}


def test_{name}() -> None:
    """{promise}: {text}"""
    finding = replay_answers({subject}, {design}, ANSWERS{check})
    assert finding is None, f"{{finding.promise}}: {{finding.text}}"
'''


def regression_test(
    verdict: Verdict, example: Counterexample, scenario: str = "", check: str = "end"
) -> str:
    """The source of the test. `scenario` is what the user called it, by name or file."""
    finding = example.finding
    words = re.sub(r"[^a-z0-9]+", "_", f"{verdict.subject} {finding.promise}".lower()).strip("_")
    answers = textwrap.fill(
        repr(example.answers), 96, initial_indent="    ", subsequent_indent="    "
    ).strip()
    text = finding.text if len(finding.text) < 80 else finding.text[:77] + "..."
    return TEMPLATE.format(
        summary=f"Promise {finding.promise} in scenario {verdict.subject}.",
        subject=_quoted(scenario or verdict.subject),
        design=_quoted(verdict.design),
        check="" if check == "end" else f", {_quoted(check)}",
        command=f"septum explore {scenario or verdict.subject}"
        + (f" --design {verdict.design}" if verdict.design else "")
        + f" --seed {verdict.seed}",
        answers=answers,
        name=words,
        promise=finding.promise,
        text=text.replace('"', "'").replace("\\", "/"),
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
