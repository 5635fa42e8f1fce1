"""The order in which a firmware is chosen, and that each way of failing falls through."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from septum.abi.tdvf import TdvfError
from septum.abi.tdvf_build import synthetic_tdvf
from septum.firmware import FirmwareSource, acquire_firmware, read_firmware
from septum.firmware.acquire import default_cache_dir
from septum.firmware.debian import DebianError, cached_image, fetch_image

PLAIN_UEFI = bytes(0x28) + b"_FVH" + bytes(0x10000 - 0x2C)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tree_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


class FakeDebian:
    """`apt-get` and `dpkg-deb` on a private PATH; a .deb is a tar file here."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin = folder / "bin"
        self.deb = folder / "package.tar"
        self.log = folder / "log"
        self.bin.mkdir(parents=True)
        monkeypatch.setenv("PATH", f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin")
        self.script("dpkg-deb", f'mkdir "$3" && tar -xf "$2" -C "$3"; echo x >> {self.log}')
        self.script("apt-get", f'cp {self.deb} ovmf_2022.11-6_all.deb; echo "$@" >> {self.log}')

    def script(self, name: str, body: str) -> None:
        path = write(self.bin / name, f"#!/bin/sh\n{body}\n".encode())
        path.chmod(0o755)

    def package(self, files: dict[str, bytes]) -> None:
        with tarfile.open(self.deb, "w") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDebian]:
    yield FakeDebian(tmp_path / "debian", monkeypatch)


def test_given_file_is_used_or_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.fd", synthetic_tdvf())
    firmware = acquire_firmware(good)
    assert firmware.source is FirmwareSource.OPTION
    assert firmware.sentence == f"Firmware: {good}, as given."
    with pytest.raises(TdvfError, match="no TDX metadata"):
        acquire_firmware(write(tmp_path / "plain.fd", PLAIN_UEFI))
    with pytest.raises(TdvfError, match=r"cannot be read \(No such file or directory\)"):
        read_firmware(tmp_path / "missing.fd")
    with pytest.raises(TdvfError, match="is a folder; name a firmware image"):
        read_firmware(tmp_path)


def test_installed_image_wins_over_the_network(tmp_path: Path, debian: FakeDebian) -> None:
    installed = write(tmp_path / "root/usr/share/ovmf/OVMF.fd", synthetic_tdvf())
    firmware = acquire_firmware(root=tmp_path / "root", cache_dir=tmp_path / "cache")
    assert (firmware.source, firmware.path) == (FirmwareSource.INSTALLED, str(installed))
    assert not debian.log.exists()
    assert not (tmp_path / "cache").exists()


def test_qemu_descriptor_for_tdx_comes_first(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "usr/share/ovmf/OVMF.fd", synthetic_tdvf())
    named = write(root / "usr/share/edk2/special.fd", synthetic_tdvf())
    folder = root / "usr/share/qemu/firmware"
    write(folder / "10-broken.json", b"{")
    write(folder / "20-sev.json", b'{"mapping": {"filename": "/x"}, "features": ["amd-sev"]}')
    write(
        folder / "60-tdx.json",
        b'{"mapping": {"device": "memory", "filename": "/usr/share/edk2/special.fd"},'
        b' "features": ["intel-tdx", "verbose-dynamic"]}',
    )
    assert acquire_firmware(root=root, cache_dir=tmp_path / "c").path == str(named)


def test_package_is_fetched_once_and_only_its_image_kept(
    tmp_path: Path, debian: FakeDebian
) -> None:
    debian.package(
        {
            "usr/share/ovmf/OVMF.fd": synthetic_tdvf(),
            "usr/share/OVMF/OVMF_CODE.fd": b"x",
            "usr/share/doc/ovmf/copyright": b"BSD",
        }
    )
    root, cache = tmp_path / "root", tmp_path / "cache"
    first = acquire_firmware(root=root, cache_dir=cache)
    assert first.source is FirmwareSource.FETCHED
    calls = debian.log.read_text()
    assert "download ovmf" in calls
    second = acquire_firmware(root=root, cache_dir=cache)
    assert second.source is FirmwareSource.CACHED
    assert (second.path, second.image) == (first.path, first.image)
    assert debian.log.read_text() == calls
    assert tree_of(cache) == [
        "ovmf_2022.11-6_all",
        "ovmf_2022.11-6_all/copyright",
        "ovmf_2022.11-6_all/usr",
        "ovmf_2022.11-6_all/usr/share",
        "ovmf_2022.11-6_all/usr/share/ovmf",
        "ovmf_2022.11-6_all/usr/share/ovmf/OVMF.fd",
    ]


