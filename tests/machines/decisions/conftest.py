"""What a machine decides, written down a second time: double entry for every edge and state.

A *row* is one event in one state: where it leads, and which fields of the context it changes (no
others), or by what it is refused.  A *place* is a state: the status a run has on entering it, when
its time is up, what the engine sends there, whether the parent is told, whether a cancel request
may end the run there.  The mutation campaign (`tests.verification.mutants`) shows that a machine
that differs from this in anything is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from engine.control import cancel
from engine.decide import Decision, Rejection, begin, decide
from engine.events import event_id
from engine.run import Run
from engine.table import Table, compile_table

NOW_MS = 10_000
SENT = ("on_timeout", "on_exhausted", "on_child_moved")


def _run(table: Table, state: str, context: Any) -> Run:
    return Run(
        run_id="r1",
        machine=table.name,
        version=table.fingerprint,
        key=None,
        state=state,
        status="waiting",
        seq=7,
        entered_seq=7,
        context=context,
        created_ms=0,
        deadline_ms=123,
        child="r1.7",
    )


def _check_row(
    machine: Any,
    base: Any,
    places: dict[str, dict[str, Any]],
    *,
    state: str,
    event: Any,
    to: str | None = None,
    given: dict[str, Any] | None = None,
    gives: dict[str, Any] | None = None,
    refused: str | None = None,
    now_ms: int = NOW_MS,
    after: str = "",
) -> None:
    table = compile_table(machine)
    context = msgspec.structs.replace(base, **(given or {}))
    name, payload = (event, None) if isinstance(event, str) else (event_id(type(event)), event)
    result = decide(table, _run(table, state, context), name, payload, now_ms)
    if refused is not None:
        assert isinstance(result, Rejection), result
        assert refused in result.reason
        return
    assert isinstance(result, Decision), result
    assert result.after.state == to
    new = result.after.context
    changed = {f for f in new.__struct_fields__ if getattr(new, f) != getattr(context, f)}
    assert {f: getattr(new, f) for f in changed} == (gives or {})
    if to != state:
        _check_entered(result, places[str(to)], now_ms)
    else:
        assert result.after.deadline_ms == 123, "its time goes on"


def _check_entered(result: Decision, place: dict[str, Any], now_ms: int) -> None:
    after = result.after
    assert after.status == place["status"]
    assert after.deadline_ms == _due_ms(place, after.context, now_ms)
    assert result.moved == place.get("moved", False)
    assert (after.child is not None) == place.get("child", False)


def _due_ms(place: dict[str, Any], context: Any, now_ms: int) -> int | None:
    due = place.get("due")
    return due if due is None else due(context, now_ms)


def _check_place(machine: Any, base: Any, state: str, place: dict[str, Any]) -> None:
    table = compile_table(machine)
    sent = tuple(getattr(table.places[state], option) for option in SENT)
    assert {o: e for o, e in zip(SENT, sent, strict=True) if e} == place.get("sends", {})
    if place["status"] in ("completed", "failed"):
        return
    run = _run(table, state, base).but(child=None)
    result = cancel(table, run, NOW_MS)
    assert isinstance(result, Decision)
    expected = (True, "waiting") if place.get("waits_for_cancel") else (False, "cancelled")
    assert (result.after.cancel_requested, result.after.status) == expected


def _check_begin(machine: Any, context: Any, places: dict[str, dict[str, Any]]) -> None:
    begun = begin(compile_table(machine), run_id="r1", context=context, now_ms=NOW_MS)
    assert isinstance(begun, Decision), begun
    place = places[begun.after.state]
    assert begun.after.deadline_ms == _due_ms(place, context, NOW_MS)
    assert begun.moved == place.get("moved", False)


@pytest.fixture(scope="session")
def check_row() -> Callable[..., None]:
    """Take one event in one state, and compare all of it."""
    return _check_row


@pytest.fixture(scope="session")
def check_place() -> Callable[..., None]:
    """What the engine does while a run is in a state."""
    return _check_place


@pytest.fixture(scope="session")
def check_begin() -> Callable[..., None]:
    """How a run begins."""
    return _check_begin


def _output_of(machine: Any, base: Any, **fields: Any) -> Any:
    return compile_table(machine).output({"context": msgspec.structs.replace(base, **fields)})


def _verdicts(machine: Any, base: Any) -> Callable[..., bool]:
    table = compile_table(machine)
    places = (clause for place in table.places.values() for clause in place.invariants)
    clauses = {clause.name: clause for clause in (*places, *table.invariants)}

    def holds(name: str, **fields: Any) -> bool:
        return clauses[name].judge({"context": msgspec.structs.replace(base, **fields)}).ok

    return holds


@pytest.fixture(scope="session")
def output_of() -> Callable[..., Any]:
    """What a machine tells its parent, given some fields of its context."""
    return _output_of


@pytest.fixture(scope="session")
def verdicts() -> Callable[..., Callable[..., bool]]:
    """`verdicts(machine, context)(invariant, **fields)`: whether it holds then."""
    return _verdicts


def _ensured(machine: Any, base: Any) -> Callable[..., bool]:
    table = compile_table(machine)
    clauses = {clause.name: clause for edge in table.all_edges() for clause in edge.ensures}

    def holds(name: str, *, old: Any = None, event: Any = None, **fields: Any) -> bool:
        new = msgspec.structs.replace(base, **fields)
        return clauses[name].judge({"old": old or base, "new": new, "event": event}).ok

    return holds


@pytest.fixture(scope="session")
def ensured() -> Callable[..., Callable[..., bool]]:
    """`ensured(machine, context)(postcondition, **fields)`: whether it holds then."""
    return _ensured


@pytest.fixture(scope="session")
def run_in() -> Callable[..., Run]:
    """A run in a state: `run_in(machine, context, state, **fields)`."""
    return lambda machine, base, state, **fields: _run(
        compile_table(machine), state, msgspec.structs.replace(base, **fields)
    )
