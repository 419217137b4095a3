"""Every SQL statement of a store is a boundary, named by what it does to the runs.

::

    before accept  after accept       a run is inserted            (its first entry: `first`)
    before claim   after claim        a worker takes runs          (`promote` before it, for timers)
    before move    after move         a run's row is rewritten     (`step` its journal's entry)
    before deliver after deliver      an event comes in            (`wake`, `consume`)
    before lease   after lease        a heartbeat                  (`forget`, `free`)
    before remove  after remove       an old run's rows are deleted            (`remember`)
    before COMMIT accept first        a COMMIT has the names of all that is in its transaction

so `CrashPlan(where="after COMMIT claim")` dies when a claim has just become durable.  What reads is
no boundary: nothing has changed since the one before it.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import event

from engine.testing import CrashingConnection, CrashPlan

T = TypeVar("T")
_NAMES = (
    (r"INSERT INTO turtles_run\b", "accept"),
    (r"INSERT INTO turtles_transition\b", "step"),
    (r"(INSERT INTO|UPDATE) turtles_effect\b", "effects"),
    (r"INSERT INTO turtles_inbox\b", "deliver"),
    (r"UPDATE turtles_inbox\b", "consume"),
    (r"(INSERT INTO|UPDATE) turtles_worker\b", "lease"),
    (r"DELETE FROM turtles_worker\b", "forget"),
    (r"INSERT INTO turtles_machine_version\b", "register"),
    (r"INSERT INTO turtles_gone\b", "remember"),
    (r"DELETE FROM turtles_(inbox|transition|run)\b", "remove"),
    (r"(CREATE|ALTER|DROP)\b", "schema"),
    (r"(INSERT|UPDATE|DELETE|MERGE)\b", "change"),
    (r"(SAVEPOINT|RELEASE)\b", "savepoint"),
)
_PATTERNS = [(re.compile(rf"(?:WITH\b.*?\b)?{text}"), name) for text, name in _NAMES]
_RUN = re.compile(r"(?:WITH\b.*?\b)?UPDATE turtles_run SET (.*?)(?: WHERE |$)")
_SETS = (
    ("fence", "claim"),
    ("state", "move"),
    ("due_ms", "wake"),
    ("ready", "promote"),
    ("owner", "free"),
)
"""A column that an update of a run sets, and what that means; the first that fits."""


def name_of(statement: str) -> str | None:
    """What a statement does; None when it changes nothing."""
    flat = " ".join(statement.split())
    if flat.startswith("WITH waiting"):
        return None  # what arrived in the meantime, in the same pipeline as its step
    run = _RUN.match(flat)
    if run:
        set_to = run.group(1)
        found = (name for column, name in _SETS if re.search(rf"\b{column}\s*=", set_to))
        return next(found, "change") + (" step" if "INTO turtles_transition" in flat else "")
    return next((name for pattern, name in _PATTERNS if pattern.match(flat)), None)


class _Transaction:
    """The statements of one connection, on their way to a plan."""

    def __init__(self, plan: CrashPlan) -> None:
        self._plan = plan
        self._names: list[str] = []

    def begin(self) -> None:
        """A transaction that no BEGIN begins: a pipeline."""
        self._names = []

    def __call__(self, statement: str, call: Callable[[], T]) -> T:
        name = self._boundary(statement)
        if name is None:
            return call()
        return self._plan.around(name, call)

    def _boundary(self, statement: str) -> str | None:
        if statement.startswith("BEGIN"):
            self._names = []
            return None if statement == "BEGIN" or "READ ONLY" in statement else "BEGIN"
        if statement == "COMMIT":
            names, self._names = self._names, []
            return " ".join(["COMMIT", *names]) if names else None
        name = name_of(statement)
        if name == "step" and [one for one in self._names if one in ("accept", "move")][-1:] == [
            "accept"
        ]:
            name = "first"
        if name is not None and name not in self._names[-1:]:
            self._names.append(name)
        return name


def report_statements(target: Any, plan: CrashPlan) -> None:
    """Report every statement of new connections to a plan.

    Args:
        target: an SQLAlchemy engine; or its class, for every one of this process.
    """

    def connect(dialect: Any, _record: object, arguments: Any, options: Any) -> Any:
        connection = dialect.loaded_dbapi.connect(*arguments, **options)
        return CrashingConnection(connection, _Transaction(plan))

    event.listen(target, "do_connect", connect)


def report_store(store: Any, plan: CrashPlan) -> None:
    """Report every statement of a store that is open already."""
    report_statements(store.database.sa, plan)
    store.database.sa.dispose()


EVERYWHERE = sa.Engine
"""The target that means: every SQLite database that this process opens."""


def report_psycopg(plan: CrashPlan) -> None:
    """Report every statement of this process to PostgreSQL.

    A statement that the plan lets fail takes its connection with it, as a server does that ends.
    """
    import psycopg  # a tenth of a process that has no use for it

    transactions: WeakKeyDictionary[Any, _Transaction] = WeakKeyDictionary()

    def sent(connection: Any, statement: str, call: Callable[[], Any]) -> Any:
        if connection not in transactions:
            transactions[connection] = _Transaction(plan)
        try:
            return transactions[connection](statement, call)
        except sqlite3.OperationalError as error:
            connection.close()
            raise psycopg.OperationalError("the connection is lost") from error

    def reporting(method: Callable[..., Any]) -> Callable[..., Any]:
        def send(cursor: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            statement = query.decode() if isinstance(query, bytes) else str(query)
            return sent(
                cursor.connection, statement, lambda: method(cursor, query, *arguments, **options)
            )

        return send

    together = psycopg.Connection.pipeline

    @contextmanager
    def pipeline(connection: Any) -> Iterator[Any]:
        """What is sent in a pipeline is committed at its end."""
        if connection in transactions:
            transactions[connection].begin()
        with ExitStack() as stack:
            yield stack.enter_context(together(connection))
            sent(connection, "COMMIT", stack.close)

    psycopg.Connection.pipeline = pipeline  # type: ignore[method-assign]
    for kind in (psycopg.Cursor, psycopg.RawCursor):
        for name in ("execute", "executemany"):
            if name in vars(kind):
                setattr(kind, name, reporting(vars(kind)[name]))
