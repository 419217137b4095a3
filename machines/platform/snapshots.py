"""Snapshots: what was in a session or service, kept until it is deleted.

::

    create:   [row creating] -> backend.save into the shelf -> [row ready]
    restore:  take the target -> backend.load -> (a service: redeploy) -> let it go
    clone:    a new session or service, filled by backend.load before anybody sees it run
    end:      [row deleted] -> file removed        by DELETE, or when its ttl is over

Every bracket is one transaction; the file is touched outside.  A failed save leaves nothing: the
row goes, and the same idempotency key may try again.  What a death in between leaves:

- a row `creating`: `start()` marks it `failed`;
- a file without a `ready` row (half written, or of a deleted snapshot): `start()` removes it;
- a restore: the sandbox died with the process, nothing is left to put right.

`level` says how much of the source is in the archive, `lost` names what of that could not be kept
(see the backend's `save`).  A restore in place keeps the target's id, limits and terminals; of any
number of restores of one target at a time one is done, the others are refused: which of two
archives it would otherwise hold in the end would be chance.  Whoever comes after is a new restore.

A lock refuses DELETE, and it also outlives the ttl: a locked snapshot whose time is over goes when
it is unlocked.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import structlog

from machines.platform.context import PlatformContext
from machines.platform.copies import Kind
from machines.platform.orders import Caller
from machines.platform.refusals import repeated
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Handle, Saved
from machines.platform.shelf import Shelf
from machines.platform.sources import Source, Sources
from persistence.database import Row
from persistence.database import Session as Sql

COUNT_MAX = 64
BYTES_MAX = 8 * 1024**3
TTL_SECONDS_MAX = 10 * 366 * 86_400
NAME_CHARACTERS_MAX = 200

log = structlog.get_logger("turtles.platform.snapshots")


class SnapshotOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request for a snapshot.  `ttl_seconds`: None keeps it."""

    source_type: Kind
    source_id: str
    name: str | None = None
    hot: bool = False
    ttl_seconds: int | None = None


