"""Moving runs: fences, sequence numbers, batches, and what goes into one transaction."""

from __future__ import annotations

import pytest

from engine.ports import Consumed, EffectRecord


def take(store, make, run_id="r1", start=None):
    store.runs.start([start or make.due(run_id)])
    return make.claim(store, run_id)


def test_a_transition_is_written_whole(store, make):
    claimed = take(store, make)
    run = claimed.run
    write = make.step(
        run, claimed.fence, state="idle", status="waiting", effect=None, context=b'{"n":1}',
        deadline_ms=9000, undo=("busy",), outcome="done",
    )  # fmt: skip
    assert [one.ok for one in store.runs.commit([write])] == [True]
    stored = store.runs.get("r1")
    assert stored.run == write.after
    assert (stored.owner, stored.fence, stored.due_ms) == ("w1", 1, 9000)
    assert (stored.updated_ms, stored.stalls) == (2000, 0)
    assert store.journal.read("r1")[1:] == [write.entry]
    assert [one.status for one in store.effects.read("r1")] == ["done"]


@pytest.mark.parametrize("fence", [0, 2, -1])
def test_another_fence_changes_nothing(store, make, fence):
    claimed = take(store, make)
    before = store.runs.get("r1")
    child = make.start("r2", parent=make.parent("r1"), depth=1)
    store.runs.start([make.start("r3")])
    write = make.step(
        claimed.run, fence, state="idle", status="waiting", effect=None, outcome="done",
        starts=(child,), sends=(make.delivery("r3"),),
    )  # fmt: skip
    assert [one.ok for one in store.runs.commit([write])] == [False]
    assert store.runs.get("r1") == before
    assert len(store.journal.read("r1")) == 1
    assert [one.status for one in store.effects.read("r1")] == ["pending"]
    assert store.runs.get("r2") is None
    assert store.inbox.receipt("r3", "k1") is None


def test_another_seq_changes_nothing(store, make):
    claimed = take(store, make, start=make.start("r1"))
    first = make.step(claimed.run, claimed.fence, context=b"1")
    again = make.step(claimed.run, claimed.fence, context=b"2")
    assert [one.ok for one in store.runs.commit([first, again])] == [True, False]
    assert [one.ok for one in store.runs.commit([again])] == [False]
    assert store.runs.get("r1").run.context == b"1"


def test_another_pending_effect_changes_nothing(store, make):
    claimed = take(store, make)
    moved = claimed.run.but(effect=make.effect("r1", 9))
    assert [one.ok for one in store.runs.commit([make.step(moved, claimed.fence)])] == [False]


def test_a_run_that_was_freed_or_retaken_refuses_its_old_owner(store, make):
    claimed = take(store, make)
    store.workers.retire("w1")
    write = make.step(claimed.run, claimed.fence, state="idle", status="waiting", effect=None)
    assert [one.ok for one in store.runs.commit([write])] == [False]
    second = make.claim(store, "r1", worker_id="w2")
    assert (second.fence, second.stalls) == (2, 2)
    assert [one.ok for one in store.runs.commit([write])] == [False]
    assert store.runs.get("r1").run == claimed.run


def test_a_write_of_an_unknown_run_is_refused(store, make):
    assert [one.ok for one in store.runs.commit([make.step(make.run("nobody"), 1)])] == [False]
    assert store.runs.commit([]) == []


def test_in_a_batch_only_the_lost_one_fails(store, make):
    one, two, three = (take(store, make, f"r{n}", make.start(f"r{n}")) for n in (1, 2, 3))
    written = store.runs.commit(
        [
            make.step(one.run, one.fence, context=b"1"),
            make.step(two.run, two.fence + 1, context=b"2"),
            make.step(three.run, three.fence, context=b"3"),
        ]
    )
    assert [w.ok for w in written] == [True, False, True]
    assert [store.runs.get(f"r{n}").run.seq for n in (1, 2, 3)] == [2, 1, 2]


def test_two_steps_of_one_run_in_one_batch_are_taken_in_order(store, make):
    claimed = take(store, make)
    first = make.step(
        claimed.run, claimed.fence, effect=make.effect("r1", 2), status="running", outcome="done"
    )
    second = make.step(first.after, claimed.fence, effect=make.effect("r1", 3), outcome="given_up")
    assert [one.ok for one in store.runs.commit([first, second])] == [True, True]
    assert store.runs.get("r1").run == second.after
    assert [(one.seq, one.status) for one in store.effects.read("r1")] == [
        (1, "done"),
        (2, "given_up"),
        (3, "pending"),
    ]


