"""A token says which state of the model made it, and one of another state is tried with a word."""

import shutil
from pathlib import Path

import msgspec
import pytest

import septum
from septum import stamp
from septum.cli.exits import OK, USAGE, guarded
from septum.cli.main import app
from septum.scenarios.run import load_scenario, recipe_for_token, run_scenario
from septum.sim import RoundRobin, decode_token, encode_token

SOURCES = Path(septum.__file__).parent
SCENARIO = "convert-one-page"


def replayed(stamped: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    recipe = msgspec.msgpack.encode(recipe_for_token(load_scenario(SCENARIO), "v3", "quiet"))
    token = encode_token(stamped, recipe, RoundRobin())
    code = guarded(lambda: app(["replay", token], standalone_mode=True))
    out, err = capfd.readouterr()
    return code, out, err


def test_tokens_have_the_stamp_of_what_runs() -> None:
    stamped = decode_token(run_scenario(SCENARIO).token)[0]
    assert stamped == stamp.stamp() == f"{septum.__version__}+{stamp.digest_of(SOURCES)}"
    assert stamp.version_of(stamped) == septum.__version__ and not stamp.differs(stamped)


def test_another_state_is_tried_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = replayed(f"{septum.__version__}+0badc0de", capfd)
    mine = stamp.stamp().partition("+")[2]
    assert code == OK and f"{SCENARIO}: as expected" in out
    assert err == (
        f"septum: the token was made on another state of the model (0badc0de, this is {mine}), so"
        " that this run may be another; the commit that made it replays it for sure\n"
    )


@pytest.mark.parametrize("stamped", [septum.__version__, stamp.stamp()])
def test_the_same_state_and_none_at_all_say_nothing(
    stamped: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tokens from before there were stamps have a version alone."""
    code, out, err = replayed(stamped, capfd)
    assert code == OK and f"{SCENARIO}: as expected" in out and err == ""


def test_another_version_is_refused_whatever_its_state(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = replayed(f"0.0.1+{stamp.stamp().partition('+')[2]}", capfd)
    assert (code, out) == (USAGE, "")
    assert err.startswith(f"septum: the token is of Septum 0.0.1, this is {septum.__version__};")


def test_what_a_run_is_a_function_of_is_in_the_digest(tmp_path: Path) -> None:
    """A change anywhere in the rooms is seen, a new and a renamed file, too; nothing else is."""
    packages = {path.parent.name for path in SOURCES.glob("*/__init__.py")}
    beside = {"checks", "cli", "compare", "conform", "explore", "firmware", "report", "trace"}
    assert packages == beside | set(stamp.ROOMS), "say of a new package whether runs depend on it"
    root = tmp_path / "septum"
    for room in packages:
        (root / room).mkdir(parents=True)
        shutil.copy(SOURCES / room / "__init__.py", root / room)
    digests = [stamp.digest_of(root)]
    for room in sorted(packages):
        file = root / room / "__init__.py"
        file.write_text(file.read_text() + "# changed\n")
        digests.append(stamp.digest_of(root))
        assert (digests[-1] != digests[-2]) == (room in stamp.ROOMS), room
    (root / "linux" / "kvm").mkdir()
    new = root / "linux" / "kvm" / "new.py"
    new.write_text("")
    digests.append(stamp.digest_of(root))
    new.rename(new.with_name("other.py"))
    digests.append(stamp.digest_of(root))
    assert len(set(digests)) == len(stamp.ROOMS) + 3
    assert len(digests[0]) == stamp.DIGITS
