"""What the outside of a machine may do, said by its author where small values are not enough.

::

    class OfPayment(Environment):
        machine = Payment
        scope = Scope(messages=1)
        stand_ins = (Spend,)               # explored by its milestones and ends only

        def contexts(self):                # first contexts
            yield Purchase(budget_cents=700, ...)

        @payloads("invoiced")              # what may arrive: depends on the context it arrives in
        def invoices(self, context, now_ms):
            yield Invoiced(price_cents=context.price_cents, expires_ms=now_ms + HOUR)
            yield Invoiced(price_cents=context.price_cents + 1, expires_ms=now_ms + HOUR)

        @ends(Spend)                       # how a child may end: state, and what its output() gives
        def spends(self, context):
            yield "broadcast", Spending(txid="tx-1", amount_atomic=context.amount_atomic)
            yield "unfunded", None

        @always                            # besides the machine's own contracts
        def nobody_pays_twice(self, done):
            return [one.effect for one in done].count("broadcast") <= 1

        @sometimes                         # must be seen at least once
        def a_second_leg(self, context):
            return len(context.legs) == 2

Everything is optional.  An event without a method gets small values (`engine.verification.scope`);
what a method gives is tried in full, in its order.  The explorer, the random sequences and the
schedules use the same environment, so what they tell of a machine is told within it.

Methods are called by the names of their parameters: `context`, `state`, `now_ms`, and for `always`
and `sometimes` also `status` and `done`, the calls that the outside has done for the run so far.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from engine.contracts import bind
from engine.definition import Machine
from engine.errors import DefinitionError
from engine.events import Context, Event
from engine.verification.result import Scope

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "turtles_environment"
_PARAMETERS = {
    "payloads": ("context", "state", "now_ms"),
    "ends": ("context", "state"),
    "always": ("context", "state", "status", "now_ms", "done"),
    "sometimes": ("context", "state", "status", "now_ms", "done"),
}


class Done(msgspec.Struct, frozen=True):
    """A call that the outside has done.

    Args:
        effect: the effect's name.
        key: its idempotency key.
        event: what it answered, or would have if the answer was not lost; None for a compensation.
    """

    effect: str
    key: str
    event: Event | None


def payloads(*events: str) -> Callable[[F], F]:
    """The method gives what these events may carry: an iterable of their payload type."""
    return _marking("payloads", events)


def ends(*children: type[Machine[Any]]) -> Callable[[F], F]:
    """The method gives how these children may end, from their context: (state, output)."""
    return _marking("ends", tuple(child.__name__ for child in children))


def always(function: F) -> F:
    """The method says what must hold at every quiet moment."""
    return _marking("always", ())(function)


def sometimes(function: F) -> F:
    """The method says what must be seen at least once, or the coverage has a gap."""
    return _marking("sometimes", ())(function)


def _marking(kind: str, names: tuple[str, ...]) -> Callable[[F], F]:
    def mark(function: F) -> F:
        setattr(function, _MARK, (kind, names))
        return function

    return mark


class Environment:
    """Base of environments; see the module.

    Attributes:
        machine: whose environment it is.
        scope: the bounds of an exploration, if the caller gives no others.
        stand_ins: children of which only milestones and ends are explored: what they do in between
            is the business of their own verification.
        reasons: transitions, cells or faults that cannot happen in this environment, each as the
            report names it, with the reason.  They count as covered, and are listed.
    """

    machine: ClassVar[type[Machine[Any]]]
    scope: ClassVar[Scope] = Scope()
    stand_ins: ClassVar[tuple[type[Machine[Any]], ...]] = ()
    reasons: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        machine = getattr(cls, "machine", None)
        if machine is None:
            raise DefinitionError(
                f"environment {cls.__name__}: says nothing of its machine. "
                "Add the line `machine = ...`."
            )
        for kind in _PARAMETERS:
            try:
                list(_collected(cls(), kind, named=True))
            except TypeError as error:
                raise DefinitionError(f"environment {cls.__name__}: {error}") from error
        _BY_MACHINE[machine] = cls

    def contexts(self) -> Iterable[Context]:
        """First contexts; none: small ones."""
        return ()

    def events(self) -> list[str]:
        """The events of which it says what they carry."""
        return [event for events, _ in self._methods("payloads") for event in events]

    def payloads_of(self, event: str, **values: Any) -> list[Event] | None:
        """What an event may carry in this context; None: this environment does not say."""
        found = [call for events, call in self._methods("payloads") if event in events]
        if not found:
            return None
        return [payload for call in found for payload in call(values)]

    def ends_of(self, child: str, context: Context, state: str) -> list[tuple[str, Any]] | None:
        """How a child may end; None: this environment does not say."""
        found = [call for children, call in self._methods("ends") if child in children]
        if not found:
            return None
        values = {"context": context, "state": state}
        return [end for call in found for end in call(values)]

    def broken(self, **values: Any) -> Iterator[str]:
        """The names of the `always` that do not hold."""
        for name, call in self.properties("always"):
            if not call(values):
                yield name

    def properties(self, kind: str) -> Sequence[tuple[str, Callable[..., Any]]]:
        """Name and bound function of each `always` or `sometimes`."""
        return [(name, call) for name, call in _bound(self, kind, named=True)]

    def _methods(self, kind: str) -> Sequence[tuple[Any, Callable[..., Any]]]:
        return _bound(self, kind, named=False)


_BY_MACHINE: dict[type[Machine[Any]], type[Environment]] = {}
_BOUND: dict[tuple[type, str, bool], list[tuple[Any, Callable[..., Any]]]] = {}


def with_environment() -> list[type[Machine[Any]]]:
    """The machines for which an environment was imported."""
    return list(_BY_MACHINE)


def environment_of(machine: type[Machine[Any]]) -> Environment | None:
    """The environment that was defined last for a machine, if one was imported."""
    kind = _BY_MACHINE.get(machine)
    return kind() if kind is not None else None


def _bound(owner: Environment, kind: str, *, named: bool) -> list[tuple[Any, Callable[..., Any]]]:
    key = (type(owner), kind, named)
    if key not in _BOUND:
        _BOUND[key] = list(_collected(owner, kind, named=named))
    return _BOUND[key]


def _collected(owner: Environment, kind: str, *, named: bool) -> Iterator[tuple[Any, Any]]:
    for name, function in inspect.getmembers(type(owner), callable):
        mark = getattr(function, _MARK, None)
        if mark is not None and mark[0] == kind:
            yield (name if named else mark[1]), bind(function, owner, _PARAMETERS[kind])
