"""The module held to account: recorded transcripts, fact tables, fuzzing, and mutants of itself.

Above `septum.module` and its machine; nothing else is needed, and nothing imports this.
"""

from septum.conform.report import ConformReport
from septum.conform.run import run_conform

__all__ = ["ConformReport", "run_conform"]
