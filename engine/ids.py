"""Names of things.  A run's id is random (`engine.system`); everything below it is derived.

Derived means: the same run, the same step and the same effect give the same key for ever, so a
repeated attempt is recognised by whoever receives it.
"""

from __future__ import annotations

import hashlib


def derived(*parts: object) -> str:
    """25 hex digits that depend on nothing but the parts."""
    text = "\x1f".join(map(str, parts))
    return hashlib.sha256(text.encode()).hexdigest()[:25]


def child_run_id(parent_id: str, seq: int) -> str:
    """The id of the child that a parent starts with its transition `seq`."""
    return f"r{derived('child', parent_id, seq)}"


def idempotency_key(run_id: str, seq: int, effect: str) -> str:
    """The key under which an effect's call is made, at every attempt."""
    return f"t{derived('effect', run_id, seq, effect)}"
