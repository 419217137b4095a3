"""Smaller counterexamples: 1-minimal in steps, faults, payloads and moments.

::

    smaller = reduce(Payment, store, failure.steps, failure.rule)
    assert is_minimal(Payment, another_store, smaller, failure.rule)

A way counts only if it was really gone again, from the beginning, over the real engine and store,
and the same rule is broken on it.  What is tried, in this order, until nothing succeeds:

    fewer steps     pieces of it left out, from halves to single ones; a move goes with its calls
                    and its crash, then its calls and its crash alone
    no fault        a lost answer, a death or a refusal becomes the ordinary answer (and the calls
                    that it led to are left out); a duplicate and a crash are steps, and left out
    payloads        whole numbers towards 0, strings to "" or "a", lists shorter, optional to null:
                    equal values wherever they stand together, then each alone; in the end pairs
                    of numbers by the same amount
    moments         an earlier due moment; a death after an earlier commit

Every accepted way is lighter by (steps, faults, payloads, moments), in this order, so it ends, and
never becomes longer.  At its end everything of the list was tried in vain: that is what 1-minimal
means here.  Where the environment of the machine says what may arrive, only that is tried;
elsewhere whatever the type of the payload allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import msgspec

from engine.definition import Machine
from engine.errors import UsageError
from engine.events import Context
from engine.ports import Store
from engine.table import Table
from engine.verification.bench import silence
from engine.verification.environment import Environment
from engine.verification.explore import Rig
from engine.verification.judging import Judge, Way
from engine.verification.result import Report, Scope, Step
from engine.verification.simplifying import candidates, weight_of

__all__ = ["Reduced", "is_minimal", "reduce", "reduce_way", "reduced"]


class Reduced(msgspec.Struct, frozen=True, kw_only=True):
    """A way to a failure, and what is known of it.

    Args:
        problem: what is seen at its end.
        minimal: everything simpler was tried; False: the time was over before.
        tried: so many ways were gone.
    """

    steps: Way
    problem: str
    minimal: bool
    tried: int
    took_ms: int


def reduce(
    machine: type[Machine[Any]] | Table,
    store: Store | Callable[[], Store],
    steps: Sequence[Step],
    rule: str,
    *,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    contexts: Sequence[Context] = (),
    liveness: bool = False,
    budget_seconds: float = 2.0,
) -> Way:
    """The steps of `reduce_way`."""
    return reduce_way(
        machine, store, steps, rule, known=known, environment=environment, contexts=contexts,
        liveness=liveness, budget_seconds=budget_seconds,
    ).steps  # fmt: skip


def reduce_way(
    machine: type[Machine[Any]] | Table,
    store: Store | Callable[[], Store],
    steps: Sequence[Step],
    rule: str,
    *,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    contexts: Sequence[Context] = (),
    liveness: bool = False,
    budget_seconds: float = 2.0,
) -> Reduced:
    """A simplest way that breaks the same rule.

    Args:
        store: an empty one in memory, or what opens one.
        known, environment: as for `explore`.
        contexts: the only first contexts there may be; by default the environment's, or any.
        liveness: the rule is broken by what can, or cannot, follow the last step.
        budget_seconds: stop then, with the simplest way so far.

    Raises:
        UsageError: the way does not break the rule.
    """
    with _judging(
        machine, store, rule, contexts, liveness=liveness, known=known, environment=environment
    ) as judge:
        return _simplest(judge, tuple(tuple(step) for step in steps), budget_seconds)


def is_minimal(
    machine: type[Machine[Any]] | Table,
    store: Store | Callable[[], Store],
    steps: Sequence[Step],
    rule: str,
    *,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    contexts: Sequence[Context] = (),
    liveness: bool = False,
) -> bool:
    """Whether the way breaks the rule, and nothing simpler by one change does."""
    with _judging(
        machine, store, rule, contexts, liveness=liveness, known=known, environment=environment
    ) as judge:
        way = tuple(tuple(step) for step in steps)
        return judge.breaks(way) and simpler_way(judge, way) is None


def reduced(
    report: Report,
    store: Callable[[], Store],
    *,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    contexts: Sequence[Context] = (),
    budget_seconds: float = 2.0,
) -> None:
    """Put a simplest way into each failure of a report.

    Args:
        store: opens an empty one in memory.
        known, environment, contexts: those of the exploration.
        budget_seconds: for each failure; a note says where it was not enough.
    """
    known = tuple(known)
    for place, failure in enumerate(report.failures):
        try:
            found = reduce_way(
                report.table, store, failure.steps, failure.rule, known=known,
                environment=environment, contexts=contexts,
                liveness=failure.kind == "liveness", budget_seconds=budget_seconds,
            )  # fmt: skip
        except UsageError as error:
            report.notes.append(f"{failure.rule}: its way could not be made simpler: {error}")
            continue
        if not found.minimal:
            report.notes.append(
                f"{failure.rule}: the way is the simplest found in {budget_seconds:g} s; "
                "not everything simpler was tried"
            )
        report.failures[place] = msgspec.structs.replace(
            failure, steps=found.steps, problem=found.problem
        )


def _simplest(judge: Judge, way: Way, budget_seconds: float) -> Reduced:
    began = perf_counter()
    if not judge.breaks(way):
        raise UsageError(
            f"reduce: expected a way that breaks the rule {judge.rule!r}; going it again breaks "
            f"{', '.join(sorted({one.rule for one in judge.seen})) or 'nothing'}."
        )
    problem, minimal = judge.problem, False
    judge.last = began + budget_seconds
    try:
        while (found := simpler_way(judge, way)) is not None:
            way, problem = found, judge.problem
        minimal = True
    except TimeoutError:
        pass
    took_ms = round((perf_counter() - began) * 1000)
    return Reduced(steps=way, problem=problem, minimal=minimal, tried=judge.tried, took_ms=took_ms)


def simpler_way(judge: Judge, way: Way) -> Way | None:
    """The first way in the order of the module that is lighter and breaks the rule as well."""
    heaviest = weight_of(way)
    for candidate in candidates(judge, way):
        if weight_of(candidate) < heaviest and judge.fails(candidate):
            return candidate
    return None


@contextmanager
def _judging(
    machine: type[Machine[Any]] | Table,
    store: Store | Callable[[], Store],
    rule: str,
    contexts: Sequence[Context],
    *,
    liveness: bool,
    **setting: Any,
) -> Iterator[Judge]:
    scope = Scope(messages=0, cancels=False, faults=False) if liveness else None
    opened: Store = store() if callable(store) else store
    rig = Rig(machine, opened, scope=scope, **setting)
    try:
        with silence():
            yield Judge(rig, rule, contexts, liveness=liveness)
    finally:
        rig.bench.close()
        if callable(store):
            opened.close()
