"""What no host could do is refused before anything runs, with its line and a remedy."""

import pytest

from septum.errors import InputError
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import load_scenario, scenario_names

HEAD = 'summary = "x"\n'
GUEST = '[guest]\nvcpu0 = ["accept page 0"]\n'
LATER = "[vm.a]\nlater = true\n"
TWO = '[guest.a]\nvcpu0 = ["accept page 0"]\n'


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("[machine]\nmodule = '9.9.9'\n" + GUEST, r"3: machine.module: '9.9.9' is no version of"),
        ("[machine]\nmodule = ''\n" + GUEST, r"line 3: machine.module: '' is no version of the m"),
        ("[machine]\nmodule = '1.5'\n" + GUEST, r"is no version of the module; write one of 1.5."),
        (GUEST + "[host]\na = ['delete slot 7']\n", r"line 5: host.a: `delete slot 7`: the VM has"),
        (GUEST + "[host]\na = ['choose: create slot 1 | close vm']\n", r"line 5: host.a: `create"),
        ("setup = ['host: create plain slot 7']\n" + GUEST, r"line 2: host: `create plain slot 7`"),
        (
            "[vm]\nslots = ['1M', '1M']\n" + GUEST + "[host]\na = ['delete slot 2']\n",
            r"the VM has slot 0 to slot 1; name one of these, or cut its memory into more `slots`",
        ),
        ("[guest]\nvcpu0 = ['wait go']\n", r"line 3: vcpu0: `wait go` waits for ever, as nobody"),
        ("[guest]\nvcpu0 = ['wait go']\n[host]\na = ['signal got']\n", r"did you mean 'got'\?"),
        ("[guest]\nvcpu0 = ['choose: hlt | wait go']\n", r"write `signal go` where it may go on"),
        ("after = ['host: wait go']\n" + GUEST, r"line 2: host: `wait go` waits for ever"),
        (
            "[guest]\nvcpu0 = ['wait y', 'signal x']\n[host]\na = ['wait x', 'signal y']\n",
            r"line 3: vcpu0: `wait y` waits for ever, as .* only after `wait x` of host.a; signal",
        ),
        ("[guest]\nvcpu0 = ['wait y', 'signal y']\n", r"is signalled only after that; signal it"),
        ("setup = ['host: wait y']\n[guest]\nvcpu0 = ['signal y']\n", r"2: host: `wait y` waits"),
        ("after = ['host: signal y']\n[guest]\nvcpu0 = ['wait y']\n", r"4: vcpu0: `wait y` wait"),
        ("[vm]\nmemory = '4G'\n" + GUEST, r"3: vm.memory: 4G from 0x80000000 on do not end below"),
        ("[vm]\nmemory = '2G'\n" + GUEST, r"write less, or at = \"0x100000000\""),
        ("[vm]\nimage = ['page 0', 'page 0']\n" + GUEST, r"line 3: vm.image: 'page 0' has pages"),
        (
            "[vm]\nimage = ['page 5', 'pages 0-9']\n" + GUEST,
            r"'pages 0-9' has pages of 'page 5'; name each page once",
        ),
        (
            "[vm.a]\nin-place = true\n[vm.b]\nshares-memory-with = 'a'\n" + TWO,
            r"line 5: vm.b.shares-memory-with: the memory is that of .vm.a., and so is in-place; w",
        ),
        (
            "[vm.a]\n[vm.b]\nin-place = true\nshares-memory-with = 'a'\n" + TWO,
            r"write in-place = false here, too",
        ),
        (
            "[vm.a]\nlater = true\n[vm.b]\nshares-memory-with = 'a'\n[guest.b]\nvcpu0 = ['hlt']\n",
            r"line 5: vm.b.shares-memory-with: 'a' is built later, and has no memory before; let",
        ),
        (
            "[vm.a]\n[vm.b]\nmemory = '4M'\nshares-memory-with = 'a'\n" + TWO,
            r"line 4: vm.b.memory: 4M are more than \[vm.a\] has, whose memory it is; write at mos",
        ),
    ],
)
def test_what_no_host_can_do(body: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as info:
        read_scenario("f", HEAD + body, "f.toml")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("vcpu", "host", "before"),
    [
        ("'wait y', 'signal x'", "'signal y', 'wait x'", ""),
        ("'choose: wait x | hlt', 'signal y'", "'wait y', 'signal x'", ""),
        ("'wait y'", "'choose: signal y | destroy vm'", ""),
        ("'wait y => stopped', 'signal x'", "'destroy vm', 'wait x', 'signal y'", ""),
        ("'wait y', 'signal x'", "'wait x'", "setup = ['host: signal y']"),
    ],
)
def test_who_may_take_turns(vcpu: str, host: str, before: str) -> None:
    """Where somebody may go on nothing is refused: a search tells what comes of it."""
    text = f"{before}\n[guest]\nvcpu0 = [{vcpu}]\n[host]\na = [{host}]\n"
    read_scenario("f", HEAD + text, "f.toml")


@pytest.mark.parametrize(
    "body",
    [
        "setup = ['host: signal go']\n[guest]\nvcpu0 = ['wait go']\n",
        "[guest]\nvcpu0 = ['choose: hlt | signal go']\n[host]\na = ['wait go']\n",
        LATER + "[vm.b]\nlater = true\nshares-memory-with = 'a'\n[host]\na = ['build vm in a']\n",
        "[vm]\nmemory = '4G'\nat = '0x100000000'\n" + GUEST,
    ],
)
def test_what_is_possible(body: str) -> None:
    read_scenario("f", HEAD + body, "f.toml")


def test_the_library_makes_sense() -> None:
    for name in scenario_names():
        load_scenario(name)
