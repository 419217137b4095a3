"""What an oracle says, and what it reads: by names that any store's values can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from engine.ports import StoredRun


class Breach(msgspec.Struct, frozen=True):
    """A property that does not hold, and what was seen."""

    rule: str
    problem: str


class Standing(Protocol):
    """How a run stands, as far as an oracle looks at it.

    `undo_of` is the state that its pending effect compensates, if it does; `live` says whether
    the run has not ended; `context` is encoded.
    """

    @property
    def run_id(self) -> str: ...
    @property
    def machine(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def undo_of(self) -> str | None: ...
    @property
    def last_error(self) -> str | None: ...
    @property
    def live(self) -> bool: ...
    @property
    def context(self) -> Any: ...


class Recorded(Protocol):
    """A decided effect and what became of it."""

    @property
    def seq(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def undo_of(self) -> str | None: ...
    @property
    def closed_seq(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """`Standing` of a run that a store gave."""

    run_id: str
    machine: str
    state: str
    status: str
    seq: int
    undo_of: str | None
    last_error: str | None
    live: bool
    context: Any


def standing_of(stored: StoredRun) -> Stored:
    """How a run of any store stands."""
    run = stored.run
    return Stored(
        run_id=run.run_id,
        machine=run.machine,
        state=run.state,
        status=run.status,
        seq=run.seq,
        undo_of=run.effect.undo_of if run.effect else None,
        last_error=run.last_error,
        live=not run.terminal,
        context=run.context,
    )
