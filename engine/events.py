"""Events: what may move a run.  Typed payloads are frozen msgspec structs named by their tag::

    class Paid(Event, tag="paid"):
        amount_atomic: int

The tag is the id of the event in the machine (`paid = open.to(settled)`).  An event that carries
nothing needs no class; it is sent by its name.
"""

from __future__ import annotations

from typing import Any, dataclass_transform

import msgspec


# Tells type checkers that subclasses are frozen, as msgspec makes them.
@dataclass_transform(frozen_default=True)
class Context(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of a run's context: typed, immutable; a change makes a copy.

    Actions return the new context, usually by `self.but(context, field=value)` or
    `msgspec.structs.replace(context, field=value)`.
    """


@dataclass_transform(frozen_default=True)
class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="event"):
    """Base of an event's payload; subclasses name their event with `tag=`."""


class ChildEnded(Event, tag="child_ended"):
    """What a parent receives when its child run has ended.

    Subclass it with the event's own tag, and with `output: SomeStruct | None = None` to receive
    what the child's `output()` gave.
    """

    run_id: str
    machine: str
    state: str
    succeeded: bool


class ChildMoved(Event, tag="child_moved"):
    """What a parent receives when its child enters a state marked `milestone=True`."""

    run_id: str
    state: str


class GaveUp(Event, tag="gave_up"):
    """Payload of a state's `on_exhausted` event: why the effect was given up.

    Subclass it with the event's own tag.
    """

    effect: str
    reason: str
    attempts: int


def event_id(kind: type[Event]) -> str:
    """The event a payload class belongs to."""
    tag: Any = kind.__struct_config__.tag
    return str(tag)
