"""turtles: a durable state-machine engine.  The names below are the public interface."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.app import App, Outcome, Permission, RunRef
    from engine.blocking import BlockingApp
    from engine.clock import Clock, hours, minutes, seconds
    from engine.contracts import ensures, invariant, requires
    from engine.definition import Machine, State
    from engine.effects import Again, Call, NotDone, effect
    from engine.errors import OutcomeUnknown, Permanent, Transient, TurtlesError
    from engine.events import ChildEnded, ChildMoved, Context, Event, GaveUp
    from engine.limiting import Limit, Rate
    from engine.retry import FOREVER, Retry
    from engine.secret import Secret
    from engine.system import SystemClock
    from engine.table import Child

_HOMES = {
    "Again": "effects",
    "App": "app",
    "BlockingApp": "blocking",
    "Call": "effects",
    "Child": "table",
    "ChildEnded": "events",
    "ChildMoved": "events",
    "Clock": "clock",
    "Context": "events",
    "Event": "events",
    "FOREVER": "retry",
    "GaveUp": "events",
    "Limit": "limiting",
    "Machine": "definition",
    "NotDone": "effects",
    "Outcome": "app",
    "OutcomeUnknown": "errors",
    "Permanent": "errors",
    "Permission": "app",
    "Rate": "limiting",
    "Retry": "retry",
    "RunRef": "app",
    "Secret": "secret",
    "State": "definition",
    "SystemClock": "system",
    "Transient": "errors",
    "TurtlesError": "errors",
    "effect": "effects",
    "ensures": "contracts",
    "hours": "clock",
    "invariant": "contracts",
    "minutes": "clock",
    "requires": "contracts",
    "seconds": "clock",
}

__all__ = [
    "FOREVER",
    "Again",
    "App",
    "BlockingApp",
    "Call",
    "Child",
    "ChildEnded",
    "ChildMoved",
    "Clock",
    "Context",
    "Event",
    "GaveUp",
    "Limit",
    "Machine",
    "NotDone",
    "Outcome",
    "OutcomeUnknown",
    "Permanent",
    "Permission",
    "Rate",
    "Retry",
    "RunRef",
    "Secret",
    "State",
    "SystemClock",
    "Transient",
    "TurtlesError",
    "effect",
    "ensures",
    "hours",
    "invariant",
    "minutes",
    "requires",
    "seconds",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `turtles --help` need not load a database or a state machine.
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'engine' has no attribute {name!r}") from None
    return getattr(import_module(f"engine.{home}"), name)
