"""User space: the virtual machine's layout, QEMU's sequence of ioctls, and whole worlds.

`World` and `Vmm` are imported from their modules, so that the guest's layout can be had without
the host: `septum.vmm.world`, `septum.vmm.qemu`.
"""
