"""Numbers in a scenario have limits, and what could never act is refused: each in one sentence."""

import pytest

from septum.errors import InputError
from septum.scenarios.area import parse_area, parse_size
from septum.scenarios.counts import count_fits
from septum.scenarios.ops import OpError, parse_guest_op, parse_host_op
from septum.scenarios.reader import read_scenario
from septum.vmm.layout import LayoutError, parse_memory_size

HEAD = 'summary = "x"\n'
GUEST = '[guest]\nvcpu0 = ["accept page 0"]\n'
LONG = "9" * 4400


@pytest.mark.parametrize("number", [LONG, "0x" + "f" * 4400, "٣", "0x١", "1" * 19])
def test_areas_of_numbers_that_are_none(number: str) -> None:
    for text in (
        f"page {number}",
        f"pages 0-{number}",
        f"page 1 of frame {number}",
        f"gpa {number}",
    ):
        assert parse_area(text) is None
    assert parse_size(f"{number}K") is None


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("write 0x" + "f" * 40 + " page 0", "has more than 64 bits; write at most 0xffffffffffff"),
        ("write 0x1" + "0" * 16 + " shared page 0", "has more than 64 bits"),
        (f"touch page {LONG}", "names no pages; write `page 3`"),
    ],
)
def test_guests_lines(line: str, remedy: str) -> None:
    for parse in (parse_guest_op, parse_host_op):
        with pytest.raises(OpError, match=remedy):
            parse(line)


def test_the_largest_value() -> None:
    assert parse_guest_op("write 0x" + "f" * 16 + " page 0").token == (1 << 64) - 1


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("wake vcpu9", "there is no vcpu9; name one of vcpu0 to vcpu7"),
        ("prefault page 0 by vcpu8", "there is no vcpu8"),
        ("wake vcpu00", "write it like `wake vcpu0`"),
        ("interrupt vcpu٣", "write it like `interrupt vcpu0`"),
        (f"wake vcpu{LONG}", "write it like `wake vcpu0`"),
        (f"delete slot {LONG}", "write it like `delete slot 0`"),
        ("delete slot 00", "write it like `delete slot 0`"),
    ],
)
def test_vmms_lines(line: str, remedy: str) -> None:
    with pytest.raises(OpError, match=remedy):
        parse_host_op(line)


@pytest.mark.parametrize("text", [LONG, f"{LONG}G", "٣G", "3\N{KELVIN SIGN}"])
def test_sizes_of_memory_that_are_none(text: str) -> None:
    with pytest.raises(LayoutError, match="is not a memory size; write it like 4G") as info:
        parse_memory_size(text)
    assert len(str(info.value)) < 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "[guest]\nvcpu0 = ['hlt']\nvcpu00 = ['hlt']\n",
            "line 4: guest.vcpu00: 'vcpu00' is no vCPU",
        ),
        ("[guest]\n'vcpu٣' = ['hlt']\n", r"line 3: guest.vcpu.: 'vcpu.' is no vCPU; call it vcpu0"),
        (f"[guest]\nvcpu{LONG} = ['hlt']\n", "line 3: guest.vcpu999.+is no vCPU; call it vcpu0 to"),
        (f"setup = ['vcpu{LONG}: hlt']\n", "line 2: setup: 'vcpu999.+is no vCPU; call it vcpu0"),
        ("setup = ['host: wake vcpu9']\n", "line 2: setup: there is no vcpu9; name one of vcpu0"),
        ("[vm]\nvcpus = -3\n" + GUEST, "line 3: vm.vcpus: -3 is no number of vCPUs; write at most"),
        ("[vm]\nvcpus = 99\n" + GUEST, "line 3: vm.vcpus: 99 is no number of vCPUs; write at mos"),
        (f"[vm]\nmemory = '{LONG}'\n" + GUEST, "line 3: vm.memory: '999.+ is no size of memory"),
        (f"[vm]\nat = '{LONG}'\n" + GUEST, "line 3: vm.at: '999.+ is no place for memory"),
        ("[vm.host]\n[vm.b]\n[guest.b]\nvcpu0 = ['hlt']\n", "line 2: vm.host: no VM can have this"),
        ("[vm.'a b']\n[vm.b]\n[guest.b]\nvcpu0 = ['hlt']\n", "vm.a b: no VM can have this name; t"),
    ],
)
def test_tables(body: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as info:
        read_scenario("f", HEAD + body, "f.toml")
    assert len(str(info.value)) < 300


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("need_resched @0", "never happens; times count from 1"),
        ("need_resched @5-2", "never happens"),
        ("need_resched @all-3", "is not understood; write a choice point, and which time"),
        (f"need_resched @{LONG}", "is not understood"),
        ("need_resched=0", "changes nothing, as 0 is no failure; write busy or error"),
        ("seamcall:TDH.MEM.TRACK=7", "changes nothing, as 7 is no failure"),
        (f"seamcall:TDH.MEM.TRACK={LONG}", "is not understood"),
    ],
)
def test_injections(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^f.toml, line 5: failures.inject: .+{sentence}"):
        read_scenario("f", f"{HEAD}{GUEST}[failures]\ninject = ['{text}']\n", "f.toml")


@pytest.mark.parametrize("value", ["-1", "'5..1'", f"'>= {LONG}'", "'1..٣'", "'>= -1'"])
def test_counts(value: str) -> None:
    with pytest.raises(InputError, match=r"^f.toml, line 5: expect.counts: 'splits' is .+1..3"):
        read_scenario("f", f"{HEAD}{GUEST}[expect]\ncounts = {{ splits = {value} }}\n", "f.toml")


def test_pages_may_become_fewer_than_in_the_image() -> None:
    body = "[expect]\ncounts = { pages_4k = -1 }\n"
    assert read_scenario("f", HEAD + GUEST + body, "f.toml").expect.counts == {"pages_4k": -1}
    assert count_fits(">= 2", 2) and not count_fits(">=2", 1)
    assert count_fits("1..2", 2) and not count_fits("1..2", 3) and not count_fits("1..2", 0)


@pytest.mark.parametrize("key", ["ends", "may-end"])
def test_ends(key: str) -> None:
    with pytest.raises(
        InputError, match=rf"line 5: expect.{key}: '' is a part of all that a VMM s"
    ):
        read_scenario("f", f"{HEAD}{GUEST}[expect]\n{key} = ['']\n", "f.toml")
