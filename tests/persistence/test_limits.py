"""Slots and tokens: what a claim takes, and who gets it back."""

from __future__ import annotations

import threading
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.limiting import Limit, Rate
from engine.ports import Held

CARDS = ",cards,"


def limited(make, run_id, limits=CARDS, **changes):
    return msgspec.structs.replace(make.due(run_id, **changes), limits=limits)


def claim(store, worker_id="w1", now_ms=1000, limit=100):
    return store.runs.claim(worker_id, now_ms, limit=limit, versions=["v1"])


def ids(claimed):
    return [one.run.run_id for one in claimed]


@pytest.fixture
def ready(store, make):
    """A store with a worker."""
    store.workers.beat(make.worker("w1"), 1000, lease_until_ms=9_000_000)
    return store


def end(make, one, **changes):
    return make.step(
        one.run, one.fence, state="done", status="completed", effect=None, held=True, **changes
    )


def test_a_claim_takes_as_many_as_there_are_slots(ready, make):
    ready.limits.declare([Limit("cards", slots=2)], 1)
    ready.runs.start([limited(make, f"r{n}") for n in range(5)])
    first = claim(ready)
    assert (len(first), {one.limits for one in first}) == (2, {CARDS})
    assert ready.limits.held() == [Held("cards", "", 2)]
    assert claim(ready) == []
    ready.runs.commit([end(make, first[0])])
    assert ready.limits.held() == [Held("cards", "", 1)]
    assert len(claim(ready)) == 1


def test_all_limits_or_none(ready, make):
    ready.limits.declare([Limit("cards", slots=5), Limit("bank", slots=1)], 1)
    both = ",bank,cards,"
    ready.runs.start([limited(make, "r1", both), limited(make, "r2", both), limited(make, "r3")])
    assert sorted(ids(claim(ready))) in (["r1", "r3"], ["r2", "r3"])
    assert ready.limits.held() == [Held("bank", "", 1), Held("cards", "", 2)]


def test_each_tenant_has_slots_of_its_own(ready, make):
    ready.limits.declare([Limit("cards", slots=1, per_tenant=True)], 1)
    ready.runs.start(
        [limited(make, f"{tenant}{n}", tenant=tenant) for tenant in "ab" for n in range(3)]
    )
    assert Counter(one.run.tenant for one in claim(ready)) == {"a": 1, "b": 1}
    assert ready.limits.held() == [Held("cards", "a", 1), Held("cards", "b", 1)]


def test_a_rate_says_when_the_next_one_may_go(ready, make):
    ready.limits.declare([Limit("cards", rate=Rate(2, per_ms=1000))], 1)
    ready.runs.start([limited(make, f"r{n}") for n in range(4)])
    assert len(claim(ready)) == 1
    assert ready.runs.next_due_ms(["v1"]) == 1500
    assert claim(ready, now_ms=1499) == []
    assert len(claim(ready, now_ms=1500)) == 1
    assert ready.runs.next_due_ms(["other"]) is None


def test_a_burst_may_go_at_once(ready, make):
    ready.limits.declare([Limit("cards", rate=Rate(2, per_ms=1000, burst=3))], 1)
    ready.runs.start([limited(make, f"r{n}") for n in range(9)])
    assert [len(claim(ready, now_ms=at)) for at in (1000, 1000, 1500, 2600, 9000)] == [
        3, 0, 1, 2, 3,
    ]  # fmt: skip


def test_who_waits_for_a_slot_has_no_time(ready, make):
    ready.limits.declare([Limit("cards", slots=1)], 1)
    ready.runs.start([limited(make, "r1"), limited(make, "r2")])
    claim(ready)
    assert ready.runs.next_due_ms(["v1"]) is None


def test_a_step_keeps_the_slots_that_it_names(ready, make):
    ready.limits.declare([Limit("cards", slots=1), Limit("bank", slots=1)], 1)
    ready.runs.start([limited(make, "r1", ",bank,cards,")])
    (one,) = claim(ready)
    kept = make.note(one.run, one.fence, held=True, limits=CARDS)
    ready.runs.commit([kept])
    assert ready.limits.held() == [Held("cards", "", 1)]
    given_up = make.note(kept.after, one.fence, held=True, limits=",bank,cards,", release=True)
    ready.runs.commit([given_up])
    assert ready.limits.held() == []
    assert ids(claim(ready)) == ["r1"]


def test_a_reaped_worker_loses_its_slots(ready, make):
    ready.limits.declare([Limit("cards", slots=1)], 1)
    ready.runs.start([limited(make, "r1")])
    ready.workers.beat(make.worker("w2"), 1000, lease_until_ms=2000)
    (lost,) = claim(ready, "w2")
    assert claim(ready) == []
    assert ready.workers.reap(2000, dead=lambda worker: False) == 1
    assert ready.limits.held() == []
    (again,) = claim(ready)
    assert not ready.runs.commit([end(make, lost)])[0].ok
    assert ready.limits.held() == [Held("cards", "", 1)]
    assert ready.runs.commit([end(make, again)])[0].ok


