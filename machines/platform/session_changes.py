"""What may be changed about a session while it lasts: freezing, vCPUs, its lock, its time.

::

    freeze:    [row frozen: its slots are free] -> backend.freeze
    unfreeze:  [row running, when slots are free] -> backend.unfreeze
    boost:     more: [row vcpu] -> backend.resize;  less: backend.resize -> [row vcpu]

Every bracket is one transaction; the sandbox is touched outside, after the decision is on disk
(but what gives vCPUs back says so only when the sandbox has really lost them).  What the sandbox
refuses is undone.  A killed platform takes its sandboxes with it, whatever the rows say.

Freezing, unfreezing and resizing one session take turns, so that the last decision on disk is
also the last thing that its sandbox was told.  A session that is executing a command cannot be
frozen (409 `session_busy`): the command's time limit would run on and end the sandbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.events import Event
from machines.platform.context import PlatformContext
from machines.platform.documents import MEMORY_MIB_PER_VCPU
from machines.platform.limits import require_slot
from machines.platform.lives.session import Lock, Resize, Unlock
from machines.platform.orders import VCPUS_MAX, Caller
from machines.platform.refusals import sandbox_refusals, stopping, terminated
from machines.platform.replies import Problem, bad_field
from machines.platform.sandbox.backend import MIB, Backend, Handle
from machines.platform.sandbox.errors import SandboxFrozen, SandboxGone
from machines.platform.session_orders import SESSION_TTL_SECONDS_MAX
from machines.platform.session_rows import SessionRows, frozen, require, running, select
from persistence.database import Row
from persistence.database import Session as Sql

BOOST_VCPU_DEFAULT = 2
# Sessions that share one of these locks wait for each other for the time of one freeze.
_TURNS = 64


class SessionChanges(SessionRows):
    """What may be done to sessions that last."""

    def __init__(self, context: PlatformContext, backend: Backend) -> None:
        super().__init__(context, backend)
        self._stopping = threading.Event()
        self._turns = tuple(threading.Lock() for _ in range(_TURNS))

    def require_open(self) -> None:
        """Refuse work while the platform stops.

        Raises:
            Problem: 503.
        """
        if self._stopping.is_set():
            raise stopping()

    def freeze(self, caller: Caller, name: str) -> Row:
        """Stop its processes and give its slots back; one that is frozen is no error.

        Needs no multiplexer.  Attached terminals are closed and can be attached again later.

        Raises:
            Problem: 404, 400 not running, 409 it executes a command, 410 its sandbox died, 503.
        """
        session_id = self.find(caller.public_key, name)["session_id"]
        with self.turn(session_id):
            with self._context.database.transaction() as sql:
                row = require(select(sql, session_id))
                if row["state"] == "frozen":
                    return row
                _require_freezable(sql, row)
                self._move(sql, session_id, "frozen")
            self._announce(session_id, "frozen")
            try:
                with self._using(session_id):
                    self._backend.freeze(Handle(session_id))
            except BaseException:
                self._not_frozen(caller, session_id)
                raise
        return require(self._row(session_id))

    def _not_frozen(self, caller: Caller, session_id: str) -> None:
        """Undo a freeze that failed; without a slot for it the session ends."""
        try:
            with self._context.database.transaction() as sql:
                row = require(select(sql, session_id))
                require_slot(sql, caller.public_key, caller.tier, row["vcpu"])
                self._move(sql, session_id, "running")
        except Problem:
            self.died(session_id, "freeze_failed")

    def unfreeze(self, caller: Caller, name: str) -> tuple[Row, int]:
        """Let its processes go on; its row and how long that took, in milliseconds.

        The fifteen minutes without activity begin anew.  One that is running is no error.

        Raises:
            Problem: 404, 429 too few slots, 409 starting, 410 ended, 503.
        """
        session_id = self.find(caller.public_key, name)["session_id"]
        self.expire_due()  # what is over holds no slot
        with self.turn(session_id):
            with self._context.database.transaction() as sql:
                row = require(select(sql, session_id))
                if row["state"] != "frozen":
                    return running(row, session_id), 0
                self.require_open()
                require_slot(sql, caller.public_key, caller.tier, row["vcpu"])
                self._move(sql, session_id, "running")
                self.touch(sql, session_id)
            began = time.perf_counter()
            try:
                with self._using(session_id):
                    self._backend.unfreeze(Handle(session_id))
            except BaseException:
                with self._context.database.transaction() as sql:
                    self._move(sql, session_id, "frozen")
                raise
            took_ms = int((time.perf_counter() - began) * 1000)
        return require(self._row(session_id)), took_ms

    def boost(self, caller: Caller, name: str, vcpu: int | None) -> Row:
        """Give it more vCPUs (default 2), 2 GiB of memory and one slot each.

        Raises:
            Problem: 404, 400 fewer than it was made with, 429, 409 frozen or starting, 410, 503.
        """
        return self._resize(caller, name, lambda base: max(base, vcpu or BOOST_VCPU_DEFAULT), vcpu)

    def unboost(self, caller: Caller, name: str) -> Row:
        """Go back to the vCPUs that it was made with; one that was not boosted is no error.

        Raises:
            Problem: 404, 409 frozen or starting, 410, 503, 400 it uses more memory than that.
        """
        return self._resize(caller, name, lambda base: base, None)

    def _resize(
        self, caller: Caller, name: str, choose: Callable[[int], int], asked: int | None
    ) -> Row:
        session_id = self.find(caller.public_key, name)["session_id"]
        self.expire_due()  # what is over holds no slot
        with self.turn(session_id):
            with self._context.database.transaction() as sql:
                row = running(select(sql, session_id), session_id)
                before, base = row["vcpu"], row["base_vcpu"]
                if asked is not None and asked < base:
                    raise bad_field("vcpu", asked, f"an integer from {base} to {VCPUS_MAX}")
                vcpu = choose(base)
                if vcpu > before:
                    require_slot(sql, caller.public_key, caller.tier, vcpu - before)
                    self._set_vcpu(sql, row, vcpu)
                self.touch(sql, session_id)
            try:
                with self._using(session_id):
                    self._backend.resize(
                        Handle(session_id), vcpus=vcpu, memory_bytes=memory_bytes(vcpu)
                    )
            except BaseException:
                with self._context.database.transaction() as sql:
                    self._set_vcpu(sql, row, before)
                raise
            if vcpu < before:
                with self._context.database.transaction() as sql:
                    self._set_vcpu(sql, row, vcpu)
        return require(self._row(session_id))

    def _set_vcpu(self, sql: Sql, row: Row, vcpu: int) -> None:
        changed = sql.run(
            "UPDATE session SET vcpu = :vcpu "
            "WHERE session_id = :id AND state = 'running' AND vcpu <> :vcpu",
            id=row["session_id"],
            vcpu=vcpu,
        )
        if changed:
            self._live(sql, row, Resize(vcpu=vcpu))

    def lock(self, public_key: str, name: str, locked: bool) -> Row:
        """Refuse deletion, or allow it again.

        Raises:
            Problem: 404, 409 starting, 410 ended.
        """
        event = Lock() if locked else Unlock()
        return self._set(public_key, name, "locked = :locked", event, locked=int(locked))

    def extend(self, public_key: str, name: str, ttl_seconds: int) -> Row:
        """Add to its time to live, up to 24 h from now; counts as activity.

        Raises:
            Problem: 404, 409 starting, 410 ended.
        """
        now_ms = self._context.clock_ms()
        return self._set(
            public_key,
            name,
            "last_active_ms = :now, expires_ms = max(expires_ms, min(expires_ms + :more, :latest))",
            None,
            now=now_ms,
            more=ttl_seconds * 1000,
            latest=now_ms + SESSION_TTL_SECONDS_MAX * 1000,
        )

    def _set(
        self, public_key: str, name: str, columns: str, event: Event | None, **values: int
    ) -> Row:
        session_id = self.find(public_key, name)["session_id"]
        with self._context.database.transaction() as sql:
            row = require(select(sql, session_id))
            if row["state"] != "frozen":
                running(row, session_id)
            sql.run(f"UPDATE session SET {columns} WHERE session_id = :id", id=session_id, **values)  # noqa: S608 - constants
            if event is not None:
                self._live(sql, row, event)
            return require(select(sql, session_id))

    # -- sandboxes -----------------------------------------------------------------------------

    @contextmanager
    def turn(self, session_id: str) -> Iterator[None]:
        """Hold off what else would freeze, unfreeze or resize a session's sandbox."""
        with self._turns[hash(session_id) % _TURNS]:
            yield

    @contextmanager
    def _using(self, session_id: str) -> Iterator[None]:
        """Tell what a sandbox refuses; one that is gone ends its session."""
        try:
            with sandbox_refusals():
                yield
        except SandboxGone as error:
            self.died(session_id)
            row = self._row(session_id)
            raise terminated(session_id, row["reason"] if row else None) from error
        except SandboxFrozen as error:
            raise frozen(session_id) from error


def memory_bytes(vcpu: int) -> int:
    """2 GiB for each vCPU."""
    return MEMORY_MIB_PER_VCPU * MIB * vcpu


def _require_freezable(sql: Sql, row: Row) -> None:
    session_id = row["session_id"]
    if row["state"] != "running":
        raise Problem(
            400,
            "session_not_running",
            f"session {session_id} is {row['state']}; only a running one can be frozen "
            "(it needs no tmux or screen for that).",
            fields={"session_id": session_id, "status": row["state"]},
        )
    busy = "SELECT count(*) FROM execution WHERE session_id = :id AND state = 'running'"
    if sql.scalar(busy, id=session_id):
        raise Problem(
            409,
            "session_busy",
            f"session {session_id} is executing a command. Freeze it when that has ended.",
            headers={"Retry-After": "1"},
            fields={"session_id": session_id},
        )
