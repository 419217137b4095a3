"""Snapshots: what a death leaves, what time ends, and who wins when many restore at once."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.secrets import load_codec
from machines.platform import keys, server, snapshots
from machines.platform.database import open_platform_database
from machines.platform.orders import Caller
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Handle, Saved
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.session_orders import parse_session
from machines.platform.snapshots import SnapshotOrder, Snapshots
from machines.platform.sources import Sources

RIVALS = 64
ROUNDS = 20


class HeldBackend(FakeBackend):
    """Saves and loads that can be held up inside."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.saves = 0
        self.loads = 0
        self.failure: BaseException | None = None

    def _hold(self) -> None:
        self.entered.release()
        assert self.go.wait(30)
        if self.failure is not None:
            raise self.failure

    def save(self, handle: Handle, target: Path, **options: Any) -> Saved:
        self.saves += 1
        self._hold()
        return super().save(handle, target, **options)

    def load(self, handle: Handle, source: Path) -> None:
        self.loads += 1
        self._hold()
        super().load(handle, source)


@pytest.fixture
def backend() -> HeldBackend:
    return HeldBackend()


@pytest.fixture
def parts(api: Any) -> Any:
    """The platform's own parts, used without HTTP."""
    return api.app.state.api


def caller(api: Any, once: str | None = None, digest: str = "d") -> Caller:
    if not hasattr(api, "pair"):
        api.pair = api.key(tier=32)
    return Caller(public_key=api.pair[0], tier=32, idempotency_key=once, digest=digest)


def session(api: Any, parts: Any) -> str:
    order = parse_session({"shell": "python3"}, lambda: frozenset({"python3"}))
    return str(parts.sessions.create(caller(api), order)["session_id"])


def take(api: Any, parts: Any, session_id: str, once: str | None = None, **more: Any) -> Any:
    order = SnapshotOrder(source_type="session", source_id=session_id, **more)
    return parts.snapshots.create(caller(api, once), order)


