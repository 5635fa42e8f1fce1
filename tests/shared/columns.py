"""80 columns hold."""

from septum.report.lines import Lines
from septum.words import WIDTH


def too_wide(lines: Lines) -> list[str]:
    """The lines of more than 80 columns."""
    return [line for line in lines.plain().splitlines() if len(line) > WIDTH]
