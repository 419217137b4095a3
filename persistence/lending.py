"""Lending the connection of one of our transactions to an effect that is SQL itself.

::

    with database.transaction() as sql:
        with lent(sql) as connection:        # the effect's statements
            write = work(connection)
        commit(sql, [write], ...)            # the step that its outcome causes
                                             # one COMMIT for both

The effect may read and write whatever it likes; ending the transaction is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from engine.errors import UsageError
from persistence.database import Session


@contextmanager
def lent(sql: Session) -> Iterator[sa.Connection]:
    """A transaction of ours as a connection for somebody else, who may not end it.

    Raises:
        UsageError: it was ended all the same, or a statement failed and nobody was told.
    """

    def refuse(*_arguments: object) -> None:
        raise UsageError(
            "connection of an effect: it may not commit, roll back or close, because its "
            "transaction is the run's step. Raise to undo all of it; part of it can be undone "
            "with `with connection.begin_nested():`."
        )

    connection = sql.connection
    vars(connection).update(dict.fromkeys(("close", "detach", "invalidate"), refuse))
    for ending in ("commit", "rollback"):
        event.listen(connection, ending, refuse)
    try:
        yield connection
        state = _state(sql, connection)
    finally:
        for ending in ("commit", "rollback"):
            event.remove(connection, ending, refuse)
    if state is not None:
        raise UsageError(
            f"connection of an effect: {state}. Its transaction is the run's step: let errors of "
            "statements out, or put such statements in `with connection.begin_nested():`."
        )


def _state(sql: Session, connection: sa.Connection) -> str | None:
    """What is wrong with the transaction after others used it."""
    driver: Any = connection.connection.driver_connection
    if sql.dialect == "sqlite":
        return None if driver.in_transaction else "it was committed or rolled back"
    found = driver.info.transaction_status.name  # libpq's, of psycopg
    if found == "INTRANS":
        return None
    return "a statement failed, and its error was swallowed" if found == "INERROR" else "it ended"
