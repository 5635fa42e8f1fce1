"""The exit codes of the command line."""

OK = 0
"""Done; of a search: held, and complete within its bounds."""
BROKEN = 1
"""A promise was broken, or something is not as a scenario says."""
USAGE = 2
"""What was asked for cannot be done: one sentence says why."""
UNDETERMINED = 3
"""A search ended before it was complete, and had found nothing."""
DEFECT = 70
"""Septum itself is wrong."""
INTERRUPTED = 130
"""Ctrl-C; what was found so far is told."""
