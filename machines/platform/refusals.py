"""Refusals that several parts of the API share, each said in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from machines.platform.replies import Problem
from machines.platform.sandbox.errors import FreezeFailed, SandboxLimit, SandboxUnavailable


@contextmanager
def sandbox_refusals() -> Iterator[None]:
    """Translate what a backend refuses before anything ran: 503 with the remedy, or 400."""
    try:
        yield
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


def terminated(session_id: str, reason: str | None) -> Problem:
    """410 for a session that has ended."""
    return Problem(
        410,
        "session_terminated",
        f"session {session_id} has ended ({reason or 'terminated'}). Create a new one.",
        fields={"session_id": session_id, "reason": reason},
    )


def require_same_request(stored_digest: str, digest: str) -> None:
    """Refuse an idempotency key that was used for another request.

    Raises:
        Problem: 409.
    """
    if stored_digest != digest:
        raise Problem(
            409,
            "idempotency_key_reused",
            "Idempotency-Key was used before with another request. "
            "Repeat the same request, or choose a new key.",
        )
