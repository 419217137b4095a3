"""One PostgreSQL database, by psycopg 3: for many workers at once.

::

    postgresql://user:password@host:5432/runs
    postgresql://user@/runs?host=/var/run/postgresql&sslmode=require

The query of the url is given to libpq (`sslmode`, `host`, `options`, ...), but for these::

    prepare=off     no prepared statements; for a pooler in transaction mode that forgets them
    pool=2          how many connections are kept (twice as many may be open for a moment)
    hints=off       no NOTIFY and LISTEN, which such a pooler does not take: polls alone

Transactions of writes are READ COMMITTED and lock the rows they look at; a snapshot to read from
is REPEATABLE READ, READ ONLY.  A statement never depends on what an earlier transaction left in
the session: no SET that outlives its transaction, no advisory lock of a session, no temporary
table.  So a pooler in transaction mode (PgBouncer) may stand between.

A worker that is stopped in the middle of a transaction holds locks that others wait for.  So each
transaction tells the server how long it may be idle, and how long it waits for others' locks;
whoever is over that loses the transaction, and nothing of it is kept.

What is lost, and what becomes of it::

    a connection that nobody used       replaced without a word
    one within a transaction            `StoreUnavailable`: nothing of it was kept
    one during COMMIT                   another connection asks the server what became of the
                                        transaction, by its number (`pg_xact_status`); so it either
                                        happened, or `StoreUnavailable` says that it did not
    one during COMMIT, and the server   the same if it did not happen; else `CommitUnknown`: a crash
    crashed                             may forget the number, and give it to another transaction
    the server, until patience ends     `CommitUnknown` in that last case, else `StoreUnavailable`

The store's methods are one transaction each, so they are simply done again after a loss, and when
another transaction got in between (a deadlock, the same key at the same moment): `Again`.  The
pauses in between grow and are random, lest all workers come back at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event

from engine.errors import (
    CommitUnknown,
    SchemaMismatch,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    UsageError,
)
from engine.ports import Batch, Delivery, Start, Write, Written
from persistence import arrays, swift
from persistence.arrays import packed
from persistence.compiled import numbered, plan_set
from persistence.database import Cursor, Database, Pooled, Session, Synchronous
from persistence.hints import Hints

if TYPE_CHECKING:
    from psycopg import Connection, RawCursor

T = TypeVar("T")
_EPOCH = "SELECT coalesce(stats_reset, pg_postmaster_start_time())::text FROM pg_stat_bgwriter"
"""Another one after every crash, which loses the statistics, too; anybody may read it."""
_BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_SCHEMA_LOCK = 7_310_591_242_217_316_219
"""The advisory lock of those who change the schema: a number that nobody else picks by chance."""
_LIBPQ = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "tcp_user_timeout": "30000",  # milliseconds; a server that vanished is noticed
    "application_name": "turtles",
    "client_encoding": "utf8",
}
_SWITCHES = ("prepare", "hints")
_SWITCH = {"on": True, "off": False}
_OLDEST = 140_000  # pipelines, and what the planner knows about partial indexes


class PgSession(Session):
    """A transaction of PostgreSQL."""

    dialect = "postgresql"

    def __init__(
        self, database: Database, pooled: Pooled, cursor: RawCursor[Any], *, binary: bool = True
    ) -> None:
        def send(text: str, values: Sequence[Any]) -> Cursor:
            return cursor.execute(text.encode(), values, binary=binary)

        super().__init__(database, pooled, send)
        self._cursor = cursor

    def _say(self, statement: str, parameters: Mapping[str, Any]) -> Cursor:
        text, in_order = numbered(statement)
        return self._send(text, in_order(parameters))

    def _send_many(self, text: str, rows: Sequence[Sequence[Any]]) -> int:
        self._cursor.executemany(text.encode(), rows)
        return self._cursor.rowcount

    def execute_many(self, statement: sa.Executable, rows: Sequence[Mapping[str, Any]], /) -> int:
        """Execute a built statement for all rows at once; the number of rows changed in all."""
        if not rows:
            return 0
        names = tuple(rows[0])
        return self.execute_rows(statement, names, [tuple([row[n] for n in names]) for row in rows])

    def execute_rows(
        self, statement: sa.Executable, names: tuple[str, ...], rows: Sequence[Sequence[Any]], /
    ) -> int:
        """The same for rows whose values are in the order of `names`."""
        if not rows:
            return 0
        text, kinds, constants = plan_set(statement, names)
        columns = map(packed, kinds, zip(*rows, strict=True))
        return self._send(text, [*columns, *constants]).rowcount

    def run_many(self, statement: str, rows: Sequence[Mapping[str, Any]], /) -> None:
        """Execute a statement once for each row of parameters."""
        text, in_order = numbered(statement)
        if rows:
            self._send_many(text, [in_order(row) for row in rows])

    def has_table(self, name: str) -> bool:
        """Whether there is a table of this name, where the search path leads."""
        return self.scalar("SELECT to_regclass(:name)::text", name=name) is not None

    def guard_schema(self) -> None:
        """Wait for the advisory lock, which the end of the transaction releases."""
        self.run("SET LOCAL lock_timeout = 0")  # a migration takes the time it takes
        self.run("SET LOCAL idle_in_transaction_session_timeout = 0")
        self.run(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")


class PgDatabase(Database):
    """A database on a server.

    Args:
        url: as SQLAlchemy reads it; the query goes to libpq.
        prepare: keep statements prepared on the server.
        hints: tell other processes of work, and hear of theirs.
        pool_size: connections that are kept; as many again may be open for a moment.
        busy_timeout_seconds: how long a transaction waits for a lock, and for a connection of the
            pool; the server waits twice as long for its next statement.
        patience_seconds: how long a server that is away is waited for, by what is `again` and to
            learn what became of a COMMIT.

    Raises:
        StoreError: one of its kinds, from any method, naming the database.
    """

    dialect = "postgresql"
    path = None

    def __init__(
        self,
        url: sa.URL,
        *,
        prepare: bool = True,
        hints: bool = True,
        pool_size: int = 2,
        busy_timeout_seconds: float = 10.0,
        patience_seconds: float = 20.0,
    ) -> None:
        _require_driver()
        self.patience_seconds = patience_seconds
        self._closing = threading.Event()
        self.name = _shown(url)
        self._busy_timeout_seconds = busy_timeout_seconds
        self._prepare = prepare
        milliseconds = max(int(busy_timeout_seconds * 1000), 1)
        self._begin_write = (
            "BEGIN ISOLATION LEVEL READ COMMITTED;"
            f" SET LOCAL lock_timeout = {milliseconds};"
            f" SET LOCAL idle_in_transaction_session_timeout = {2 * milliseconds};"
            " SELECT pg_current_xact_id()"
        )
        self._pool_size = pool_size
        self.sa = self._create(url)
        self.hints = Hints(self._own_connection) if hints else None

    def _create(self, url: sa.URL) -> sa.Engine:
        known = {name: value for name, value in _LIBPQ.items() if name not in url.query}
        database = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={
                **known,
                "autocommit": True,  # `_session` sends BEGIN and COMMIT
                "prepare_threshold": 5 if self._prepare else None,
            },
            pool_size=self._pool_size,
            max_overflow=self._pool_size,
            pool_timeout=self._busy_timeout_seconds,
            pool_use_lifo=True,  # those that are not needed grow old, and the server sees it
            use_native_hstore=False,
            hide_parameters=True,
        )
        event.listen(database, "connect", self._prepare_connection)
        return database

    def _prepare_connection(self, driver: Connection[Any], record: Any) -> None:
        from psycopg.adapt import Dumper
        from psycopg.pq import Format
        from psycopg.types import numeric, string

        # One type for each kind of value, whatever its size: else every mix of sizes would be
        # a statement of its own to the server.
        driver.adapters.register_dumper(int, numeric.Int8BinaryDumper)
        driver.adapters.register_dumper(str, string.StrBinaryDumper)
        for kind, number in arrays.OIDS.items():
            ready = {"format": Format.BINARY, "oid": number, "dump": lambda _self, value: value}
            driver.adapters.register_dumper(kind, type("Ready", (Dumper,), ready))
        encoding = driver.pgconn.parameter_status(b"server_encoding")
        if encoding not in (b"UTF8", None):
            raise StoreError(
                f"database {self.name}: its encoding is {encoding.decode()}, expected UTF8. "
                "Make a database with: createdb --encoding=UTF8 --template=template0"
            )
        version = driver.info.server_version
        if version < _OLDEST:
            raise StoreError(
                f"database {self.name}: the server is PostgreSQL {version // 10_000}, expected 14 "
                "or newer. Upgrade the server, or use another one."
            )
        (record.info["epoch"],) = driver.execute(_EPOCH, prepare=False).fetchone() or (None,)

    def close(self) -> None:
        """Close every connection that is not in use; nobody waits for the server any more."""
        self._closing.set()
        if self.hints is not None:
            self.hints.close()
        super().close()

    @contextmanager
    def _session(self, *, writes: bool) -> Iterator[Session]:
        from psycopg import Error, RawCursor

        number: str | None = None
        epoch: str | None = None
        committing = False
        try:
            pooled, number = self._begun(self._begin_write if writes else _BEGIN_READ)
            driver: Any = pooled.driver_connection
            epoch = pooled.info.get("epoch")
            try:
                yield PgSession(self, pooled, RawCursor(driver))
                committing = number is not None
                _commit(driver, self.name)
            except BaseException:
                _give_up(pooled, driver)
                raise
            finally:
                pooled.close()
        except sa.exc.TimeoutError as error:
            raise self._used_up() from error
        except (sa.exc.DBAPIError, Error) as error:  # the first: of `Session.connection`
            met = translate(getattr(error, "orig", error), self.name)
            lost = committing and isinstance(met, StoreUnavailable)
            if lost and self._happened(number, epoch, error):
                return
            raise met from error

    def at_once(self, batch: Batch) -> list[Written] | None:
        """Commit plain steps in one round trip; see `persistence.swift`.

        Raises:
            CommitUnknown: the server did not answer, and could not be asked again.
        """
        if not swift.plain(batch):
            return None
        sent: StoreError | None = None
        met: StoreError | None = None
        for _ in self.pauses():
            try:
                pooled = self._connected()
            except StoreUnavailable as error:
                met = error
                continue
            try:
                return self._at_once(pooled, batch.writes, doubtful=sent is not None)
            except StoreUnavailable as error:
                met = sent = error
            except _Conflict as error:
                met = error
        assert met is not None
        if sent is None:
            raise met
        raise self._unknown(sent) from sent

    def _at_once(self, pooled: Pooled, writes: Sequence[Write], *, doubtful: bool) -> list[Written]:
        from psycopg import Error

        driver: Any = pooled.driver_connection
        try:
            moved, waiting = _together(driver, swift.steps(writes))
            ids = {row[0] for row in moved}
            missed = [one for one in writes if one.before.run_id not in ids]
            if missed and doubtful:
                (found,) = _together(driver, [swift.numbered(missed)])
                ids.update(swift.ours(missed, found))
            return swift.answers(writes, ids, waiting)
        except Error as error:
            raise translate(error, self.name) from error
        finally:
            _give_up(pooled, driver)
            pooled.close()

    def _connected(self) -> Pooled:
        """A connection of the pool.

        Raises:
            StoreError: there is none to be had.
        """
        from psycopg import Error

        try:
            return self.sa.raw_connection()
        except sa.exc.TimeoutError as error:
            raise self._used_up() from error
        except (sa.exc.DBAPIError, Error) as error:
            raise translate(getattr(error, "orig", error), self.name) from error

    def _own_connection(self) -> Any:
        """A connection that is not the pool's any more."""
        pooled = self._connected()
        driver = pooled.driver_connection
        pooled.detach()
        return driver

    def _unknown(self, lost: BaseException) -> CommitUnknown:
        return CommitUnknown(
            f"database {self.name}: the connection was lost during COMMIT ({_told(lost)}), and the "
            "server could not be asked since, so it is unknown whether the transaction happened. "
            "Read again before trying again."
        )

    def _used_up(self) -> StoreBusy:
        return StoreBusy(
            f"database {self.name}: all {2 * self._pool_size} connections of this process were "
            f"in use for {self._busy_timeout_seconds:g} s. End transactions sooner, or give "
            "more connections with ?pool= in the url; nothing was written."
        )

    def _happened(self, number: str | None, epoch: str | None, lost: Exception) -> bool:
        """Whether a transaction was committed whose COMMIT was not answered.

        Args:
            epoch: between which crashes of the server it was.

        Raises:
            CommitUnknown: the server was away too long, or knows nothing any more.
        """
        for _ in self.pauses():
            with suppress(StoreUnavailable, StoreBusy), self.reading() as sql:
                known = sql.scalar("SELECT pg_xact_status(:n::xid8)", n=number)
                if known == "aborted":
                    return False
                if known == "committed" and sql.scalar(_EPOCH) == epoch:
                    return True
                if known != "in progress":  # forgotten, or another one's that got the number
                    break
        raise self._unknown(lost) from lost

    def pauses(self) -> Iterator[int]:
        """Numbers from 0, each after a longer pause, until patience is at an end."""
        ends = time.monotonic() + self.patience_seconds
        tries = 0
        while True:
            yield tries
            longest = min(0.05 * 2**tries, 2.0)
            wait = longest * (0.5 + random.random() / 2)  # noqa: S311 - spreads the workers
            if time.monotonic() + wait > ends or self._closing.wait(wait):
                return
            tries += 1

    def _begun(self, begin: str) -> tuple[Pooled, str | None]:
        """A connection with a transaction that has begun, and the number of one that writes."""
        from psycopg import OperationalError

        dead = 0
        while True:
            pooled = self.sa.raw_connection()
            driver: Any = pooled.driver_connection
            try:
                answer = driver.execute(begin, prepare=False)
                while answer.nextset():
                    pass
                return pooled, answer.fetchone()[0] if answer.description else None
            except OperationalError:
                dead += 1
                if not driver.closed or dead > 2 * self._pool_size:
                    _give_up(pooled, driver)
                    pooled.close()
                    raise
                pooled.invalidate()  # it died in the pool
            except BaseException:
                _give_up(pooled, driver)
                pooled.close()
                raise


