"""The platform's own life cycles, as machines of the engine.

A session, a service, a job, an invoice and a gift card each have a run whose key is the row's id.
Run and row move in one transaction (`persistence.inline`): a change of state that the machine
refuses rolls the row back, too.  The row is what queries read; the run holds the contracts and the
history.  `turtles doctor` compares the two.

============  ===================  ==========================================================
row           machine              what its contracts add
============  ===================  ==========================================================
session       `SessionLife`        a locked one is not deleted; slots never below what was bought
service       `ServiceLife`        the same; each deployment has its number
execution     `JobLife`            ends once, with an exit code exactly if it ran to its end
invoice       `InvoiceLife`        completed only when paid deep enough, refunded only when closed
gift_card     `GiftCardLife`       amount = balance + held + spent, at every moment
============  ===================  ==========================================================

There is no worker on these runs: what happens to them comes from requests and from the platform's
clock, which `Api.tick` reads.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from engine.definition import Machine
from engine.errors import UsageError
from engine.events import Context, Event
from engine.run import Run
from engine.secrets import SecretsCodec
from machines.platform.lives.gift_card import GiftCardLife
from machines.platform.lives.invoice import InvoiceLife
from machines.platform.lives.job import JobLife
from machines.platform.lives.service import ServiceLife
from machines.platform.lives.session import SessionLife
from persistence.database import Database, Session
from persistence.inline import InlineRuns

LIVES: tuple[type[Machine[Any]], ...] = (
    GiftCardLife,
    InvoiceLife,
    JobLife,
    ServiceLife,
    SessionLife,
)
_RUNS: WeakKeyDictionary[Any, InlineRuns] = WeakKeyDictionary()


def bind(database: Database, codec: SecretsCodec) -> None:
    """Say which codec seals what these runs keep.  Once for each database, at the start."""
    _RUNS[database.sa] = InlineRuns(LIVES, codec)


def register(sql: Session, now_ms: int) -> None:
    """Remember the shapes of the machines in the database."""
    _runs(sql).register(sql, now_ms)


def begin(
    sql: Session, machine: type[Machine[Any]], key: str, context: Context, now_ms: int
) -> None:
    """The life of a new row begins; the caller inserts the row in the same transaction.

    Raises:
        Refused: the context breaks an invariant.
    """
    _runs(sql).begin(sql, machine, key, context, now_ms=now_ms)


def move(sql: Session, machine: type[Machine[Any]], key: str, event: Event, now_ms: int) -> Run:
    """Something happens to a row; the caller changes the row in the same transaction.

    Raises:
        Refused: the machine does not allow it; nothing may be committed.
        UnknownRun: the life of this row was never begun.
    """
    return _runs(sql).move(sql, machine, key, event, now_ms=now_ms)


def find(sql: Session, machine: type[Machine[Any]], key: str) -> Run | None:
    """The run of a row; None for one that is older than these machines."""
    return _runs(sql).find(sql, machine, key)


def forget(sql: Session, machine: type[Machine[Any]], key: str) -> None:
    """The row is deleted; its life, journal and all, goes with it."""
    _runs(sql).forget(sql, machine, key)


def _runs(sql: Session) -> InlineRuns:
    runs = _RUNS.get(sql.database.sa)
    if runs is None:
        raise UsageError(
            "platform lives: no codec is bound to this database. Call lives.bind(database, codec) "
            "(open_money does) first."
        )
    return runs
