"""Retention: removing runs that ended long ago, a batch at a time.

A batch is one short transaction of whole trees of runs; between batches others have their turn.  A
key of a removed run stays in use until it is forgotten on purpose, so nothing is done twice because
its record is gone: a start with it is answered with the old run's id, and looking at that run
raises `RunRemoved`, which says when it ended and how.
"""

from __future__ import annotations

import msgspec

from engine.clock import Clock
from engine.committer import Io
from engine.errors import UsageError
from engine.ports import Retention


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be removed.

    Args:
        older_than_ms: runs that ended longer ago than that, with all below them.
        machine: of which machine the runs at the root are; None for all.
        batch: trees looked at in one transaction.
        forget_keys_after_ms: how long the keys of removed runs stay in use; None: for ever.
        dry_run: only count.
    """

    older_than_ms: int
    machine: str | None = None
    batch: int = 500
    forget_keys_after_ms: int | None = None
    dry_run: bool = False


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed (or would be, with `dry_run`).

    Args:
        trees: runs without a parent, each with all below it.
        runs: runs in all.
        kept: trees whose root ended long ago and that stay, for something below has not.
        forgotten: removed runs whose keys may be used anew.
    """

    trees: int = 0
    runs: int = 0
    kept: int = 0
    forgotten: int = 0
    dry_run: bool = False


async def collect(retention: Retention, io: Io, clock: Clock, asked: Asked) -> Collected:
    """Remove, batch after batch, whatever is asked for and was there when this began.

    Raises:
        UsageError: a negative age, or a batch of nothing.
    """
    _check(asked)
    now_ms = clock.now_ms()
    found, after = Collected(dry_run=asked.dry_run), None
    while True:
        removed = await io(
            lambda after=after: retention.remove(  # type: ignore[misc]
                now_ms - asked.older_than_ms,
                now_ms,
                most=asked.batch,
                machine=asked.machine,
                after=after,
                dry_run=asked.dry_run,
            )
        )
        found = msgspec.structs.replace(
            found,
            trees=found.trees + removed.trees,
            runs=found.runs + removed.runs,
            kept=found.kept + removed.kept,
        )
        after = removed.after
        if after is None:
            break
    return msgspec.structs.replace(found, forgotten=await _forget(retention, io, now_ms, asked))


async def _forget(retention: Retention, io: Io, now_ms: int, asked: Asked) -> int:
    if asked.forget_keys_after_ms is None or asked.dry_run:
        return 0
    before_ms, forgotten = now_ms - asked.forget_keys_after_ms, 0
    while some := await io(lambda: retention.forget(before_ms, most=asked.batch)):
        forgotten += some
    return forgotten


def _check(asked: Asked) -> None:
    ages = {
        "older_than_ms": asked.older_than_ms,
        "forget_keys_after_ms": asked.forget_keys_after_ms,
    }
    for name, value in ages.items():
        if value is not None and value < 0:
            raise UsageError(f"retention: {name} is {value}, expected 0 or more.")
    if asked.batch < 1:
        raise UsageError(f"retention: batch is {asked.batch}, expected 1 or more.")
