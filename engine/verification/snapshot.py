"""Snapshots of a store in memory, and the fingerprint of what is in it.

A store in memory gives all it holds as bytes and takes it back, so the explorer returns to any
moment without running there again.  That this loses nothing is not
assumed: the explorer repeats a share of its paths from the very beginning and compares.

The fingerprint says which moments have the same future.  It leaves out what no code looks at (ids,
fences, sequence numbers, who wrote what, errors in words) and is coarse about time and attempts::

    runs        in the order in which they were accepted; those that have ended only as the root
    moments     due or not, else the power of two of what is left, and their order
    attempts    up to a few, then "many"; so are counters in a context (see `bench`)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from engine.ids import idempotency_key
from engine.ports import Store

ATTEMPTS_MAX = 3
key_of = lru_cache(maxsize=65_536)(idempotency_key)
Fingerprint = tuple[Any, ...]

_RUNS = """
    SELECT {number}, r.run_id, r.machine, r.state, r.status, r.context, r.deadline_ms, r.child,
        r.undo, r.closing, r.cancel_requested, r.held_from, r.due_ms, r.owner, r.parent_id, r.seq,
        r.last_error, r.effect_name, r.effect_attempts, r.effect_open, r.effect_next_ms,
        r.effect_undo_of, r.effect_seq
    FROM turtles_run r
    ORDER BY {order}
"""
_INBOX = (
    "SELECT run_id, event, payload FROM turtles_inbox WHERE status = 'accepted' ORDER BY number"
)
_JOURNAL = """
    SELECT seq, event, source, target, status, at_ms, payload, verdicts, context
    FROM turtles_transition WHERE run_id = ? ORDER BY seq
"""
_EFFECTS = """
    SELECT run_id, coalesce(effect_seq, seq - 1) AS decided, effect_name,
        coalesce(effect_outcome, 'done'), effect_undo_of, seq,
        CASE effect_outcome WHEN 'abandoned' THEN event END
    FROM turtles_transition WHERE effect_name IS NOT NULL
    UNION ALL
    SELECT run_id, effect_seq, effect_name, 'pending', effect_undo_of, NULL, NULL
    FROM turtles_run WHERE effect_name IS NOT NULL
    ORDER BY run_id, decided
"""


class Row(NamedTuple):
    """A run as the store has it, with its pending effect."""

    number: int
    run_id: str
    machine: str
    state: str
    status: str
    context: bytes
    deadline_ms: int | None
    child: str | None
    undo: str
    closing: str | None
    cancel_requested: int
    held_from: str | None
    due_ms: int | None
    owner: str | None
    parent_id: str | None
    seq: int
    last_error: str | None
    effect: str | None
    attempts: int
    open: int
    next_ms: int
    undo_of: str | None
    effect_seq: int | None

    @property
    def key(self) -> str | None:
        """The idempotency key of its pending effect."""
        if self.effect is None or self.effect_seq is None:
            return None
        return key_of(self.run_id, self.effect_seq, self.effect)

    @property
    def live(self) -> bool:
        """Whether the run may still move by itself or by events."""
        return self.status not in ("completed", "failed", "cancelled")


class EffectRow(NamedTuple):
    """A decided effect and what became of it."""

    run_id: str
    seq: int
    name: str
    status: str
    undo_of: str | None
    closed_seq: int | None
    left_by: str | None
    """The event that left it behind, if one did."""

    @property
    def key(self) -> str:
        """The idempotency key of its calls."""
        return key_of(self.run_id, self.seq, self.name)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What is stored now; equal only to itself."""

    runs: list[Row]
    """Every run, in the order in which they were accepted."""
    inbox: list[tuple[str, str, bytes | None]]
    """Events that wait, as (run, event, payload), oldest first."""
    effects: list[EffectRow]
    """Every effect that was ever decided."""


class Snapshots:
    """Saves and restores the database of a store in memory.

    Args:
        store: `persistence.open_store("sqlite://")`.

    Raises:
        UsageError: the content of the store may be worth something.
    """

    def __init__(self, store: Store) -> None:
        self._moments = store.moments
        self._runs = _RUNS.format(number=self._moments.number, order=self._moments.order)

    def save(self) -> bytes:
        """The whole database."""
        return self._moments.save()

    def load(self, saved: bytes) -> None:
        """Go back to a saved one."""
        self._moments.load(saved)

    def rows(self) -> Rows:
        """What is stored now."""
        ask = self._moments.ask
        inbox: list[Any] = ask(_INBOX)
        return Rows(
            [Row._make(row) for row in ask(self._runs)],
            inbox,
            [EffectRow._make(row) for row in ask(_EFFECTS)],
        )

    def journal(self, run_id: str) -> tuple[Any, ...]:
        """A run's journal as it is stored; two that are equal say the same."""
        return tuple(self._moments.ask(_JOURNAL, (run_id,)))


def fingerprint(
    runs: list[Row],
    inbox: list[tuple[str, str, bytes | None]],
    now_ms: int,
    context: Callable[[Row], bytes] = lambda row: row.context,
) -> Fingerprint:
    """What the future of these runs depends on; `context` gives the part of theirs that counts."""
    kept = [run for run in runs if run.live or run.parent_id is None]
    roles = {run.run_id: place for place, run in enumerate(kept)}
    waiting: dict[str, list[tuple[str, bytes | None]]] = {}
    for run_id, event, payload in inbox:
        waiting.setdefault(run_id, []).append((event, _without_ids(payload, runs)))
    return tuple(
        (
            run.machine, run.state, run.status, context(run), run.undo, run.closing,
            run.cancel_requested, run.held_from, _role(run.child, roles),
            _role(run.parent_id, roles), _due(run.due_ms, now_ms), left(run.deadline_ms, now_ms),
            _effect(run, now_ms), tuple(waiting.get(run.run_id, ())),
        )
        for run in kept
    )  # fmt: skip


def _role(run_id: str | None, roles: dict[str, int]) -> int | str | None:
    return None if run_id is None else roles.get(run_id, "ended")


def _without_ids(payload: bytes | None, runs: list[Row]) -> bytes | None:
    if payload is not None:
        for run in runs[1:]:
            payload = payload.replace(run.run_id.encode(), b"%d" % run.number)
    return payload


def _due(due_ms: int | None, now_ms: int) -> bool | None:
    return None if due_ms is None else due_ms <= now_ms


def left(at_ms: int | None, now_ms: int) -> int | None:
    """0 when the moment has come, else the power of two of what is left of the time until then."""
    return None if at_ms is None else max(at_ms - now_ms, 0).bit_length()


def _effect(run: Row, now_ms: int) -> tuple[Any, ...] | None:
    if run.effect is None:
        return None
    first = run.deadline_ms is None or run.next_ms < run.deadline_ms
    tries = min(run.attempts, ATTEMPTS_MAX)
    return run.effect, tries, run.open, left(run.next_ms, now_ms), first, run.undo_of
