"""A user's mistake, told in one sentence. The command line turns it into exit code 2."""


class InputError(ValueError):
    """What was wrong, where, and what would be right, in one sentence without a full stop."""


class NotBegun(InputError):
    """A host does not come to where the programs of a scenario begin: its VMs cannot be built, or a
    step of `setup` never ends."""


class EndlessLoop(BaseException):
    """A user's design goes round for ever; the text is a sentence for the user.

    No Exception, so that neither the design nor a search takes it for something to try again.
    """
