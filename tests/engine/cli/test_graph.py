"""`graph`: the machine's text, and where a run is."""

from __future__ import annotations


def test_a_machine_without_a_run_needs_no_store(demo):
    answer = demo("graph", "Order")
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "stateDiagram-v2",
        '    state "end" as end_state',
        "    [*] --> awaiting",
        "    awaiting --> shipping: paid [enough]",
        "    awaiting --> awaiting: paid",
        "    awaiting --> forgotten: forget",
        "    shipping --> end_state: shipped",
        "    end_state --> [*]",
        "    forgotten --> [*]",
    ]
    assert not demo.data_dir.exists()


def test_a_run_marks_the_current_state_and_the_edges_it_took(demo):
    demo.order("o1")
    for _ in range(2):
        demo("send", "Order:o1", "paid", "--payload", '{"amount_cents": 30}')
    demo("send", "Order:o1", "paid", "--payload", '{"amount_cents": 40}')
    lines = demo("graph", "Order", "--run", "Order:o1").out.splitlines()
    assert "    awaiting --> shipping: paid [enough] ✓1" in lines
    assert "    awaiting --> awaiting: paid ✓2" in lines
    assert "    awaiting --> forgotten: forget" in lines
    assert "    class awaiting visited" in lines
    assert "    class shipping current" in lines


def test_graph_as_json(demo):
    run_id = demo.order("o1")
    answer = demo("graph", "Order", "--run", run_id, "--json").json
    assert (answer["current"], answer["visited"]) == ("awaiting", ["awaiting"])
    assert answer["mermaid"].startswith("stateDiagram-v2\n")


def test_wrong_machines_are_named(demo):
    demo.order("o1")
    assert "no machine 'Odor'. There are: Order, Shipment." in demo("graph", "Odor").err
    answer = demo("graph", "Shipment", "--run", "Order:o1")
    assert answer.code == 2
    assert "is one of Order, not Shipment" in answer.err
