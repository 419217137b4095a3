"""Recordings of terminals: bounded, complete from their start, and still there after a refusal."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine.errors import StoreBusy
from machines.platform import recordings
from machines.platform.recordings import KEPT_MS, Recordings


@pytest.fixture
async def session_id(api: Any) -> str:
    made = await api.call(api.key(tier=8), "POST", "/sessions?audit=1")
    return str(made.json()["id"])


async def test_pieces_come_back_in_order(api: Any, session_id: str) -> None:
    kept = Recordings(api.context)
    assert kept.read(session_id).output == b""
    for piece in (b"one ", b"two ", b"three"):
        kept.note(session_id, piece)
        kept.flush()
    kept.note(session_id, b" four")
    # Another one: as after a restart.
    assert Recordings(api.context).read(session_id).output == b"one two three"
    assert kept.read(session_id).output == b"one two three four"
    assert not kept.read(session_id).truncated


async def test_the_start_is_kept_and_that_there_was_more_is_said(
    api: Any, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "RECORDED_BYTES_MAX", 10)
    kept = Recordings(api.context)
    kept.note(session_id, b"0123456789")
    assert kept.read(session_id) == recordings.Recording(output=b"0123456789", truncated=False)
    for _ in range(3):
        kept.note(session_id, b"more" * 10)
        kept.flush()
    assert kept.read(session_id) == recordings.Recording(output=b"0123456789", truncated=True)
    with api.database.reading() as sql:
        assert sql.scalar("SELECT sum(length(output)) FROM session_recording") == 11


async def test_a_busy_database_loses_nothing(
    api: Any, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Recordings(api.context)
    kept.note(session_id, b"before ")

    def refuse() -> Any:
        raise StoreBusy("busy")

    with monkeypatch.context() as patch:
        patch.setattr(api.database, "transaction", refuse)
        with pytest.raises(StoreBusy):
            kept.flush()
    kept.note(session_id, b"after")
    assert kept.read(session_id).output == b"before after"


async def test_writers_in_parallel_lose_and_double_nothing(api: Any, session_id: str) -> None:
    kept = Recordings(api.context)
    together = threading.Barrier(5)

    def write() -> None:
        together.wait()
        for _ in range(50):
            kept.note(session_id, b"x")
            kept.flush()

    threads = [threading.Thread(target=write) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept.read(session_id).output == b"x" * 250


async def test_old_ones_are_forgotten(api: Any, session_id: str) -> None:
    kept = Recordings(api.context)
    kept.note(session_id, b"old")
    kept.flush()
    api.now_ms += KEPT_MS
    kept.forget_old()
    assert kept.read(session_id).output == b"old"
    api.now_ms += 1
    kept.forget_old()
    assert kept.read(session_id).output == b""
