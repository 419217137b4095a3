"""Turns between tenants, and priorities within one."""

from __future__ import annotations

from collections import Counter

import pytest


def claim(store, limit):
    return store.runs.claim("w1", 1000, limit=limit, versions=["v1"])


@pytest.fixture
def ready(store, make):
    store.workers.beat(make.worker("w1"), 1000, lease_until_ms=9_000_000)
    return store


def start(store, make, tenant, count, **changes):
    store.runs.start([make.due(f"{tenant}{n:05}", tenant=tenant, **changes) for n in range(count)])


def test_a_tenant_with_ten_thousand_does_not_delay_one_with_three(ready, make):
    start(ready, make, "large", 10_000 if ready.in_memory else 1_000)
    start(ready, make, "small", 3)
    taken = [claim(ready, 1)[0].run.tenant for _ in range(6)]
    assert Counter(taken) == {"large": 3, "small": 3}


def test_shares_are_equal_and_the_rest_is_filled_up(ready, make):
    for tenant, count in (("a", 50), ("b", 2), ("c", 50)):
        start(ready, make, tenant, count)
    assert Counter(one.run.tenant for one in claim(ready, 30)) in (
        {"a": 18, "b": 2, "c": 10},
        {"a": 10, "b": 2, "c": 18},
    )


def test_everybody_has_a_turn_where_there_are_more_tenants_than_places(ready, make):
    for n in range(7):
        start(ready, make, f"t{n}", 5)
    taken = [one.run.tenant for _ in range(7) for one in claim(ready, 2)]
    assert Counter(taken) == {f"t{n}": 2 for n in range(7)}


def test_no_tenant_is_one_like_any_other(ready, make):
    start(ready, make, "", 10)
    start(ready, make, "a", 10)
    assert Counter(one.run.tenant for one in claim(ready, 10)) == {"": 5, "a": 5}


def test_a_higher_priority_goes_first_within_its_tenant(ready, make):
    start(ready, make, "a", 3, due_ms=500)
    ready.runs.start([make.due("high", tenant="a", priority=5), make.due("low", priority=-1)])
    assert sorted(one.run.run_id for one in claim(ready, 2)) == ["high", "low"]
    assert [one.run.run_id for one in claim(ready, 9)] == ["a00000", "a00001", "a00002"]


def test_one_tenant_takes_by_priority_then_time(ready, make):
    ready.runs.start(
        [
            make.due("late", due_ms=900),
            make.due("early", due_ms=100),
            make.due("urgent", priority=9),
        ]
    )
    assert [claim(ready, 1)[0].run.run_id for _ in range(3)] == ["urgent", "early", "late"]
