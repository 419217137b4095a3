"""`list` and `show`."""

from __future__ import annotations

import json

import pytest


def test_list_shows_runs_newest_first(demo):
    first, second = demo.order("o1"), demo.order("o2")
    answer = demo("list")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0].split() == ["RUN", "MACHINE", "KEY", "STATE", "STATUS", "SEQ", "DUE"]
    assert {line.split()[0] for line in lines[1:]} == {first, second}


def test_list_as_json_lines_and_by_status_and_machine(demo):
    demo.order("o1")
    demo("send", "Order:o1", "paid", "--payload", '{"amount_cents": 100}')
    waiting = demo.order("o2")
    answer = demo("list", "--json", "--status", "waiting", "--machine", "Order")
    assert [json.loads(line)["run_id"] for line in answer.out.splitlines()] == [waiting]
    assert answer.json["key"] == "o2" and answer.json["state"] == "awaiting"
    assert demo("list", "--machine", "Shipment").out == "no runs\n"


def test_show_gives_the_journal_with_verdicts_and_the_values_seen(demo):
    run_id = demo.order("o1", token="very-secret")
    demo("send", run_id, "paid", "--payload", '{"amount_cents": 40}')
    answer = demo("show", run_id)
    assert f"Order {run_id}, key o1: awaiting (waiting)" in answer.out
    assert "paid: stays in awaiting" in answer.out
    assert "holds  requires not_negative (event.amount_cents=40)" in answer.out
    assert "holds  ensures grows (old.paid_cents=0, new.paid_cents=40)" in answer.out
    assert "very-secret" not in answer.out and '"token":"***"' in answer.out


def test_show_as_json(demo):
    run_id = demo.order("o1", token="very-secret")
    shown = demo("show", "Order:o1", "--json")
    assert shown.json["run_id"] == run_id
    assert shown.json["context"]["token"] == "***"
    (entry,) = shown.json["journal"]
    assert (entry["event"], entry["source"], entry["target"]) == ("$start", "", "awaiting")
    assert entry["verdicts"][0]["saw"] == {"context.amount_cents": 100}
    assert "very-secret" not in shown.out


def test_a_run_is_found_by_id_by_its_beginning_and_by_machine_and_key(demo):
    run_id = demo.order("o1")
    for name in (run_id, run_id[:-3], "Order:o1"):
        assert demo("show", name, "--json").json["run_id"] == run_id


def test_an_ambiguous_beginning_is_refused(demo):
    demo.order("o1")
    demo.order("o2")
    answer = demo("show", "r", "--json")
    assert answer.code == 2
    assert "2 runs begin so" in answer.err
    assert answer.json["error"] == "unknown_run"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zzz", "error: no run 'zzz' in "),
        ("Order:zzz", "error: no run of Order with key 'zzz'"),
        ("Odor:o1", "error: no machine 'Odor' in this app. It has: Order, Shipment."),
    ],
)
def test_an_unknown_run_is_named(demo, name, message):
    demo.order("o1")
    for command in ("show", "why", "pause", "resume", "cancel"):
        answer = demo(command, name)
        assert answer.code == 2
        assert answer.err.startswith(message)


def test_an_unknown_status_is_named_with_the_allowed_ones(demo):
    demo.order("o1")
    answer = demo("list", "--status", "done")
    assert answer.code == 2
    assert "--status: expected one of pending, running, waiting" in answer.err
    assert "got 'done'" in answer.err


def test_a_directory_in_which_nothing_ran_is_refused_and_not_made(demo):
    for command in (["list"], ["show", "x"], ["doctor"], ["db", "check"], ["db", "current"]):
        answer = demo(*command)
        assert answer.code == 2, command
        assert f"data directory {demo.data_dir}: no runs.db in it" in answer.err
        assert not demo.data_dir.exists()
