"""Software inside a TD: firmware, Linux, other guests, and scripts.

A `Guest` is plain state plus `run(cpu)`, the program of each of its vCPUs, written against the
instructions of `GuestCpu`. Nothing here knows the host.
"""
