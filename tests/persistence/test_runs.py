"""Accepting, finding and claiming runs; every store has to behave like this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from msgspec.structs import replace

from engine.ports import Batch, Done, Query, Started
from persistence.store import open_store

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_reads_back_as_it_was_given(store, make):
    run = make.run(
        "r1",
        key="order-1",
        state="busy",
        status="waiting",
        deadline_ms=5000,
        effect=make.effect("r1", 1, attempts=2, open=True, next_ms=7000, last_error="no route"),
        child="r9",
        undo=("paid", "booked"),
        closing="cancelled",
        cancel_requested=True,
        held_from="running",
        parent=make.parent("r0"),
        depth=3,
        last_error="seen before",
    )
    store.runs.start([make.start("r0")])
    start = make.start("r1").__class__(run=run, entry=make.entry(None, run, "$start", 1000))
    assert store.runs.start([start]) == [Started(run_id="r1", created=True)]
    stored = store.runs.get("r1")
    assert stored.run == run
    assert (stored.fence, stored.owner, stored.due_ms, stored.stalls) == (0, None, 5000, 0)
    assert (stored.updated_ms, stored.output) == (1000, None)
    assert store.journal.read("r1") == [start.entry]


def test_an_unknown_run_is_none(store):
    assert store.runs.get("nobody") is None
    assert store.runs.find("M", "nothing") is None


def test_a_key_is_accepted_once(store, make):
    first = store.runs.start([make.start("r1", key="order-1")])
    again = store.runs.start([make.start("r2", key="order-1"), make.start("r3", key="order-2")])
    assert first == [Started(run_id="r1", created=True)]
    assert again == [
        Started(run_id="r1", created=False),
        Started(run_id="r3", created=True),
    ]
    assert store.runs.get("r2") is None
    assert store.runs.find("M", "order-1") == "r1"


def test_a_key_twice_in_one_batch_makes_one_run(store, make):
    answers = store.runs.start([make.start("r1", key="k"), make.start("r2", key="k")])
    assert answers == [Started(run_id="r1", created=True), Started(run_id="r1", created=False)]


def test_the_same_key_of_another_machine_is_another_key(store, make):
    answers = store.runs.start(
        [make.start("r1", key="k"), make.start("r2", key="k", machine="Other")]
    )
    assert [answer.created for answer in answers] == [True, True]


def test_runs_without_keys_are_never_taken_for_each_other(store, make):
    assert [a.created for a in store.runs.start([make.start("r1"), make.start("r2")])] == [True] * 2


def test_list_is_newest_first_and_filters(store, make):
    store.runs.start(
        [
            make.start("r1", created_ms=1000),
            make.start("r2", created_ms=3000, parent=make.parent("r1"), depth=1),
            make.due("r3", created_ms=2000),
        ]
    )

    def ids(**query):
        return [one.run.run_id for one in store.runs.select(Query(**query))]

    assert ids() == ["r2", "r3", "r1"]
    assert ids(limit=1) == ["r2"]
    assert ids(statuses=("pending",)) == ["r3"]
    assert ids(parent_id="r1") == ["r2"]
    assert ids(machine="Other") == []


def test_claim_takes_due_runs_longest_due_first(store, make):
    store.workers.beat(make.worker(), 1000, lease_until_ms=9000)
    store.runs.start(
        [make.due("r1", 3000), make.due("r2", 1000), make.due("r3", 2000), make.start("r4")]
    )
    claimed = store.runs.claim("w1", 2000, limit=10, versions=["v1"])
    assert [(one.run.run_id, one.fence, one.stalls) for one in claimed] == [
        ("r2", 1, 1),
        ("r3", 1, 1),
    ]
    assert claimed[0].run == make.due("r2", 1000).run
    assert store.runs.get("r2").owner == "w1"
    assert store.runs.claim("w1", 2000, limit=10, versions=["v1"]) == []
    assert store.runs.next_due_ms(["v1"]) == 3000


def test_priority_comes_before_the_time_that_a_run_has_waited(store, make):
    store.workers.beat(make.worker(), 1000, lease_until_ms=9000)
    store.runs.start([make.due("r1", 500), make.due("r2", 900, priority=5), make.due("r3", 400)])
    claimed = store.runs.claim("w1", 1000, limit=2, versions=["v1"])
    assert [one.run.run_id for one in claimed] == ["r2", "r3"]


def test_claim_is_bounded_and_leaves_other_versions_alone(store, make):
    store.machines.register("M", "v2", store.machines.shape("v1"), 1)
    store.workers.beat(make.worker(), 1000, lease_until_ms=9000)
    store.runs.start([make.due("r1"), make.due("r2", 900), make.due("r3", version="v2")])
    (first,) = store.runs.claim("w1", 1000, limit=1, versions=["v1"])
    assert first.run.run_id == "r2"  # longest due
    assert len(store.runs.claim("w1", 1000, limit=9, versions=["v1"])) == 1
    assert store.runs.claim("w1", 1000, limit=9, versions=["v1"]) == []
    assert store.runs.claim("w1", 1000, limit=9, versions=[]) == []
    assert store.runs.next_due_ms(["v1"]) is None
    assert store.runs.next_due_ms(["v2"]) == 1000


def test_claim_by_name_takes_a_run_that_is_not_due(store, make):
    store.workers.beat(make.worker(), 1000, lease_until_ms=9000)
    store.runs.start([make.start("r1"), make.start("r2", state="done", status="completed")])

    def take(run_id):
        return store.runs.claim("w1", 1000, limit=1, versions=["v1"], run_id=run_id)

    assert [one.run.run_id for one in take("r1")] == ["r1"]
    assert take("r1") == []  # owned
    assert take("r2") == []  # ended
    assert take("nobody") == []
    assert store.runs.claim("w1", 1000, limit=1, versions=["v9"], run_id="r1") == []


def test_claim_brings_the_inbox_in_order(store, make):
    store.runs.start([make.start("r1")])
    store.inbox.deliver([make.delivery(key="b"), make.delivery(key="a", payload=None)])
    claimed = make.claim(store, "r1")
    assert [(one.key, one.payload) for one in claimed.inbox] == [("b", b"{}"), ("a", None)]


def test_a_worker_without_a_lease_gets_nothing(store, make):
    store.runs.start([make.due("r1")])
    assert store.runs.claim("stranger", 1000, limit=1, versions=["v1"]) == []
    store.workers.beat(make.worker(), 1000, lease_until_ms=2000)
    store.workers.reap(2000, dead=lambda worker: False)
    assert store.runs.claim("w1", 2000, limit=1, versions=["v1"]) == []
    assert store.runs.get("r1").fence == 0


def test_timers_that_have_come_due_are_claimed(store, make):
    """A run that was not due when it was written is made ready by the claim that finds it due."""
    store.workers.beat(make.worker(), 1000, lease_until_ms=9000)
    store.runs.start([make.due("r1", 5000), make.due("r2", 4000), make.due("r3", 9000)])
    assert store.runs.claim("w1", 3999, limit=9, versions=["v1"]) == []
    assert store.runs.next_due_ms(["v1"]) == 4000
    claimed = store.runs.claim("w1", 5000, limit=1, versions=["v1"])
    assert [one.run.run_id for one in claimed] == ["r2"]
    assert store.runs.next_due_ms(["v1"]) == 5000  # ready, but for others
    claimed = store.runs.claim("w1", 5000, limit=9, versions=["v1"])
    assert [one.run.run_id for one in claimed] == ["r1"]
    assert store.runs.next_due_ms(["v1"]) == 9000


def test_timers_of_unknown_versions_hold_up_nobody(store, make):
    store.machines.register("M", "v2", make.shape, 1)
    store.workers.beat(make.worker(), 1000, lease_until_ms=9000)
    store.runs.start([make.due("r1", 2000, version="v2"), make.due("r2", 3000)])
    claimed = [
        one for _ in range(2) for one in store.runs.claim("w1", 4000, limit=1, versions=["v1"])
    ]
    assert [one.run.run_id for one in claimed] == ["r2"]  # each claim makes one timer ready


def test_a_run_that_has_rested_is_told_of(store, make):
    store.runs.start(
        [
            make.start("r1"),
            make.start("r2", state="done", status="completed"),
            make.start("r3", status="paused"),
            make.start("r4", status="quarantined", last_error="odd"),
            make.start("r5", state="done", status="failed"),
        ]
    )
    found = store.runs.rested(["r1", "r2", "r3", "r4", "nobody"])
    assert {one.run.run_id: one.run.status for one in found} == {
        "r2": "completed",
        "r3": "paused",
        "r4": "quarantined",
    }
    assert next(one for one in found if one.run.run_id == "r4").run.last_error == "odd"
    assert store.runs.rested([]) == []


def test_a_group_is_one_transaction_with_an_answer_for_each(store, make):
    store.runs.start([make.start("r1"), make.start("r2", key="used")])
    claimed = make.claim(store, "r1")
    done = store.runs.group(
        Batch(
            starts=(make.start("r3"), make.start("r4", key="used")),
            deliveries=(
                make.delivery("nobody"),
                make.delivery("r3", key="a"),
                make.delivery("r1", key="b"),
                make.delivery("r1", key="b"),
            ),
            writes=(
                make.step(claimed.run, claimed.fence, context=b"1"),
                make.step(make.run("r2"), 7, context=b"2"),
            ),
        )
    )
    assert done.started == [
        Started(run_id="r3", created=True),
        Started(run_id="r2", created=False),
    ]
    assert done.receipts[0] is None  # one unknown run fails alone
    assert [(one.run_id, one.status, one.duplicate) for one in done.receipts[1:]] == [
        ("r3", "accepted", False),  # started in the same group
        ("r1", "accepted", False),
        ("r1", "accepted", True),
    ]
    assert [one.ok for one in done.written] == [True, False]
    assert [one.key for one in done.written[0].arrived] == ["b"]
    assert store.runs.get("r1").run.context == b"1"
    assert store.runs.get("r2").run.context == make.run("r2").context
    assert [one.key for one in store.inbox.waiting("r3")] == ["a"]
    assert store.runs.group(Batch()) == Done(started=[], receipts=[], written=[])


def test_a_start_gives_the_run_to_the_worker_that_asks(store, make):
    store.workers.beat(make.worker(), 1000, lease_until_ms=9000)
    tried = make.effect("r1", 1, attempts=1, open=True)
    mine = make.due("r1")
    mine = replace(mine, run=mine.run.but(effect=tried), children=(make.due("r2"),), owner="w1")
    lost = replace(make.due("r3"), owner="stranger")
    used = replace(make.due("r1"), owner="w1")
    assert store.runs.start([mine, lost, used]) == [
        Started(run_id="r1", created=True, owned=True),
        Started(run_id="r3", created=True, owned=False),
        Started(run_id="r1", created=False, owned=False),
    ]
    stored = store.runs.get("r1")
    assert (stored.owner, stored.fence, stored.stalls) == ("w1", 1, 1)
    assert stored.run.effect == tried
    claimed = store.runs.claim("w1", 1000, limit=9, versions=["v1"])
    assert [(one.run.run_id, one.fence) for one in claimed] == [("r2", 1), ("r3", 1)]
    step = make.step(stored.run, 1, state="idle", status="waiting", effect=None, outcome="done")
    assert store.runs.commit([step])[0].ok


def test_two_stores_claim_disjoint_runs(shared_url, make):
    one, other = open_store(shared_url), open_store(shared_url)
    one.runs.start([make.due(f"r{n:03}") for n in range(100)])
    taken = []
    for store, worker_id in ((one, "w1"), (other, "w2")) * 6:
        store.workers.beat(make.worker(worker_id), 1000, lease_until_ms=9000)
        taken += store.runs.claim(worker_id, 1000, limit=9, versions=["v1"])
    ids = [claimed.run.run_id for claimed in taken]
    assert len(ids) == 100 == len(set(ids))
    assert one.inspector.findings() == []
    one.close()
    other.close()


_RACER = """
import json, sys
from engine.ports import WorkerIdentity
from persistence.store import open_store
url, name = sys.argv[1:]
store = open_store(url)
identity = WorkerIdentity(worker_id=name, host="here", pid=1, process_start="0")
store.workers.beat(identity, 1000, lease_until_ms=9000)
print("ready", flush=True)
sys.stdin.readline()
mine = []
while taken := store.runs.claim(name, 1000, limit=3, versions=["v1"]):
    mine += [one.run.run_id for one in taken]
print(json.dumps(mine))
"""


def test_racing_processes_claim_disjoint_runs(shared_url, make):
    store = open_store(shared_url)
    store.runs.start([make.due(f"r{n:03}") for n in range(120)])
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, shared_url, f"w{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for n in range(3)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    taken = [json.loads(racer.communicate()[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    ids = [run_id for some in taken for run_id in some]
    assert len(ids) == 120 == len(set(ids))
    assert store.inspector.findings() == []
    store.close()
