"""What flows 8 to 10 share: orders, and a script of orders.

A service, a snapshot or an image waits for orders: messages from outside, or the orders of a
*script* in its context, one after another, which are the same messages::

    {"script": [{"event": "freeze"}, {"event": "unfreeze"}, {"event": "destroy"}]}

Something that is made carries `key_of(call, what)` as its `Idempotency-Key`.  The key belongs to
the run and not to one state, so that a run that gives up without knowing whether the thing was
made can ask again under the same key, learn its name that way, and remove it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from engine.effects import Call
from engine.events import Event, GaveUp
from machines.flows.keyed import Keyed

IDLE = ("service_not_running", "service_frozen", "session_frozen", "session_not_running")
"""Codes of refusals to keep something that does not run."""
POLL_SECONDS = 2
"""Pause between two looks at something that changes by itself."""


class Order(Event, tag="order"):
    """Base of what may be asked of a thing that waits for orders.

    Args:
        at: which line of the script this is, from 1; 0 for a message from outside.
    """

    at: int = 0


class NoAnswer(GaveUp, tag="no_answer"):
    """The platform did not do it, in all attempts."""


class Errand(Keyed):
    """Base of the contexts: how far the script is done, and why the run ended, if it was refused.

    Args:
        attended_seconds: how long an order may be waited for.
        poll_seconds: pause between two looks.
        line: how many orders of the script are done.
        reason: what was refused, and why.
    """

    attended_seconds: int = 24 * 3600
    poll_seconds: int = POLL_SECONDS
    line: int = 0
    reason: str = ""


C = TypeVar("C", bound=Errand)


def next_of(script: tuple[Any, ...], line: int) -> Any:
    """The next order of a script, numbered; None when it is done."""
    if line >= len(script):
        return None
    return msgspec.structs.replace(script[line], at=line + 1)


def noted(context: C, order: Order) -> C:
    """The context with an order of its script done; a message changes nothing."""
    return msgspec.structs.replace(context, line=max(context.line, order.at))


def key_of(call: Call, what: str) -> str:
    """The `Idempotency-Key` of what this run makes: the same in every state and attempt."""
    return f"{call.run_id}.{what}"
