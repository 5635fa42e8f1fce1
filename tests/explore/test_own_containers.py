"""What a user's design keeps in containers of its own kinds is not taken for what it is not: every
search does what the design does, or says what it cannot do."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from septum.cli.main import app

SCENARIO = """
summary = "Two vCPUs accept different pages of a 2M mapping."
setup = ["host: prefault frame 0"]
[vm]
ve = true
[guest]
vcpu0 = ["accept 4K page 0 => any"]
vcpu1 = ["accept 4K page 1 => any"]
"""
DESIGNS = """
import collections

from septum.linux.kvm.tdx import KvmTdxUnit


class One(dict):
    def __setitem__(self, key, value):
        self.clear()
        super().__setitem__(key, value)


class Base(KvmTdxUnit):
    __slots__ = ("seen",)

    def __init__(self, host):
        super().__init__(host)
        self.seen = self.make()

    def _tdx_split_and_inhibit(self, vcpu, slot, gfn, level):
        self.seen[vcpu.vcpu_id] = gfn
        self.sim.point("seen")
        self.host.main.kvm_bug_on(vcpu.kvm, vcpu.vcpu_id not in self.seen, "it is not there")
        return super()._tdx_split_and_inhibit(vcpu, slot, gfn, level)


class Evicts(Base):
    __slots__ = ()
    make = One


class Keeps(Base):
    __slots__ = ()

    def make(self):
        return collections.defaultdict(int)


class Ordered(Base):
    __slots__ = ()

    def make(self):
        return collections.OrderedDict()


class Bytes(KvmTdxUnit):
    __slots__ = ("seen",)

    def __init__(self, host):
        super().__init__(host)
        self.seen = bytearray(4)

    def _tdx_split_and_inhibit(self, vcpu, slot, gfn, level):
        self.seen[vcpu.vcpu_id] += 1
        return super()._tdx_split_and_inhibit(vcpu, slot, gfn, level)
"""


@pytest.fixture
def explored(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Exit code and words of a search of a design."""
    (tmp_path / "mine.toml").write_text(SCENARIO, encoding="utf-8")
    (tmp_path / "mine.py").write_text(DESIGNS, encoding="utf-8")

    def explore(design: str, *words: str) -> tuple[int, str]:
        args = ["explore", f"{tmp_path}/mine.toml", "--design", f"{tmp_path}/mine.py:{design}"]
        result = CliRunner().invoke(app, [*args, "--no-watch", "--workers", "1", *words])
        return result.exit_code, " ".join((result.output + str(result.exception or "")).split())

    return explore


def counted(text: str) -> str:
    """How many schedules were run."""
    return text.partition(" schedules, ")[0].rpartition(" ")[2]


@pytest.mark.parametrize(("design", "code"), [("Evicts", 1), ("Keeps", 0)])
def test_a_container_of_another_kind_is_used_as_it_is(explored, design: str, code: int) -> None:  # type: ignore[no-untyped-def]
    """A dict that has room for one loses what another vCPU has put in, where a plain one would keep
    it: the search that follows what is touched says so as the plain one does, and that it cannot
    follow."""
    for strategy in ("exhaustive", "plain"):
        found, text = explored(design, "--strategy", strategy, "--preemptions", "1")
        assert found == code, text
        assert ("without reduction" in text) == (strategy == "exhaustive")
        assert ("it is not there" in text) == bool(code)


def test_a_search_that_cannot_follow_keeps_to_its_bounds_and_its_part(explored) -> None:  # type: ignore[no-untyped-def]
    """Cut into parts, it runs each schedule once, those within no preemption once more; and where
    something breaks the bounds are those that were searched."""
    plain = explored("Bytes", "--strategy", "plain", "--preemptions", "1")[1]
    cut = explored("Bytes", "--strategy", "exhaustive", "--preemptions", "1")[1]
    assert int(counted(plain)) < int(counted(cut)) <= int(counted(plain)) + 2
    _, text = explored("Evicts", "--strategy", "exhaustive", "--preemptions", "2")
    assert "found in the search of all with 1 preemption, 0 failures; complete: all with 0" in text


def test_a_container_that_cannot_be_put_back_is_named(explored) -> None:  # type: ignore[no-untyped-def]
    """An OrderedDict has its order where a dict's methods do not look."""
    code, text = explored("Ordered")
    assert code != 0
    assert "tdx.seen: state of type collections.OrderedDict is not known" in text