class Snapshots:
    """The snapshots of every key."""

    def __init__(self, context: PlatformContext, backend: Backend, sources: Sources) -> None:
        self._context = context
        self._backend = backend
        self._sources = sources
        self.shelf = Shelf(context.database, "snapshots")
        self._lock = threading.Lock()
        self._creating: dict[str, threading.Event] = {}
        self._restoring: set[str] = set()

    # -- the life of the platform --------------------------------------------------------------

    def start(self) -> int:
        """Put right what an earlier process left; how many snapshots have failed."""
        with self._context.database.transaction() as sql:
            rows = sql.all(
                "SELECT snapshot_id, status FROM snapshot WHERE status IN ('creating', 'ready')"
            )
            gone = [
                row["snapshot_id"]
                for row in rows
                if row["status"] == "creating" or not self.shelf.holds(row["snapshot_id"])
            ]
            for snapshot_id in gone:
                self._move(sql, snapshot_id, "failed")
        swept = self.shelf.sweep({row["snapshot_id"] for row in rows} - set(gone))
        if gone or swept:
            log.info("snapshots_start", failed_snapshots=len(gone), swept_files=swept)
        return len(gone)

    def expire_due(self) -> int:
        """Delete what is over its ttl and not locked; how many."""
        due = "status IN ('ready', 'failed') AND locked = 0 AND expires_ms <= :now"
        now_ms = self._context.clock_ms()
        with self._context.database.reading() as sql:
            if not sql.scalar(f"SELECT count(*) FROM snapshot WHERE {due}", now=now_ms):  # noqa: S608 - constants
                return 0
        with self._context.database.transaction() as sql:
            rows = sql.all(f"SELECT snapshot_id FROM snapshot WHERE {due}", now=now_ms)  # noqa: S608 - constants
            for row in rows:
                self._move(sql, row["snapshot_id"], "deleted")
        for row in rows:
            self.shelf.remove(row["snapshot_id"])
        return len(rows)

    # -- making --------------------------------------------------------------------------------

    def create(self, caller: Caller, order: SnapshotOrder) -> Row:
        """A new snapshot, or the one this idempotency key made before.

        Raises:
            Problem: 404 no such source, 409 it does not run, or this key has too many, or the
                idempotency key was used otherwise, 410 the session has ended, 400 too large, 503.
        """
        self.expire_due()
        while True:
            row, source = self._reserve(caller, order)
            snapshot_id = row["snapshot_id"]
            if source is not None:
                return self._fill(snapshot_id, source, order.hot)
            # Another request with the same key may be making it: answer when it is there.
            if event := self._creating.get(snapshot_id):
                event.wait()
            if settled := self._row(snapshot_id):
                return settled

    def _reserve(self, caller: Caller, order: SnapshotOrder) -> tuple[Row, Source | None]:
        """The row; with the source when it is new."""
        with self._context.database.reading() as sql:
            known = repeated(sql, caller, "snapshot")
        if known is not None:
            return known, None
        source = self._sources.find(caller.public_key, order.source_type, order.source_id)
        snapshot_id = f"unsb-snapshot-{secrets.token_hex(8)}"
        now_ms = self._context.clock_ms()
        with self._context.database.transaction() as sql:
            known = repeated(sql, caller, "snapshot")
            if known is not None:
                return known, None
            _require_room(sql, caller.public_key)
            # Known to waiters before its row can be seen.
            self._creating[snapshot_id] = threading.Event()
            sql.run(
                "INSERT INTO snapshot (snapshot_id, public_key, name, source_type, source_id, "
                "status, hot, recipe, created_ms, expires_ms, idempotency_key, digest) VALUES "
                "(:id, :key, :name, :type, :source, 'creating', :hot, :recipe, :now, :expires, "
                ":once, :digest)",
                id=snapshot_id,
                key=caller.public_key,
                name=order.name,
                type=source.kind,
                source=source.source_id,
                hot=int(order.hot),
                recipe=source.recipe.stored(),
                now=now_ms,
                expires=order.ttl_seconds and now_ms + order.ttl_seconds * 1000,
                once=caller.idempotency_key,
                digest=caller.digest,
            )
            return _require(_select(sql, snapshot_id), snapshot_id), source

    def _fill(self, snapshot_id: str, source: Source, hot: bool) -> Row:
        try:
            with told_of_disk():
                saved = self._sources.save(source, self.shelf.path(snapshot_id), hot=hot)
            with self._context.database.transaction() as sql:
                kept = self._move(sql, snapshot_id, "ready", saved)
                row = _select(sql, snapshot_id)
            if not kept:  # it was deleted meanwhile
                self.shelf.remove(snapshot_id)
            return _require(row, snapshot_id)
        except BaseException:
            with self._context.database.transaction() as sql:
                sql.run("DELETE FROM snapshot WHERE snapshot_id = :id", id=snapshot_id)
            self.shelf.remove(snapshot_id)
            raise
        finally:
            self._creating.pop(snapshot_id).set()

    # -- finding -------------------------------------------------------------------------------

    def kept(self, public_key: str, source_type: Kind | None = None) -> list[Row]:
        """The key's snapshots, oldest first; or those of one kind of source."""
        self.expire_due()
        with self._context.database.reading() as sql:
            return sql.all(
                "SELECT * FROM snapshot WHERE public_key = :key AND status <> 'deleted' "
                "AND source_type = coalesce(:type, source_type) ORDER BY created_ms, snapshot_id",
                key=public_key,
                type=source_type,
            )

    def find(self, public_key: str, snapshot_id: str) -> Row:
        """A snapshot of this key.

        Raises:
            Problem: 404, unknown, deleted or another key's.
        """
        self.expire_due()
        with self._context.database.reading() as sql:
            return _mine(sql, public_key, snapshot_id)

    # -- changing ------------------------------------------------------------------------------

    def delete(self, public_key: str, snapshot_id: str) -> Row:
        """Remove it for ever.

        Raises:
            Problem: 404, 409 it is locked.
        """
        self.expire_due()
        with self._context.database.transaction() as sql:
            row = _mine(sql, public_key, snapshot_id)
            if row["locked"]:
                raise locked("snapshot", snapshot_id)
            self._move(sql, snapshot_id, "deleted")
        self.shelf.remove(snapshot_id)
        return {**row, "status": "deleted"}

    def set_locked(self, public_key: str, snapshot_id: str, is_locked: bool) -> Row:
        """Refuse, or allow, its deletion.

        Raises:
            Problem: 404.
        """
        with self._context.database.transaction() as sql:
            row = _mine(sql, public_key, snapshot_id)
            sql.run(
                "UPDATE snapshot SET locked = :locked WHERE snapshot_id = :id",
                id=snapshot_id,
                locked=int(is_locked),
            )
            return {**row, "locked": int(is_locked)}

    # -- using ---------------------------------------------------------------------------------

    def restore(
        self, caller: Caller, snapshot_id: str, target: tuple[Kind, str] | None = None
    ) -> tuple[Row, Row]:
        """Write it back to its source, or to another target of the same key, in place.

        Returns:
            The snapshot's row, and the session's or service's.

        Raises:
            Problem: 404; 409 it is not ready, the target does not run, or another restore of the
                target is under way; 410 the session has ended; 400 it does not fit.
        """
        row = self.ready(caller.public_key, snapshot_id)
        kind, name = target or (row["source_type"], row["source_id"])
        source = self._sources.find(caller.public_key, kind, name)
        with self._alone(source.source_id):
            path = self.shelf.checked(snapshot_id, row["sha256"])
            written = self._sources.load(caller, source, path)
        return row, written

    def filler(self, row: Row) -> Callable[[Handle], None]:
        """What fills the new sandbox of a clone."""

        def fill(handle: Handle) -> None:
            self._backend.load(handle, self.shelf.checked(row["snapshot_id"], row["sha256"]))

        return fill

    def ready(self, public_key: str, snapshot_id: str) -> Row:
        """A snapshot of this key that can be used.

        Raises:
            Problem: 404, 409 it is not ready.
        """
        row = self.find(public_key, snapshot_id)
        if row["status"] != "ready":
            raise Problem(
                409,
                "snapshot_not_ready",
                f"snapshot {snapshot_id} is {row['status']}; only a ready one can be used.",
                fields={"status": row["status"]},
            )
        return row

    @contextmanager
    def _alone(self, target_id: str) -> Iterator[None]:
        """Hold a target for one restore.

        Raises:
            Problem: 409, another restore has it.
        """
        with self._lock:
            if target_id in self._restoring:
                raise Problem(
                    409,
                    "restore_in_progress",
                    f"{target_id} is being restored by another request. Wait until that has ended.",
                    headers={"Retry-After": "1"},
                )
            self._restoring.add(target_id)
        try:
            yield
        finally:
            with self._lock:
                self._restoring.discard(target_id)

    # -- rows ----------------------------------------------------------------------------------

    def _move(self, sql: Sql, snapshot_id: str, status: str, saved: Saved | None = None) -> bool:
        """Move its status, inside the caller's transaction; whether it could be moved.

        The only place that does: creating -> ready, creating or ready -> failed, any -> deleted.
        """
        sources = {"ready": ("creating",), "failed": ("creating", "ready")}
        allowed = sources.get(status, ("creating", "ready", "failed"))
        changes: dict[str, str | int] = {"status": status}
        if saved is not None:
            changes |= {
                "level": saved.level,
                "lost": json.dumps(saved.lost),
                "size_bytes": saved.size_bytes,
                "sha256": saved.sha256,
            }
        columns = ", ".join(f"{name} = :{name}" for name in changes)
        marks = ", ".join(f"'{each}'" for each in allowed)
        moved = sql.run(
            f"UPDATE snapshot SET {columns} WHERE snapshot_id = :id AND status IN ({marks})",  # noqa: S608 - our own words
            id=snapshot_id,
            **changes,
        )
        return moved == 1

    def _row(self, snapshot_id: str) -> Row | None:
        with self._context.database.reading() as sql:
            return _select(sql, snapshot_id)


