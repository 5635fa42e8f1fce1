"""A sentence about a scenario file names the line that is meant, not one that looks like it."""

import pytest

from septum.errors import InputError
from septum.scenarios.places import placed
from septum.scenarios.reader import read_scenario

HEAD = 'summary = "a summary of page 0, alt, or b"\n'
GUEST = '[guest]\nvcpu0 = ["hlt"]\n'


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("[vm]\nmemory = '2M'\n[vm.a]\n" + GUEST, 4),
        ("[machine]\nb = 1\n", 3),
        ("[vm.a]\nve = true\n[vm.b]\nve = 1\n[guest.a]\nvcpu0 = ['hlt']\n", 5),
        ("# memory = '5X'\n[vm]\nmemory = '5X'\n" + GUEST, 4),
        ("[vm]\nmemory = '2M'\nvcpus = 9\n" + GUEST, 4),
        ("[guest]\nvcpu0 = ['hlt', 'al']\n", 3),
        ("source = 'alt\\u2028'\n[guest]\nvcpu0 = ['al']\n", 4),
        ("source = 'alt\u2028\u2029'\nnotes='\u2028'\n[guest]\nvcpu0 = ['al']\n", 5),
        ("[vm]\nmemory = '4K'\n[guest]\nvcpu0 = ['touch page 9', 'touch page 99']\n", 5),
        ("[host]\nb = 'hlt'\n", 3),
        (GUEST + "[expect]\ndead = ['b']\n", 5),
        (GUEST + "[expect]\npages = { 'page' = 'shared' }\n", 5),
    ],
)
def test_the_line_that_is_meant(body: str, line: int) -> None:
    with pytest.raises(InputError, match=rf"^f.toml, line {line}: "):
        read_scenario("f", HEAD + body, "f.toml")


def test_what_stands_nowhere_is_somewhere_in_the_file() -> None:
    text = 'x = "accepting"\n"acc-ept" = 1\n# accept\n[accept]\n'
    assert placed("f", text, "accept") == "f, line 4"
    assert placed("f", text, key="accept", table="x") == "f, line 4"
    assert placed("f", text, "ept") == placed("f", text) == "f"
    assert placed("f", "x = '\u0085'\ny = 'z'", "z") == "f, line 2"
