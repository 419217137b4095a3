"""Refusals that several parts of the API share, each said in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from machines.platform.replies import Problem
from machines.platform.sandbox.errors import FreezeFailed, SandboxLimit, SandboxUnavailable
from machines.platform.toolbox import ToolboxUnavailable
from persistence.database import Row
from persistence.database import Session as Sql

if TYPE_CHECKING:
    from machines.platform.orders import Caller


@contextmanager
def sandbox_refusals() -> Iterator[None]:
    """Translate what a backend refuses before anything ran: 503 with the remedy, or 400."""
    try:
        yield
    except ToolboxUnavailable as error:
        raise Problem(503, "toolbox_unavailable", f"{error}.", fields={"fix": error.fix}) from error
    except SandboxUnavailable as error:
        raise unavailable(error.reason, error.fix) from error
    except SandboxLimit as error:
        raise Problem(400, "sandbox_limit", str(error)) from error
    except FreezeFailed as error:
        raise Problem(503, "freeze_failed", str(error)) from error


def unavailable(reason: str, fix: str) -> Problem:
    """503: this machine cannot isolate, so nothing is run."""
    return Problem(
        503,
        "sandbox_unavailable",
        f"{reason.rstrip('.')}. Untrusted code will not be run without isolation. "
        f"Fix: {fix.rstrip('.')}.",
        fields={"fix": fix},
    )


def stopping() -> Problem:
    """503: nothing new is begun any more."""
    return Problem(
        503,
        "stopping",
        "the platform is stopping. Try again when it is back.",
        headers={"Retry-After": "2"},
    )


def terminated(session_id: str, reason: str | None) -> Problem:
    """410 for a session that has ended."""
    return Problem(
        410,
        "session_terminated",
        f"session {session_id} has ended ({reason or 'terminated'}). Create a new one.",
        fields={"session_id": session_id, "reason": reason},
    )


def repeated(
    sql: Sql, caller: Caller, table: str, *, owner: str = "public_key", columns: str = "*"
) -> Row | None:
    """The row of `table` that this idempotency key made before.

    Args:
        owner: the column that says whose a row is.
        columns: what of the row is wanted; `digest` must be among it.

    Raises:
        Problem: 409, the key was used for another request.
    """
    if caller.idempotency_key is None:
        return None
    row = sql.one(
        f"SELECT {columns} FROM {table} WHERE {owner} = :key AND idempotency_key = :once",  # noqa: S608 - our own names
        key=caller.public_key,
        once=caller.idempotency_key,
    )
    if row is not None:
        _require_same_request(row["digest"], caller.digest)
    return row


def _require_same_request(stored_digest: str, digest: str) -> None:
    if stored_digest != digest:
        raise Problem(
            409,
            "idempotency_key_reused",
            "Idempotency-Key was used before with another request. "
            "Repeat the same request, or choose a new key.",
        )
