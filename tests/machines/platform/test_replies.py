"""Compact JSON out, bounded JSON in."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.replies import (
    MAXIMUM_DEPTH,
    Problem,
    bad_field,
    int_field,
    iso,
    parse_object,
    reply,
    text_field,
)


def test_json_is_compact_as_the_c_client_needs_it() -> None:
    body = reply({"valid": True, "sessions": [{"id": "x"}]}).body
    assert body == b'{"valid":true,"sessions":[{"id":"x"}]}'


def test_a_problem_is_an_object_with_error_and_message() -> None:
    made = Problem(429, "slow", "wait", headers={"Retry-After": "3"}, fields={"left": 1})
    answer = made.response()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.body == b'{"error":"slow","message":"wait","left":1}'


def test_times_are_iso_8601_to_the_second() -> None:
    assert iso(1_700_000_000_999) == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize("body", [b"", b"  \n", b"{}"])
def test_an_empty_body_is_an_empty_object(body: bytes) -> None:
    assert parse_object(body) == {}


def test_depth_is_bounded_exactly() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)

    assert parse_object(nested(MAXIMUM_DEPTH))
    with pytest.raises(Problem, match="nested deeper"):
        parse_object(nested(MAXIMUM_DEPTH + 1))


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"NaN",
        b'{"a":"\\ud800 alone"}',
        b"\xff\xfe",
        b'{"a":' * 100_000,
        b'{"a":"' + b"\xc3" + b'"}',
    ],
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        parse_object(body)
    assert (caught.value.status, caught.value.error) == (400, "invalid_json")


@pytest.mark.parametrize(
    "value", [True, "1", 1.0, [], 0, 11, 10**30], ids=lambda value: str(type(value))
)
def test_an_integer_field_is_an_integer_within_bounds(value: Any) -> None:
    with pytest.raises(Problem, match="an integer from 1 to 10") as caught:
        int_field({"n": value}, "n", 5, least=1, most=10)
    assert len(caught.value.message) < 200


def test_absent_and_null_fields_take_their_default() -> None:
    for body in ({}, {"n": None}):
        assert int_field(body, "n", 5, least=1, most=10) == 5
        assert text_field(body, "n", "x") == "x"


@pytest.mark.parametrize("value", ["", 1, None, [], "long" * 10])
def test_a_text_field_is_a_bounded_text(value: Any) -> None:
    with pytest.raises(Problem, match="'name'"):
        text_field({"name": value}, "name", limit=20)


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(bad_field("name", "x" * 10_000, "less").message) < 200
