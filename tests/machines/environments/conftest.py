"""Every payload of an environment in every context that it leads to, by deciding alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from engine.decide import Decision, begin, decide
from engine.events import Event
from engine.run import Run
from engine.table import Table, compile_table
from engine.verification.environment import Environment
from engine.verification.outside import outcome_events
from engine.verification.static.subject import sent_by_engine

MOMENTS_MS = (0, 1, 2, 10_000)
CONTEXTS_MAX = 2_000


@pytest.fixture
def refused_outcomes() -> Callable[[Environment], list[str]]:
    """What an effect may answer in this environment and its state refuses: it would quarantine."""
    return _refused_outcomes


def _refused_outcomes(environment: Environment) -> list[str]:
    table = compile_table(environment.machine)
    refused: list[str] = []
    todo = [_begun(table, context) for context in environment.contexts()]
    known = {(run.state, run.context) for run in todo}
    for run in todo:
        for event, payload, from_effect, now_ms in _events(environment, table, run):
            result = decide(table, run, event, payload, now_ms, from_effect=from_effect)
            if not isinstance(result, Decision):
                refused += [f"{event} in {run.state}: {result.reason}"] * from_effect
            elif (result.after.state, result.after.context) not in known:
                known.add((result.after.state, result.after.context))
                todo.append(result.after)
        assert len(todo) < CONTEXTS_MAX, "the environment lets contexts grow without end"
    return refused


def _begun(table: Table, context: object) -> Run:
    decision = begin(table, run_id="run", context=context, now_ms=0)
    assert isinstance(decision, Decision)
    return decision.after


def _events(
    environment: Environment, table: Table, run: Run
) -> Iterator[tuple[str, Event | None, bool, int]]:
    place = table.places[run.state]
    outcomes = outcome_events(table, run.state, place.effect) if place.effect else []
    for now_ms in MOMENTS_MS:
        for event in sent_by_engine(place):
            kind = table.payloads.get(event)
            yield event, kind and kind(effect="call", reason="down", attempts=3), False, now_ms
        for event in outcomes:
            given = environment.payloads_of(
                event, context=run.context, state=run.state, now_ms=now_ms
            )
            for payload in [table.payloads[event]()] if given is None else given:
                yield event, payload, True, now_ms