class _Conflict(StoreBusy):
    """Others got in between; the same transaction may well succeed now."""


class Again:
    """A noun of the store whose methods are done again after a loss or a conflict.

    Each of them is one transaction, and nothing of it was kept when it raised `StoreUnavailable`
    (but for `CommitUnknown`, which is left to the caller) or a conflict.
    """

    def __init__(self, database: PgDatabase, noun: object) -> None:
        for name in dir(noun):
            method = getattr(noun, name)
            if not name.startswith("_") and callable(method):
                setattr(self, name, _again(database, method))


def again(database: Database, noun: T) -> T:
    """The noun, patient where the database is a server."""
    return cast(T, Again(database, noun)) if isinstance(database, PgDatabase) else noun


def _again(database: PgDatabase, method: Callable[..., T]) -> Callable[..., T]:
    gives = method.__name__ in ("start", "group", "commit", "deliver")

    @wraps(method)
    def patient(*args: Any, **named: Any) -> T:
        try:
            answer = method(*args, **named)
            if database.hints is not None and gives and _gives_work(args[0]):
                database.hints.give()
            return answer
        except (StoreUnavailable, _Conflict) as error:
            met: StoreError = error
        for _ in database.pauses():
            if isinstance(met, CommitUnknown):
                break
            try:
                return method(*args, **named)
            except (StoreUnavailable, _Conflict) as error:
                met = error
        raise met

    return patient


