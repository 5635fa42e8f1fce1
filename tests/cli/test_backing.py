"""`septum compare-backing`: what each backing costs, side by side."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from septum.abi.tdvf import parse_tdvf
from septum.abi.tdvf_build import synthetic_tdvf
from septum.errors import InputError
from septum.scenarios.backing import (
    BackingComparison,
    BackingRun,
    compare_backing,
    render_comparison,
)

MB = 1 << 20


@pytest.fixture(scope="module")
def comparison() -> BackingComparison:
    image = parse_tdvf(synthetic_tdvf(), "own.fd")
    return compare_backing(image, 384 * MB, 1, ["hugetlb-2m"])


def test_all_is_counted(comparison: BackingComparison) -> None:
    for run in comparison.runs:
        assert run.held and run.dynamic_pamt
        assert run.at_login["EPT violations"] > 100 and run.at_login["splits"] > 0
        assert run.at_login["S-EPT pages"] > 3 and run.at_login["PAMT_4K pages"] > 2
        life = run.whole_life
        # What was mapped is gone at the end: by 2M, by 4K after a split, and the image's pages.
        assert life["TDH.MEM.PAGE.REMOVE"] >= life["TDH.MEM.PAGE.AUG"] > 100
        assert life["SEAMCALLs"] > sum(n for name, n in life.items() if name.startswith("TDH."))


def test_the_text_fits_eighty_columns(comparison: BackingComparison) -> None:
    text = render_comparison(msgspec.structs.replace(comparison, runs=comparison.runs * 2))
    assert "Dynamic PAMT" in text and "first/last" in text and "1.00 x" in text
    many = 123_456_789
    run = comparison.runs[0]
    large = BackingRun(
        "hugetlb-1g",
        False,
        False,
        dict.fromkeys(run.at_login, many),
        dict.fromkeys(run.whole_life, many),
    )
    broken = render_comparison(msgspec.structs.replace(comparison, runs=[large] * 3))
    assert "static PAMT" in broken and "BROKEN" in broken
    assert max(len(line) for line in (text + broken).splitlines()) <= 80
    # One backing is compared with nothing.
    assert "first/last" not in render_comparison(comparison)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unknown_backing_is_an_input_error(workers: int) -> None:
    image = parse_tdvf(synthetic_tdvf(), "own.fd")
    with pytest.raises(InputError, match="'paper': choose from"):
        compare_backing(image, 384 * MB, 1, ["paper", "ink"], workers=workers)


def test_golden_comparison(comparison: BackingComparison) -> None:
    """The whole text, with numbers of its own: SEPTUM_UPDATE_GOLDEN=1, and look at the diff."""
    run = comparison.runs[0]

    def numbered(names: dict[str, int], factor: int) -> dict[str, int]:
        return {name: factor * at * at for at, name in enumerate(sorted(names))}

    made = BackingComparison(
        4 << 30,
        8,
        [
            BackingRun(name, True, held, numbered(run.at_login, n), numbered(run.whole_life, 7 * n))
            for name, held, n in (("4k", True, 512), ("hugetlb-2m", False, 9), ("thp", True, 1))
        ],
    )
    path = Path(__file__).parent / "golden" / "backing.txt"
    text = render_comparison(made)
    if os.environ.get("SEPTUM_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_an_interrupt_is_said_once(tmp_path: Path) -> None:
    """Control-C goes to all processes of the terminal: to those of the pool, too."""
    (tmp_path / "own.fd").write_bytes(synthetic_tdvf())
    command = ["compare-backing", "--memory", "4G", "--backing", "4k,4k", "--firmware", "own.fd"]
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # a process of the pool has begun to boot
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[1:] == ["septum: interrupted"]


INTERRUPTED = """
import signal, sys
from septum.cli.main import run_command
from septum.scenarios import backing

# Who was started in the background of a shell inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
boot = backing._boot

def told(image, recipe):
    print("it boots", flush=True)
    return boot(image, recipe)

backing._boot = told
sys.argv = ["septum", *sys.argv[1:]]
sys.exit(run_command())
"""
