"""Leases: who may move runs, and what becomes of them when a worker dies."""

from __future__ import annotations

import pytest

from engine.errors import UsageError


def alive(worker):
    return False


def test_a_worker_registers_and_prolongs(store, make):
    store.workers.beat(make.worker("w1", pid=7), 1000, lease_until_ms=2000)
    store.workers.beat(make.worker("w1", pid=7), 1500, lease_until_ms=2500)
    assert store.workers.all() == [(make.worker("w1", pid=7), 2500)]


def test_a_lease_that_is_over_frees_every_run(store, make):
    store.runs.start([make.due("r1"), make.due("r2"), make.due("r3")])
    store.workers.beat(make.worker("w1"), 1000, lease_until_ms=2000)
    store.workers.beat(make.worker("w2"), 1000, lease_until_ms=9000)
    assert len(store.runs.claim("w1", 1000, limit=2, versions=["v1"])) == 2
    assert len(store.runs.claim("w2", 1000, limit=2, versions=["v1"])) == 1
    assert store.workers.reap(1999, dead=alive) == 0
    assert store.workers.reap(2000, dead=alive) == 2
    assert [worker.worker_id for worker, _ in store.workers.all()] == ["w2"]
    again = store.runs.claim("w2", 2000, limit=9, versions=["v1"])
    assert [(one.fence, one.stalls) for one in again] == [(2, 2), (2, 2)]


def test_a_dead_process_is_reaped_before_its_lease_is_over(store, make):
    store.runs.start([make.due("r1")])
    store.workers.beat(make.worker("w1", pid=7), 1000, lease_until_ms=9000)
    store.runs.claim("w1", 1000, limit=1, versions=["v1"])
    asked = []
    assert store.workers.reap(1001, dead=lambda worker: bool(asked.append(worker))) == 0
    assert asked == [make.worker("w1", pid=7)]
    assert store.workers.reap(1001, dead=lambda worker: worker.pid == 7) == 1
    assert store.runs.get("r1").owner is None


def test_a_worker_that_beats_while_it_is_judged_keeps_its_runs(store, make):
    store.runs.start([make.due("r1")])
    store.workers.beat(make.worker("w1"), 1000, lease_until_ms=2000)
    store.runs.claim("w1", 1000, limit=1, versions=["v1"])

    def beats_meanwhile(worker):
        store.workers.beat(worker, 1500, lease_until_ms=4000)
        return True

    assert store.workers.reap(1500, dead=beats_meanwhile) == 0
    assert store.runs.get("r1").owner == "w1"


def test_retire_frees_and_forgets(store, make):
    store.runs.start([make.due("r1")])
    make.claim(store, "r1")
    store.workers.retire("w1")
    assert store.workers.all() == []
    assert store.runs.get("r1").owner is None
    store.workers.retire("w1")


def test_a_freed_run_keeps_its_due_time_and_open_effect(store, make):
    store.runs.start([make.due("r1")])
    claimed = make.claim(store, "r1")
    tried = make.effect("r1", 1, attempts=1, open=True, next_ms=1000)
    store.runs.commit([make.note(claimed.run, claimed.fence, effect=tried, status="running")])
    store.workers.reap(9_000_000, dead=alive)
    stored = store.runs.get("r1")
    assert (stored.due_ms, stored.run.effect) == (1000, tried)


def test_an_id_that_works_in_another_process_is_refused(store, make):
    store.runs.start([make.due("r1")])
    store.workers.beat(make.worker("w1", pid=7), 1000, lease_until_ms=4000)
    store.runs.claim("w1", 1000, limit=1, versions=["v1"])
    with pytest.raises(UsageError, match=r"worker 'w1'.*pid 7 on .*ends in 2\.5 s.*id of its own"):
        store.workers.beat(make.worker("w1", pid=8), 1500, lease_until_ms=4500)
    assert store.workers.all() == [(make.worker("w1", pid=7), 4000)]
    assert store.runs.get("r1").owner == "w1"


def test_an_id_whose_lease_is_over_is_taken_with_none_of_its_runs(store, make):
    store.runs.start([make.due("r1")])
    store.workers.beat(make.worker("w1", pid=7), 1000, lease_until_ms=4000)
    store.runs.claim("w1", 1000, limit=1, versions=["v1"])
    store.workers.beat(make.worker("w1", pid=8), 4000, lease_until_ms=9000)
    assert store.workers.all() == [(make.worker("w1", pid=8), 9000)]
    assert store.runs.get("r1").owner is None
    with pytest.raises(UsageError, match="pid 8"):
        store.workers.beat(make.worker("w1", pid=7), 4100, lease_until_ms=9100)


@pytest.mark.parametrize("kept", [[], ["r1"], ["r1", "r2", "r3"]])
def test_strays_are_freed_and_what_is_in_hand_is_kept(store, make, kept):
    store.runs.start([make.due("r1"), make.due("r2"), make.due("r3")])
    store.workers.beat(make.worker("w1"), 1000, lease_until_ms=9000)
    store.workers.beat(make.worker("w2"), 1000, lease_until_ms=9000)
    store.runs.claim("w2", 1000, limit=1, versions=["v1"], run_id="r3")
    store.runs.claim("w1", 1000, limit=9, versions=["v1"])
    assert store.workers.free_strays("w1", kept) == len({"r1", "r2"} - set(kept))
    owned = [name for name in ("r1", "r2", "r3") if store.runs.get(name).owner is not None]
    assert owned == sorted({"r3"} | ({"r1", "r2"} & set(kept)))


def test_a_server_says_what_time_it_is(store):
    first, second = store.workers.time_ms(), store.workers.time_ms()
    assert (first is None) == store.local
    assert first is None or 1_700_000_000_000 < first <= second