def test_a_retired_worker_gives_its_slots_back(ready, make):
    ready.limits.declare([Limit("cards", slots=1)], 1)
    ready.runs.start([limited(make, "r1")])
    claim(ready)
    ready.workers.retire("w1")
    assert ready.limits.held() == []


def test_a_write_that_lost_its_run_frees_nothing(ready, make):
    ready.limits.declare([Limit("cards", slots=1)], 1)
    ready.runs.start([limited(make, "r1")])
    (one,) = claim(ready)
    assert not ready.runs.commit([end(make, msgspec.structs.replace(one, fence=99))])[0].ok
    assert ready.limits.held() == [Held("cards", "", 1)]


def test_fewer_slots_than_are_held_let_nobody_in_until_they_drain(ready, make):
    ready.limits.declare([Limit("cards", slots=3)], 1)
    ready.runs.start([limited(make, f"r{n}") for n in range(6)])
    held = claim(ready)
    changed = ready.limits.declare([Limit("cards", slots=1)], 2)
    assert [(was.slots, now.slots) for was, now in changed] == [(3, 1)]
    counts = []
    for one in held:
        ready.runs.commit([end(make, one)])
        claim(ready)
        counts.append(ready.limits.held()[0].count)
    assert counts == [2, 1, 1]
    ready.limits.declare([Limit("cards", slots=4)], 3)
    claim(ready)
    assert ready.limits.held()[0].count == 3  # all that are left


def test_no_slots_stop_all(ready, make):
    ready.limits.declare([Limit("cards", slots=0)], 1)
    ready.runs.start([limited(make, "r1"), make.due("r2")])
    assert ids(claim(ready)) == ["r2"]


def test_what_waits_for_a_removed_limit_can_go(ready, make):
    ready.limits.declare([Limit("cards", slots=0)], 1)
    ready.runs.start([limited(make, "r1")])
    assert claim(ready) == []
    assert ready.limits.remove("cards")
    assert not ready.limits.remove("cards")
    assert ids(claim(ready)) == ["r1"]
    assert ready.limits.all() == []


def test_declared_limits_are_read_back(ready):
    limits = [
        Limit("a", machine="M", state="busy", slots=3, rate=Rate(1, 2, 3), per_tenant=True),
        Limit("b", rate=Rate(5, 60_000)),
    ]
    assert ready.limits.declare(limits, 1) == []
    assert ready.limits.declare(limits, 2) == []
    assert ready.limits.all() == limits


def test_an_event_needs_no_slot(ready, make):
    ready.limits.declare([Limit("cards", slots=0)], 1)
    ready.runs.start([limited(make, "r1")])
    ready.inbox.deliver([make.delivery("r1", event="$cancel")])
    (one,) = claim(ready)
    assert (one.limits, [event.event for event in one.inbox]) == (None, ["$cancel"])


def test_a_timer_needs_no_slot(ready, make):
    ready.limits.declare([Limit("cards", slots=0)], 1)
    ready.runs.start([limited(make, "r1", deadline_ms=5000)])
    assert claim(ready) == []
    assert ready.runs.next_due_ms(["v1"]) == 5000
    assert claim(ready, now_ms=4999) == []
    assert [one.limits for one in claim(ready, now_ms=5000)] == [None]


def test_a_run_that_is_taken_by_name_has_no_slot(ready, make):
    ready.limits.declare([Limit("cards", slots=1)], 1)
    ready.runs.start([limited(make, "r1")])
    assert make.claim(ready, "r1").limits is None
    assert ready.limits.held() == []


def test_limited_work_and_other_work_take_turns(ready, make):
    ready.limits.declare([Limit("cards", slots=100)], 1)
    ready.runs.start([limited(make, f"l{n}") for n in range(4)])
    ready.runs.start([make.due(f"r{n}") for n in range(4)])
    taken = [ids(claim(ready, limit=1))[0][0] for _ in range(4)]
    assert Counter(taken) == {"l": 2, "r": 2}


def test_within_a_group_the_higher_priority_goes_first(ready, make):
    ready.limits.declare([Limit("cards", slots=1)], 1)
    ready.runs.start([limited(make, "low"), limited(make, "high", priority=5)])
    assert ids(claim(ready)) == ["high"]


