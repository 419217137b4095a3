"""Request bodies: what passes comes out complete, what does not is named."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.platform import orders
from machines.platform.languages import LANGUAGES, Language
from machines.platform.replies import Problem
from machines.platform.transfers import INPUT_DIRECTORY

PYTHON = LANGUAGES[0]


def language(name: str) -> Language:
    assert name == "python"
    return PYTHON


def code(**fields: Any) -> orders.CodeOrder:
    return orders.parse_code({"language": "python", "code": "x", **fields}, language)


def test_defaults_of_an_execution() -> None:
    order = code()
    assert (order.ttl_seconds, order.vcpu, order.network_mode) == (60, 1, "zerotrust")
    assert (order.environment, order.stdin, order.arguments, order.files) == ({}, "", (), {})


def test_bounds_of_an_execution_are_inclusive() -> None:
    order = code(ttl=900, vcpu=8, env={f"A{n}": "" for n in range(256)}, args=["a"] * 256)
    assert (order.ttl_seconds, order.vcpu, len(order.environment)) == (900, 8, 256)


def test_files_land_in_the_input_directory_whatever_the_content_is_called() -> None:
    content = base64.b64encode(b"\x00\xff").decode()
    order = code(
        input_files=[
            {"filename": "a", "content": content},
            {"filename": "b c", "content_base64": content},
        ]
    )
    assert order.files == {
        INPUT_DIRECTORY + "/a": b"\x00\xff",
        INPUT_DIRECTORY + "/b c": b"\x00\xff",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ttl", 901),
        ("ttl", 1.5),
        ("vcpu", 9),
        ("vcpu", 0),
        ("env", []),
        ("env", {f"A{n}": "" for n in range(257)}),
        ("args", ["a"] * 257),
        ("args", ["nul\0"]),
        ("stdin", 5),
        ("return_wasm_artifact", True),
        ("return_artifact", 1),
        ("network_mode", "zero-trust"),
        ("network_mode", 5),
        ("network", "on"),
        ("env", {"not a name": ""}),
        ("env", {"1A": ""}),
        ("env", {"A": "nul\0"}),
        ("env", {"A": "x" * 30_000}),
        ("args", ["x" * 30_001]),
        ("code", "x" * (8 * 1024 * 1024 + 1)),
        ("input_files", [{"filename": "a", "content": "A" * 12 * 1024 * 1024}]),
        ("input_files", [{"filename": "\u20ac" * 100, "content": ""}]),
        ("input_files", {}),
        ("input_files", ["x"]),
        ("input_files", [{"filename": "", "content": ""}]),
        ("input_files", [{"filename": "..", "content": ""}]),
        ("input_files", [{"filename": "a/b", "content": ""}]),
        ("input_files", [{"filename": "a", "content": "not base64!"}]),
        ("input_files", [{"filename": "a", "content": 5}]),
        ("input_files", [{"filename": "a"}]),
        ("input_files", [{"filename": "a", "content": ""}] * 1001),
    ],
)
def test_a_bad_field_of_an_execution_is_named(field: str, value: Any) -> None:
    with pytest.raises(Problem) as caught:
        code(**{field: value})
    assert caught.value.status == 400
    assert caught.value.fields == {"field": field}


@pytest.mark.parametrize("name", ["network_mode", "network"])
def test_a_network_mode_goes_by_two_names(name: str) -> None:
    assert code(**{name: "semitrusted"}).network_mode == "semitrusted"
    assert code(network_mode="zerotrust", network="on").network_mode == "zerotrust"
    assert orders.parse_network_mode({}, "semitrusted") == "semitrusted"


def test_a_wasm_target_is_for_the_five_languages_that_have_one() -> None:
    c = next(each for each in LANGUAGES if each.name == "c")
    body = {"language": "c", "code": "x", "return_wasm_artifact": True, "return_artifact": True}
    order = orders.parse_code(body, lambda _name: c)
    assert (order.returns_wasm, order.returns_artifact) == (True, True)


def source(raw: bytes, **query: str) -> orders.CodeOrder:
    return orders.parse_source(raw, query, language)


def test_a_source_is_an_order_without_the_name_of_its_language() -> None:
    order = source(b"print('hi')", ttl="7", env='{"A":"1"}', network_mode="semitrusted")
    assert (order.language, order.code, order.detected) == (PYTHON, "print('hi')", True)
    assert (order.ttl_seconds, order.environment) == (7, {"A": "1"})
    assert order.network_mode == "semitrusted"
    assert source(b"print(1)").ttl_seconds == 60


@pytest.mark.parametrize(
    ("raw", "query", "field"),
    [
        (b"", {}, "code"),
        (b"\xff\xfe", {}, "body"),
        (b"hello world", {}, "body"),
        (b"print(1)", {"ttl": "901"}, "ttl"),
        (b"print(1)", {"ttl": "-1"}, "ttl"),
        (b"print(1)", {"ttl": ""}, "ttl"),
        (b"print(1)", {"ttl": "9" * 5000}, "ttl"),
        (b"print(1)", {"ttl": "\u0663"}, "ttl"),
        (b"print(1)", {"env": "{"}, "env"),
        (b"print(1)", {"env": "[]"}, "env"),
        (b"print(1)", {"env": '{"A":1}'}, "env"),
        (b"print(1)", {"env": "\ud800"}, "env"),
        (b"print(1)", {"network_mode": "open"}, "network_mode"),
    ],
)
def test_a_bad_part_of_a_source_request_is_named(
    raw: bytes, query: dict[str, str], field: str
) -> None:
    with pytest.raises(Problem) as caught:
        orders.parse_source(raw, query, language)
    assert caught.value.status == 400
    assert caught.value.fields == {"field": field}


def test_a_command_is_called_command_or_in_the_paper_code() -> None:
    assert orders.parse_command({"command": "a", "code": "b"}).command == "a"
    assert orders.parse_command({"code": "b"}).command == "b"
    assert orders.parse_command({"command": "a", "timeout": 5}).timeout_ms == 5
    for body in ({}, {"command": ""}, {"command": 1}, {"command": "a", "timeout": 900_001}):
        with pytest.raises(Problem):
            orders.parse_command(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
NAMES = "language code shell network_mode ttl vcpu env stdin args input_files command timeout"


@given(body=st.dictionaries(st.sampled_from(NAMES.split()), JSON))
def test_any_json_is_an_order_or_a_named_refusal(body: dict[str, Any]) -> None:
    complete = {"language": "python", "code": "x", "command": "x", **body}
    parsers = (
        lambda: orders.parse_code(complete, lambda _name: PYTHON),
        lambda: orders.parse_command(complete),
    )
    for parse in parsers:
        try:
            parse()
        except Problem as problem:
            assert problem.status == 400
            assert problem.fields["field"] in problem.message
