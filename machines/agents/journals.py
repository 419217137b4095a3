"""Whether two agents did the same: their journals, but for what must differ.

A *story* is a run with every step it made and, below it, those of its children.  Two stories are
the same algorithm when they are equal once ids, keys, times, addresses, amounts of coin and the
coin itself are hidden, and polls are counted once: how often somebody looked before it was time is
the chain's affair.  Everything else counts: states, events, refusals, cents, what programs printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from engine.cli.output import plain
from engine.ports import Query

if TYPE_CHECKING:
    from engine.app import App

HIDDEN = "*"
_DIFFERS = re.compile(
    r"(^id|_id|_ms|_atomic|_at|_key|_hash|address|txids?|currency|transaction|inputs|evidence|observed"
    r"|_atomic_max|container_name|websocket_url|domain|remaining_ttl|last_activity)$"
)
"""Names of fields that differ between two agents who do the same."""
_OF_THE_COIN = frozenset(
    {"legs", "invoice", "depth", "depth_max", "confirmations", "required", "block_hash"}
)
"""What is as the coin is: how deep, how much, to where; monero's wallet tells no block."""


class Step(msgspec.Struct, frozen=True):
    """One transition; `said` is its event's payload, `then` the context after it."""

    event: str
    source: str | None
    target: str
    said: Any
    then: Any


class Story(msgspec.Struct, frozen=True):
    """A run, from its start."""

    machine: str
    steps: tuple[Step, ...]
    children: tuple[Story, ...] = ()


async def story_of(app: App, run_id: str) -> Story:
    """The story of a run and all runs below it, hidden what must differ."""
    journal = await app.journal(run_id)
    steps = [
        Step(e.event, e.source, e.target, hidden(plain(e.payload)), hidden(plain(e.context)))
        for e in journal
    ]
    ended = [getattr(entry.payload, "run_id", "") for entry in journal]
    below = [one.run.run_id for one in await app.runs(Query(parent_id=run_id, limit=1_000))]
    # In the order in which their parent heard of them: moments may be equal.
    children = sorted(below, key=lambda one: ended.index(one) if one in ended else len(ended))
    return Story(
        machine=(await app.outcome(run_id)).machine,
        steps=tuple(_once(steps)),
        children=tuple([await story_of(app, one) for one in children]),
    )


def _once(steps: list[Step]) -> Iterator[Step]:
    """Steps without those that stay where the one before had stayed."""
    for number, step in enumerate(steps):
        stays = step.source == step.target and number > 0
        if not (stays and steps[number - 1].target == step.target):
            yield step


def hidden(value: Any) -> Any:
    """A JSON value with every field that must differ as `*`."""
    if isinstance(value, dict):
        return {name: _field(name, each) for name, each in value.items()}
    return [hidden(each) for each in value] if _are_lists(value) else value


def _field(name: str, value: Any) -> Any:
    if name in _OF_THE_COIN or (value is not None and _DIFFERS.search(name)):
        return HIDDEN
    return hidden(value)


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two stories (or JSON values) differ, each with both sides; empty: they are the same."""
    ours, theirs = msgspec.to_builtins(one), msgspec.to_builtins(other)
    return list(_differences(ours, theirs, place))


def _differences(one: Any, other: Any, place: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            yield from _differences(one.get(name), other.get(name), f"{place}.{name}")
    elif _are_lists(one, other) and len(one) == len(other):
        for number, (mine, yours) in enumerate(zip(one, other, strict=True)):
            yield from _differences(mine, yours, f"{place}[{number}]")
    elif one != other:
        yield f"{place or 'value'}: {_shown(one)} / {_shown(other)}"


def _are_lists(*values: Any) -> bool:
    return all(isinstance(value, list | tuple) for value in values)


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 200 else f"{text[:200]}..."
