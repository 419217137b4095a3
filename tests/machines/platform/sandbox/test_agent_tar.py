"""The tar of a sandbox: honest archives come back as they were, hostile ones stay in."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from machines.platform.sandbox import agent_tar
from machines.platform.sandbox.backend import MIB, Command, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import SandboxLimit

# -- the pure part: unpacking into directories of the test ---------------------------------------


class Place:
    """Two directories to unpack into, and a canary beside them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root, self.tmp = base / "inside" / "root", base / "inside" / "tmp"
        for directory in (self.root, self.tmp):
            directory.mkdir(parents=True)
        self.canary = base / "canary"
        self.canary.write_text("alive")
        self.states = {name: os.memfd_create(name) for name in ("python3", "bash")}

    def unpack(self, content: bytes) -> dict[str, Any]:
        read, write = os.pipe()

        def send() -> None:
            with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb") as file:
                file.write(content)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            tops = {"root": str(self.root), "tmp": str(self.tmp)}
            return agent_tar.unpack(read, self.states, tops)
        finally:
            thread.join(30)

    def outside(self) -> dict[str, str]:
        """Everything beside the two directories, with its content."""
        return {
            str(path.relative_to(self.base)): path.read_text() if path.is_file() else "directory"
            for path in sorted(self.base.rglob("*"))
            if self.root not in (path, *path.parents) and self.tmp not in (path, *path.parents)
        }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def archive(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], end: bool = True) -> bytes:
    """A tar archive of these members."""
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            item, content = member if isinstance(member, tuple) else (member, b"")
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
        if end:
            tar.addfile(tarfile.TarInfo(agent_tar.END))
    return into.getvalue()


def item(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> Any:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode, made.mtime = kind, link, mode, 1_000_000_000
    return made


def folder(name: str, mode: int = 0o755) -> Any:
    return item(name, tarfile.DIRTYPE, mode=mode)


def test_an_honest_archive_replaces_what_was_there(place: Place) -> None:
    deep = os.open(place.root, os.O_RDONLY)
    for _ in range(300):  # deeper than a path may be long
        os.mkdir("d" * 20, dir_fd=deep)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    (place.root / "old").write_text("old")
    (place.tmp / "shut").mkdir(mode=0o000)
    report = place.unpack(
        archive(
            folder("root", 0o700),
            folder("root/a", 0o500),
            (item("root/a/file", mode=0o640), b"content"),
            item("root/a/hard", tarfile.LNKTYPE, "root/a/file"),
            item("root/link", tarfile.SYMTYPE, "/etc/passwd"),
            (item("tmp/n\u00e4me with blanks\n"), b"x"),
            (item("state/bash"), b"A=1"),
        )
    )
    assert report == {"lost": []}
    assert sorted(each.name for each in place.root.iterdir()) == ["a", "link"]
    file = place.root / "a" / "file"
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"content", 0o640)
    assert file.stat().st_mtime == (place.root / "a").stat().st_mtime == 1_000_000_000
    assert stat.S_IMODE((place.root / "a").stat().st_mode) == 0o500
    assert (place.root / "a" / "hard").stat().st_ino == file.stat().st_ino
    assert (place.root / "link").readlink() == Path("/etc/passwd")
    assert [each.name for each in place.tmp.iterdir()] == ["n\u00e4me with blanks\n"]
    assert os.pread(place.states["bash"], 10, 0) == b"A=1"


@pytest.mark.parametrize(
    "name",
    [
        "/root/x",
        "/etc/passwd",
        "../canary",
        "root/../../../canary",
        "root/./x",
        "root//x",
        "root/",
        "etc/passwd",
        ".",
        "",
        "state/../root/x",
        "root/a/..",
    ],
)
def test_a_name_that_leads_out_is_refused(place: Place, name: str) -> None:
    before = place.outside()
    made = tarfile.TarInfo(name)
    made.type = tarfile.REGTYPE
    body = archive((item("root/first"), b"1"), (made, b"evil"))
    if name in ("root/", ".", ""):  # tarfile itself makes these `root`, `.` and empty
        with pytest.raises((agent_tar.Refused, tarfile.TarError)):
            place.unpack(body)
    else:
        with pytest.raises(agent_tar.Refused, match="outside"):
            place.unpack(body)
    assert place.outside() == before


def test_no_link_is_followed(place: Place) -> None:
    before = place.outside()
    victim = str(place.base)
    for members in (
        # A link that was unpacked before, in the place of a directory.
        (item("root/out", tarfile.SYMTYPE, victim), (item("root/out/canary"), b"dead")),
        (item("root/out", tarfile.SYMTYPE, "../../.."), (item("root/out/canary"), b"dead")),
        (item("root/out", tarfile.SYMTYPE, victim), folder("root/out/made")),
        (
            item("root/out", tarfile.SYMTYPE, victim),
            item("root/hard", tarfile.LNKTYPE, "root/out/canary"),
        ),
        # A hard link to something outside.
        (item("root/hard", tarfile.LNKTYPE, f"{victim}/canary"),),
        (item("root/hard", tarfile.LNKTYPE, "root/../../../canary"),),
        (item("root/hard", tarfile.LNKTYPE, "root"),),
    ):
        with pytest.raises((OSError, agent_tar.Refused)):
            place.unpack(archive(*members))
        assert place.outside() == before


