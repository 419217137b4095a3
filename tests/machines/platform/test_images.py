"""Images: what a death leaves, what outlives what, and the sandboxes made of them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from machines.platform import image_rows, images
from machines.platform.images import ImageOrder, Images
from machines.platform.orders import Caller
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Handle, Saved
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.service_orders import ServiceOrder
from machines.platform.session_orders import parse_session
from machines.platform.snapshots import SnapshotOrder
from machines.platform.sources import Sources


class HeldBackend(FakeBackend):
    """Saves that can be held up inside."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.loaded: list[str] = []

    def save(self, handle: Handle, target: Path, **options: Any) -> Saved:
        self.entered.release()
        assert self.go.wait(30)
        return super().save(handle, target, **options)

    def load(self, handle: Handle, source: Path) -> None:
        self.loaded.append(handle.sandbox_id)
        super().load(handle, source)


@pytest.fixture
def backend() -> HeldBackend:
    return HeldBackend()


@pytest.fixture
def parts(api: Any) -> Any:
    return api.app.state.api


@pytest.fixture
def asking(api: Any) -> Caller:
    return Caller(public_key=api.key(tier=32)[0], tier=32, idempotency_key=None, digest="d")


@pytest.fixture
def session_id(parts: Any, asking: Caller) -> str:
    order = parse_session({"shell": "python3"}, lambda: frozenset({"python3"}))
    return str(parts.sessions.create(asking, order)["session_id"])


def publish(parts: Any, asking: Caller, kind: Any, source_id: str) -> str:
    order = ImageOrder(source_type=kind, source_id=source_id)
    return str(parts.images.publish(asking, order)["image_id"])


def again(api: Any, backend: Any) -> Images:
    """Images as the next process has them, over the same database."""
    parts = api.app.state.api
    sources = Sources(api.context, backend, parts.sessions, parts.services)
    return Images(api.context, backend, sources, parts.snapshots)


def test_a_death_while_publishing_leaves_nothing(
    api: Any, parts: Any, backend: Any, asking: Caller, session_id: str
) -> None:
    kept = publish(parts, asking, "session", session_id)
    backend.entered.acquire()
    backend.go.clear()
    thread = threading.Thread(target=publish, args=(parts, asking, "session", session_id))
    thread.start()
    assert backend.entered.acquire(timeout=30)
    assert len(parts.images.reachable(asking.public_key)) == 2
    assert again(api, backend).start() == 1
    assert [row["image_id"] for row, _ in parts.images.reachable(asking.public_key)] == [kept]
    backend.go.set()
    thread.join(30)
    assert {entry.name for entry in parts.images.shelf.directory.iterdir()} == {f"{kept}.tar"}
    parts.images.shelf.remove(kept)
    assert again(api, backend).start() == 1
    assert not parts.images.reachable(asking.public_key)


def test_what_is_not_ready_is_the_owners_and_of_no_use(
    api: Any, parts: Any, backend: Any, asking: Caller, session_id: str
) -> None:
    backend.go.clear()
    thread = threading.Thread(target=publish, args=(parts, asking, "session", session_id))
    thread.start()
    assert backend.entered.acquire(timeout=30)
    ((row, access),) = parts.images.reachable(asking.public_key)
    assert (row["status"], access) == ("creating", "owned")
    parts.images.set_visibility(asking.public_key, row["image_id"], "public")
    assert not parts.images.reachable(api.key()[0])
    for use in (
        lambda: parts.images.ready(asking.public_key, row["image_id"]),
        lambda: parts.images.transfer(asking.public_key, row["image_id"], api.key()[0]),
        lambda: publish(parts, asking, "image", row["image_id"]),
    ):
        with pytest.raises(Problem) as refused:
            use()
        assert (refused.value.status, refused.value.error) == (409, "image_not_ready")
    parts.images.delete(asking.public_key, row["image_id"])
    backend.go.set()
    thread.join(30)
    assert not list(parts.images.shelf.directory.iterdir())


def test_an_image_shares_the_file_of_its_snapshot_and_outlives_it(
    parts: Any, asking: Caller, session_id: str
) -> None:
    order = SnapshotOrder(source_type="session", source_id=session_id)
    snapshot_id = parts.snapshots.create(asking, order)["snapshot_id"]
    image_id = publish(parts, asking, "snapshot", snapshot_id)
    snapshot, image = [
        shelf.path(one)
        for shelf, one in ((parts.snapshots.shelf, snapshot_id), (parts.images.shelf, image_id))
    ]
    assert snapshot.stat().st_ino == image.stat().st_ino
    parts.snapshots.delete(asking.public_key, snapshot_id)
    clone = publish(parts, asking, "image", image_id)
    parts.images.delete(asking.public_key, image_id)
    row = parts.images.ready(asking.public_key, clone)
    assert parts.images.shelf.checked(clone, row["sha256"]).is_file()


def test_a_redeployed_service_is_filled_from_its_image_again(
    parts: Any, backend: Any, asking: Caller, session_id: str
) -> None:
    image_id = publish(parts, asking, "session", session_id)
    row = parts.images.ready(asking.public_key, image_id)
    order = ServiceOrder(name="made", prepare=parts.images.filler(row), source_image=image_id)
    service = parts.services.create(asking, order)
    assert backend.loaded == [service["service_id"]]
    assert parts.services.refill == parts.images.refill
    parts.images.refill(service, Handle(service["service_id"]))
    assert backend.loaded == [service["service_id"]] * 2
    parts.images.delete(asking.public_key, image_id)
    parts.images.refill(service, Handle(service["service_id"]))
    assert len(backend.loaded) == 2


def test_a_damaged_image_is_neither_spawned_nor_cloned(
    parts: Any, backend: Any, asking: Caller, session_id: str
) -> None:
    image_id = publish(parts, asking, "session", session_id)
    parts.images.shelf.path(image_id).write_bytes(b"other")
    row = parts.images.ready(asking.public_key, image_id)
    order = ServiceOrder(name="made", prepare=parts.images.filler(row), source_image=image_id)
    for use in (
        lambda: publish(parts, asking, "image", image_id),
        lambda: parts.services.create(asking, order),
    ):
        with pytest.raises(Problem) as refused:
            use()
        assert (refused.value.status, refused.value.error) == (409, "archive_damaged")
    assert not parts.services.live(asking.public_key)
    assert len(parts.images.reachable(asking.public_key)) == 1
    assert backend.loaded == []


def test_a_key_keeps_so_many_images_and_an_image_so_many_grants(
    api: Any, parts: Any, asking: Caller, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_rows, "COUNT_MAX", 1)
    monkeypatch.setattr(images, "TRUSTED_MAX", 1)
    image_id = publish(parts, asking, "session", session_id)
    receiver = api.key(tier=32)[0]
    parts.images.grant(asking.public_key, image_id, receiver)
    refusals = {
        "too_many_images": lambda: publish(parts, asking, "image", image_id),
        "too_many_grants": lambda: parts.images.grant(asking.public_key, image_id, "unsb-pk-other"),
    }
    for error, use in refusals.items():
        with pytest.raises(Problem) as refused:
            use()
        assert (refused.value.status, refused.value.error) == (409, error)
    theirs = Caller(public_key=receiver, tier=32, idempotency_key=None, digest="d")
    publish(parts, theirs, "image", image_id)
    with pytest.raises(Problem, match="at most 1"):
        parts.images.transfer(asking.public_key, image_id, receiver)
    assert parts.images.transfer(asking.public_key, image_id, asking.public_key)
