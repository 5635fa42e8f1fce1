"""A scenario file reads as docs/scenarios.md says, and every mistake is told in one sentence."""

from pathlib import Path

import pytest

from septum.errors import InputError
from septum.scenarios.area import Area, parse_area, parse_size
from septum.scenarios.ops import OpError, parse_guest_op, parse_host_op, result_fits
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import load_scenario

HEAD = 'summary = "s"\n'


@pytest.mark.parametrize(
    ("text", "area"),
    [
        ("page 3", Area(3, 1)),
        ("pages 0-511", Area(0, 512)),
        ("pages 0x10-0x1f", Area(16, 16)),
        ("frame 1", Area(512, 512)),
        ("frames 0-2", Area(0, 1536)),
        ("page 3 of frame 2", Area(1027, 1)),
        ("gpa 0x80000000 + 8K", Area(0x80000, 2, absolute=True)),
        ("gpa 0x80001000", Area(0x80001, 1, absolute=True)),
        ("all", Area(0, 0)),
        ("Frame 1", Area(512, 512)),
        ("Pages 0X10-0x1F", Area(16, 16)),
        ("page 010", Area(10, 1)),
    ],
)
def test_areas(text: str, area: Area) -> None:
    assert parse_area(text) == area


@pytest.mark.parametrize(
    "text",
    ["page", "page x", "pages 5-3", "frame 0 of frame 1", "gpa 0x80000001", "page 600 of frame 0"],
)
def test_what_names_no_pages(text: str) -> None:
    assert parse_area(text) is None


def test_sizes_and_places() -> None:
    assert [parse_size(text) for text in ("4K", "2M", "1G", "4096", "x")] == [
        4096,
        2 << 20,
        1 << 30,
        4096,
        None,
    ]
    area = Area(1, 2)
    assert (area.gpa(0x1000), area.offset(0x1000), area.size(1 << 20)) == (0x2000, 0x1000, 8192)
    assert Area(0, 0).size(1 << 20) == 1 << 20


def test_results_of_operations() -> None:
    op = parse_guest_op("accept 2M frame 0 => ok or TDX_OPERAND_BUSY")
    assert (op.verb, op.level, op.area) == ("accept", 1, Area(0, 512))
    assert result_fits(op, "ok") and result_fits(op, "OPERAND_BUSY")
    assert not result_fits(op, "PAGE_SIZE_MISMATCH")
    assert result_fits(parse_guest_op("touch page 0 => any"), "#VE")
    assert not result_fits(parse_guest_op("touch page 0"), "#VE")
    assert result_fits(parse_guest_op("read page 0"), "0x7"), "a read may see anything by default"
    assert result_fits(parse_guest_op("read page 0 => 0x07"), "0x7")


def test_choices_have_results_of_their_own() -> None:
    op = parse_guest_op("choose: touch page 0 => #VE | accept 4K page 1 => any")
    assert [(each.verb, each.results) for each in op.alternatives] == [
        ("touch", ("#VE",)),
        ("accept", ()),
    ]


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("acept 2M frame 0", "nothing that a guest does; it can accept,"),
        ("accept 2M", "names no pages"),
        ("accept 8K page 0", "names no pages; write `page 3`"),
        ("convert page 1", "write it like `convert page 3 to shared`"),
        ("touch 0x1 page 0", "takes no value"),
        ("touch page 0 =>", "write what is right there"),
        ("choose: touch page 0", "needs alternatives"),
        ("choose: choose: touch page 0 | touch page 1 | hlt", "`choose:` cannot be nested"),
        ("", "nothing that a guest does"),
    ],
)
def test_wrong_guest_operations(line: str, remedy: str) -> None:
    with pytest.raises(OpError, match=remedy.replace("(", r"\(")):
        parse_guest_op(line)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("accept 2M frame 0", "nothing that a VMM does here"),
        ("delete slot", "write it like `delete slot 0`"),
        ("close door", "nothing that a VMM does here"),
        ("prefault", "write it like"),
    ],
)
def test_wrong_host_operations(line: str, remedy: str) -> None:
    with pytest.raises(OpError, match=remedy):
        parse_host_op(line)


