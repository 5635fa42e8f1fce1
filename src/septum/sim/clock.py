"""What virtual time gives to the model: numbers that are no part of any state."""


class OfTime(int):
    """A number that follows from virtual time. Two states that differ in nothing else are one, so
    no code of the model may decide by it."""

    __slots__ = ()
