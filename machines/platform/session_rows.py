"""The rows of sessions: whose they are, which are over, and the one place that moves their state.

::

    starting -> running <-> frozen
        |          |          |
        +----------+----------+--> terminated (with a reason)

A session ends by DELETE, at its time to live, after 15 minutes without activity, when its shell
ends or its terminal is hung up and nothing keeps it, or when its sandbox dies.  Time comes from
the platform's clock.

- Every activity (a command, keys and output of the terminal, an extension) begins the 15 minutes
  anew; a session that executes something is not idle.
- A frozen session cannot be idle: only its time to live runs on, and ends it.
- A lock refuses DELETE.  It holds up no time limit: what was never meant to be deleted by mistake
  would otherwise never end.

A session is named by its id or by its container's name; an unknown name and another key's are the
same 404.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import structlog

from engine.events import Event
from machines.platform import lives
from machines.platform.context import PlatformContext
from machines.platform.documents import IDLE_SECONDS, session_id_of
from machines.platform.lives.session import (
    Built,
    End,
    Freeze,
    SessionLife,
    SessionTerms,
    Thaw,
)
from machines.platform.refusals import terminated
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Handle
from machines.platform.sandbox.errors import SandboxError
from persistence.database import Row
from persistence.database import Session as Sql

State = Literal["running", "frozen", "terminated"]
Listing = Literal["active", "frozen", "locked"]
Watcher = Callable[[str, State], None]

# `<>` says nothing new; it is what makes SQLite take the index of those that have not ended.
LIVE = "state <> 'terminated' AND state IN ('starting', 'running', 'frozen')"
_DUE = (
    "(expires_ms <= :now OR (state <> 'frozen' AND last_active_ms <= :idle AND NOT EXISTS "
    "(SELECT 1 FROM execution WHERE execution.session_id = session.session_id "
    "AND execution.state = 'running')))"
)
_ANY_DUE = f"SELECT 1 FROM session INDEXED BY session_live WHERE {LIVE} AND {_DUE} LIMIT 1"  # noqa: S608 - constants
_FROM = {
    "running": "state IN ('starting', 'frozen')",
    "frozen": "state = 'running'",
    "terminated": LIVE,
}


def _event(before: str, target: State, reason: str | None) -> Event:
    if target == "terminated":
        return End(reason=reason or "terminated")
    if target == "frozen":
        return Freeze()
    return Built() if before == "starting" else Thaw()


def _times(now_ms: int) -> dict[str, int]:
    """What `_DUE` compares with."""
    return {"now": now_ms, "idle": now_ms - IDLE_SECONDS * 1000}


_LISTED = {
    "active": "state IN ('starting', 'running')",
    "frozen": "state = 'frozen'",
    "locked": "locked = 1",
}

log = structlog.get_logger("turtles.platform.sessions")


class SessionRows:
    """What is stored of the sessions of every key."""

    def __init__(self, context: PlatformContext, backend: Backend) -> None:
        self._context = context
        self._backend = backend
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        """Have a function called (in any thread) after a session has been frozen or has ended."""
        self._watchers.append(watcher)

    def live(self, public_key: str, listing: Listing | None = None) -> list[Row]:
        """The key's sessions that have not ended, oldest first; or some of them."""
        self.expire_due()
        narrowed = "" if listing is None else f"AND {_LISTED[listing]} "
        with self._context.database.reading() as sql:
            return sql.all(
                f"SELECT * FROM session WHERE public_key = :key AND {LIVE} {narrowed}"  # noqa: S608 - constants
                "ORDER BY created_ms, session_id",
                key=public_key,
            )

    def find(self, public_key: str, name: str) -> Row:
        """A session of this key by its id or its container's name, ended or not.

        Raises:
            Problem: 404, unknown or another key's.
        """
        row = self.named(name)
        if row is None or row["public_key"] != public_key:
            raise Problem(
                404,
                "not_found",
                f"session {name[:80]!r}: this key has none of that id. List them: GET /sessions.",
            )
        return row

    def named(self, name: str) -> Row | None:
        """A session by its id or its container's name, whosever it is."""
        session_id = session_id_of(name)
        now_ms = self._context.clock_ms()
        with self._context.database.reading() as sql:
            row = sql.one(
                f"SELECT *, {LIVE} AND {_DUE} AS is_due FROM session WHERE session_id = :id",  # noqa: S608 - constants
                id=session_id,
                **_times(now_ms),
            )
        if row is None or not row["is_due"]:
            return row
        self.expire_due()
        return self._row(session_id)

    def end(self, public_key: str, name: str) -> Row:
        """End a session; one that has ended already is no error.

        Raises:
            Problem: 404, or 409 when it is locked.
        """
        session_id = self.find(public_key, name)["session_id"]
        with self._context.database.transaction() as sql:
            row = require(select(sql, session_id))
            if row["locked"] and row["state"] != "terminated":
                raise Problem(
                    409,
                    "locked",
                    f"session {session_id} is locked and was not deleted. "
                    f"POST /sessions/{session_id}/unlock first.",
                    fields={"session_id": session_id, "locked": True},
                )
            ended = self._move(sql, session_id, "terminated", "deleted")
        if ended:
            self._over(session_id)
        return require(self._row(session_id))

    def died(self, session_id: str, reason: str = "sandbox_died") -> bool:
        """End a session that nobody deleted; False when it had ended before."""
        return bool(self._end_where("session_id = :id", reason, id=session_id))

    def touch(self, sql: Sql, session_id: str) -> None:
        """Note activity, inside the caller's transaction."""
        sql.run(
            "UPDATE session SET last_active_ms = :now WHERE session_id = :id",
            id=session_id,
            now=self._context.clock_ms(),
        )

    def claim(self, sql: Sql, session_id: str) -> Row:
        """A running session that something is about to use, inside the caller's transaction.

        Raises:
            Problem: 409 `session_starting` or `session_frozen`, 410 ended.
        """
        row = running(select(sql, session_id), session_id)
        self.touch(sql, session_id)
        return row

    def expire_due(self) -> int:
        """End the sessions whose time is over; how many."""
        due = _times(self._context.clock_ms())
        with self._context.database.reading() as sql:
            if not sql.scalar(_ANY_DUE, **due):
                return 0
        return self._end_where(_DUE, "expired", **due)

    def _end_where(self, condition: str, reason: str, **parameters: Any) -> int:
        with self._context.database.transaction() as sql:
            ended = self._terminate(sql, condition, reason, **parameters)
        for session_id in ended:
            self._over(session_id)
        return len(ended)

    def _terminate(self, sql: Sql, condition: str, reason: str, **parameters: Any) -> list[str]:
        rows = sql.all(
            f"SELECT session_id FROM session WHERE {LIVE} AND {condition}",  # noqa: S608 - constants
            **parameters,
        )
        ids: list[str] = [row["session_id"] for row in rows]
        return [each for each in ids if self._move(sql, each, "terminated", reason)]

    def _move(self, sql: Sql, session_id: str, target: State, reason: str | None = None) -> bool:
        """Move a session's state, inside the caller's transaction; whether it could be moved.

        The only place that does.  From where is in `_FROM`.  The session's life cycle moves with
        it, and may refuse.
        """
        before = select(sql, session_id)
        moved = sql.run(
            "UPDATE session SET state = :target, reason = :reason, ended_ms = :ended "  # noqa: S608 - constants
            f"WHERE session_id = :id AND {_FROM[target]}",
            id=session_id,
            target=target,
            reason=reason,
            ended=self._context.clock_ms() if target == "terminated" else None,
        )
        if moved and before is not None:
            self._live(sql, before, _event(before["state"], target, reason))
        return moved == 1

    def _live(self, sql: Sql, row: Row, event: Event) -> None:
        """Tell the life cycle; that of a row which is older than it begins now."""
        session_id, now_ms = row["session_id"], self._context.clock_ms()
        if lives.find(sql, SessionLife, session_id) is None:
            terms = SessionTerms(vcpu=row["vcpu"], base_vcpu=row["base_vcpu"])
            lives.begin(sql, SessionLife, session_id, terms, now_ms)
            if row["state"] != "starting":
                lives.move(sql, SessionLife, session_id, Built(), now_ms)
        lives.move(sql, SessionLife, session_id, event, now_ms)

    def _over(self, session_id: str) -> None:
        """After the row says `terminated`: hang up its terminal, end its sandbox."""
        self._announce(session_id, "terminated")
        self._destroy(Handle(session_id))

    def _announce(self, session_id: str, state: State) -> None:
        for watcher in self._watchers:
            watcher(session_id, state)

    def _destroy(self, handle: Handle) -> None:
        try:
            self._backend.destroy(handle)
        except SandboxError as error:
            log.warning("destroy_failed", sandbox_id=handle.sandbox_id, error=str(error))

    def _row(self, session_id: str) -> Row | None:
        with self._context.database.reading() as sql:
            return select(sql, session_id)