def test_a_whole_file() -> None:
    scenario = read_scenario(
        "two",
        HEAD
        + """
setup = ["a.vcpu1: accept page 0", "host: prefault page 0 by vcpu2 in b"]
[vm.a]
slots = ["1M", "1M"]
[vm.b]
shares-memory-with = "a"
vcpus = 4
[guest.a]
vcpu0 = ["hlt"]
[host]
wake = ["wake vcpu0 in a"]
[failures]
inject = ["alloc:x @2-3", "seamcall:TDH.MEM.TRACK=busy @all"]
[expect]
pages = { "b: page 1" = "shared or unmapped" }
""",
        "two.toml",
    )
    assert [(vm.name, vm.nr_vcpus, vm.slots) for vm in scenario.vms] == [
        ("a", 2, (1 << 20, 1 << 20)),
        ("b", 4, (2 << 20,)),
    ]
    assert [program.name for program in scenario.programs] == ["a.vcpu0", "host.wake"]
    assert [(i.name, i.value, i.first, i.last > 1000) for i in scenario.injections] == [
        ("alloc:x", 1, 2, False),
        ("seamcall:TDH.MEM.TRACK", 1, 1, True),
    ]
    assert scenario.pages[0][1] == "b"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("[vm]\nbackin = '4k'\n", r"f.toml, line 3: vm has no key 'backin'; it has memory, at,"),
        ("[vm]\nbacking = '8k'\n", r"vm.backing: invalid enum value '8k'; choose from 4k, thp, h"),
        ("[kernel]\nattributes = 'x'\n", r"invalid enum value 'x'; choose from guest_memfd, vm"),
        ("[vm.a]\nbacking = '8k'\n[vm.b]\n", r"line 3: vm.a.backing: .*; choose from 4k, thp,"),
        ("[vm]\nvcpus = 1\n[guest]\nvcpu1=['hlt']\n", r"3: vm.vcpus: 1 are too few for .* vcpu1"),
        ("[vm]\nvcpus = 'x'\n", r"line 3: vm.vcpus: .*; docs/scenarios.md says what stands"),
        ("[vm]\nmemory = '5X'\n[guest]\nvcpu0 = ['hlt']\n", r"line 3: vm.memory: '5X' is no size"),
        (
            "[vm]\ninit-shared = true\n[guest]\nvcpu0=['hlt']\n",
            r"begins shared is in place, and not hug",
        ),
        (
            "[vm]\nlater = true\n[guest]\nvcpu0=['hlt']\n",
            r"built by a program has no programs of its",
        ),
        ("[vm]\nat = '0x80000001'\n[guest]\nvcpu0=['hlt']\n", r"is no place for memory"),
        ("[vm]\nslots = ['1M']\n[guest]\nvcpu0=['hlt']\n", r"1024K together and the memory 2048K"),
        ("[vm]\nimage = ['pag 1']\n[guest]\nvcpu0=['hlt']\n", r"vm.image: 'pag 1' names no pages"),
        ("[vm.a]\n[vm.b]\nshares-memory-with='c'\n[guest.a]\nvcpu0=['hlt']\n", "is no VM above it"),
        ("[guest]\nvcpu0 = ['jump']\n", r"line 3: guest.vcpu0: 'jump' is nothing that a guest"),
        ("[guest]\ncpu0 = ['hlt']\n", r"line 3: guest.cpu0: 'cpu0' is no vCPU; call it vcpu0"),
        ("[guest.a]\nvcpu0 = ['hlt']\n", r"guest.a: no VM is called 'a'; add a table \[vm.a\]"),
        ("[vm.a]\n[vm.b]\n[guest]\nvcpu0 = ['hlt']\n", r"which VM's\? Write \[guest.a\]"),
        ("[host]\nx = ['touch page 0 in c']\n", r"no VM is called 'c'"),
        ("setup = ['touch page 0']\n", r"does not say who does it; write `vcpu0: ...`"),
        ("setup = ['b.vcpu0: hlt']\n", r"no vCPU is called 'b.vcpu0'; write `vm.vcpu0: ...`"),
        ("[guest]\nvcpu0=['hlt']\n[failures]\ninject=['alloc:*']\n", r"'alloc:\*' is not under"),
        ("[guest]\nvcpu0=['hlt']\n[expect]\nbroken=['luck']\n", r"no promise is called 'luck'"),
        ("[guest]\nvcpu0=['hlt']\n[expect]\ndead=['x']\n", r"expect.dead: no VM is called 'x'"),
        ("[guest]\nvcpu0=['hlt']\n[expect]\ncounts={a='many'}\n", r"write a number, `1..3`"),
        ("[guest]\nvcpu0=['hlt']\n[expect]\npages={'page 0'='red'}\n", r"a page cannot be 'red'"),
        ("[guest]\nvcpu0=['hlt']\n[expect]\npages={'pg 0'='shared'}\n", r"'pg 0' names no pages"),
        ("", r"f.toml: nothing happens in it; add a table \[guest\] or \[host\]"),
        ("[vm\n", r"f.toml: this is not TOML"),
        ("[guest]\nvcpu0 = 'hlt'\n", r"line 3: guest.vcpu0: a program is a list of lines"),
        ("[guest]\nvcpu0=['hlt']\n[kernel]\nfast=1\n", r"kernel has no key 'fast'; it has attrib"),
        (
            "[guest]\nvcpu0=['choose: hlt | touch page 512']\n",
            r"beyond the VM's memory, 512 pages at 0x80000000; name pages of it, or give .vm. more",
        ),
        ("setup=['vcpu0: accept frames 0-1']\n", r"line 2: vcpu0: `accept frames 0-1` is beyond"),
        ("after=['vcpu0: verify gpa 0x7ffff000 + 8K']\n", r"`verify gpa 0x7ffff000 \+ 8K` is bey"),
        ("[guest]\nvcpu0=['hlt']\n[expect]\npages={'page 512'='unmapped'}\n", r"'page 512' is bey"),
        (
            "[host]\na=['touch page 600']\n",
            r"line 3: host.a: `touch page 600` is beyond the VM's",
        ),
        ("[host]\na=['read pages 0-99999999']\n", r"`read pages 0-99999999` is beyond the VM's"),
        ("[host]\na=['choose: wait x | discard frame 1']\n", r"host.a: `discard frame 1` is bey"),
        ("setup=['host: fail page 512']\n", r"line 2: host: `fail page 512` is beyond the VM's"),
        ("[vm.a]\n[vm.b]\nmemory='4M'\n[host]\nx=['pin frame 2 in b']\n", r"give .vm.b. more"),
        ("[vm]\nimage=['pages 0-512']\n[guest]\nvcpu0=['hlt']\n", r"image: 'pages 0-512' is beyo"),
    ],
)
def test_mistakes(body: str, sentence: str) -> None:
    """Each names the file, the line or the key, and what would be right."""
    with pytest.raises(InputError, match=sentence) as info:
        read_scenario("f", HEAD + body, "f.toml")
    assert "\n" not in str(info.value)


def test_a_hole_may_be_touched_where_the_vmm_stops_for_it() -> None:
    """And asked for by ioctl, or by the guest, who are told that there is nothing."""
    body = """
[vm]
on-fault = "stop"
[guest]
vcpu0 = ["touch page 512 => any"]
vcpu1 = ["convert page 512 to shared => any"]
[host]
a = ["punch page 512 => any"]
"""
    assert len(read_scenario("f", HEAD + body, "f.toml").programs) == 3


def test_a_missing_summary() -> None:
    with pytest.raises(InputError, match="missing required field `summary`"):
        read_scenario("f", "[vm]\n", "f.toml")


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no scenario is called 'nothing'.+`septum scenarios`"):
        load_scenario("nothing")
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + '[guest]\nvcpu0 = ["hlt"]\n[host]\na = ["wake vcpu0"]\n')
    assert load_scenario(str(path)).name == "mine"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        load_scenario(str(path))
