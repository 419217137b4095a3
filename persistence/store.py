"""`open_store(url)`: the one way in.

::

    sqlite:///runs.db             a file (relative path)
    sqlite:////var/lib/runs.db    a file (absolute path)
    sqlite://                     in memory, for tests: gone when it is closed
    postgresql://user:password@host:5432/runs             a server
    postgresql://user@/runs?host=/var/run/postgresql      the same over its socket

What else the last two take in their query is said in `persistence.postgresql`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

from persistence import schema
from persistence.database import Database, Synchronous, open_database
from persistence.doors import SqlDoors
from persistence.effects import SqlEffects
from persistence.inbox import SqlInbox
from persistence.inspector import SqlInspector
from persistence.journal import SqlJournal
from persistence.limits import SqlLimits
from persistence.machines import SqlMachines
from persistence.moments import Moments, moments_of
from persistence.retention import SqlRetention
from persistence.runs import SqlRuns
from persistence.sqlite import SqliteDatabase
from persistence.workers import SqlWorkers

T = TypeVar("T")


class _Patient(Protocol):
    def __call__(self, noun: T, /) -> T:
        """The noun."""


def _patient(database: Database) -> _Patient:
    """What makes a noun wait for a server that is away; a file never is."""
    if database.dialect == "sqlite":
        return lambda noun: noun
    from persistence.postgresql import again

    return partial(again, database)


class SqlStore:
    """`engine.ports.Store` on one database, by noun.

    Not for several threads at once; several stores (processes) may share one file.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.name = database.name
        self.in_memory = database.in_memory
        path = database.path
        self.key_file = None if path is None else path.with_name(f"{path.name}.key")
        patient = _patient(database)
        limits = SqlLimits(database)
        self.limits = patient(limits)
        self.runs = patient(SqlRuns(database, limits))
        self.journal = patient(SqlJournal(database))
        self.inbox = patient(SqlInbox(database))
        self.workers = patient(SqlWorkers(database))
        self.effects = patient(SqlEffects(database))
        self.machines = patient(SqlMachines(database))
        self.inspector = patient(SqlInspector(database))
        self.retention = patient(SqlRetention(database))

    def within(self, connection: Any) -> SqlDoors:
        """This store in the caller's own transaction; see `persistence.doors`."""
        return SqlDoors(self.database, connection)

    @property
    def local(self) -> bool:
        """Whether a call takes so short that an event loop may wait for it."""
        return isinstance(self.database, SqliteDatabase)

    def hold(self) -> None:
        """Keep a connection for the calling thread, which then waits for others only briefly."""
        if isinstance(self.database, SqliteDatabase):
            self.database.hold()

    def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard` from another thread when other processes give work; a hint, no promise.

        Until the store is closed.  A file has no hints: polls find what others write.
        """
        if hints := getattr(self.database, "hints", None):
            hints.listen(heard)

    @cached_property
    def moments(self) -> Moments:
        """Saves and restores all of it; for a store whose content may be lost."""
        return moments_of(self.database)

    def close(self) -> None:
        """Close every connection."""
        self.database.close()


def open_store(
    url: str,
    *,
    synchronous: Synchronous = "FULL",
    migrate: bool = True,
    busy_timeout_seconds: float = 10.0,
) -> SqlStore:
    """Open a store, and bring its schema up to date.

    Args:
        url: see the head of this module.
        synchronous: `FULL`, or `NORMAL`: faster, survives the death of the process, may lose the
            last commits when the machine loses power.  SQLite only: on PostgreSQL it is the
            server's or the role's `synchronous_commit` that decides.
        migrate: upgrade an older schema; False refuses it.
        busy_timeout_seconds: how long a transaction waits for another process.

    Raises:
        UsageError: a url of another kind.
        SchemaMismatch: the database is newer than this code, or older with `migrate=False`.
        StoreReadOnly, StoreCorrupt, StoreFull, StoreBusy: the file cannot be used.
        StoreUnavailable: the server cannot be reached.
        StoreError: the server does not let us in, or has no such database.
    """
    database = open_database(
        url, synchronous=synchronous, busy_timeout_seconds=busy_timeout_seconds
    )
    try:
        if database.in_memory:
            schema.create(database)
        elif migrate:
            schema.upgrade_database(database)
        schema.require_current(database)
    except BaseException:
        database.close()
        raise
    return SqlStore(database)