def test_an_effect_left_without_an_outcome_is_abandoned(store, make):
    claimed = take(store, make)
    store.runs.commit(
        [make.step(claimed.run, claimed.fence, state="idle", status="waiting", effect=None)]
    )
    assert [one.status for one in store.effects.read("r1")] == ["abandoned"]


def test_attempts_are_bookkeeping(store, make):
    claimed = take(store, make)
    tried = make.effect("r1", 1, attempts=1, open=True)
    failed = make.effect("r1", 1, attempts=1, open=False, next_ms=8000, last_error="refused")
    first = make.note(claimed.run, claimed.fence, effect=tried, status="running")
    second = make.note(first.after, claimed.fence, effect=failed, status="waiting")
    assert [one.ok for one in store.runs.commit([first])] == [True]
    assert store.runs.get("r1").run.effect == tried
    assert [one.ok for one in store.runs.commit([second])] == [True]
    stored = store.runs.get("r1")
    assert stored.run == second.after
    assert (stored.due_ms, stored.stalls) == (8000, 1)  # no transition, so no progress
    assert len(store.journal.read("r1")) == 1
    assert store.effects.read("r1") == [
        EffectRecord(
            run_id="r1",
            seq=1,
            name="call",
            key=failed.key,
            attempts=1,
            open=False,
            next_ms=8000,
            status="pending",
            undo_of=None,
            last_error="refused",
        )
    ]


def test_attempts_that_begin_anew_while_open_are_no_breach(store, make):
    claimed = take(store, make)
    tried = make.effect("r1", 1, attempts=3, open=True)
    first = make.note(claimed.run, claimed.fence, effect=tried, status="running")
    anew = make.effect("r1", 1, attempts=0, open=True, calls=3)
    store.runs.commit([first, make.note(first.after, claimed.fence, effect=anew)])
    assert store.runs.get("r1").run.effect.attempts == 0
    assert store.inspector.findings() == []


def test_release_gives_the_run_up(store, make):
    claimed = take(store, make, start=make.due("r1", 1000))
    later = make.effect("r1", 1, next_ms=7000)
    store.runs.commit([make.note(claimed.run, claimed.fence, effect=later, release=True)])
    stored = store.runs.get("r1")
    assert (stored.owner, stored.due_ms) == (None, 7000)
    assert make.claim(store, "r1").fence == 2


def test_release_with_unconsumed_events_makes_the_run_due_at_once(store, make):
    claimed = take(store, make, start=make.start("r1"))
    store.inbox.deliver([make.delivery()])
    (written,) = store.runs.commit([make.note(claimed.run, claimed.fence, release=True)])
    assert [one.key for one in written.arrived] == ["k1"]
    assert store.runs.get("r1").due_ms == 2000


def test_arrived_is_everything_unconsumed(store, make):
    store.runs.start([make.start("r1")])
    store.inbox.deliver([make.delivery(key="a"), make.delivery(key="b")])
    claimed = make.claim(store, "r1")
    store.inbox.deliver([make.delivery(key="c")])
    write = make.step(claimed.run, claimed.fence, consumed=make.applied(claimed.inbox[0]))
    (written,) = store.runs.commit([write])
    assert [one.key for one in written.arrived] == ["b", "c"]


def test_consuming_is_part_of_the_step(store, make):
    store.runs.start([make.start("r1")])
    store.inbox.deliver([make.delivery(key="a"), make.delivery(key="b"), make.delivery(key="c")])
    claimed = make.claim(store, "r1")
    a, b, _ = claimed.inbox
    refused = Consumed(number=b.number, status="rejected", reason="not now")
    write = make.step(claimed.run, claimed.fence, consumed=(*make.applied(a), refused))
    store.runs.commit([write])
    receipts = {key: store.inbox.receipt("r1", key) for key in "abc"}
    assert (receipts["a"].status, receipts["a"].seq) == ("applied", 2)
    assert (receipts["b"].status, receipts["b"].seq) == ("rejected", None)
    assert receipts["b"].reason == "not now"
    assert receipts["c"].status == "accepted"
    assert [one.key for one in store.inbox.waiting("r1")] == ["c"]


