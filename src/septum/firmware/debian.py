"""Debian's `ovmf` package without root: downloaded by apt-get, unpacked into the cache.

apt-get knows the mirror, the version and the signatures; nothing of that is repeated here. All of
apt's own files go below the cache directory, and only the image and its copyright note stay.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from septum.abi.tdvf import TdvfImage
from septum.firmware.installed import find_image

PACKAGE = "ovmf"
DOWNLOAD_TIMEOUT_S = 120
NETWORK_TIMEOUT_S = 10


class DebianError(Exception):
    """The package could not be had; the text is one sentence."""


def cached_image(cache_dir: Path) -> tuple[Path | None, TdvfImage | None, list[str]]:
    """An image that an earlier run unpacked; of several versions the last by name."""
    refused: list[str] = []
    for folder in sorted(cache_dir.glob(f"{PACKAGE}_*"), reverse=True):
        path, image, sentences = find_image(folder)
        refused += sentences
        if image is not None:
            return path, image, refused
    return None, None, refused


def fetch_image(cache_dir: Path) -> tuple[Path, TdvfImage]:
    """Downloads and unpacks the package; the image's path in the cache, and the image.

    Raises DebianError: no apt-get or dpkg-deb, no network, no such package, or a package
    without an image that has TDX metadata.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DebianError(f"There is no {tool} here to fetch Debian's {PACKAGE} package with.")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache_dir) as work:
            return _fetch_into(cache_dir, Path(work))
    except OSError as error:
        wrong = f"{error.filename or cache_dir} cannot be written ({error.strerror})"
        raise DebianError(f"Debian's {PACKAGE} package was not unpacked: {wrong}.") from error


def _fetch_into(cache_dir: Path, work: Path) -> tuple[Path, TdvfImage]:
    package = _download(work)
    tree = work / "tree"
    result = _run(["dpkg-deb", "-x", str(package), str(tree)], work)
    if result.returncode:
        raise DebianError(f"{package.name} could not be unpacked: {_last_line(result.stderr)}.")
    found, image, refused = find_image(tree)
    if found is None or image is None:
        reason = refused[0].replace(f"{tree}/", "") if refused else "it holds no OVMF image."
        raise DebianError(f"{package.name} is of no use: {reason}")
    kept = work / "kept"
    relative = found.relative_to(tree)
    (kept / relative).parent.mkdir(parents=True)
    shutil.move(found.resolve(), kept / relative)
    notice = tree / "usr/share/doc" / PACKAGE / "copyright"
    if notice.is_file():
        shutil.move(notice, kept / "copyright")
    target = cache_dir / package.name.removesuffix(".deb")
    shutil.rmtree(target, ignore_errors=True)
    kept.rename(target)
    path, image, _ = find_image(target)
    assert path is not None
    assert image is not None
    return path, image


def _download(work: Path) -> Path:
    """The .deb in `work`. Package lists are read where the system keeps them.

    A machine without lists (a fresh container) gets private ones in `work`.
    """
    result = _apt_get(work, ["download", PACKAGE])
    if result.returncode and "Unable to locate package" in result.stderr:
        lists = ["-o", f"Dir::State::Lists={work / 'lists'}"]
        (work / "lists" / "partial").mkdir(parents=True)
        updated = _apt_get(work, [*lists, "update"])
        if updated.returncode == 0:
            result = _apt_get(work, [*lists, "download", PACKAGE])
    packages = sorted(work.glob(f"{PACKAGE}_*.deb"))
    if result.returncode or not packages:
        raise DebianError(
            f"Debian's {PACKAGE} package could not be downloaded: {_last_line(result.stderr)}."
        )
    return packages[0]


def _apt_get(work: Path, arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    apt_cache = work / "apt"
    (apt_cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::Cache": str(apt_cache),
        "APT::Sandbox::User": "",
        "Acquire::http::Timeout": str(NETWORK_TIMEOUT_S),
        "Acquire::https::Timeout": str(NETWORK_TIMEOUT_S),
        "Acquire::Retries": "0",
    }
    command = ["apt-get", "-q"]
    for option, value in options.items():
        command += ["-o", f"{option}={value}"]
    return _run(command + arguments, work)


def _run(command: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        wrong = f"{command[0]} did not end within {DOWNLOAD_TIMEOUT_S} s"
        raise DebianError(
            f"Debian's {PACKAGE} package could not be downloaded: {wrong}."
        ) from error


def _last_line(text: str) -> str:
    """The first error line apt printed, else the last line, without its full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line[3:] for line in lines if line.startswith("E: ")]
    line = (errors or lines or ["no reason given"])[0 if errors else -1]
    return " ".join(line.split()).rstrip(".")
