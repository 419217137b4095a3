"""`why`: every reason for which a run may not move."""

from __future__ import annotations


def test_a_waiting_run_names_its_timer_and_the_events_it_would_take(demo):
    demo.order("o1")
    answer = demo("why", "Order:o1", "--json").json
    assert "the timer of awaiting sends 'forget' until 20" in answer["reasons"][0]
    assert "awaiting waits for an event from outside" in answer["reasons"][1]
    assert answer["deadline_ms"] - answer["now_ms"] > 3_500_000
    events = {one["event"]: one["payload"] for one in answer["events"]}
    assert events == {"paid": ["amount_cents", "token"], "forget": []}


def test_a_run_that_is_due_says_that_no_worker_runs(demo):
    demo.order("o1")
    demo("send", "Order:o1", "paid", "--payload", '{"amount_cents": 100}')
    answer = demo("why", "Order:o1")
    assert "effect 'ship'" in answer.out
    assert "no worker is running here: start one with: turtles work" in answer.out


def test_a_paused_run_names_the_command_that_moves_it(demo):
    run_id = demo.order("o1")
    demo("pause", run_id)
    answer = demo("why", run_id)
    assert f"an operator paused it; go on with: turtles resume {run_id}" in answer.out
    assert "it would take" not in answer.out


def test_an_ended_run_says_so(demo):
    demo("run", "Shipment", "--input", '{"amount_cents": 5}', "--key", "s1")
    answer = demo("why", "Shipment:s1", "--json").json
    assert answer["reasons"] == ["it has ended (completed); nothing will move it again"]
    assert answer["events"] == []