def test_an_event_is_consumed_once(store, make):
    store.runs.start([make.start("r1"), make.start("r2")])
    store.inbox.deliver([make.delivery("r1")])
    claimed, other = make.claim(store, "r1"), make.claim(store, "r2")
    applied = make.applied(*claimed.inbox)
    first = make.step(claimed.run, claimed.fence, consumed=applied)
    second = make.step(first.after, claimed.fence, consumed=applied)
    thief = make.step(other.run, other.fence, consumed=applied)
    assert [w.ok for w in store.runs.commit([thief, first, second])] == [False, True, False]
    assert store.inbox.receipt("r1", "k1").seq == 2
    assert store.runs.get("r2").run.seq == 1


def test_a_run_that_ends_is_given_up_and_refuses_what_is_left(store, make):
    claimed = take(store, make)
    store.inbox.deliver([make.delivery(key="late")])
    write = make.step(
        claimed.run, claimed.fence, state="done", status="completed", effect=None,
        outcome="done", output=b'"paid"',
    )  # fmt: skip
    (written,) = store.runs.commit([write])
    assert (written.ok, written.arrived) == (True, ())
    stored = store.runs.get("r1")
    assert (stored.owner, stored.due_ms, stored.output) == (None, None, b'"paid"')
    receipt = store.inbox.receipt("r1", "late")
    assert (receipt.status, receipt.reason) == ("rejected", "the run is completed")


def test_children_start_and_parents_are_told_in_the_same_step(store, make):
    claimed = take(store, make, start=make.start("r1"))
    child = make.due("r2", parent=make.parent("r1"), depth=1)
    spawn = make.step(claimed.run, claimed.fence, state="busy", child="r2", starts=(child,))
    again = make.note(spawn.after, claimed.fence, starts=(child,), release=True)
    assert [one.ok for one in store.runs.commit([spawn, again])] == [True, True]
    assert store.runs.get("r1").due_ms is None
    assert store.inspector.findings() == []  # it waits for a live child

    taken = make.claim(store, "r2")
    assert taken.run == child.run
    told = make.delivery("r1", key="child:r2:ended", event="ended", at_ms=2500)
    end = make.step(
        taken.run, taken.fence, state="done", status="completed", effect=None, outcome="done",
        sends=(told,),
    )  # fmt: skip
    store.runs.commit([end])
    assert store.runs.get("r1").due_ms == 2500
    assert [one.key for one in store.inbox.waiting("r1")] == ["child:r2:ended"]


def test_a_step_that_tells_another_run_in_the_batch(store, make):
    one, two = (take(store, make, f"r{n}", make.start(f"r{n}")) for n in (1, 2))
    tells = make.step(one.run, one.fence, sends=(make.delivery("r2", at_ms=1900),))
    moves = make.step(two.run, two.fence, release=True)
    written = store.runs.commit([tells, moves])
    assert [w.ok for w in written] == [True, True]
    assert [event.key for event in written[1].arrived] == ["k1"]
    assert store.runs.get("r2").due_ms == 1900


def test_what_is_sent_to_a_run_that_does_not_exist_is_dropped(store, make):
    claimed = take(store, make, start=make.start("r1"))
    write = make.step(claimed.run, claimed.fence, sends=(make.delivery("nobody"),))
    assert [one.ok for one in store.runs.commit([write])] == [True]


def test_a_held_run_is_due_for_control_events_only(store, make):
    claimed = take(store, make)
    store.inbox.deliver([make.delivery(key="kept")])
    paused = make.step(
        claimed.run, claimed.fence, status="paused", held_from="running", release=True
    )
    store.runs.commit([paused])
    assert store.runs.get("r1").due_ms is None
    store.inbox.deliver([make.delivery(key="more")])
    assert store.runs.get("r1").due_ms is None
    store.inbox.deliver([make.delivery(key="resume", event="$resume", at_ms=3000)])
    assert store.runs.get("r1").due_ms == 3000
    (again,) = store.runs.claim("w1", 3000, limit=1, versions=["v1"])
    resume = next(event for event in again.inbox if event.event == "$resume")
    back = make.step(
        again.run, again.fence, status="waiting", held_from=None, at_ms=3100,
        consumed=make.applied(resume),
    )  # fmt: skip
    (written,) = store.runs.commit([back])
    assert [one.key for one in written.arrived] == ["kept", "more"]
    store.workers.retire("w1")
    assert store.runs.get("r1").due_ms == 1000  # its effect was due before the events came
