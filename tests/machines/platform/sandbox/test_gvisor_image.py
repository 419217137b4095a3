"""Sealed images: what this platform wrote, whole, and nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from machines.platform.sandbox import gvisor_image
from machines.platform.sandbox.errors import SandboxLimit

KEY = b"k" * 32


def packed(tmp_path: Path, key: bytes = KEY) -> Path:
    """A snapshot of two files."""
    directory = tmp_path / "written"
    directory.mkdir(exist_ok=True)
    (directory / "checkpoint.img").write_bytes(b"kernel" * 1000)
    (directory / "pages.img").write_bytes(bytes(3_000_000))
    target = tmp_path / "full"
    saved = gvisor_image.pack(directory, target, key=key, runsc="runsc 1", bytes_max=10**7)
    assert saved.level == "full"
    assert saved.size_bytes == target.stat().st_size
    assert saved.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    return target


def unpack(source: Path, directory: Path, *, key: bytes = KEY, runsc: str = "runsc 1") -> None:
    directory.mkdir(exist_ok=True)
    gvisor_image.unpack(source, directory, key=key, runsc=runsc)


def test_what_was_packed_is_unpacked(tmp_path: Path) -> None:
    source = packed(tmp_path)
    assert gvisor_image.is_full(source)
    unpack(source, tmp_path / "read")
    names = {each.name: each.read_bytes() for each in (tmp_path / "read").iterdir()}
    assert names == {"checkpoint.img": b"kernel" * 1000, "pages.img": bytes(3_000_000)}
    assert source.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", [30, 200, 5000, -1])
def test_one_changed_byte_is_refused(tmp_path: Path, place: int) -> None:
    source = packed(tmp_path)
    content = bytearray(source.read_bytes())
    content[place] ^= 1
    source.write_bytes(content)
    with pytest.raises(SandboxLimit, match="made by this platform"):
        unpack(source, tmp_path / "read")


def test_the_seal_covers_how_the_bytes_are_cut_into_files(tmp_path: Path) -> None:
    source = packed(tmp_path)
    magic, head, rest = source.read_bytes().split(b"\n", 2)
    document = json.loads(head)
    document["files"] = {"checkpoint.img": 5999, "pages.img": 3_000_001}
    source.write_bytes(b"\n".join([magic, json.dumps(document).encode(), rest]))
    with pytest.raises(SandboxLimit, match="made by this platform"):
        unpack(source, tmp_path / "read")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"[]",
        b"{}",
        b'{"runsc": "runsc 1", "mac": "", "files": {"../up": 1}}',
        b'{"runsc": "runsc 1", "mac": "", "files": {"pages.img": -1}}',
        b'{"runsc": "runsc 1", "mac": "", "files": {"pages.img": "x"}}',
        b"[" * 60_000,
    ],
)
def test_a_strange_head_is_refused_and_nothing_written(tmp_path: Path, head: bytes) -> None:
    source = tmp_path / "strange"
    source.write_bytes(b"turtles full snapshot 1\n" + head + b"\nrest")
    with pytest.raises(SandboxLimit, match="made by this platform"):
        unpack(source, tmp_path / "read")
    assert list((tmp_path / "read").iterdir()) == []


def test_another_platforms_key_and_another_version_are_refused(tmp_path: Path) -> None:
    source = packed(tmp_path)
    with pytest.raises(SandboxLimit, match="made by this platform"):
        unpack(source, tmp_path / "read", key=b"x" * 32)
    with pytest.raises(SandboxLimit, match="runsc 2"):
        unpack(source, tmp_path / "other", runsc="runsc 2")


def test_an_image_that_is_too_large_is_not_kept(tmp_path: Path) -> None:
    packed(tmp_path).unlink()
    with pytest.raises(SandboxLimit, match="at most 100 are kept"):
        gvisor_image.pack(
            tmp_path / "written", tmp_path / "full", key=KEY, runsc="runsc 1", bytes_max=100
        )
    assert not (tmp_path / "full").exists()


def test_an_archive_of_files_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "files").write_bytes(b"root/\0" * 100)
    assert not gvisor_image.is_full(tmp_path / "files")
    with pytest.raises(SandboxLimit, match="cannot be read"):
        gvisor_image.is_full(tmp_path / "absent")


def test_the_key_is_made_once(tmp_path: Path) -> None:
    key = gvisor_image.load_key(tmp_path / "key")
    assert gvisor_image.load_key(tmp_path / "key") == key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(SandboxLimit, match="5 bytes"):
        gvisor_image.load_key(tmp_path / "key")
