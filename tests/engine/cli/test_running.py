"""`run` and `work`, in process and as processes that are told to stop."""

from __future__ import annotations

import json
import signal

import pytest


def test_run_moves_a_machine_to_its_end(demo):
    answer = demo("run", "Shipment", "--input", '{"amount_cents": 5}', "--json")
    assert answer.code == 0
    assert (answer.json["status"], answer.json["state"]) == ("completed", "end")
    assert "Shipment  shipping -> end (shipped) [completed]" in answer.err  # stdout: the answer
    assert len(answer.out.splitlines()) == 1


def test_run_for_a_person_prints_plain_lines_when_piped(demo):
    answer = demo("run", "Shipment", "--input", '{"amount_cents": 5}')
    assert "shipping -> end (shipped) [completed]" in answer.out.splitlines()[0]
    assert "completed in end after 2 transitions" in answer.out.splitlines()[1]


def test_the_same_key_is_the_same_run(demo):
    first = demo.order("o1")
    again = demo("run", "Order", "--input", '{"amount_cents": 100}', "--key", "o1", "--no-wait")
    assert again.out == f"{first} was there already\n"
    other = demo("run", "Order", "--input", '{"amount_cents": 7}', "--key", "o1", "--no-wait")
    assert other.code == 2
    assert "was used before" in other.err


def test_input_may_be_a_file(demo, tmp_path):
    file = tmp_path / "input.json"
    file.write_text('{"amount_cents": 5}')
    assert demo("run", "Shipment", "--input", f"@{file}").code == 0


def test_a_cancelled_run_ends_with_1_and_a_paused_one_with_4(demo):
    demo.order("o1")
    demo("pause", "Order:o1")
    again = ("run", "Order", "--input", '{"amount_cents": 100}', "--key", "o1", "--json")
    answer = demo(*again)
    assert (answer.code, answer.json["status"]) == (4, "paused")
    demo("cancel", "Order:o1")
    answer = demo(*again)
    assert (answer.code, answer.json["status"]) == (1, "cancelled")


def test_a_run_that_is_still_going_at_the_timeout_ends_with_4(demo):
    answer = demo("run", "Order", "--input", '{"amount_cents": 100}', "--timeout", "0", "--json")
    assert answer.code == 4
    assert "is waiting in awaiting after 0 s. Go on with `turtles work`" in answer.err
    assert answer.json["error"] == "not_ended"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Odor",), "no machine 'Odor'. There are: Order, Shipment."),
        (("Order",), "missing required field `amount_cents`"),
        (("Order", "--input", '{"amount_cents": 1.5}'), "Expected `int`, got `float`"),
        (("Order", "--input", "[]"), "Expected `object`, got `array`"),
        (("Order", "--input", "{"), "--input of machine Order: not JSON"),
        (("Order", "--input", '{"amount_cents": 1}', "--key", ""), "expected 1 to 200 characters"),
        (("Order", "--input", '{"amount_cents": 1}', "--timeout", "-1"), "-1"),
    ],
)
def test_bad_input_starts_nothing(demo, arguments, message):
    answer = demo("run", *arguments)
    assert answer.code == 2
    assert message in answer.err
    if demo.data_dir.exists():
        assert demo("list").out == "no runs\n"


@pytest.mark.parametrize("from_file", [False, True])
def test_a_secret_is_given_plainly_and_kept_sealed(demo, tmp_path, from_file):
    given = '{"amount_cents": 5, "token": "hunter2"}'
    if from_file:
        (tmp_path / "input.json").write_text(given)
        given = f"@{tmp_path / 'input.json'}"
    answer = demo("run", "Shipment", "--input", given, "--key", "s1", "--json")
    assert answer.code == 0
    shown = demo("show", "Shipment:s1", "--json")
    assert shown.json["context"]["token"] == "***"
    assert "hunter2" not in answer.out + answer.err + shown.out
    assert_nowhere("hunter2", demo.data_dir)


@pytest.mark.parametrize("token", ['["hunter2"]', '{"hunter2": 1}', '"hunter2", "amount_cents": 0'])
def test_a_refused_input_does_not_show_its_secret(demo, token):
    answer = demo("run", "Order", "--input", f'{{"amount_cents": 5, "token": {token}}}', "--json")
    assert answer.code in (1, 2)
    assert "hunter2" not in answer.out + answer.err
    if "amount_cents" not in token:
        assert "Expected str, got" in answer.err and "at `$.token`" in answer.err


def assert_nowhere(text, directory):
    """No file of a directory holds a text."""
    files = [one for one in directory.rglob("*") if one.is_file()]
    assert files
    for file in files:
        assert text.encode() not in file.read_bytes(), file


def test_a_context_that_breaks_an_invariant_is_refused(demo):
    answer = demo("run", "Order", "--input", '{"amount_cents": 0}')
    assert answer.code == 1
    assert "invariant costs_something does not hold (context.amount_cents=0)" in answer.err


def test_the_data_directory_is_private(demo):
    demo.order("o1")
    assert demo.data_dir.stat().st_mode & 0o777 == 0o700
    for file in demo.data_dir.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def line_with(stream, text):
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_finishes_the_step_in_hand_when_told_to_stop(demo, number):
    run_id = demo.order("o1", amount_cents=100, linger_seconds=1.0)
    worker = demo.process("work", "--json")
    line_with(worker.stderr, "working on")
    demo("send", run_id, "paid", "--payload", '{"amount_cents": 100}')
    assert worker_has_begun(demo, run_id)
    worker.send_signal(number)
    _, err = worker.communicate(timeout=30)
    assert worker.returncode == 0, err
    assert "stopped: every step in hand is finished" in err
    shown = demo("show", run_id, "--json").json
    assert (shown["status"], shown["owner"]) == ("completed", None)
    (effect,) = shown["effects"]
    assert (effect["status"], effect["attempts"]) == ("done", 1)


def worker_has_begun(demo, run_id):
    """Wait until the one attempt is counted: the effect lingers for a second then."""
    demo.until(lambda: any(e["open"] for e in demo("show", run_id, "--json").json["effects"]))
    return demo("show", run_id, "--json").json["status"] == "running"


def payment(amount_cents):
    return ("--payload", f'{{"amount_cents": {amount_cents}}}')


def test_an_interrupted_run_goes_on_with_the_same_command(demo):
    command = ("run", "Order", "--input", '{"amount_cents": 100}', "--key", "o1", "--json")
    process = demo.process(*command, TURTLES_LOG_LEVEL="info")
    demo.until(lambda: demo("send", "Order:o1", "paid", *payment(40)).code == 0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "stopped; run the same command again to go on" in err
    assert json.loads(out)["error"] == "interrupted"
    demo("send", "Order:o1", "paid", *payment(60))
    assert demo(*command).json["status"] == "completed"
