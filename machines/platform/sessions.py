"""Sessions: rows that outlive the platform process, sandboxes that do not.

::

    create:  [row starting] -> backend.create -> [row running]
    end:     [row terminated, reason] -> backend.destroy

Every bracket is one transaction; the sandbox is touched outside, after the decision is on disk.
A row names its sandbox (same id).  What a death in between leaves:

- before the first bracket: nothing;
- with a row `starting` or `running`: the sandbox died with the process, and `start()` marks the
  row `terminated` with reason `platform_restarted`;
- with a row `terminated` and a sandbox still there: `sweep()` at the next start removes it.

A session ends by DELETE, at its time to live, after 15 minutes without activity, or when its
sandbox dies.  Time comes from the platform's clock; `expire_due()` is called before anything
that counts sessions, and now and then by the server.
"""

from __future__ import annotations

import secrets
import threading
from typing import Any

import structlog

from machines.platform.context import PlatformContext
from machines.platform.documents import IDLE_SECONDS, MEMORY_MIB_PER_VCPU
from machines.platform.limits import require_slot
from machines.platform.orders import Caller, SessionOrder
from machines.platform.refusals import require_same_request, sandbox_refusals
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import MIB, Backend, Handle, Spec
from machines.platform.sandbox.errors import SandboxError, SandboxGone
from persistence.database import Row
from persistence.database import Session as Sql

log = structlog.get_logger("turtles.platform.sessions")


def spec_for(sandbox_id: str, vcpu: int, environment: dict[str, str] | None = None) -> Spec:
    """What to build for a session or a one-off execution: 2 GiB per vCPU."""
    return Spec(
        sandbox_id=sandbox_id,
        vcpus=vcpu,
        memory_bytes=MEMORY_MIB_PER_VCPU * MIB * vcpu,
        environment=environment or {},
    )


