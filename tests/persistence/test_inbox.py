"""Events for runs: accepted once per key; the first receipt stands."""

from __future__ import annotations

import pytest

from engine.errors import UnknownRun


def test_a_delivery_waits_and_makes_its_run_due(store, make):
    store.runs.start([make.start("r1")])
    (receipt,) = store.inbox.deliver([make.delivery(payload=b"\x00\xff", at_ms=1500)])
    assert (receipt.status, receipt.duplicate, receipt.same, receipt.seq) == (
        "accepted",
        False,
        True,
        None,
    )
    assert store.runs.get("r1").due_ms == 1500
    (event,) = store.inbox.waiting("r1")
    assert (event.key, event.event, event.payload, event.at_ms) == ("k1", "go", b"\x00\xff", 1500)
    assert store.inbox.receipt("r1", "k1") == receipt


def test_an_earlier_due_time_is_kept(store, make):
    store.runs.start([make.due("r1", 1200)])
    store.inbox.deliver([make.delivery(at_ms=1500)])
    assert store.runs.get("r1").due_ms == 1200


@pytest.mark.parametrize("payload, same", [(b"{}", True), (b'{"n":2}', False), (None, False)])
def test_a_key_used_again_gets_the_first_receipt(store, make, payload, same):
    store.runs.start([make.start("r1")])
    store.inbox.deliver([make.delivery()])
    (again,) = store.inbox.deliver([make.delivery(payload=payload)])
    assert (again.duplicate, again.same, again.status) == (True, same, "accepted")
    assert len(store.inbox.waiting("r1")) == 1


def test_a_key_used_again_for_another_event_is_not_the_same(store, make):
    store.runs.start([make.start("r1")])
    first, second = store.inbox.deliver([make.delivery(), make.delivery(event="stop")])
    assert (first.duplicate, second.duplicate, second.same) == (False, True, False)


def test_a_key_used_again_after_the_step_tells_its_seq(store, make):
    store.runs.start([make.start("r1")])
    store.inbox.deliver([make.delivery()])
    claimed = make.claim(store, "r1")
    step = make.step(claimed.run, claimed.fence, consumed=make.applied(*claimed.inbox))
    store.runs.commit([step])
    (again,) = store.inbox.deliver([make.delivery()])
    assert (again.status, again.seq, again.duplicate, again.same) == ("applied", 2, True, True)
    assert store.inbox.waiting("r1") == []


def test_the_same_key_of_another_run_is_another_key(store, make):
    store.runs.start([make.start("r1"), make.start("r2")])
    receipts = store.inbox.deliver([make.delivery("r1"), make.delivery("r2")])
    assert [one.duplicate for one in receipts] == [False, False]


def test_a_run_that_has_ended_keeps_the_event_as_rejected(store, make):
    store.runs.start([make.start("r1", state="done", status="cancelled")])
    (receipt,) = store.inbox.deliver([make.delivery()])
    assert (receipt.status, receipt.reason) == ("rejected", "the run is cancelled")
    assert store.runs.get("r1").due_ms is None
    assert store.inbox.waiting("r1") == []
    (again,) = store.inbox.deliver([make.delivery()])
    assert (again.status, again.duplicate) == ("rejected", True)


def test_an_unknown_run_refuses_the_whole_batch(store, make):
    store.runs.start([make.start("r1")])
    with pytest.raises(UnknownRun, match="'nobody'"):
        store.inbox.deliver([make.delivery("r1"), make.delivery("nobody")])
    assert store.inbox.waiting("r1") == []
    assert store.inbox.receipt("nobody", "k1") is None
    assert store.inbox.deliver([]) == []


def test_an_owned_run_is_due_when_it_is_freed(store, make):
    store.runs.start([make.start("r1")])
    make.claim(store, "r1")
    store.inbox.deliver([make.delivery(at_ms=1500)])
    store.workers.retire("w1")
    assert store.runs.next_due_ms(["v1"]) == 1500
