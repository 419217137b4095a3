"""What the flows that act with a proven key share: the key, and how its calls may fail.

A call of such a flow repeats harmlessly: reads and deletions by nature, everything that makes or
runs something by its `Idempotency-Key`, which is the effect's own (`call.key`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from engine.errors import OutcomeUnknown, Permanent, Transient
from engine.events import Context
from engine.retry import Retry
from engine.secret import Secret
from machines.clients.ports import ClientError, Credentials, ReplyLost, Unavailable
from machines.clients.ports.refusals import code_of

PATIENT = Retry(attempts=200, first_ms=250, max_ms=15_000)
"""For calls to a platform that may be restarting, or whose rate limit is used up."""
PASSING = frozenset({"restore_in_progress", "service_starting", "session_busy", "session_starting"})
"""Codes of refusals that are over soon."""


class Keyed(Context):
    """Whose key acts.  `offset_ms`: what Authentication measured our clock to lack."""

    public_key: str
    secret_key: Secret[str]
    offset_ms: int = 0


class Holder(Protocol):
    """A context that has a key, or will have one."""

    @property
    def public_key(self) -> str: ...
    @property
    def secret_key(self) -> Secret[str] | None: ...
    @property
    def offset_ms(self) -> int: ...


def credentials_of(context: Holder) -> Credentials:
    """The key, as the ports take it.

    Raises:
        Permanent: there is none yet.
    """
    if context.secret_key is None:
        raise Permanent("this run has no secret key yet")
    return Credentials(
        public_key=context.public_key, secret_key=context.secret_key, offset_ms=context.offset_ms
    )


def later(error: ClientError) -> Exception:
    """What a failed call means when performing it again with its key is harmless."""
    if isinstance(error, Unavailable):
        return Transient(str(error), retry_after_ms=error.retry_after_ms)
    if isinstance(error, ReplyLost):
        return OutcomeUnknown(str(error))
    if code_of(error) in PASSING:
        return Transient(str(error))
    return Permanent(str(error))


@contextmanager
def calling() -> Iterator[None]:
    """Raise what is left of a port's errors as `later` has it."""
    try:
        yield
    except ClientError as error:
        raise later(error) from error
