"""`send`, `pause`, `resume`, `cancel`: applied at once when no worker has the run."""

from __future__ import annotations

import pytest


def paid(amount_cents, *more):
    return ("send", "Order:o1", "paid", "--payload", f'{{"amount_cents": {amount_cents}}}', *more)


def test_an_event_is_applied_at_once(demo):
    run_id = demo.order("o1")
    answer = demo(*paid(40, "--json"))
    assert answer.code == 0
    assert (answer.json["run_id"], answer.json["receipt"]) == (run_id, "applied")
    assert (answer.json["seq"], answer.json["state"]) == (2, "awaiting")


def test_a_refused_event_says_which_clause_and_what_it_saw(demo):
    demo.order("o1")
    answer = demo(*paid(-1))
    assert answer.code == 1
    assert "precondition not_negative does not hold (event.amount_cents=-1)" in answer.out
    assert demo("show", "Order:o1", "--json").json["seq"] == 1


def test_a_secret_is_sent_plainly_and_kept_sealed(demo):
    demo.order("o1")
    payload = '{"amount_cents": 40, "token": "hunter2"}'
    answer = demo("send", "Order:o1", "paid", "--payload", payload, "--key", "tx-1", "--json")
    assert answer.code == 0
    again = demo("send", "Order:o1", "paid", "--payload", payload, "--key", "tx-1", "--json")
    assert again.json["duplicate"]
    shown = demo("show", "Order:o1", "--json")
    assert shown.json["journal"][1]["payload"]["token"] == "***"
    assert "hunter2" not in answer.out + answer.err + shown.out
    for file in demo.data_dir.iterdir():
        assert b"hunter2" not in file.read_bytes(), file


@pytest.mark.parametrize("amount", ["-1", '"much"', "40"])
def test_a_refused_event_does_not_show_its_secret(demo, amount):
    demo.order("o1")
    token = '["hunter2"]' if amount == "40" else '"hunter2"'
    payload = f'{{"amount_cents": {amount}, "token": {token}}}'
    answer = demo("send", "Order:o1", "paid", "--payload", payload, "--json")
    assert answer.code in (1, 2)
    assert "hunter2" not in answer.out + answer.err


def test_the_same_key_counts_once(demo):
    demo.order("o1")
    assert demo(*paid(40, "--key", "tx-1")).code == 0
    again = demo(*paid(40, "--key", "tx-1", "--json")).json
    assert again["duplicate"] and again["seq"] == 2
    assert demo("show", "Order:o1", "--json").json["context"]["paid_cents"] == 40
    other = demo(*paid(41, "--key", "tx-1"))
    assert other.code == 2 and "was used before for another event" in other.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("payed",), "machine Order has no event 'payed'. Its events: forget, paid, shipped."),
        (("paid",), "event 'paid' of Order expects Paid(amount_cents, token), got NoneType"),
        (
            ("paid", "--payload", '{"amount_cents": "much"}'),
            "Expected `int`, got `str` - at `$.amount_cents`",
        ),
        (("paid", "--payload", "{}"), "missing required field `amount_cents`"),
        (("paid", "--payload", '{"amount": 1, "amount_cents": 2}'), "unknown field `amount`"),
        (("paid", "--payload", "{not json"), "not JSON"),
        (("paid", "--payload", "@/nowhere/at/all"), "file /nowhere/at/all: cannot be read"),
        (("forget", "--payload", "{}"), "event 'forget' of Order carries no payload"),
        (("$cancel",), "machine Order has no event '$cancel'"),
    ],
)
def test_a_wrong_event_is_refused_with_what_was_expected(demo, arguments, message):
    demo.order("o1")
    answer = demo("send", "Order:o1", *arguments, "--json")
    assert answer.code == 2
    assert message in answer.err
    assert answer.json["error"] in ("unknown_event", "bad_payload", "usage_error")
    assert demo("show", "Order:o1", "--json").json["seq"] == 1


def test_pause_and_resume_take_effect_at_once(demo):
    demo.order("o1")
    assert demo("pause", "Order:o1", "--json").json["status"] == "paused"
    kept = demo(*paid(40, "--json"))
    assert kept.code == 0 and kept.json["receipt"] == "accepted"
    again = demo("pause", "Order:o1")
    assert again.code == 1 and "the run is paused" in again.out
    resumed = demo("resume", "Order:o1", "--json").json
    assert resumed["status"] == "waiting"
    assert demo("show", "Order:o1", "--json").json["context"]["paid_cents"] == 40


def test_cancel_takes_effect_at_once(demo):
    demo.order("o1")
    assert demo("cancel", "Order:o1", "--json").json["status"] == "cancelled"
    again = demo("cancel", "Order:o1")
    assert again.code == 1 and "cancelled" in again.out
