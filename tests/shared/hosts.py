"""Broken hosts that tests of several things have, as files of a user."""

KEEPS = """from septum.linux.kvm.main import KvmMain

class Keeps(KvmMain):
    __slots__ = ()

    def kvm_vm_ioctl_set_memory_region(self, kvm, mem):
        ret = super().kvm_vm_ioctl_set_memory_region(kvm, mem)
        kvm.slots_lock.lock()
        return ret
"""
