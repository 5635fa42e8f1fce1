"""Linux error numbers that the host returns (negated), and their names."""

EPERM = 1
ENOENT = 2
ESRCH = 3
EINTR = 4
EIO = 5
E2BIG = 7
ENXIO = 6
EBADF = 9
EAGAIN = 11
ENOMEM = 12
EACCES = 13
EFAULT = 14
EBUSY = 16
EEXIST = 17
EINVAL = 22
ENOTTY = 25
ENOSPC = 28
EOPNOTSUPP = 95
EHWPOISON = 133

ERRNO_NAMES = {
    EPERM: "EPERM",
    ENOENT: "ENOENT",
    ESRCH: "ESRCH",
    EINTR: "EINTR",
    EIO: "EIO",
    ENXIO: "ENXIO",
    E2BIG: "E2BIG",
    EBADF: "EBADF",
    EAGAIN: "EAGAIN",
    ENOMEM: "ENOMEM",
    EACCES: "EACCES",
    EFAULT: "EFAULT",
    EBUSY: "EBUSY",
    EEXIST: "EEXIST",
    EINVAL: "EINVAL",
    ENOTTY: "ENOTTY",
    ENOSPC: "ENOSPC",
    EOPNOTSUPP: "EOPNOTSUPP",
    EHWPOISON: "EHWPOISON",
}


def errno_name(value: int) -> str:
    """`-ENOMEM` for -12, `0` for 0: how a kernel developer writes a return value."""
    if value < 0 and -value in ERRNO_NAMES:
        return f"-{ERRNO_NAMES[-value]}"
    return str(value)
