"""Exit codes, and which error gives which.

The table is part of the interface: `turtles --help` and docs/cli.md show it, scripts rely on it.
"""

from __future__ import annotations

from engine.errors import (
    DefinitionError,
    RunRemoved,
    SecretsError,
    StoreError,
    TurtlesError,
    UsageError,
)

OK = 0
FAILED = 1
USAGE = 2
ENVIRONMENT = 3
NOT_ENDED = 4
REMOVED = 5
INTERRUPTED = 130

MEANINGS: dict[int, str] = {
    OK: "done",
    FAILED: "the run failed or was cancelled, the event was refused, or a check found something",
    USAGE: "unknown machine, event or run, bad payload, bad option",
    ENVIRONMENT: "no sandbox, platform unreachable, database unusable or of another schema",
    NOT_ENDED: "the run is paused, quarantined, or still going at --timeout",
    REMOVED: "the run has ended, and gc has removed it",
    INTERRUPTED: "interrupted; run the same command again to go on",
}


class EnvironmentUnusable(TurtlesError):
    """Something around the program is missing or unreachable; says what, and the remedy."""


class NotEnded(TurtlesError):
    """The run is still going at the end of the time allowed."""


class Interrupted(TurtlesError):
    """A signal asked to stop, and everything in hand was finished."""


_CODES: tuple[tuple[type[TurtlesError], int], ...] = (
    (RunRemoved, REMOVED),  # before the class it belongs to
    (UsageError, USAGE),
    (StoreError, ENVIRONMENT),
    (SecretsError, ENVIRONMENT),
    (DefinitionError, ENVIRONMENT),
    (EnvironmentUnusable, ENVIRONMENT),
    (NotEnded, NOT_ENDED),
    (Interrupted, INTERRUPTED),
)


def code_of(error: TurtlesError) -> int:
    """The exit code for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def code_of_status(status: str) -> int:
    """The exit code for how a run stands."""
    if status == "completed":
        return OK
    return FAILED if status in ("failed", "cancelled") else NOT_ENDED


def epilog() -> str:
    """The table, for the end of `--help`."""
    lines = [f"{code:>3}  {meaning}" for code, meaning in MEANINGS.items()]
    return "\b\nExit codes:\n" + "\n".join(f"  {line}" for line in lines)
