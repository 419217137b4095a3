"""The shape of every machine version that has run against this database."""

from __future__ import annotations

import sqlalchemy as sa

from persistence import tables
from persistence.database import Database, Session

_m = tables.machine_version.c
_ADD = sa.insert(tables.machine_version)
_SHAPE = sa.select(_m.shape).where(_m.version == sa.bindparam("of"))


class SqlMachines:
    """`engine.ports.Machines` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, name: str, version: str, shape: bytes, now_ms: int) -> None:
        """Remember a version; a version already known is left as it is."""
        with self._database.transaction() as sql:
            register(sql, name, version, shape, now_ms)

    def shape(self, version: str) -> bytes | None:
        """The shape stored for a version, as it was registered."""
        with self._database.reading() as sql:
            rows = sql.fetch(_SHAPE, of=version)
        return rows[0].shape if rows else None


def register(sql: Session, name: str, version: str, shape: bytes, now_ms: int) -> None:
    """The same inside the caller's transaction."""
    if not sql.fetch(_SHAPE, of=version):
        sql.execute(_ADD, version=version, name=name, shape=shape, first_ms=now_ms)