def running(row: Row | None, session_id: str) -> Row:
    """A session's row, when it is running.

    Raises:
        Problem: 409 `session_starting` or `session_frozen`, 410 ended.
    """
    if row is None or row["state"] == "terminated":
        raise terminated(session_id, row["reason"] if row else None)
    if row["state"] == "starting":
        raise Problem(
            409,
            "session_starting",
            f"session {session_id} is still being created. Try again.",
            headers={"Retry-After": "1"},
            fields={"session_id": session_id},
        )
    if row["state"] == "frozen":
        raise frozen(session_id)
    return row


def frozen(session_id: str) -> Problem:
    """409 for a session that must be unfrozen first."""
    return Problem(
        409,
        "session_frozen",
        f"session {session_id} is frozen; nothing was done. "
        f"POST /sessions/{session_id}/unfreeze first.",
        fields={"session_id": session_id, "unfreeze": f"/sessions/{session_id}/unfreeze"},
    )


def select(sql: Sql, session_id: str) -> Row | None:
    """The row of a session."""
    return sql.one("SELECT * FROM session WHERE session_id = :id", id=session_id)


def require(row: Row | None) -> Row:
    """A row that must be there.

    Raises:
        Problem: 404, it was removed meanwhile (its creation failed).
    """
    if row is None:
        raise Problem(404, "not_found", "the session was removed while it was being created.")
    return row
