"""The host's side of `save` and `load`: against an agent that may do anything."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from machines.platform.sandbox import archive
from machines.platform.sandbox.backend import MIB, Backend, Handle, Saved, Spec
from machines.platform.sandbox.channel import BrokenChannel
from machines.platform.sandbox.errors import SandboxGone, SandboxLimit


class Agent:
    """The other end of the channel: does something with the descriptor, then answers."""

    def __init__(self, act: Callable[[int], None], answer: Mapping[str, Any] | None = None) -> None:
        self.act = act
        self.reply = dict(answer or {"lost": []})
        self.asked: dict[str, Any] = {}

    def request(
        self,
        operation: str,
        fields: Mapping[str, Any],
        *,
        wait_seconds: float,
        answer_bytes_max: int,
        descriptors: list[int],
        meanwhile: Callable[[], None],
    ) -> dict[str, Any]:
        self.asked = {"op": operation, **fields}
        inner = os.dup(descriptors[0])
        thread = threading.Thread(target=self._run, args=(inner,))
        thread.start()
        meanwhile()
        thread.join(30)
        assert not thread.is_alive()
        return self.reply

    def _run(self, inner: int) -> None:
        try:
            self.act(inner)
        finally:
            os.close(inner)


def write(*pieces: bytes) -> Callable[[int], None]:
    """An agent that writes until nobody listens."""

    def act(inner: int) -> None:
        for piece in pieces:
            try:
                with os.fdopen(os.dup(inner), "wb") as file:
                    file.write(piece)
            except BrokenPipeError:
                return

    return act


def save(agent: Agent, target: Path, bytes_max: int = MIB, **options: Any) -> Saved:
    chosen: dict[str, Any] = {"level": "full", "hot": False, **options}
    return archive.save(agent, target, bytes_max=bytes_max, **chosen)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_was_received_is_kept_whole_private_and_hashed(tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    before = descriptors()
    content = bytes(range(256)) * 3000
    agent = Agent(write(content[:1000], content[1000:]), {"lost": ["python3: lock"]})
    saved = save(agent, target)
    assert saved == Saved(
        "files+vars", len(content), hashlib.sha256(content).hexdigest(), ("python3: lock",)
    )
    assert target.read_bytes() == content
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]
    assert descriptors() == before


def test_the_level_and_what_is_asked_of_the_agent(tmp_path: Path) -> None:
    agent = Agent(write(b"x"))
    assert save(agent, tmp_path / "a", level="files", hot=True).level == "files"
    assert (agent.asked["op"], agent.asked["level"], agent.asked["hot"]) == ("save", "files", True)
    assert agent.asked["bytes_max"] == MIB
    assert save(agent, tmp_path / "b", level="full").level == "files+vars"
    assert agent.asked["level"] == "files+vars"


def test_too_much_is_cut_off_and_nothing_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    target.write_bytes(b"before")
    with pytest.raises(SandboxLimit, match="larger than 1000 bytes"):
        save(Agent(write(*[bytes(100_000)] * 100)), target, bytes_max=1000)
    assert target.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]


def test_what_the_agent_says_went_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(SandboxLimit, match="could not be packed: it is too large"):
        save(Agent(write(b"half"), {"lost": [], "error": "it is too large"}), tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "answer",
    [
        {"lost": "all"},
        {"lost": [1]},
        {"lost": ["x"] * 501},
        {"lost": [], "error": 7},
        {"lost": [], "error": {}},
    ],
)
def test_nonsense_breaks_the_channel_and_nothing_is_kept(tmp_path: Path, answer: Any) -> None:
    with pytest.raises(BrokenChannel):
        save(Agent(write(b"bytes"), answer), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_broken_channel_leaves_nothing(tmp_path: Path) -> None:
    class Dead(Agent):
        def request(self, *args: Any, **options: Any) -> dict[str, Any]:
            super().request(*args, **options)
            raise BrokenChannel("its agent ended")

    before = descriptors()
    with pytest.raises(BrokenChannel):
        save(Dead(write(b"bytes")), tmp_path / "a")
    with pytest.raises(BrokenChannel):
        archive.load(Dead(lambda _inner: None), _file(tmp_path / "b", b"x"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]
    assert descriptors() == before


def test_names_are_made_fit_to_be_shown(tmp_path: Path) -> None:
    lost = ["a\0b", "\udcff", "n" * 1000]
    assert save(Agent(write(b"x"), {"lost": lost}), tmp_path / "a").lost == ("a?b", "?", "n" * 300)


def test_a_silent_agent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PIPE_SECONDS", 0.0)
    with pytest.raises(SandboxLimit, match="took more than"):
        save(Agent(lambda _inner: None), tmp_path / "a")


def test_time_in_which_the_sandbox_stood_still_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "PIPE_SECONDS", 0.0)
    stood = iter(range(0, 10**9, 1000))
    saved = save(Agent(write(b"late")), tmp_path / "a", lost_seconds=lambda: float(next(stood)))
    assert saved.size_bytes == 4


def test_a_target_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    agent = Agent(write(b"x"))
    with pytest.raises(SandboxLimit, match="cannot be written"):
        save(agent, tmp_path / "nowhere" / "a")
    assert agent.asked == {}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "full").touch()
    with pytest.raises(SandboxLimit, match="cannot be written"):
        save(agent, tmp_path / "folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder"]


def test_a_full_disk_does_not_cost_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _data: Any) -> int:
        raise OSError(28, "No space left on device")

    class Full(Agent):
        """The disk is full for the host, while the agent writes what it has."""

        def request(self, *args: Any, meanwhile: Callable[[], None], **options: Any) -> Any:
            def moving() -> None:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(archive.os, "write", full)
                    meanwhile()

            return super().request(*args, meanwhile=moving, **options)

    with pytest.raises(SandboxLimit, match="No space left"):
        save(Full(write(bytes(MIB))), tmp_path / "a", bytes_max=2 * MIB)
    assert not list(tmp_path.iterdir())


def test_the_file_is_durable_before_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"fsync {kind}")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(archive.os, "fsync", fsync)
    monkeypatch.setattr(archive.Path, "replace", replace)
    save(Agent(write(b"x")), tmp_path / "a")
    assert steps == ["fsync file", "rename", "fsync directory"]


# -- every implementation of the port ------------------------------------------------------------


def test_variables_and_files_come_back(
    backend: Backend, handle: Handle, new_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    """x = 42, save, x = 1, load: 42."""

    def cell(where: Handle, code: str) -> bytes:
        result = backend.cell(where, "python3", code)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    target = tmp_path / "a.tar"
    cell(handle, "x = 42")
    saved = backend.save(handle, target, level="full")
    reached = "full" if backend.name == "gvisor" else "files+vars"
    assert (saved.level, saved.lost) == (reached, ())
    assert saved.size_bytes == target.stat().st_size
    assert saved.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    cell(handle, "x = 1")
    backend.load(handle, target)
    assert cell(handle, "print(x)") == b"42\n"
    other = backend.create(new_spec())
    backend.load(other, target)
    cell(other, "x = 7")
    assert cell(handle, "print(x)") == b"42\n"
    backend.destroy(other)
    with pytest.raises(SandboxGone):
        backend.load(other, target)
    assert backend.save(handle, target, level="files").level == "files"
    backend.load(handle, target)
    assert backend.cell(handle, "python3", "print(x)").exit_code != 0
    with pytest.raises(SandboxLimit):
        backend.load(handle, tmp_path / "none")


# -- load ------------------------------------------------------------------------------------------


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read_all(into: list[bytes]) -> Callable[[int], None]:
    def act(inner: int) -> None:
        with os.fdopen(os.dup(inner), "rb") as file:
            into.append(file.read())

    return act


def test_the_whole_file_arrives_and_then_the_end(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    came: list[bytes] = []
    before = descriptors()
    lost = archive.load(
        Agent(read_all(came), {"lost": ["/root/p (fifo)"]}), _file(tmp_path / "a", content)
    )
    assert came == [content]
    assert lost == ("/root/p (fifo)",)
    assert descriptors() == before


def test_an_agent_that_stops_reading_says_why(tmp_path: Path) -> None:
    agent = Agent(lambda inner: None, {"lost": [], "error": "no room"})
    with pytest.raises(SandboxLimit, match="could not be unpacked: no room"):
        archive.load(agent, _file(tmp_path / "a", bytes(4 * MIB)))


def test_a_missing_file_and_a_link_are_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(_file(tmp_path / "a", b"x"))
    for path in (tmp_path / "none", link):
        agent = Agent(lambda _inner: None)
        with pytest.raises(SandboxLimit, match="cannot be read"):
            archive.load(agent, path)
        assert agent.asked == {}


def test_the_size_of_an_archive_follows_the_disk() -> None:
    assert archive.bytes_max_for(Spec("a", disk_bytes=8 * MIB)) == (
        8 * MIB + archive.VARIABLES_BYTES_MAX
    )
