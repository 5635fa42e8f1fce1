"""Classes of objects that a search knows by other means than their slots."""

from septum.sim.locks import Mutex, RwLock, RwSem, SpinLock, WaitQueue, _Lock

# Registers, iterators and arguments.
PRIVATE = frozenset(
    ("GuestOutcome", "KvmGfnRange", "KvmPageFault", "Regs", "TdpIter", "ToyTask"),
)
"""Values of one task by their nature: made by it, used by it, and forgotten."""

LOCKS = (_Lock, WaitQueue)
"""The scheduler's: who has them and who waits is told of, and one location stands for all of it."""

LOCK_KINDS = (Mutex, SpinLock, RwSem, RwLock, WaitQueue)
"""The classes of objects among them: numbered before any run, the same in every worker."""