def test_unusable_installed_image_is_passed_over_with_a_sentence(
    tmp_path: Path, debian: FakeDebian
) -> None:
    debian.package({"usr/share/ovmf/OVMF.fd": synthetic_tdvf()})
    write(tmp_path / "root/usr/share/ovmf/OVMF.fd", PLAIN_UEFI)
    firmware = acquire_firmware(root=tmp_path / "root", cache_dir=tmp_path / "cache")
    assert firmware.source is FirmwareSource.FETCHED
    assert len(firmware.passed_over) == 1
    assert "no TDX metadata" in firmware.passed_over[0]


def test_no_network_falls_through_to_the_own_image(tmp_path: Path, debian: FakeDebian) -> None:
    debian.script("apt-get", 'echo "E: Could not  resolve host." >&2; exit 100')
    firmware = acquire_firmware(root=tmp_path / "root", cache_dir=tmp_path / "cache")
    assert firmware.source is FirmwareSource.SYNTHETIC
    assert firmware.passed_over == (
        "Debian's ovmf package could not be downloaded: Could not resolve host.",
    )
    assert firmware.image.data == synthetic_tdvf()
    assert "builds itself" in firmware.sentence
    assert tree_of(tmp_path / "cache") == []


def test_download_can_be_forbidden(tmp_path: Path, debian: FakeDebian) -> None:
    firmware = acquire_firmware(root=tmp_path, cache_dir=tmp_path / "cache", download=False)
    assert firmware.source is FirmwareSource.SYNTHETIC
    assert not debian.log.exists()
    assert not (tmp_path / "cache").exists()


def test_machine_without_package_lists_gets_private_ones(
    tmp_path: Path, debian: FakeDebian
) -> None:
    debian.package({"usr/share/ovmf/OVMF.fd": synthetic_tdvf()})
    debian.script(
        "apt-get",
        f'echo "$@" >> {debian.log}\n'
        'case "$*" in *State::Lists*update) exit 0;; *State::Lists*download*) ;;\n'
        '*) echo "E: Unable to locate package ovmf" >&2; exit 100;; esac\n'
        f"cp {debian.deb} ovmf_1_all.deb",
    )
    fetch_image(tmp_path / "cache")
    assert [line.split()[-1] for line in debian.log.read_text().splitlines() if " " in line] == [
        "ovmf", "update", "ovmf",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"usr/share/OVMF/OVMF_CODE.fd": b"x"}, "it holds no OVMF image"),
        ({"usr/share/ovmf/OVMF.fd": PLAIN_UEFI}, "no TDX metadata"),
    ],
)
def test_package_without_tdx_is_of_no_use(
    tmp_path: Path, debian: FakeDebian, files: dict[str, bytes], expected: str
) -> None:
    debian.package(files)
    with pytest.raises(DebianError, match=expected):
        fetch_image(tmp_path / "cache")
    assert cached_image(tmp_path / "cache")[0] is None


def test_missing_tools_and_broken_packages_are_sentences(
    tmp_path: Path, debian: FakeDebian, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian.script("dpkg-deb", 'echo "dpkg-deb: error: not a Debian format archive" >&2; exit 2')
    debian.package({})
    with pytest.raises(DebianError, match="could not be unpacked: dpkg-deb: error"):
        fetch_image(tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DebianError, match="There is no apt-get here"):
        fetch_image(tmp_path / "cache")


def test_unwritable_cache_is_a_sentence(tmp_path: Path, debian: FakeDebian) -> None:
    write(tmp_path / "cache", b"a file, not a folder")
    with pytest.raises(DebianError, match="cannot be written"):
        fetch_image(tmp_path / "cache" / "firmware")


def test_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "septum" / "firmware"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache_dir() == Path("/home/someone/.cache/septum/firmware")


def test_bookworm_image_has_the_sections_known_for_it() -> None:
    """The real image, where one is at hand without the network."""
    firmware = acquire_firmware(download=False)
    image = firmware.image
    if not image.sha256.startswith("7b456907dd0786d415999e801a1ac463"):
        pytest.skip("Debian bookworm's OVMF.fd is neither installed nor in the cache")
    assert image.descriptor_offset == 0x1FF7C0
    assert (image.nr_pages_added, image.nr_extends) == (538, 7680)


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    """A device, and a file that no image would be as large as."""
    with pytest.raises(TdvfError, match="/dev/zero: is no regular file"):
        read_firmware(Path("/dev/zero"))
    large = tmp_path / "large.fd"
    with large.open("wb") as file:
        file.truncate((64 << 20) + 1)  # of which the disk has nothing
    with pytest.raises(TdvfError, match=r"large.fd: has more than 64 MiB"):
        read_firmware(large)
