"""Images: archives that outlive what they were made of, and that other keys may use.

::

    publish:  [row creating] -> save, or link of a snapshot's file -> [row ready]
    clone:    the same, of another image: a new id, owned by the caller, private
    end:      [row deleted] -> file removed

Rows and files are kept as those of snapshots are (snapshots.py); `start()` deletes what a death
left half made.  Who may see, show, spawn and clone an image, and as what:

==========  =====  ============  =========
visibility  owner  granted keys  all other
==========  =====  ============  =========
private     owned  shared        no
unlisted    owned  shared        no
public      owned  public        public
==========  =====  ============  =========

To whom it is out of reach an image does not exist (404).  Only its owner changes it: visibility,
grants, lock, transfer, deletion (403 to others who can see it).  What a grant allowed ends with
`revoke`; copies that were made before stay, for they are the copier's.

A transfer gives everything to the receiver: the giver keeps no access unless it is granted again.
The fingerprint of an image is the SHA-256 of its archive, checked before each use.
"""

from __future__ import annotations

import json
import secrets
import string
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from machines.platform import image_rows, keys
from machines.platform.context import PlatformContext
from machines.platform.copies import Kind, Recipe, recipe_of
from machines.platform.image_rows import Access, Visibility
from machines.platform.orders import Caller
from machines.platform.refusals import repeated
from machines.platform.replies import Problem, bad_field
from machines.platform.sandbox.backend import Backend, Handle, Saved
from machines.platform.shelf import Shelf
from machines.platform.snapshots import Snapshots, locked, told_of_disk
from machines.platform.sources import Sources
from persistence.database import Row
from persistence.database import Session as Sql

TRUSTED_MAX = 256
DESCRIPTION_CHARACTERS_MAX = 4000
_ALPHABET = string.ascii_lowercase + string.digits

log = structlog.get_logger("turtles.platform.images")


class ImageOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request for an image; `source_type` `image` is a clone."""

    source_type: Literal["session", "service", "snapshot", "image"]
    source_id: str
    name: str | None = None
    description: str | None = None


class _Content(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is made of, and how to put that on the shelf."""

    recipe: Recipe
    put: Callable[[str, Path], Saved]