def test_the_inspector_finds_slots_of_nobody_and_runs_without(breakable, make, damage):
    breakable.workers.beat(make.worker("w1"), 1000, lease_until_ms=9_000_000)
    breakable.limits.declare([Limit("cards", slots=1)], 1)
    breakable.runs.start([limited(make, "r1"), limited(make, "r2")])
    claim(breakable)
    assert breakable.inspector.findings() == []
    damage(breakable, "UPDATE turtles_slot SET run_id = 'gone'")
    assert {one.rule for one in breakable.inspector.findings()} == {"slot"}
    damage(breakable, "UPDATE turtles_slot SET run_id = NULL, owner = NULL")
    (found,) = breakable.inspector.findings()
    assert "has 0 slots" in found.problem
    damage(breakable, "UPDATE turtles_run SET owner = 'w1', limits = ',cards,'")
    assert any("2 runs are claimed under it" in f.problem for f in breakable.inspector.findings())


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_history_exceeds_a_cap(sqlite_memory, data, make):
    """Random starts, claims, steps, reaps and declarations, by three workers."""
    store = sqlite_memory()
    sizes = {"cards": data.draw(st.integers(0, 3)), "bank": data.draw(st.integers(1, 2))}
    store.limits.declare([Limit(name, slots=size) for name, size in sizes.items()], 1)
    hands, number, now_ms = {}, 0, 1000
    caps = dict(sizes)
    for _ in range(data.draw(st.integers(5, 30))):
        now_ms += 10
        worker_id = data.draw(st.sampled_from(["w1", "w2", "w3"]))
        store.workers.beat(make.worker(worker_id), now_ms, lease_until_ms=now_ms + 1000)
        match data.draw(st.sampled_from(["start", "claim", "end", "give up", "die", "declare"])):
            case "start":
                needs = data.draw(st.sampled_from([",cards,", ",bank,", ",bank,cards,", None]))
                tenant = data.draw(st.sampled_from(["", "a"]))
                store.runs.start([limited(make, f"r{number}", needs, tenant=tenant)])
                number += 1
            case "claim":
                for one in claim(store, worker_id, now_ms, data.draw(st.integers(1, 5))):
                    assert one.run.run_id not in hands
                    hands[one.run.run_id] = (worker_id, one)
            case "end" if hands:
                _, one = hands.pop(data.draw(st.sampled_from(sorted(hands))))
                assert store.runs.commit([end(make, one)])[0].ok
            case "give up" if hands:
                _, one = hands.pop(data.draw(st.sampled_from(sorted(hands))))
                note = make.note(one.run, one.fence, held=True, release=True, limits=one.limits)
                assert store.runs.commit([note])[0].ok
            case "die":
                store.workers.reap(now_ms, dead=lambda w, gone=worker_id: w.worker_id == gone)
                hands = {name: held for name, held in hands.items() if held[0] != worker_id}
            case "declare":
                name, size = (
                    data.draw(st.sampled_from(["cards", "bank"])),
                    data.draw(st.integers(0, 4)),
                )
                store.limits.declare([Limit(name, slots=size)], now_ms)
                sizes[name] = size
        used = Counter(
            name
            for _, one in hands.values()
            for name in (one.limits or "").strip(",").split(",")
            if name
        )
        held = {one.limit: one.count for one in store.limits.held()}
        assert held == dict(used)
        for name, size in sizes.items():
            # What was held when a cap was lowered may stay, and nothing may be added to it.
            caps[name] = max(size, min(caps[name], used[name]))
            assert used[name] <= caps[name]
        assert store.inspector.findings() == []
    store.close()


def test_many_workers_at_once_never_exceed_a_cap(shared_url, make):
    """Eight threads, each with a store of its own, claim and end runs of a cap of three."""
    from persistence.store import open_store

    first = open_store(shared_url)
    first.limits.declare([Limit("cards", slots=3)], 1)
    first.runs.start([limited(make, f"r{n}") for n in range(60)])
    lock, inside, most, ended, errors = threading.Lock(), set(), [], [], []
    full = threading.Event()

    def work(worker_id):
        store = open_store(shared_url)
        try:
            store.limits.all()
            store.workers.beat(make.worker(worker_id), 1000, lease_until_ms=9_000_000)
            while len(ended) < 60 and not errors:
                claimed = claim(store, worker_id, limit=2)
                with lock:
                    inside.update(ids(claimed))
                    most.append(len(inside))
                    if len(inside) == 3:
                        full.set()
                if claimed and not full.wait(20):
                    raise AssertionError("the slots were never all taken")
                for one in claimed:
                    with lock:
                        inside.discard(one.run.run_id)
                    assert store.runs.commit([end(make, one)])[0].ok
                    ended.append(one.run.run_id)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            errors.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert errors == []
    assert (sorted(ended), max(most)) == (sorted(f"r{n}" for n in range(60)), 3)
    assert first.inspector.findings() == []
    first.close()
