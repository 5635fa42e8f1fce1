"""A token as a mail quotes it, and one that somebody made by hand."""

import base64
import zlib

import msgspec
import pytest

from septum import __version__
from septum.cli.exits import guarded
from septum.cli.main import app
from septum.explore import Options, explore
from septum.explore.replay import find_subject
from septum.explore.toybox import RARE
from septum.sim.schedule import TOKEN_PREFIX, TokenBody


def cli(*words: str) -> int:
    """The exit code of a command."""
    return guarded(lambda: app(list(words), standalone_mode=True))


def test_a_token_is_read_as_a_mail_quotes_it(capsys: pytest.CaptureFixture[str]) -> None:
    token = explore(RARE, Options()).counterexamples[0].token
    pieces = [token[at : at + 60] for at in range(0, len(token), 60)]
    for before in ("> ", "# ", "  # ", ">> > ", ""):
        quoted = "\n".join(f"{before}{piece}" for piece in ["token: " + pieces[0], *pieces[1:]])
        assert cli("replay", quoted) == 1
        assert capsys.readouterr().out.startswith("BROKEN: promise toy in scenario toy:rare")
        assert cli("report", quoted) == 2
        assert "toys have no pictures" in capsys.readouterr().err
    assert cli("replay", f"note: {token}") == 2


def token_of(recipe: bytes, kind: str, answers: list[int]) -> str:
    body = msgspec.msgpack.encode(TokenBody(__version__, recipe, kind, 1, answers))
    return TOKEN_PREFIX + base64.urlsafe_b64encode(zlib.compress(body)).decode().rstrip("=")


ONE_PAGE = find_subject("convert-one-page")


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (token_of(ONE_PAGE.recipe, "list", [0, -1]), "answer 2 is -1"),
        (token_of(b"toy:rare", "list", [-1]), "answer 1 is -1"),
        (token_of(b"toy:\xff", "list", []), "no toy is called"),
        (token_of(b"nothing", "list", []), "nothing that this Septum can build"),
        (
            token_of(
                find_subject("convert-one-page").recipe.replace(b"\xa3end", b"\xa3odd"), "list", []
            ),
            "Invalid enum value 'odd' - at `$.check`",
        ),
        (token_of(ONE_PAGE.recipe, "list", [9]), "search again with `septum explore convert-one-"),
    ],
)
def test_a_token_made_by_hand_is_a_sentence(
    token: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative answers, recipes that say nothing, answers that do not fit."""
    for command in ("replay", "report"):
        assert cli(command, token) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        assert says in said.err or (command == "report" and "toys have no" in said.err)
