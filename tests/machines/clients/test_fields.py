"""Strict reading of replies."""

from __future__ import annotations

import pytest

from machines.clients.fields import Fields, objects, text, texts
from machines.clients.ports import Rejected


def test_the_first_name_that_is_there_counts() -> None:
    fields = Fields({"a": None, "b": "x", "c": "y"}, "reply")
    assert fields.text("a", "b", "c") == "x"


@pytest.mark.parametrize(
    ("given", "at_ms"),
    [
        ({"at": "2023-11-14T22:13:20Z"}, 1_700_000_000_000),
        ({"at": "2023-11-14T23:13:20.5+01:00"}, 1_700_000_000_500),
        ({"at": "2023-11-14T22:13:20"}, 1_700_000_000_000),
        ({"at_ms": 5, "at": "2023-11-14T22:13:20Z"}, 5),
    ],
)
def test_moments(given: dict[str, object], at_ms: int) -> None:
    assert Fields(given, "reply").moment_ms("at_ms", "at") == at_ms


def test_a_refusal_names_reply_and_field_and_hides_the_value() -> None:
    fields = Fields({"secret_key": ["hunter2"]}, "a.call")
    with pytest.raises(Rejected) as caught:
        fields.text("secret_key")
    said = "a.call: field secret_key unusable: expected a text, got list"
    assert str(caught.value) == said
    with pytest.raises(Rejected, match="field other missing"):
        fields.text("other")


@pytest.mark.parametrize("data", [None, "x", {}, [1], [None], [[]]])
def test_lists_of_the_wrong_thing(data: object) -> None:
    with pytest.raises(Rejected):
        objects(data, "reply")
    with pytest.raises(Rejected):
        texts(data, "reply") if data != "x" else text("", "reply")


def test_a_float_can_never_be_an_integer_or_a_truth_value() -> None:
    fields = Fields({"a": 1.0, "b": True, "c": 1}, "reply")
    for wrong in ("a", "b"):
        with pytest.raises(Rejected):
            fields.integer(wrong)
    with pytest.raises(Rejected):
        fields.boolean("c")
