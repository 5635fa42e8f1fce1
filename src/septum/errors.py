"""A user's mistake, told in one sentence. The command line turns it into exit code 2."""


class InputError(ValueError):
    """What was wrong, where, and what would be right, in one sentence without a full stop."""
