"""Leases.  One row per process; a heartbeat prolongs all it owns with one write.

A run is freed together with the row of its dead owner, so `owner` always names a live row.  Its
fence is left alone: the next claim raises it, and until then `owner IS NULL` refuses the old owner.

On a server a worker can be frozen within a transaction and hold locks.  Nobody who reaps waits for
those: what is locked is left, and freed by a later reap, when the server has ended the transaction.
The same later reap frees what a worker claimed in the very moment in which its row was removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa

from engine.errors import UsageError
from engine.ports import WorkerIdentity
from persistence import tables
from persistence.database import Database, Session
from persistence.limits import free_lost_slots

_w, _r = tables.worker.c, tables.run.c
_PROLONG = (
    sa.update(tables.worker)
    .where(
        _w.worker_id == sa.bindparam("who"),
        _w.host == sa.bindparam("on_host"),
        _w.pid == sa.bindparam("as_pid"),
        _w.process_start == sa.bindparam("since"),
    )
    .values(beat_ms=sa.bindparam("at"), lease_until_ms=sa.bindparam("until"))
)
_NAMED = sa.select(tables.worker).where(_w.worker_id == sa.bindparam("who"))
_REGISTER = sa.insert(tables.worker)
_ALL = sa.select(tables.worker).order_by(_w.worker_id)
_FORGET = sa.delete(tables.worker).where(_w.worker_id == sa.bindparam("who"))
_FORGET_UNCHANGED = _FORGET.where(
    _w.worker_id.in_(
        sa.select(_w.worker_id)
        .where(_w.worker_id == sa.bindparam("who"), _w.lease_until_ms == sa.bindparam("until"))
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
)


def _freeing(*whose: sa.ColumnElement[bool]) -> sa.Update:
    some = sa.select(_r.run_id).where(_r.owner.is_not(None), *whose)
    some = some.with_for_update(skip_locked=True)
    return sa.update(tables.run).where(_r.run_id.in_(some.scalar_subquery())).values(owner=None)


_OF_WHO = _r.owner == sa.bindparam("who")
_FREE = _freeing(_OF_WHO)
_FREE_STRAYS = _freeing(_OF_WHO, _r.run_id.not_in(sa.bindparam("kept", expanding=True)))
_FREE_ORPHANS = _freeing(_r.owner.not_in(sa.select(_w.worker_id).scalar_subquery()))


_TIME = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"


class SqlWorkers:
    """`engine.ports.Workers` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, worker: WorkerIdentity, now_ms: int, *, lease_until_ms: int) -> None:
        """Register, or prolong the lease.

        Raises:
            UsageError: another process has this id, and a lease that is not over.
        """
        with self._database.transaction() as sql:
            if sql.execute(
                _PROLONG,
                who=worker.worker_id,
                on_host=worker.host,
                as_pid=worker.pid,
                since=worker.process_start,
                at=now_ms,
                until=lease_until_ms,
            ):
                return
            for other in sql.fetch(_NAMED, who=worker.worker_id):
                _refuse_if_alive(other, now_ms, self._database.name)
                _free(sql, worker.worker_id)
                sql.execute(_FORGET, who=worker.worker_id)
            sql.execute(
                _REGISTER,
                worker_id=worker.worker_id,
                host=worker.host,
                pid=worker.pid,
                process_start=worker.process_start,
                beat_ms=now_ms,
                lease_until_ms=lease_until_ms,
            )

    def reap(self, now_ms: int, *, dead: Callable[[WorkerIdentity], bool]) -> int:
        """Free the runs of workers whose lease is over or whose process is known to be dead.

        `dead` is asked outside of any transaction; a worker that beats meanwhile keeps its runs.
        A lease is over when `lease_until_ms <= now_ms`.
        """
        over = [(worker, until) for worker, until in self.all() if until <= now_ms or dead(worker)]
        if not over:
            return self._free_orphans()
        with self._database.transaction() as sql:
            return sum(
                _free(sql, worker.worker_id)
                for worker, until in over
                if sql.execute(_FORGET_UNCHANGED, who=worker.worker_id, until=until)
            )

    def free_strays(self, worker_id: str, kept: Collection[str]) -> int:
        """Free what this worker owns but for these runs; how many it freed."""
        with self._database.transaction() as sql:
            freed = sql.execute(_FREE_STRAYS, who=worker_id, kept=sorted(kept))
            return _with_slots(sql, freed)

    def time_ms(self) -> int | None:
        """What time the server has; None for a file, which has this host's."""
        if self._database.dialect != "postgresql":
            return None
        with self._database.reading() as sql:
            return int(sql.scalar(_TIME))

    def _free_orphans(self) -> int:
        """Free what is owned by nobody who is registered; see the head of this module."""
        if self._database.dialect != "postgresql":
            return 0
        with self._database.transaction() as sql:
            return _with_slots(sql, sql.execute(_FREE_ORPHANS))

    def retire(self, worker_id: str) -> None:
        """Free this worker's runs and forget it."""
        with self._database.transaction() as sql:
            _free(sql, worker_id)
            sql.execute(_FORGET, who=worker_id)

    def all(self) -> list[tuple[WorkerIdentity, int]]:
        """Every registered worker with the end of its lease."""
        with self._database.reading() as sql:
            rows = sql.fetch(_ALL)
        return [
            (
                WorkerIdentity(
                    worker_id=row.worker_id,
                    host=row.host,
                    pid=row.pid,
                    process_start=row.process_start,
                ),
                row.lease_until_ms,
            )
            for row in rows
        ]


def _free(sql: Session, worker_id: str) -> int:
    return _with_slots(sql, sql.execute(_FREE, who=worker_id))


def _with_slots(sql: Session, freed: int) -> int:
    """Free the slots of the runs, too, that have just been freed."""
    if freed:
        free_lost_slots(sql)
    return freed


def _refuse_if_alive(other: Any, now_ms: int, database: str) -> None:
    """Raise if the other process of the same id may still move runs."""
    if other.lease_until_ms > now_ms:
        raise UsageError(
            f"worker {other.worker_id!r}: another process (pid {other.pid} on {other.host}) works "
            f"on {database} under this id, and its lease ends in "
            f"{(other.lease_until_ms - now_ms) / 1000:g} s. Give every process an id of its own "
            "(the default is random), or wait until that one has stopped."
        )