def locked(kind: str, archive_id: str) -> Problem:
    """409 for something that may not be deleted."""
    return Problem(
        409,
        "locked",
        f"{kind} {archive_id} is locked and was not deleted. "
        f"POST /{kind}s/{archive_id}/unlock first.",
        fields={"locked": True},
    )


@contextmanager
def told_of_disk() -> Iterator[None]:
    """503 when the host's own disk refuses."""
    try:
        yield
    except OSError as error:
        raise Problem(
            503,
            "storage_failed",
            f"the platform cannot keep the archive ({error.strerror}). "
            "Free space in its data directory, then try again.",
        ) from error


def _require_room(sql: Sql, public_key: str) -> None:
    kept = sql.one(
        "SELECT count(*) AS count, coalesce(sum(size_bytes), 0) AS bytes FROM snapshot "
        "WHERE public_key = :key AND status IN ('creating', 'ready')",
        key=public_key,
    )
    assert kept is not None
    if kept["count"] >= COUNT_MAX or kept["bytes"] >= BYTES_MAX:
        raise Problem(
            409,
            "too_many_snapshots",
            f"this key has {kept['count']} snapshots of {kept['bytes']} bytes; at most "
            f"{COUNT_MAX} and {BYTES_MAX} bytes are kept. Delete one.",
        )


def _mine(sql: Sql, public_key: str, snapshot_id: str) -> Row:
    row = _select(sql, snapshot_id)
    if row is None or row["public_key"] != public_key or row["status"] == "deleted":
        raise _not_found(snapshot_id)
    return row


def _select(sql: Sql, snapshot_id: str) -> Row | None:
    return sql.one("SELECT * FROM snapshot WHERE snapshot_id = :id", id=snapshot_id)


def _require(row: Row | None, snapshot_id: str) -> Row:
    if row is None:
        raise _not_found(snapshot_id)
    return row


def _not_found(snapshot_id: str) -> Problem:
    return Problem(
        404,
        "not_found",
        f"snapshot {snapshot_id[:80]!r}: this key has none of that id. List them: GET /snapshots.",
    )