def files(api: Any) -> set[str]:
    directory = api.data_dir / "snapshots"
    return {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()


def again(api: Any, backend: Any) -> Snapshots:
    """Snapshots as the next process has them, over the same database."""
    parts = api.app.state.api
    sources = Sources(api.context, backend, parts.sessions, parts.services)
    return Snapshots(api.context, backend, sources)


# -- many at once ----------------------------------------------------------------------------------


def test_of_64_restores_at_once_exactly_one_wins(api: Any, parts: Any, backend: Any) -> None:
    """The winner is held inside the backend until every other has its answer."""
    session_id = session(api, parts)
    snapshot_id = take(api, parts, session_id)["snapshot_id"]
    backend.entered.acquire()
    asking = caller(api)
    for _ in range(ROUNDS):
        loads = backend.loads
        backend.go.clear()
        barrier = threading.Barrier(RIVALS)
        refused = threading.Semaphore(0)
        answers: Counter[str] = Counter()
        lock = threading.Lock()

        def rival(
            barrier: threading.Barrier = barrier,
            refused: threading.Semaphore = refused,
            answers: Counter[str] = answers,
            lock: threading.Lock = lock,
        ) -> None:
            barrier.wait(30)
            try:
                parts.snapshots.restore(asking, snapshot_id)
                answer = "won"
            except Problem as problem:
                answer = f"{problem.status} {problem.error}"
                refused.release()
            with lock:
                answers[answer] += 1

        threads = [threading.Thread(target=rival) for _ in range(RIVALS)]
        for thread in threads:
            thread.start()
        for _ in range(RIVALS - 1):
            assert refused.acquire(timeout=30)
        backend.go.set()
        for thread in threads:
            thread.join(30)
        assert answers == {"won": 1, "409 restore_in_progress": RIVALS - 1}
        assert backend.loads == loads + 1


async def test_whoever_comes_after_is_a_new_restore(api: Any, parts: Any, backend: Any) -> None:
    """The same over HTTP; a restore from another snapshot of the same session is a rival, too."""
    session_id = session(api, parts)
    first, second = [take(api, parts, session_id)["snapshot_id"] for _ in range(2)]
    for _ in range(2):
        backend.entered.acquire()
    backend.go.clear()
    held = asyncio.create_task(api.call(api.pair, "POST", f"/snapshots/{first}/restore", {}))
    assert await asyncio.to_thread(backend.entered.acquire, True, 30)
    paths = [f"/snapshots/{one}/restore" for one in (first, second) * 32]
    refused = await asyncio.gather(*(api.call(api.pair, "POST", path, {}) for path in paths))
    assert {(each.status_code, each.json()["error"]) for each in refused} == {
        (409, "restore_in_progress")
    }
    assert {each.headers["retry-after"] for each in refused} == {"1"}
    backend.go.set()
    assert (await held).status_code == 200
    later = await api.call(
        api.pair, "POST", f"/sessions/{session_id}/restore", {"snapshot_id": second}
    )
    assert (later.status_code, later.json()["session_id"]) == (200, session_id)
    assert backend.loads == 2


def test_a_failed_restore_lets_its_target_go(api: Any, parts: Any, backend: Any) -> None:
    snapshot_id = take(api, parts, session(api, parts))["snapshot_id"]
    backend.failure = RuntimeError("unexpected")
    with pytest.raises(RuntimeError, match="unexpected"):
        parts.snapshots.restore(caller(api), snapshot_id)
    backend.failure = None
    parts.snapshots.restore(caller(api), snapshot_id)


def test_restores_of_different_sessions_do_not_wait(api: Any, parts: Any, backend: Any) -> None:
    one, two = [take(api, parts, session(api, parts))["snapshot_id"] for _ in range(2)]
    for _ in range(2):
        backend.entered.acquire()
    backend.go.clear()
    asking = caller(api)
    threads = [
        threading.Thread(target=parts.snapshots.restore, args=(asking, each)) for each in (one, two)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:  # both are inside at the same time
        assert backend.entered.acquire(timeout=30)
    backend.go.set()
    for thread in threads:
        thread.join(30)


def test_racing_requests_with_one_key_pack_once(api: Any, parts: Any, backend: Any) -> None:
    session_id = session(api, parts)
    backend.go.clear()
    made: list[str] = []
    caller(api)
    threads = [
        threading.Thread(
            target=lambda: made.append(take(api, parts, session_id, "k")["snapshot_id"])
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert backend.entered.acquire(timeout=30)
    backend.go.set()
    for thread in threads:
        thread.join(30)
    assert (len(made), len(set(made)), backend.saves) == (8, 1, 1)


# -- what a death leaves ---------------------------------------------------------------------------


def test_a_death_while_packing_is_a_failed_snapshot(api: Any, parts: Any, backend: Any) -> None:
    """The row said `creating`, the file was half written, and nobody went on."""
    session_id = session(api, parts)
    kept = take(api, parts, session_id)["snapshot_id"]
    backend.entered.acquire()
    backend.go.clear()
    thread = threading.Thread(target=take, args=(api, parts, session_id))
    thread.start()
    assert backend.entered.acquire(timeout=30)
    (api.data_dir / "snapshots" / ".half.tar.part").write_bytes(b"half")
    assert again(api, backend).start() == 1
    rows = {row["snapshot_id"]: row["status"] for row in parts.snapshots.kept(api.pair[0])}
    (failed,) = rows.keys() - {kept}
    assert rows == {kept: "ready", failed: "failed"}
    assert files(api) == {f"{kept}.tar"}
    for use in (
        lambda: parts.snapshots.restore(caller(api), failed),
        lambda: parts.snapshots.ready(api.pair[0], failed),
    ):
        with pytest.raises(Problem) as refused:
            use()
        assert (refused.value.status, refused.value.error) == (409, "snapshot_not_ready")
    backend.go.set()
    thread.join(30)
    # What comes too late changes nothing, and leaves no file.
    assert parts.snapshots.find(api.pair[0], failed)["status"] == "failed"
    assert files(api) == {f"{kept}.tar"}
    assert parts.snapshots.delete(api.pair[0], failed)["status"] == "deleted"


def test_files_without_a_ready_row_go_and_rows_without_a_file_fail(
    api: Any, parts: Any, backend: Any
) -> None:
    session_id = session(api, parts)
    deleted, lost, kept = [take(api, parts, session_id)["snapshot_id"] for _ in range(3)]
    file = api.data_dir / "snapshots" / f"{deleted}.tar"
    content = file.read_bytes()
    parts.snapshots.delete(api.pair[0], deleted)
    file.write_bytes(content)  # died between the row and the file
    (api.data_dir / "snapshots" / f"{lost}.tar").unlink()
    assert again(api, backend).start() == 1
    assert files(api) == {f"{kept}.tar"}
    assert parts.snapshots.find(api.pair[0], lost)["status"] == "failed"
    assert again(api, backend).start() == 0


def test_a_failed_save_leaves_nothing_and_frees_its_key(api: Any, parts: Any, backend: Any) -> None:
    session_id = session(api, parts)
    backend.failure = RuntimeError("unexpected")
    with pytest.raises(RuntimeError, match="unexpected"):
        take(api, parts, session_id, "k")
    backend.failure = None
    assert not parts.snapshots.kept(api.pair[0])
    assert take(api, parts, session_id, "k")["status"] == "ready"


def test_a_full_disk_is_said(api: Any, parts: Any, backend: Any) -> None:
    session_id = session(api, parts)
    backend.failure = OSError(28, "No space left on device")
    with pytest.raises(Problem) as refused:
        take(api, parts, session_id)
    assert (refused.value.status, refused.value.error) == (503, "storage_failed")


def test_deleted_while_it_is_packed(api: Any, parts: Any, backend: Any) -> None:
    session_id = session(api, parts)
    backend.go.clear()
    seen: list[Any] = []
    caller(api)
    thread = threading.Thread(target=lambda: seen.append(take(api, parts, session_id)))
    thread.start()
    assert backend.entered.acquire(timeout=30)
    (row,) = parts.snapshots.kept(api.pair[0])
    assert row["status"] == "creating"
    parts.snapshots.delete(api.pair[0], row["snapshot_id"])
    backend.go.set()
    thread.join(30)
    assert seen[0]["status"] == "deleted"
    assert not files(api)


# -- time, limits, damage --------------------------------------------------------------------------


def test_a_ttl_ends_it_and_a_lock_outlives_the_ttl(api: Any, parts: Any) -> None:
    session_id = session(api, parts)
    short, locked, kept = [
        take(api, parts, session_id, ttl_seconds=ttl)["snapshot_id"] for ttl in (60, 60, None)
    ]
    parts.snapshots.set_locked(api.pair[0], locked, True)
    api.now_ms += 59_999
    assert parts.snapshots.expire_due() == 0
    api.now_ms += 1
    parts.tick()
    assert files(api) == {f"{locked}.tar", f"{kept}.tar"}
    with pytest.raises(Problem, match="none of that id"):
        parts.snapshots.find(api.pair[0], short)
    parts.snapshots.set_locked(api.pair[0], locked, False)
    assert [row["snapshot_id"] for row in parts.snapshots.kept(api.pair[0])] == [kept]


def test_a_key_keeps_so_many_and_so_much(
    api: Any, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = session(api, parts)
    monkeypatch.setattr(snapshots, "COUNT_MAX", 2)
    first = take(api, parts, session_id)
    take(api, parts, session_id)
    with pytest.raises(Problem) as refused:
        take(api, parts, session_id)
    assert (refused.value.status, refused.value.error) == (409, "too_many_snapshots")
    parts.snapshots.delete(api.pair[0], first["snapshot_id"])
    monkeypatch.setattr(snapshots, "BYTES_MAX", first["size_bytes"])
    with pytest.raises(Problem, match="Delete one"):
        take(api, parts, session_id)


def test_a_damaged_archive_is_not_restored(api: Any, parts: Any, backend: Any) -> None:
    session_id = session(api, parts)
    snapshot_id = take(api, parts, session_id)["snapshot_id"]
    file = api.data_dir / "snapshots" / f"{snapshot_id}.tar"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for expected in ("archive_damaged", "archive_missing"):
        with pytest.raises(Problem) as refused:
            parts.snapshots.restore(caller(api), snapshot_id)
        assert (refused.value.status, refused.value.error) == (409, expected)
        file.unlink(missing_ok=True)
    assert backend.loads == 0


def test_taking_and_restoring_are_activity(api: Any, parts: Any) -> None:
    session_id = session(api, parts)
    snapshot_id = take(api, parts, session_id)["snapshot_id"]
    for _ in range(3):
        api.now_ms += 800_000
        parts.snapshots.restore(caller(api), snapshot_id)
    assert parts.sessions.find(api.pair[0], session_id)["state"] == "running"


# -- the process is killed -------------------------------------------------------------------------


class Running:
    """A started server, a key bought behind its back, and signed calls over a real socket."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.info = server.start_server(data_dir)
        database = open_platform_database(data_dir)
        keys.bind(database, load_codec(data_dir / "master.key", os.environ))
        with database.transaction() as sql:
            self.public_key = keys.issue(sql, 32, 1, time.time_ns() // 1_000_000)
            self.secret_key = keys.secret(sql, self.public_key)
        database.close()

    def kill(self) -> None:
        descriptor = os.pidfd_open(self.info.pid)
        os.kill(self.info.pid, signal.SIGKILL)
        assert select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        timestamp = str(int(time.time()))
        message = f"{timestamp}:{method}:{path}:".encode() + content
        headers = {
            "Authorization": f"Bearer {self.public_key}",
            "X-Timestamp": timestamp,
            "X-Signature": hmac.new(self.secret_key.encode(), message, hashlib.sha256).hexdigest(),
        }
        with httpx.Client(base_url=self.info.base_url, timeout=60) as client:
            answer = client.request(method, path, content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    data_dir = tmp_path / "platform"
    started = Running(data_dir)
    yield started
    if found := server.find_server(data_dir):
        server.stop_server(found)


def test_a_kill_in_the_middle_leaves_a_failed_snapshot_and_no_file(running: Running) -> None:
    shelf = running.data_dir / "snapshots"
    session_id = running.call("POST", "/sessions", {"shell": "bash"})["id"]
    kept = running.call("POST", f"/sessions/{session_id}/snapshot")["id"]
    fill = {"command": "head -c 200000000 /dev/urandom > /root/large"}
    assert running.call("POST", f"/sessions/{session_id}/execute", fill)["exit_code"] == 0

    def take() -> None:
        try:
            running.call("POST", f"/sessions/{session_id}/snapshot")
        except httpx.HTTPError:
            return
        raise AssertionError("it was packed before the kill")

    thread = threading.Thread(target=take)
    thread.start()
    limit = time.monotonic() + 20
    while not [part for part in shelf.glob(".*.part") if part.stat().st_size]:
        assert time.monotonic() < limit
    running.kill()
    thread.join(30)
    assert len(list(shelf.iterdir())) == 2  # what was ready, and what is half written
    running.info = server.start_server(running.data_dir)
    rows = running.call("GET", "/snapshots")["snapshots"]
    assert [row["status"] for row in rows] == ["ready", "failed"]
    assert [entry.name for entry in shelf.iterdir()] == [f"{kept}.tar"]
    clone = running.call("POST", f"/snapshots/{kept}/clone", {})
    assert (clone["status"], clone["shell"]) == ("running", "bash")