def _gives_work(asked: Any) -> bool:
    """Whether others may find something to do now: in a batch, in starts, deliveries or writes."""
    if isinstance(asked, Batch):
        return bool(asked.deliveries) or _gives_work(asked.starts) or _gives_work(asked.writes)
    return any(
        isinstance(one, Delivery)
        or (one.owner is None if isinstance(one, Start) else bool(one.starts or one.sends))
        for one in asked
    )


def _together(driver: Any, asked: Sequence[swift.Asked]) -> list[list[Any]]:
    """The rows of statements that are sent, and committed, together."""
    from psycopg import RawCursor

    with driver.pipeline():
        cursors = [
            RawCursor(driver).execute(one.text.encode(), one.values, binary=True) for one in asked
        ]
    return [cursor.fetchall() for cursor in cursors]


def _commit(driver: Any, name: str) -> None:
    if driver.execute("COMMIT", prepare=False).statusmessage != "COMMIT":
        raise StoreError(
            f"database {name}: the transaction had failed, and was rolled back. "
            "Let the first error end the block."
        )


def _give_up(pooled: Pooled, driver: Any) -> None:
    """Roll back; a connection with which that cannot be done is thrown away."""
    from psycopg import Error
    from psycopg.pq import TransactionStatus

    status = driver.info.transaction_status
    if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
        with suppress(Error):  # the first error is the one to tell
            driver.execute("ROLLBACK", prepare=False)
            return
    if driver.info.transaction_status != TransactionStatus.IDLE:
        pooled.invalidate()


