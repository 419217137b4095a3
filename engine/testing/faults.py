"""Crashes at every boundary, in process.

`Crash` is a BaseException: no code of the engine catches it, so it leaves the program in the state
in which a killed process leaves its database.  A `CrashPlan` counts the boundaries as they pass
and crashes at the one it was told; `CrashingStore` and `CrashingCalls` report them to it: before
and after every transaction of the store, before and after every call of an effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from engine.effects import Again, Call, Effect, NotDone
from engine.events import Event
from engine.performing import Calls
from engine.ports import Store

T = TypeVar("T")


class Crash(BaseException):
    """The process died here."""


@dataclass(frozen=True)
class Boundary:
    """One place at which a process can die."""

    number: int
    name: str


@dataclass
class CrashPlan:
    """Counts boundaries from 1; crashes at `at` (never when None), once."""

    at: int | None = None
    passed: list[Boundary] = field(default_factory=list)
    dead: bool = False

    def pass_by(self, name: str) -> None:
        """A boundary is reached.

        Raises:
            Crash: this is the one; and again for whatever the dead process still tries.
        """
        if self.dead:
            raise Crash(f"after death: {name}")
        boundary = Boundary(len(self.passed) + 1, name)
        self.passed.append(boundary)
        if boundary.number == self.at:
            self.dead = True
            raise Crash(f"{boundary.number}: {name}")

    def around(self, name: str, call: Callable[[], T]) -> T:
        """A call with a boundary on either side."""
        self.pass_by(f"before {name}")
        result = call()
        self.pass_by(f"after {name}")
        return result


_WRITING = {
    "runs": ("start", "claim", "commit"),
    "inbox": ("deliver",),
    "workers": ("beat", "reap", "retire"),
    "machines": ("register",),
}


class _Noun:
    """One port of a store whose writing methods have boundaries."""

    def __init__(self, inner: Any, name: str, plan: CrashPlan) -> None:
        self._inner = inner
        self._name = name
        self._plan = plan

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._inner, method)
        if method not in _WRITING[self._name]:
            return call
        label = f"{self._name}.{method}"
        return lambda *args, **kw: self._plan.around(label, lambda: call(*args, **kw))


class CrashingStore:
    """A store that reports its transactions to a plan."""

    def __init__(self, inner: Store, plan: CrashPlan) -> None:
        self._inner = inner
        for noun in _WRITING:
            setattr(self, noun, _Noun(getattr(inner, noun), noun, plan))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class CrashingCalls:
    """Calls that report its calls to a plan."""

    def __init__(self, inner: Calls, plan: CrashPlan) -> None:
        self._inner = inner
        self._plan = plan

    async def perform(self, effect: Effect, context: Any, call: Call) -> Event | Again | None:
        """Make the call, with a boundary on either side."""
        self._plan.pass_by(f"before effect {effect.name}")
        answer = await self._inner.perform(effect, context, call)
        self._plan.pass_by(f"after effect {effect.name}")
        return answer

    async def reconcile(
        self, effect: Effect, context: Any, call: Call
    ) -> Event | Again | NotDone | None:
        """Ask, with a boundary on either side."""
        self._plan.pass_by(f"before reconcile {effect.name}")
        answer = await self._inner.reconcile(effect, context, call)
        self._plan.pass_by(f"after reconcile {effect.name}")
        return answer
