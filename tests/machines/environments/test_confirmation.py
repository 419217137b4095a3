"""`Confirmation` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.environments.confirmation import OfConfirmation
from machines.flows.f03c_confirmation import Confirmation, Following, Mined, RivalWon, Sank
from persistence.store import open_store

OF = OfConfirmation()
FIRST = next(iter(OF.contexts()))


def _at(**fields: Any) -> Following:
    return msgspec.structs.replace(FIRST, **fields)


def _mined(confirmations: int, key: str = "k1") -> Done:
    return Done("count", key, Mined(confirmations=confirmations, block_hash=None, at_ms=0))


def _depths(context: Following, state: str, now_ms: int = 0) -> list[int]:
    found = OF.payloads_of("mined", context=context, state=state, now_ms=now_ms)
    return [one.confirmations for one in found or () if isinstance(one, Mined)]


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    report = explore(Confirmation, open_store("sqlite://"), environment=OF, budget_seconds=60)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)
    assert report.executions < 20_000


def test_no_answer_of_an_honest_node_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


def test_blocks_come_one_by_one_or_at_once() -> None:
    assert _depths(FIRST, "unseen") == [1, 2, 3]
    assert _depths(_at(depth=1, depth_max=1), "confirming") == [2, 3]
    assert _depths(_at(depth=2, depth_max=2), "confirming") == [3]


def test_after_trouble_there_is_the_first_block_or_enough() -> None:
    fallen = _at(depth=1, depth_max=1, reversals=1)
    assert _depths(fallen, "reversed") == [1, 3]
    assert _depths(fallen, "confirming") == [3]
    assert _depths(fallen, "reversed", now_ms=FIRST.give_up_ms) == [3]


@pytest.mark.parametrize(
    ("state", "fields", "depths"),
    [
        ("confirming", {"depth": 1}, [1]),
        ("confirming", {"depth": 2}, [0]),
        ("reversed", {"depth": 1, "reversals": 1}, [0]),
        ("confirming", {"depth": 1, "reversals": 1}, []),
        ("reversed", {"depth": 0, "reversals": 1}, []),
        ("stalled", {"depth": 1, "stalls": 1}, [0]),
    ],
)
def test_a_second_trouble_comes_only_where_it_meets_the_first(
    state: str, fields: Any, depths: list[int]
) -> None:
    found = OF.payloads_of("sank", context=_at(**fields), state=state, now_ms=0) or []
    assert [one.confirmations for one in found if isinstance(one, Sank)] == depths


@pytest.mark.parametrize(
    ("state", "context", "done"),
    [
        ("unseen", FIRST, ()),
        ("deep_enough", _at(depth=3, depth_max=3), (_mined(3),)),
        ("replaced", FIRST, (Done("find", "k1", RivalWon(confirmations=3)),)),
    ],
)
def test_properties_hold(state: str, context: Following, done: Any) -> None:
    values = {"context": context, "state": state, "status": "running", "now_ms": 0, "done": done}
    assert list(OF.broken(**values)) == []


@pytest.mark.parametrize(
    ("rule", "state", "context", "done"),
    [
        ("ends_only_on_what_the_node_said", "deep_enough", _at(depth=2, depth_max=2), (_mined(2),)),
        ("ends_only_on_what_the_node_said", "replaced", FIRST, ()),
        ("every_reversal_is_counted", "reversed", _at(reversals=1), ()),
        ("greatest_depth_is_kept", "confirming", _at(depth=2, depth_max=2), (_mined(1),)),
        ("greatest_depth_is_kept", "confirming", _at(depth=1, depth_max=0), (_mined(1),)),
    ],
)
def test_properties_can_fail(rule: str, state: str, context: Following, done: Any) -> None:
    values = {"context": context, "state": state, "status": "running", "now_ms": 0, "done": done}
    assert list(OF.broken(**values)) == [rule]
