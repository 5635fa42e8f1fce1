"""What user space does to a TD's memory, as events. KVM's tracepoints do not show it."""

from septum.sim import Event


class ConversionEvent(Event, tag="conversion", frozen=True):
    """kvm_convert_memory() of the VMM ended: [gpa, gpa + size_bytes) became private or shared.

    `cause` is map_gpa (TDVMCALL<MapGPA>), memory_fault (an access of the other kind), or program
    (user space's own wish). `ret` is 0 or -errno.
    """

    gpa: int
    size_bytes: int
    to_private: bool
    cause: str
    ret: int
