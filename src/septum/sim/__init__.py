"""The deterministic kernel: tasks, scheduler, locks, choice points, virtual time.

It knows nothing of TDX. Code of the model is plain code; only these primitives switch tasks:
`Sim.point`, the lock operations, `WaitQueue`, and what the machine builds from them.
"""

from septum.sim.clock import OfTime
from septum.sim.events import Event, LockEvent, SwitchEvent
from septum.sim.locks import Mutex, RwLock, RwSem, SpinLock, WaitQueue
from septum.sim.memo import Memo
from septum.sim.schedule import (
    ALTERNATIVE,
    ListSchedule,
    RandomSchedule,
    RoundRobin,
    Schedule,
    decode_token,
    encode_token,
)
from septum.sim.sim import Finding, RunStopped, Sim, SimDefect
from septum.sim.task import Coroutine, Task, is_raised

__all__ = [
    "ALTERNATIVE",
    "Coroutine",
    "Event",
    "Finding",
    "ListSchedule",
    "LockEvent",
    "Memo",
    "Mutex",
    "OfTime",
    "RandomSchedule",
    "RoundRobin",
    "RunStopped",
    "RwLock",
    "RwSem",
    "Schedule",
    "Sim",
    "SimDefect",
    "SpinLock",
    "SwitchEvent",
    "Task",
    "WaitQueue",
    "decode_token",
    "encode_token",
    "is_raised",
]