def open_postgresql(url: str, *, synchronous: Synchronous, busy_timeout_seconds: float) -> Database:
    """The database behind a url.

    Raises:
        UsageError: the url cannot be read, or `synchronous` is not `FULL`.
    """
    if synchronous != "FULL":
        raise UsageError(
            "store: synchronous=NORMAL is for SQLite; on PostgreSQL say it to the server: "
            "ALTER ROLE ... SET synchronous_commit = off"
        )
    try:
        parsed = sa.make_url(url)
        pool = int(str(parsed.query.get("pool", "2")))
        prepare, hints = (_SWITCH[str(parsed.query.get(name, "on"))] for name in _SWITCHES)
        if pool < 1:
            raise ValueError(pool)
    except (sa.exc.ArgumentError, ValueError, KeyError) as error:
        raise UsageError(
            "store url: expected postgresql://user:password@host:port/database with at most "
            "?prepare=on|off, ?hints=on|off, ?pool=1 or more, and options of libpq in its query, "
            "got something else (not shown, for its password). Special characters in it are "
            "written as %40."
        ) from error
    return PgDatabase(
        parsed.difference_update_query(["pool", *_SWITCHES]),
        prepare=prepare,
        hints=hints,
        pool_size=pool,
        busy_timeout_seconds=busy_timeout_seconds,
    )