def test_writing_over_a_link_replaces_the_link(place: Place) -> None:
    before = place.outside()
    place.unpack(
        archive(
            item("root/a", tarfile.SYMTYPE, str(place.canary)),
            (item("root/a"), b"mine"),
            item("root/b", tarfile.SYMTYPE, str(place.base)),
            folder("root/b", 0o700),
            (item("root/b/canary"), b"mine"),
        )
    )
    assert (place.root / "a").read_bytes() == b"mine"
    assert (place.root / "b" / "canary").read_bytes() == b"mine"
    assert place.outside() == before


def test_a_hard_link_to_a_link_links_the_link(place: Place) -> None:
    before = place.outside()
    place.unpack(
        archive(
            item("root/soft", tarfile.SYMTYPE, str(place.canary)),
            item("root/hard", tarfile.LNKTYPE, "root/soft"),
        )
    )
    assert (place.root / "hard").is_symlink()
    assert place.outside() == before


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"9"])
def test_what_is_neither_file_nor_link_is_left_out_and_named(place: Place, kind: bytes) -> None:
    report = place.unpack(archive(item("root/odd", kind), (item("root/good"), b"1")))
    names = [each.name for each in place.root.iterdir()]
    if kind == b"9":  # an unknown kind counts as a file, as tar has it
        assert names == ["good"] or sorted(names) == ["good", "odd"]
    else:
        assert names == ["good"]
        assert report["lost"] == ["/root/odd (neither file, directory nor link)"]


@pytest.mark.parametrize("left", [0, 1, 511, 512, 700, 1600, 2500])
def test_a_cut_archive_is_no_archive(place: Place, left: int) -> None:
    body = archive((item("root/a"), b"a" * 600), (item("root/b"), b"b"))
    with pytest.raises((agent_tar.Refused, tarfile.TarError, OSError, EOFError)):
        place.unpack(body[:left])


def test_noise_is_no_archive(place: Place) -> None:
    with pytest.raises((agent_tar.Refused, tarfile.TarError)):
        place.unpack(os.urandom(20_000))


def test_odd_times_and_modes_do_no_harm(place: Place) -> None:
    odd = item("root/a", mode=0o7777)
    odd.mtime = 1e300
    place.unpack(archive((odd, b"x")))
    assert stat.S_IMODE((place.root / "a").stat().st_mode) == 0o7777


def test_a_reader_gives_what_its_header_promised() -> None:
    short = agent_tar.Exactly(io.BytesIO(b"abc"))
    assert (short.read(2), short.changed) == (b"ab", False)
    assert (short.read(3), short.changed) == (b"c\0\0", True)


# -- in a sandbox --------------------------------------------------------------------------------


def sh(backend: BubblewrapBackend, sandbox: Handle, text: str) -> str:
    result = backend.execute(sandbox, Command(("bash", "-c", text)))
    assert result.exit_code == 0, result.stderr.decode()
    return result.stdout.decode(errors="backslashreplace")


def cell(backend: BubblewrapBackend, sandbox: Handle, code: str, language: str = "python3") -> str:
    result = backend.cell(sandbox, language, code)
    assert result.exit_code == 0, (result.stdout, result.stderr)
    return result.stdout.decode()


LISTING = r"""
cd /; find root tmp -printf '%y %m %s %T@ %p %l\n' | sort -k5
find root tmp -type f -readable -exec sha256sum {} + | sort -k2
"""
FILES = r"""
cd /root; mkdir -p a/b empty; head -c 300000 /dev/urandom > a/b/data; echo text > 'na me'
printf x > "$(printf 'caf\xc3\xa9-\xff')"; ln -s /etc/passwd soft; ln -s nowhere broken
ln a/b/data hard; chmod 4755 'na me'; chmod 1777 empty; echo secret > shut; chmod 000 shut
mkdir closed; echo in > closed/in; chmod 000 closed
touch -d 2001-02-03T04:05:06.789 a/b/data; touch -h -d 2002-02-02 soft; touch -d 2003-03-03 a
echo t > /tmp/t; chmod 700 /tmp
"""


