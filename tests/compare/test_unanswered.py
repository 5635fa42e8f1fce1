"""`septum compare` where a search comes to no answer: its process is killed, or its host never
comes to where the scenario begins."""

from pathlib import Path

from comparing import QUICK, compare, marks, rows

KILLED = """\
from septum.linux.kvm.tdx import KvmTdxUnit


class Killed(KvmTdxUnit):
    __slots__ = ()

    def tdx_track(self, kvm):
        unguarded = __import__("os")  # as a design may not, by its name
        unguarded.kill(unguarded.getpid(), 9)
"""
STUCK = """\
from septum.linux.kvm.main import KvmMain


class Stuck(KvmMain):
    __slots__ = ()

    def kvm_vm_set_mem_attributes(self, kvm, start, end, attributes):
        if not attributes:
            kvm.slots_lock.lock()
        return super().kvm_vm_set_mem_attributes(kvm, start, end, attributes)


class Refuses(KvmMain):
    __slots__ = ()

    def kvm_vm_ioctl_create_vcpu(self, kvm, vcpu_id):
        return -5, None
"""
STUCK_IN_SETUP = """\
summary = "A page is converted before the programs begin."
setup = ["{setup}"]

[kernel]
attributes = "vm"

[vm]
ve = true

[host]
back = ["set-attributes page 1 to private"]
"""


def test_a_search_whose_process_is_killed_is_undetermined(tmp_path: Path) -> None:
    """One sentence says which and how; what the others found is told."""
    (tmp_path / "killed.py").write_text(KILLED)
    done = compare("killed.py:Killed", *QUICK, "--json", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert marks(rows(done.stdout)["killed.py:Killed"]) == {"undetermined"}
    assert marks(rows(done.stdout)["v3"]) == {"held"}
    assert done.stderr.splitlines()[-1] == (
        "septum: killed.py:Killed in convert-one-page: its process was killed by SIGKILL;"
        " if memory is short, give fewer --workers"
    )
    assert "defect" not in done.stderr


def test_a_host_that_does_not_come_to_where_a_scenario_begins(tmp_path: Path) -> None:
    """One sentence says why its VM cannot be built; the other designs are compared. That a task of
    it waits for ever is a promise that it breaks. Where none comes there it is the scenario that
    is wrong."""
    (tmp_path / "stuck.py").write_text(STUCK)
    path = tmp_path / "setup.toml"
    path.write_text(STUCK_IN_SETUP.format(setup="host: set-attributes page 1 to shared"))
    args = ("stuck.py:Refuses", "--scenarios", "setup.toml", "--no-cost", "--json")
    done = compare(*args, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert marks(rows(done.stdout)["stuck.py:Refuses"]) == {"undetermined"}
    assert marks(rows(done.stdout)["v3"]) == {"held"}
    assert done.stderr.splitlines()[-1] == (
        "septum: stuck.py:Refuses in setup: scenario setup: VM vm: create_vcpus failed: -EIO, on"
        " stuck.py:Refuses; on v3 it is built, so look at what the design's functions do and return"
        " meanwhile"
    )
    args = ("stuck.py:Stuck", *args[1:])
    done = compare(*args, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "broken" in marks(rows(done.stdout)["stuck.py:Stuck"])
    assert marks(rows(done.stdout)["v3"]) == {"held"}
    path.write_text(STUCK_IN_SETUP.format(setup='vcpu0: wait x => any", "host: signal x'))
    done = compare(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "setup: `vcpu0: wait x` never ends" in done.stderr.splitlines()[-1]
