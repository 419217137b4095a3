"""Leases.  One row per process; a heartbeat prolongs all it owns with one write.

A run is freed together with the row of its dead owner, so `owner` always names a live row.  Its
fence is left alone: the next claim raises it, and until then `owner IS NULL` refuses the old owner.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from engine.ports import WorkerIdentity
from persistence import tables
from persistence.database import Database, Session

_w, _r = tables.worker.c, tables.run.c
_PROLONG = (
    sa.update(tables.worker)
    .where(_w.worker_id == sa.bindparam("who"))
    .values(beat_ms=sa.bindparam("at"), lease_until_ms=sa.bindparam("until"))
)
_REGISTER = sa.insert(tables.worker)
_ALL = sa.select(tables.worker).order_by(_w.worker_id)
_FORGET = sa.delete(tables.worker).where(_w.worker_id == sa.bindparam("who"))
_FORGET_UNCHANGED = _FORGET.where(_w.lease_until_ms == sa.bindparam("until"))
_FREE = (
    sa.update(tables.run)
    .where(_r.owner.is_not(None), _r.owner == sa.bindparam("who"))
    .values(owner=None)
)


class SqlWorkers:
    """`engine.ports.Workers` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, worker: WorkerIdentity, now_ms: int, *, lease_until_ms: int) -> None:
        """Register, or prolong the lease."""
        with self._database.transaction() as sql:
            if sql.execute(_PROLONG, who=worker.worker_id, at=now_ms, until=lease_until_ms):
                return
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
            return 0
        with self._database.transaction() as sql:
            return sum(
                _free(sql, worker.worker_id)
                for worker, until in over
                if sql.execute(_FORGET_UNCHANGED, who=worker.worker_id, until=until)
            )

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
    return sql.execute(_FREE, who=worker_id)