class Sessions:
    """The sessions of every key, and the sandboxes behind them."""

    def __init__(self, context: PlatformContext, backend: Backend) -> None:
        self._context = context
        self._backend = backend
        self._starting: dict[str, threading.Event] = {}
        self._stopping = threading.Event()

    def start(self) -> int:
        """Clear what an earlier process left; the number of sandboxes swept.

        Sandboxes die with their platform process, so no stored session can still be live.
        """
        try:
            swept = self._backend.sweep()
        except SandboxError as error:
            # Without isolation there is nothing new to run; prices and keys must still work.
            swept = 0
            log.error("sweep_failed", error=str(error))
        with self._context.database.transaction() as sql:
            lost = sql.run(
                "UPDATE session SET state = 'terminated', reason = 'platform_restarted', "
                "ended_ms = :now WHERE state IN ('starting', 'running')",
                now=self._context.clock_ms(),
            )
            sql.run("UPDATE execution SET state = 'lost' WHERE state = 'running'")
        log.info("sessions_start", swept_sandboxes=swept, lost_sessions=lost)
        return swept

    def stop(self) -> None:
        """End every live session; later creates are refused with 503."""
        self._stopping.set()
        self._end_where("1 = 1", "platform_stopped")

    def require_open(self) -> None:
        """Refuse work while the platform stops.

        Raises:
            Problem: 503.
        """
        if self._stopping.is_set():
            raise Problem(
                503,
                "stopping",
                "the platform is stopping. Try again when it is back.",
                headers={"Retry-After": "2"},
            )

    def create(self, caller: Caller, order: SessionOrder) -> Row:
        """A new session, or the one this idempotency key made before.

        Raises:
            Problem: 429 no slot, 409 key reused for another request, 503, 400.
        """
        while True:
            row, is_new = self._reserve(caller, order)
            session_id = row["session_id"]
            if is_new:
                return self._build(session_id, order)
            # Another request with the same key may be creating it: answer when it is there.
            if event := self._starting.get(session_id):
                event.wait()
            settled = self._row(session_id)
            if settled is not None:
                return settled

    def _reserve(self, caller: Caller, order: SessionOrder) -> tuple[Row, bool]:
        self.expire_due()
        now_ms = self._context.clock_ms()
        session_id = f"unsb-session-{secrets.token_hex(8)}"
        with self._context.database.transaction() as sql:
            known = _by_idempotency_key(sql, caller)
            if known is not None:
                require_same_request(known["digest"], caller.digest)
                return known, False
            # Inside the transaction: what commits before `stop` is ended by it.
            self.require_open()
            require_slot(sql, caller.public_key, caller.tier, order.vcpu)
            # Known to waiters before its row can be seen.
            self._starting[session_id] = threading.Event()
            sql.run(
                "INSERT INTO session (session_id, public_key, shell, network_mode, vcpu, state, "
                "created_ms, expires_ms, last_active_ms, idempotency_key, digest, base_vcpu) VALUES "
                "(:id, :key, :shell, :mode, :vcpu, 'starting', :now, :expires, :now, :once, "
                ":digest, :vcpu)",
                id=session_id,
                key=caller.public_key,
                shell=order.shell,
                mode=order.network_mode,
                vcpu=order.vcpu,
                now=now_ms,
                expires=now_ms + order.ttl_seconds * 1000,
                once=caller.idempotency_key,
                digest=caller.digest,
            )
            return _require(_select(sql, session_id)), True

    def _build(self, session_id: str, order: SessionOrder) -> Row:
        try:
            with sandbox_refusals():
                handle = self._backend.create(spec_for(session_id, order.vcpu))
            with self._context.database.transaction() as sql:
                kept = sql.run(
                    "UPDATE session SET state = 'running' "
                    "WHERE session_id = :id AND state = 'starting'",
                    id=session_id,
                )
            if not kept:
                self._destroy(handle)
            return _require(self._row(session_id))
        except SandboxGone as error:
            self._forget(session_id)
            raise Problem(
                503, "sandbox_died", f"the new sandbox ended at once: {error}. Try again."
            ) from error
        except BaseException:
            # Nothing of it may be seen again: the same key may then create it afresh.
            self._forget(session_id)
            raise
        finally:
            self._starting.pop(session_id).set()

    def _forget(self, session_id: str) -> None:
        with self._context.database.transaction() as sql:
            sql.run("DELETE FROM session WHERE session_id = :id", id=session_id)
        self._destroy(Handle(session_id))

    def live(self, public_key: str) -> list[Row]:
        """The key's sessions that have not ended, oldest first."""
        self.expire_due()
        with self._context.database.reading() as sql:
            return sql.all(
                "SELECT * FROM session WHERE public_key = :key "
                "AND state IN ('starting', 'running') ORDER BY created_ms, session_id",
                key=public_key,
            )

    def find(self, public_key: str, session_id: str) -> Row:
        """A session of this key, ended or not.

        Raises:
            Problem: 404, unknown or another key's.
        """
        self.expire_due()
        row = self._row(session_id)
        if row is None or row["public_key"] != public_key:
            raise Problem(
                404,
                "not_found",
                f"session {session_id!r}: this key has none of that id. List them: GET /sessions.",
            )
        return row

    def end(self, public_key: str, session_id: str) -> Row:
        """End a session; one that has ended already is no error.

        Raises:
            Problem: 404.
        """
        self.find(public_key, session_id)
        self._end_where("session_id = :id", "deleted", id=session_id)
        return _require(self._row(session_id))

    def died(self, session_id: str) -> None:
        """Record that a session's sandbox is gone."""
        self._end_where("session_id = :id", "sandbox_died", id=session_id)

    def touch(self, sql: Sql, session_id: str) -> None:
        """Note activity, inside the caller's transaction."""
        sql.run(
            "UPDATE session SET last_active_ms = :now WHERE session_id = :id",
            id=session_id,
            now=self._context.clock_ms(),
        )

    def expire_due(self) -> int:
        """End the sessions whose time is over; how many.  One that is executing is not idle."""
        now_ms = self._context.clock_ms()
        due = {"now": now_ms, "idle": now_ms - IDLE_SECONDS * 1000}
        with self._context.database.reading() as sql:
            if not sql.scalar(f"SELECT count(*) FROM session WHERE {_LIVE} AND {_DUE}", **due):  # noqa: S608 - constants
                return 0
        return self._end_where(_DUE, "expired", **due)

    def reap(self) -> int:
        """End the sessions whose sandbox died unasked; how many."""
        with self._context.database.reading() as sql:
            rows = sql.all("SELECT session_id FROM session WHERE state = 'running'")
        dead = [row["session_id"] for row in rows if not self._lives(row["session_id"])]
        for session_id in dead:
            self.died(session_id)
        return len(dead)

    def _lives(self, session_id: str) -> bool:
        try:
            stats = self._backend.stats(Handle(session_id))
        except SandboxGone:
            return False
        # Enforcement "none" is a backend that runs nothing and has no processes to count.
        return stats.enforcement == "none" or stats.processes > 0

    def _end_where(self, condition: str, reason: str, **parameters: Any) -> int:
        with self._context.database.transaction() as sql:
            ended = sql.all(
                f"UPDATE session SET state = 'terminated', reason = :reason, ended_ms = :at "  # noqa: S608 - constants
                f"WHERE {_LIVE} AND {condition} RETURNING session_id",
                reason=reason,
                at=self._context.clock_ms(),
                **parameters,
            )
        for row in ended:
            self._destroy(Handle(row["session_id"]))
        return len(ended)

    def _destroy(self, handle: Handle) -> None:
        try:
            self._backend.destroy(handle)
        except SandboxError as error:
            log.warning("destroy_failed", sandbox_id=handle.sandbox_id, error=str(error))

    def _row(self, session_id: str) -> Row | None:
        with self._context.database.reading() as sql:
            return _select(sql, session_id)


_LIVE = "state IN ('starting', 'running')"
_DUE = (
    "(expires_ms <= :now OR (last_active_ms <= :idle AND NOT EXISTS (SELECT 1 FROM execution "
    "WHERE execution.session_id = session.session_id AND execution.state = 'running')))"
)


def _by_idempotency_key(sql: Sql, caller: Caller) -> Row | None:
    if caller.idempotency_key is None:
        return None
    return sql.one(
        "SELECT * FROM session WHERE public_key = :key AND idempotency_key = :once",
        key=caller.public_key,
        once=caller.idempotency_key,
    )


def _select(sql: Sql, session_id: str) -> Row | None:
    return sql.one("SELECT * FROM session WHERE session_id = :id", id=session_id)


def _require(row: Row | None) -> Row:
    if row is None:
        raise Problem(404, "not_found", "the session was removed while it was being created.")
    return row
