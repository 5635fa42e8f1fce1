"""A user's own design that takes locks wrongly breaks a promise, as it would with lockdep."""

from pathlib import Path

import pytest
from processes import septum

QUICK = ("--strategy", "exhaustive", "--preemptions", "0", "--workers", "1", "--no-watch")
"""Words of a search in which a lock that is taken wrongly is met at once."""

KEEPS = """from septum.linux.kvm.guest_memfd import GuestMemfd

class Keeps(GuestMemfd):
    __slots__ = ()

    def kvm_gmem_set_attributes(self, *args):
        ret = super().kvm_gmem_set_attributes(*args)
        next(iter(self.host.kvms.values())).mmu_lock.write_lock()
        return ret
"""


def test_a_host_that_keeps_a_lock_breaks_a_promise(tmp_path: Path) -> None:
    """At the end of the ioctl; who looks away there meets who waits for the lock in vain."""
    (tmp_path / "mine.py").write_text(KEEPS)
    command = ("explore", "convert-one-page", "--design", "mine.py:Keeps", *QUICK)
    found = septum(*command, cwd=tmp_path)
    assert found.returncode == 1, found.stderr
    text = " ".join(found.stdout.split())
    assert "vcpu0 has ended KVM_SET_MEMORY_ATTRIBUTES2 and still holds vm1 mmu_lock" in text
    assert 'lockdep prints "lock held when returning to user space!"' in text
    later = septum(*command, "--ignore", "locking: ", cwd=tmp_path)
    assert later.returncode == 1, later.stderr
    assert "main waits for vm1 mmu_lock for ever" in later.stdout


RELEASES = """from septum.linux.kvm.guest_memfd import GuestMemfd

class Releases(GuestMemfd):
    __slots__ = ()

    def _kvm_gmem_punch_failed(self, inode, start, end):
        super()._kvm_gmem_punch_failed(inode, start, end)
        inode.invalidate_lock.up_write()
"""


def test_a_host_that_releases_what_it_does_not_hold_breaks_a_promise(tmp_path: Path) -> None:
    """On an error path, too; who looks away there has the lock as it was."""
    (tmp_path / "mine.py").write_text(RELEASES)
    command = ("explore", "punch-enomem", "--design", "mine.py:Releases", *QUICK)
    found = septum(*command, cwd=tmp_path)
    assert found.returncode == 1, found.stderr
    text = " ".join(found.stdout.split())
    assert "host.punch releases invalidate_lock vm1.0 for writing, which it does not hold" in text
    assert 'lockdep prints "WARNING: bad unlock balance detected!"' in text
    away = septum(*command, "--ignore", "locking: ", cwd=tmp_path)
    assert "complete: all with 0 preemptions, 1 failure" in away.stdout
    assert "BROKEN" not in away.stdout


READS = """from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.x86 import KvmX86

class Reads(GuestMemfd):
    __slots__ = ()

    def kvm_gmem_set_attributes(self, *args):
        next(iter(self.host.kvms.values())).srcu.read_lock()
        return super().kvm_gmem_set_attributes(*args)

class ReadsInTheGuest(KvmX86):
    __slots__ = ()

    def kvm_arch_vcpu_ioctl_run(self, vcpu):
        ret = super().kvm_arch_vcpu_ioctl_run(vcpu)
        self.kvm_vcpu_srcu_read_lock(vcpu)
        return ret

class TakesSlotsLock(GuestMemfd):
    __slots__ = ()

    def kvm_gmem_set_attributes(self, *args):
        kvm = next(iter(self.host.kvms.values()))
        idx = kvm.srcu.read_lock()
        with kvm.slots_lock:
            kvm.srcu.read_unlock(idx)
            return super().kvm_gmem_set_attributes(*args)
"""


INVERTED = (
    "vcpu0 takes vm# slots_lock while it holds vm# srcu, and elsewhere the order is:"
    " vm# srcu inside vm# slots_lock (documented)"
)


@pytest.mark.parametrize(
    ("design", "finding"),
    [
        ("Reads", "vcpu0 has ended KVM_SET_MEMORY_ATTRIBUTES2 and still holds vm1 srcu"),
        ("ReadsInTheGuest", "vcpu0 has ended KVM_RUN and still holds vm1 srcu"),
        ("TakesSlotsLock", INVERTED),
    ],
)
def test_srcu_is_a_lock_to_lockdep(design: str, finding: str, tmp_path: Path) -> None:
    """Whoever reads it has to leave, and takes no lock inside which KVM waits for its readers."""
    (tmp_path / "mine.py").write_text(READS)
    done = septum("run", "convert-one-page", "--design", f"mine.py:{design}", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert f"broken: locking: {finding}" in " ".join(done.stdout.split())