def _shown(url: sa.URL) -> str:
    """The url without the password, and of its query only where the server is."""
    where = {name: value for name, value in url.query.items() if name in ("host", "port")}
    return sa.URL.create(
        "postgresql", url.username, None, url.host, url.port, url.database, where
    ).render_as_string()


def _require_driver() -> None:
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "store url: postgresql:// needs the driver psycopg 3, which cannot be imported "
            f"({error}). Run: pip install 'turtles[postgresql]'"
        ) from error


def translate(error: BaseException | None, name: str) -> StoreError:
    """The store error that a driver's error means, with what to do about it."""
    text = _told(error)
    state = getattr(error, "sqlstate", None) or _state_in(text)
    kind, advice = _meaning(state, error)
    shown = f" [{state}]" if state and state != "option" else ""
    return kind(f"database {name}: {advice.format(text=text + shown)}")


def _told(error: BaseException | None) -> str:
    return " ".join(str(error).split())


_TRY_AGAIN = "Nothing was written; it is tried again, or try again."
_MEANINGS: tuple[tuple[tuple[str, ...], type[StoreError], str], ...] = (
    (
        ("55P03",),
        StoreBusy,
        f"another transaction held a lock too long ({{text}}). {_TRY_AGAIN}",
    ),
    (
        ("40001", "40P01", "23505"),
        _Conflict,
        f"another transaction got in between ({{text}}). {_TRY_AGAIN}",
    ),
    (
        ("57014",),
        StoreBusy,
        "the server ended a statement that took too long ({text}). Nothing was written; try "
        "again, or raise statement_timeout of the role.",
    ),
    (
        ("53300",),
        StoreBusy,
        "the server has no connection left ({text}). Raise max_connections, put a pooler in "
        "front, or run fewer workers; nothing was written.",
    ),
    (
        ("53100", "53200", "53000", "53400"),
        StoreFull,
        "the server has no room left ({text}). Free some space there and run again; the last "
        "transition was not committed.",
    ),
    (
        ("25006", "42501"),
        StoreReadOnly,
        "the server does not take writes from us ({text}). Connect to the primary as a role that "
        "may write; nothing was written.",
    ),
    (
        ("XX001", "XX002"),
        StoreCorrupt,
        "the server found damaged data ({text}). Restore it from a backup; nothing was written.",
    ),
    (
        ("42P01", "42703"),
        SchemaMismatch,
        "a table or column is missing ({text}). Run `turtles db upgrade`, or look whether the "
        "search_path leads to the right schema; nothing was written.",
    ),
    (
        ("28P01", "28000"),
        StoreError,
        "the server does not let us in ({text}). Check user and password of the url, and "
        "pg_hba.conf of the server.",
    ),
    (
        ("3D000",),
        StoreError,
        "there is no such database ({text}). Make it with createdb, or correct the url.",
    ),
    (
        ("25P03",),
        StoreUnavailable,
        "this process stopped in the middle of a transaction, and the server ended it ({text}). "
        + _TRY_AGAIN,
    ),
    (
        ("57P01", "57P02", "57P03", "57P05", "08000", "08001", "08003", "08004", "08006", "08P01"),
        StoreUnavailable,
        f"the server cannot be reached, or the connection was lost ({{text}}). {_TRY_AGAIN}",
    ),
)
_BY_STATE = {state: (kind, advice) for states, kind, advice in _MEANINGS for state in states}
# What libpq says when it cannot connect; it keeps the code to itself.
_IN_TEXT = (
    ("password authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("too many clients", "53300"),
    ("remaining connection slots", "53300"),
    ("too many connections", "53300"),
    ("role ", "28000"),
    ("invalid connection option", "option"),
    ("invalid sslmode value", "option"),
)


def _meaning(state: str | None, error: BaseException | None) -> tuple[type[StoreError], str]:
    from psycopg import OperationalError

    if state == "option":
        return StoreError, "the url has an option that libpq does not take ({text}). Correct it."
    if state is None and isinstance(error, OperationalError):
        return _BY_STATE["08006"]
    return _BY_STATE.get(state or "", (StoreError, "{text}"))


def _state_in(text: str) -> str | None:
    if "database" in text and "does not exist" in text:
        return "3D000"
    return next((state for words, state in _IN_TEXT if words in text), None)
