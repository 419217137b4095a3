"""Every error turtles raises, drawn once.

::

    TurtlesError
    ├── DefinitionError         a machine class is wrong; lists every finding with file and line
    ├── UsageError              the caller asked for something that cannot be
    │   ├── UnknownMachine
    │   ├── UnknownEvent
    │   ├── UnknownRun
    │   │   └── RunRemoved      it has ended, and retention removed it
    │   ├── BadPayload          an event or a context of the wrong shape
    │   ├── TooLarge            a payload or context over its limit
    │   └── KeyConflict         an idempotency key reused with another content
    ├── Refused                 the machine refused an event: which clause, which values
    ├── StoreError              the database
    │   ├── StoreBusy           another process held the lock too long        (transient)
    │   ├── StoreFull           disk full or write error
    │   ├── StoreReadOnly       cannot be opened for writing
    │   ├── StoreUnavailable    the server cannot be reached, or was lost      (transient)
    │   │   └── CommitUnknown   lost during COMMIT: it may or may not have happened
    │   ├── StoreCorrupt        not a database
    │   └── SchemaMismatch      older or newer schema than this code
    ├── LostOwnership           another worker moved the run; drop the work
    ├── EffectError             raised by effects
    │   ├── Transient           worth another attempt
    │   ├── Permanent           no attempt will ever succeed
    │   └── OutcomeUnknown      the call may or may not have happened; only reconcile may say
    └── SecretsError            the master key is missing or wrong

A message says what was expected, what was seen and what to do.
"""

from __future__ import annotations


class TurtlesError(Exception):
    """Base of everything this library raises on purpose."""


class DefinitionError(TurtlesError):
    """A machine class breaks the rules of the definition layer.  Lists every finding."""


class UsageError(TurtlesError):
    """The caller asked for something that cannot be."""


class UnknownMachine(UsageError):
    """No machine of that name (or version) is registered."""


class UnknownEvent(UsageError):
    """The machine has no such event."""


class UnknownRun(UsageError):
    """No run with that id or key."""


class RunRemoved(UnknownRun):
    """The run has ended, and retention removed it; the message says when and how it ended."""


class BadPayload(UsageError):
    """An event or context does not have the declared shape."""


class TooLarge(UsageError):
    """A payload or context is over its limit (see `engine.limits`)."""


class KeyConflict(UsageError):
    """An idempotency key was used before with different content."""


class Refused(TurtlesError):
    """The machine refused an event; the message names the clause and the values it saw."""


class StoreError(TurtlesError):
    """The database refused or failed."""


class StoreBusy(StoreError):
    """Another process held the write lock too long."""


class StoreFull(StoreError):
    """No space left, or the disk refused a write."""


class StoreReadOnly(StoreError):
    """The database cannot be opened for writing."""


class StoreUnavailable(StoreError):
    """The database server cannot be reached, or the connection to it was lost; try again."""


class CommitUnknown(StoreUnavailable):
    """The connection was lost during COMMIT: read again before doing it again."""


class StoreCorrupt(StoreError):
    """The file is not a readable database."""


class SchemaMismatch(StoreError):
    """The database's schema is not the one this code was written for."""


class LostOwnership(TurtlesError):
    """The fence or the sequence number moved: another worker has the run.  Drop the work."""


class EffectError(TurtlesError):
    """What an effect raises to tell the engine how its call ended."""


class Transient(EffectError):
    """The call failed before it had any effect, and is worth another attempt.

    Args:
        retry_after_ms: the earliest moment at which another attempt makes sense, from now.
    """

    def __init__(self, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class Permanent(EffectError):
    """No further attempt can succeed."""


class OutcomeUnknown(EffectError):
    """The call may or may not have happened; only `reconcile` can say."""


class SecretsError(TurtlesError):
    """The master key is missing, unreadable or not the one the data was written with."""