def test_files_come_back_exactly(
    bubblewrap: BubblewrapBackend, sandbox: Handle, new_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    sh(bubblewrap, sandbox, FILES)
    before = sh(bubblewrap, sandbox, LISTING)
    saved = bubblewrap.save(sandbox, tmp_path / "a.tar", level="files")
    assert (saved.level, saved.lost) == ("files", ())
    assert sh(bubblewrap, sandbox, LISTING) == before
    sh(
        bubblewrap,
        sandbox,
        "cd /root; chmod 700 closed; rm -rf a empty closed; echo other > hard; touch new /tmp/new; "
        "mkdir -p deep/er; chmod 000 deep/er; python3 -c '\n"
        'import os\nfor _ in range(300): os.mkdir("x" * 30); os.chdir("x" * 30)\'',
    )
    bubblewrap.load(sandbox, tmp_path / "a.tar")
    assert sh(bubblewrap, sandbox, LISTING) == before
    other = bubblewrap.create(new_spec())
    bubblewrap.load(other, tmp_path / "a.tar")
    assert sh(bubblewrap, other, LISTING) == before
    bubblewrap.destroy(other)


def test_what_cannot_be_packed_is_named(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    sh(
        bubblewrap,
        sandbox,
        "mkfifo /root/pipe; python3 -c 'import socket; "
        's = socket.socket(socket.AF_UNIX); s.bind("/tmp/sock")\'',
    )
    saved = bubblewrap.save(sandbox, tmp_path / "a.tar", level="full")
    assert saved.lost == ("/root/pipe (fifo)", "/tmp/sock (socket)")  # noqa: S108


def test_too_much_is_refused_and_the_sandbox_lives(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    sh(bubblewrap, sandbox, "truncate -s 1P /root/endless")
    with pytest.raises(SandboxLimit, match="more than"):
        bubblewrap.save(sandbox, tmp_path / "a.tar", level="files")
    assert not list(tmp_path.iterdir())
    sh(bubblewrap, sandbox, "rm /root/endless")
    assert bubblewrap.save(sandbox, tmp_path / "a.tar", level="files").size_bytes > 0


def test_what_does_not_fit_is_refused_and_the_sandbox_lives(
    bubblewrap: BubblewrapBackend, sandbox: Handle, new_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    large = bubblewrap.create(new_spec(disk_bytes=64 * MIB))
    sh(bubblewrap, large, "head -c 20000000 /dev/zero > /root/zeros")
    bubblewrap.save(large, tmp_path / "a.tar", level="files")
    bubblewrap.destroy(large)
    with pytest.raises(SandboxLimit, match="No space left"):
        bubblewrap.load(sandbox, tmp_path / "a.tar")
    assert sh(bubblewrap, sandbox, "echo alive") == "alive\n"


def test_a_hostile_archive_hurts_nobody_outside(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    """Seen from both sides: the host's canary, and the sandbox that goes on."""
    canary = tmp_path / "canary"
    canary.write_text("alive")
    inside = sh(bubblewrap, sandbox, "sha256sum /etc/passwd /run/turtles/agent.py")
    hostile: dict[str, bytes] = {
        "absolute": archive((item(str(canary)), b"dead")),
        "up": archive((item("root/../../../../../" + str(canary)), b"dead")),
        "link": archive(
            item("root/l", tarfile.SYMTYPE, str(tmp_path)), (item("root/l/canary"), b"dead")
        ),
        "etc": archive(item("root/l", tarfile.SYMTYPE, "/etc"), (item("root/l/passwd"), b"dead")),
        "hard": archive(item("root/h", tarfile.LNKTYPE, str(canary))),
        "noise": os.urandom(100_000),
        "empty": b"",
        "cut": archive((item("root/a"), bytes(100_000)))[:50_000],
        "no end": archive((item("root/a"), b"1"), end=False),
    }
    for name, content in hostile.items():
        (tmp_path / "evil.tar").write_bytes(content)
        with pytest.raises(SandboxLimit, match="could not be unpacked"):
            bubblewrap.load(sandbox, tmp_path / "evil.tar")
        assert canary.read_text() == "alive", name
        assert sh(bubblewrap, sandbox, "sha256sum /etc/passwd /run/turtles/agent.py") == inside
    devices = archive(item("root/null", tarfile.CHRTYPE), item("tmp/disk", tarfile.BLKTYPE))
    (tmp_path / "evil.tar").write_bytes(devices)
    bubblewrap.load(sandbox, tmp_path / "evil.tar")
    assert sh(bubblewrap, sandbox, "ls -A /root /tmp") == "/root:\n\n/tmp:\n"


def test_an_archive_with_a_bomb_of_names_stays_inside(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    """A header that claims to be enormous, and variables that run code when they are read."""
    bomb = tarfile.TarInfo("root/bomb")
    bomb.type, bomb.size = tarfile.REGTYPE, 1 << 60
    (tmp_path / "evil.tar").write_bytes(bomb.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    with pytest.raises(SandboxLimit):
        bubblewrap.load(sandbox, tmp_path / "evil.tar")
    header = b'{"directory": "/root", "lost": []}'.ljust(65536)
    evil = header + b"cos\nsystem\n(S'touch /tmp/ran; exit 3'\ntR."
    (tmp_path / "evil.tar").write_bytes(
        archive((item("state/python3"), evil), (item("state/bash"), b"touch /tmp/bash; kill -9 $$"))
    )
    bubblewrap.load(sandbox, tmp_path / "evil.tar")
    assert sorted(sh(bubblewrap, sandbox, "ls /tmp").split()) == ["bash", "ran"]
    assert not (Path("/tmp") / "ran").exists()  # noqa: S108 - where it would be outside
    assert cell(bubblewrap, sandbox, "print('alive')") == "alive\n"
