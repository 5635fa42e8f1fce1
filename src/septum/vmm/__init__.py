"""User space: the virtual machine's layout, QEMU's sequence of ioctls, and whole worlds."""