class Images:
    """The images of every key."""

    def __init__(
        self, context: PlatformContext, backend: Backend, sources: Sources, snapshots: Snapshots
    ) -> None:
        self._context = context
        self._backend = backend
        self._sources = sources
        self._snapshots = snapshots
        self.shelf = Shelf(context.database, "images")
        self._creating: dict[str, threading.Event] = {}

    def start(self) -> int:
        """Put right what an earlier process left; how many images were not finished."""
        with self._context.database.transaction() as sql:
            rows = sql.all("SELECT image_id, status FROM image WHERE status <> 'deleted'")
            gone = [
                row["image_id"]
                for row in rows
                if row["status"] == "creating" or not self.shelf.holds(row["image_id"])
            ]
            for image_id in gone:
                self._move(sql, image_id, "deleted")
        swept = self.shelf.sweep({row["image_id"] for row in rows} - set(gone))
        if gone or swept:
            log.info("images_start", lost_images=len(gone), swept_files=swept)
        return len(gone)

    # -- making --------------------------------------------------------------------------------

    def publish(self, caller: Caller, order: ImageOrder) -> Row:
        """A new image of the caller's, or the one this idempotency key made before.

        Raises:
            Problem: 404 no such source; 409 it does not run or is not ready, this key has too
                many, or the idempotency key was used otherwise; 410; 400 too large; 503.
        """
        while True:
            row, content = self._reserve(caller, order)
            image_id = row["image_id"]
            if content is not None:
                return self._fill(image_id, content)
            # Another request with the same key may be making it: answer when it is there.
            if event := self._creating.get(image_id):
                event.wait()
            if settled := self._row(image_id):
                return settled

    def _reserve(self, caller: Caller, order: ImageOrder) -> tuple[Row, _Content | None]:
        """The row; with its content when it is new."""
        with self._context.database.reading() as sql:
            known = repeated(sql, caller, "image", owner="owner_key")
        if known is not None:
            return known, None
        content = self._content(caller, order)
        image_id = _new_id()
        with self._context.database.transaction() as sql:
            known = repeated(sql, caller, "image", owner="owner_key")
            if known is not None:
                return known, None
            image_rows.require_room(sql, caller.public_key)
            # Known to waiters before its row can be seen.
            self._creating[image_id] = threading.Event()
            sql.run(
                "INSERT INTO image (image_id, owner_key, name, description, source_type, "
                "source_id, status, visibility, recipe, created_ms, idempotency_key, digest) "
                "VALUES (:id, :key, :name, :description, :type, :source, 'creating', 'private', "
                ":recipe, :now, :once, :digest)",
                id=image_id,
                key=caller.public_key,
                name=order.name,
                description=order.description,
                type=order.source_type,
                source=order.source_id,
                recipe=content.recipe.stored(),
                now=self._context.clock_ms(),
                once=caller.idempotency_key,
                digest=caller.digest,
            )
            return image_rows.require(image_rows.select(sql, image_id), image_id), content

    def _content(self, caller: Caller, order: ImageOrder) -> _Content:
        """Where the bytes come from.  A link has the hash that its source had."""
        if order.source_type == "snapshot":
            row = self._snapshots.ready(caller.public_key, order.source_id)
            return _linked(row, self._snapshots.shelf, row["snapshot_id"], self.shelf)
        if order.source_type == "image":
            row = self.ready(caller.public_key, order.source_id)
            return _linked(row, self.shelf, row["image_id"], self.shelf)
        kind: Kind = order.source_type
        source = self._sources.find(caller.public_key, kind, order.source_id)
        return _Content(
            recipe=source.recipe,
            put=lambda _image_id, path: self._sources.save(source, path, hot=False),
        )

    def _fill(self, image_id: str, content: _Content) -> Row:
        try:
            with told_of_disk():
                saved = content.put(image_id, self.shelf.path(image_id))
            with self._context.database.transaction() as sql:
                kept = self._move(sql, image_id, "ready", saved)
                row = image_rows.select(sql, image_id)
            if not kept:  # it was deleted meanwhile
                self.shelf.remove(image_id)
            return image_rows.require(row, image_id)
        except BaseException:
            with self._context.database.transaction() as sql:
                sql.run("DELETE FROM image_trust WHERE image_id = :id", id=image_id)
                sql.run("DELETE FROM image WHERE image_id = :id", id=image_id)
            self.shelf.remove(image_id)
            raise
        finally:
            self._creating.pop(image_id).set()

    # -- finding -------------------------------------------------------------------------------

    def reachable(self, public_key: str, access: Access | None = None) -> list[tuple[Row, Access]]:
        """The images that a key can use, oldest first, and how; or those of one way."""
        with self._context.database.reading() as sql:
            rows = sql.all(
                f"SELECT image.*, {image_rows.ACCESS} AS access FROM image "  # noqa: S608 - constants
                "WHERE status <> 'deleted' AND (owner_key = :key OR (status = 'ready' "
                "AND (visibility = 'public' OR EXISTS (SELECT 1 FROM image_trust AS trust "
                "WHERE trust.image_id = image.image_id AND trust.public_key = :key)))) "
                "ORDER BY created_ms, image_id",
                key=public_key,
            )
        found: list[tuple[Row, Access]] = [(row, row["access"]) for row in rows]
        return [each for each in found if access in (None, each[1])]

    def find(self, public_key: str, image_id: str) -> tuple[Row, Access]:
        """An image that this key can use, and how.

        Raises:
            Problem: 404, unknown, deleted or out of reach.
        """
        with self._context.database.reading() as sql:
            return image_rows.reached(sql, public_key, image_id)

    def ready(self, public_key: str, image_id: str) -> Row:
        """An image that this key can make something of.

        Raises:
            Problem: 404, 409 it is not ready.
        """
        row, _ = self.find(public_key, image_id)
        if row["status"] != "ready":
            raise image_rows.not_ready(row)
        return row

    def trusted(self, image_id: str) -> list[str]:
        """The keys that an image was granted to, in the order of granting."""
        with self._context.database.reading() as sql:
            rows = sql.all(
                "SELECT public_key FROM image_trust WHERE image_id = :id "
                "ORDER BY granted_ms, public_key",
                id=image_id,
            )
        return [row["public_key"] for row in rows]

    def owned(self, public_key: str, image_id: str) -> Row:
        """An image of this key.

        Raises:
            Problem: 404, 403 another key's.
        """
        with self._context.database.reading() as sql:
            return image_rows.owned(sql, public_key, image_id)

    # -- changing: the owner only --------------------------------------------------------------

    def delete(self, public_key: str, image_id: str) -> Row:
        """Remove it for ever.

        Raises:
            Problem: 404, 403, 409 it is locked.
        """
        with self._context.database.transaction() as sql:
            row = image_rows.owned(sql, public_key, image_id)
            if row["locked"]:
                raise locked("image", image_id)
            self._move(sql, image_id, "deleted")
            sql.run("DELETE FROM image_trust WHERE image_id = :id", id=image_id)
        self.shelf.remove(image_id)
        return {**row, "status": "deleted"}

    def set_locked(self, public_key: str, image_id: str, is_locked: bool) -> Row:
        """Refuse, or allow, its deletion.

        Raises:
            Problem: 404, 403.
        """
        return self._set(public_key, image_id, "locked", int(is_locked))

    def set_visibility(self, public_key: str, image_id: str, visibility: Visibility) -> Row:
        """Say who else may use it.

        Raises:
            Problem: 404, 403.
        """
        return self._set(public_key, image_id, "visibility", visibility)

    def _set(self, public_key: str, image_id: str, column: str, value: int | str) -> Row:
        with self._context.database.transaction() as sql:
            image_rows.owned(sql, public_key, image_id)
            sql.run(
                f"UPDATE image SET {column} = :value WHERE image_id = :id",  # noqa: S608 - ours
                id=image_id,
                value=value,
            )
            return image_rows.require(image_rows.select(sql, image_id), image_id)

    def grant(self, public_key: str, image_id: str, trusted_key: str) -> Row:
        """Let another key use it; one that may already is no error.

        Raises:
            Problem: 404, 403, 409 too many.
        """
        with self._context.database.transaction() as sql:
            row = image_rows.owned(sql, public_key, image_id)
            count = sql.scalar("SELECT count(*) FROM image_trust WHERE image_id = :id", id=image_id)
            if count >= TRUSTED_MAX:
                raise Problem(
                    409,
                    "too_many_grants",
                    f"image {image_id} is granted to {count} keys, at most {TRUSTED_MAX}. "
                    "Revoke one, or make it public.",
                )
            sql.run(
                "INSERT INTO image_trust (image_id, public_key, granted_ms) "
                "VALUES (:id, :key, :now) ON CONFLICT DO NOTHING",
                id=image_id,
                key=trusted_key,
                now=self._context.clock_ms(),
            )
            return row

    def revoke(self, public_key: str, image_id: str, trusted_key: str) -> Row:
        """Take a grant back; one that was never given is no error.

        Raises:
            Problem: 404, 403.
        """
        with self._context.database.transaction() as sql:
            row = image_rows.owned(sql, public_key, image_id)
            sql.run(
                "DELETE FROM image_trust WHERE image_id = :id AND public_key = :key",
                id=image_id,
                key=trusted_key,
            )
            return row

    def transfer(self, public_key: str, image_id: str, to_key: str) -> Row:
        """Give it to another key.

        Raises:
            Problem: 404, 403, 400 no such key, 409 it is not ready, or the receiver has too many.
        """
        with self._context.database.transaction() as sql:
            row = image_rows.owned(sql, public_key, image_id)
            if row["status"] != "ready":
                raise image_rows.not_ready(row)
            if keys.find(sql, to_key) is None:
                raise bad_field("to_api_key", to_key, "the public key of the receiver")
            if to_key != public_key:
                image_rows.require_room(sql, to_key)
            # The giver's idempotency key means nothing among the receiver's, and what the image
            # was made of stays the giver's.
            sql.run(
                "UPDATE image SET owner_key = :to, idempotency_key = NULL, "
                "source_id = CASE WHEN owner_key = :to THEN source_id ELSE '' END "
                "WHERE image_id = :id",
                id=image_id,
                to=to_key,
            )
            sql.run(
                "DELETE FROM image_trust WHERE image_id = :id AND public_key = :to",
                id=image_id,
                to=to_key,
            )
            return image_rows.require(image_rows.select(sql, image_id), image_id)

    # -- using ---------------------------------------------------------------------------------

    def filler(self, row: Row) -> Callable[[Handle], None]:
        """What fills the new sandbox of something that is made of an image."""

        def fill(handle: Handle) -> None:
            self._backend.load(handle, self.shelf.checked(row["image_id"], row["sha256"]))

        return fill

    def refill(self, service: Row, handle: Handle) -> None:
        """Fill the fresh sandbox of a service that was spawned from an image.

        An image that its owner cannot use any more is left out: the service starts empty.
        """
        try:
            row = self.ready(service["public_key"], service["source_image"])
        except Problem as problem:
            log.warning("image_lost", service_id=service["service_id"], reason=problem.error)
            return
        self.filler(row)(handle)

    # -- rows ----------------------------------------------------------------------------------

    def _move(self, sql: Sql, image_id: str, status: str, saved: Saved | None = None) -> bool:
        """Move its status, inside the caller's transaction; whether it could be moved.

        The only place that does: creating -> ready, creating or ready -> deleted.
        """
        if saved is None:
            moved = sql.run(
                "UPDATE image SET status = :status WHERE image_id = :id AND status <> 'deleted'",
                id=image_id,
                status=status,
            )
        else:
            moved = sql.run(
                "UPDATE image SET status = :status, level = :level, lost = :lost, "
                "size_bytes = :size, sha256 = :sha256 "
                "WHERE image_id = :id AND status = 'creating'",
                id=image_id,
                status=status,
                level=saved.level,
                lost=json.dumps(saved.lost),
                size=saved.size_bytes,
                sha256=saved.sha256,
            )
        return moved == 1

    def _row(self, image_id: str) -> Row | None:
        with self._context.database.reading() as sql:
            return image_rows.select(sql, image_id)


def _new_id() -> str:
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(4))
    return "unsb-image-" + "-".join(groups)


def _linked(row: Row, shelf: Shelf, archive_id: str, onto: Shelf) -> _Content:
    def put(image_id: str, _path: Path) -> Saved:
        onto.add_link(shelf.checked(archive_id, row["sha256"]), image_id)
        lost = tuple(json.loads(row["lost"]))
        return Saved(row["level"], row["size_bytes"], row["sha256"], lost)

    return _Content(recipe=recipe_of(row), put=put)
