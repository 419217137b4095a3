"""Effects: one row each, read oldest first."""

from __future__ import annotations


def test_effects_of_a_run_are_read_oldest_first(store, make):
    store.runs.start([make.due("r1"), make.due("r2")])
    claimed = make.claim(store, "r1")
    undo = make.effect("r1", 2, name="give_back", undo_of="busy")
    store.runs.commit([make.step(claimed.run, claimed.fence, effect=undo, outcome="given_up")])
    assert [(one.name, one.status, one.undo_of) for one in store.effects.read("r1")] == [
        ("call", "given_up", None),
        ("give_back", "pending", "busy"),
    ]
    assert store.effects.read("nobody") == []
