"""Crashes at every boundary, in process.

`Crash` is a BaseException: no code of the engine catches it, so it leaves the program in the state
in which a killed process leaves its database.  A `CrashPlan` counts the boundaries as they pass
and crashes at the one it was told, by number or by name; these report them to it:

- `CrashingStore`: before and after every transaction of the store;
- `CrashingCalls`: before and after every call of an effect;
- `CrashingConnection`: before and after every SQL statement, the COMMIT included.

What happens at the boundary is a method of the plan: a subclass may kill the process for good, stop
it, or let the statement fail as a lost connection does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from engine.effects import Again, Call, Effect, NotDone
from engine.events import Event
from engine.performing import Calls, SqlCalls
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
    """Counts boundaries from 1; crashes at `at` (never when None), once.

    Args:
        where: crash at a boundary whose name has all these words, in any order, instead.
        count: at which of them.
    """

    at: int | None = None
    passed: list[Boundary] = field(default_factory=list)
    dead: bool = False
    where: str | None = None
    count: int = 1

    def pass_by(self, name: str) -> None:
        """A boundary is reached.

        Raises:
            Crash: this is the one; and again for whatever the dead process still tries.
        """
        if self.dead:
            raise Crash(f"after death: {name}")
        boundary = Boundary(len(self.passed) + 1, name)
        self.passed.append(boundary)
        if boundary.number == self.at or self._is_there(name):
            self.happen(boundary)

    def _is_there(self, name: str) -> bool:
        if self.where is None or not set(self.where.split()) <= set(name.split()):
            return False
        self.count -= 1
        return self.count == 0

    def happen(self, boundary: Boundary) -> None:
        """What becomes of the process at the boundary it was told.

        Raises:
            Crash: here; a subclass may do something else.
        """
        self.dead = True
        raise Crash(f"{boundary.number}: {boundary.name}")

    def around(self, name: str, call: Callable[[], T]) -> T:
        """A call with a boundary on either side."""
        self.pass_by(f"before {name}")
        result = call()
        self.pass_by(f"after {name}")
        return result


_WRITING = {
    "runs": ("start", "claim", "commit", "group", "commit_with"),
    "inbox": ("deliver",),
    "workers": ("beat", "reap", "retire"),
    "machines": ("register",),
    "retention": ("remove", "forget"),
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
        if isinstance(inner, SqlCalls):
            self.within = partial(self._within, inner)

    def _within(
        self, inner: SqlCalls, effect: Effect, context: Any, call: Call, connection: Any
    ) -> Event | Again | None:
        self._plan.pass_by(f"before effect {effect.name}")
        answer = inner.within(effect, context, call, connection)
        self._plan.pass_by(f"after effect {effect.name}")
        return answer

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


class Around(Protocol):
    """Makes a statement happen, with a boundary on either side; told its text."""

    def __call__(self, statement: str, call: Callable[[], T]) -> T:
        """The result of the call."""


class CrashingConnection:
    """A driver's connection (DB-API 2) that reports its statements, and those of its cursors.

    A rollback is reported nowhere: when a process dies, its database does it.

    Args:
        inner: the driver's own connection.
        around: makes the statements.
    """

    def __init__(self, inner: Any, around: Around) -> None:
        vars(self).update(_inner=inner, _around=around)

    def execute(self, statement: str, *arguments: Any, **options: Any) -> Any:
        """Execute a statement, with a boundary on either side."""
        return self._made(statement, self._inner.execute, arguments, options)

    def executemany(self, statement: str, *arguments: Any, **options: Any) -> Any:
        """Execute a statement for many rows, with a boundary on either side of them all."""
        return self._made(statement, self._inner.executemany, arguments, options)

    def _made(self, statement: str, call: Callable[..., Any], arguments: Any, options: Any) -> Any:
        cursors: list[Any] = []

        def make() -> Any:
            cursors.append(call(statement, *arguments, **options))
            return cursors[0]

        try:
            return self._around(statement, make)
        except BaseException:
            for cursor in cursors:  # an open one would keep its transaction from ending
                cursor.close()
            raise

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """A cursor that reports likewise."""
        return CrashingConnection(self._inner.cursor(*arguments, **options), self._around)

    def commit(self) -> None:
        """Commit, with a boundary on either side."""
        self._around("COMMIT", self._inner.commit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._inner)

    def __next__(self) -> Any:
        return next(self._inner)

    def __enter__(self) -> CrashingConnection:
        self._inner.__enter__()
        return self

    def __exit__(self, *raised: Any) -> Any:
        return self._inner.__exit__(*raised)
