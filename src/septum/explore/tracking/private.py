"""Classes that are values of one task by their nature: made by it, used by it, and forgotten."""

# Registers, iterators and arguments.
PRIVATE = frozenset(
    ("GuestOutcome", "KvmGfnRange", "KvmPageFault", "Regs", "TdpIter", "ToyTask"),
)
