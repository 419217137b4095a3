"""`gc`: removes what ended long ago, and says what it did."""

from __future__ import annotations

import pytest


def order(demo, key: str) -> None:
    demo("run", "Order", "--input", '{"amount_cents": 5}', "--key", key, "--no-wait")


def ended(demo, key: str) -> None:
    order(demo, key)
    assert demo("cancel", f"Order:{key}").code == 0


def test_ended_runs_are_removed_and_their_names_explain(demo):
    ended(demo, "a")
    order(demo, "b")
    counted = demo("gc", "--older-than", "0s", "--dry-run")
    assert counted.out == "would be removed: 1 runs in 1 trees\n"
    answer = demo("gc", "--older-than", "0s", "--machine", "Order", "--json")
    assert answer.json == {"trees": 1, "runs": 1, "kept": 0, "forgotten": 0, "dry_run": False}
    shown = demo("show", "Order:a", "--json")
    assert shown.code == 5
    assert shown.json["error"] == "run_removed"
    assert "ended as cancelled on" in shown.json["message"]
    assert demo("show", "Order:b").code == 0
    assert demo("doctor").code == 0


def test_nothing_young_is_removed(demo):
    ended(demo, "a")
    assert demo("gc", "--older-than", "30d").out == "removed: 0 runs in 0 trees\n"
    assert demo("show", "Order:a").code == 0


def test_keys_are_forgotten_on_purpose(demo):
    ended(demo, "a")
    answer = demo("gc", "--older-than", "0s", "--forget-keys-after", "0s")
    assert "removed: 1 runs" in answer.out
    answer = demo("gc", "--older-than", "0s", "--forget-keys-after", "0s")
    assert "forgotten: 1 removed runs" in answer.out
    assert demo("show", "Order:a").code == 2


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1.5h", "3 years", ""])
def test_an_age_of_another_form_is_refused(demo, age):
    ended(demo, "a")
    answer = demo("gc", f"--older-than={age}")
    assert answer.code == 2
    assert "expected a whole number and a unit of s, m, h, d, w" in answer.err
