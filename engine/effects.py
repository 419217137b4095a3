"""Effects: the one place where a machine touches the outside world.

An effect belongs to a state.  Entering the state records it (with its idempotency key) in the same
transaction; a worker then performs it outside any transaction, and what it returns is an event::

    @effect(retry=Retry(attempts=5))
    async def charge(context: Order, call: Call) -> Charged:
        receipt = await call.resource(Gateway).charge(context.amount_cents, key=call.key)
        return Charged(receipt=receipt)

    @charge.reconcile
    async def find_charge(context: Order, call: Call) -> Charged | NotDone: ...

How a call may end:

- it returns an `Event`: recorded as the effect's outcome, and applied to the run;
- it returns `Again()`: nothing to report yet; performed again after the state's `every`;
- it raises `Transient`: tried again by the retry policy; when exhausted, the state's
  `on_exhausted` event, or quarantine;
- it raises `Permanent`: `on_exhausted` at once, or quarantine;
- it raises `OutcomeUnknown`, or the process dies: `reconcile` is asked before anything else.

After a death in the middle nobody knows whether the call happened.  `reconcile` answers with the
event the call would have given, with `NotDone()`, or raises `OutcomeUnknown`, and then the run
waits and is asked about again: never guess.  `Again()` from `reconcile` settles the attempt, as it
does from the call: it gave nothing, and the effect is performed anew later.  An effect without
`reconcile` must say `idempotent=True`: performing it twice with the same key is the same as once.

An effect that is nothing but SQL in the database of the store is performed inside the transaction
that commits its outcome, and needs neither::

    @effect(transaction=True)
    def book(context: Order, call: Call, sql: Connection) -> Booked:
        sql.execute(insert(bookings).values(order=context.number))
        return Booked()

Its rows are there exactly if its transition is.  What it raises takes them back, and whatever that
is, the call certainly had no effect: `Permanent` gives it up, all else is tried again.  `Again()`
takes them back, too.  It is no coroutine, and must be short: nothing else is written meanwhile.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

from engine.clock import seconds
from engine.errors import DefinitionError, UsageError
from engine.events import Event
from engine.retry import Retry

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Again:
    """Nothing to report yet.  `after_ms` overrides the state's `every`."""

    after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class NotDone:
    """Reconcile's answer: the call certainly never happened."""


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt: its key, its number, and the resources the program was given."""

    run_id: str
    key: str
    attempt: int
    now_ms: int
    resources: Mapping[Any, Any] = field(repr=False)

    def resource(self, kind: type[R]) -> R:
        """The resource registered for `kind` in `App(resources={kind: ...})`."""
        try:
            found: R = self.resources[kind]
        except KeyError:
            raise UsageError(
                f"effect needs the resource {kind.__name__}, which this App was not given. "
                f"Pass it: App(..., resources={{{kind.__name__}: ...}})"
            ) from None
        return found


Performer = Callable[[Any, Call], Awaitable[Event | Again]]
SqlPerformer = Callable[[Any, Call, Any], Event | Again | None]
Reconciler = Callable[[Any, Call], Awaitable[Event | Again | NotDone]]
P = TypeVar("P", bound=Performer)
Q = TypeVar("Q", bound=Reconciler)


@dataclass(slots=True)
class Effect:
    """An external action with its policy.  Made by the `effect` decorator."""

    name: str
    perform: Performer
    idempotent: bool
    retry: Retry
    timeout_ms: int
    ask: Reconciler | None = None
    transaction: bool = False
    """Whether it is performed inside the transaction of its transition."""

    def reconcile(self, function: Q) -> Q:
        """Decorator: the function that finds out whether the call happened.

        Raises:
            DefinitionError: of an effect with `transaction=True`.
        """
        if self.transaction:
            raise DefinitionError(
                f"effect {self.name}: it is performed inside the transaction of its transition, "
                "so there is never a doubt to reconcile. Remove the reconcile."
            )
        self.ask = function
        return function


@overload
def effect(
    *,
    transaction: Literal[True],
    retry: Retry | None = None,
    name: str | None = None,
) -> Callable[[SqlPerformer], Effect]: ...
@overload
def effect(
    *,
    idempotent: bool = False,
    retry: Retry | None = None,
    timeout_ms: int = seconds(60),
    name: str | None = None,
) -> Callable[[Performer], Effect]: ...
def effect(
    *,
    transaction: bool = False,
    idempotent: bool = False,
    retry: Retry | None = None,
    timeout_ms: int = seconds(60),
    name: str | None = None,
) -> Callable[[Any], Effect]:
    """Make an `Effect` of an async function `(context, call) -> Event | Again`.

    Args:
        transaction: it is a plain function `(context, call, sql) -> Event | Again` instead, whose
            `sql` is a SQLAlchemy `Connection` in the transaction that commits the outcome.
        idempotent: performing twice with the same key equals once, so no reconcile is needed.
        retry: policy for `Transient` failures; default `Retry()`.
        timeout_ms: one attempt may take this long; then its outcome counts as unknown.

    Raises:
        DefinitionError: a coroutine with `transaction=True`.
    """

    def make(function: Any) -> Effect:
        called = name or str(getattr(function, "__name__", "effect"))
        if transaction and inspect.iscoroutinefunction(function):
            raise DefinitionError(
                f"effect {called}: with transaction=True it must be a plain function, got a "
                "coroutine. Write `def`, and do in it what SQL does; call others in an effect of "
                "its own."
            )
        return Effect(
            name=called,
            perform=function,
            idempotent=idempotent or transaction,
            retry=retry or Retry(),
            timeout_ms=timeout_ms,
            transaction=transaction,
        )

    return make
