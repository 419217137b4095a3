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

PYTHON = LANGUAGES[0]


def language(name: str) -> Language:
    assert name == "python"
    return PYTHON


def shells() -> frozenset[str]:
    return frozenset({"bash", "python3"})


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
        orders.INPUT_DIRECTORY + "/a": b"\x00\xff",
        orders.INPUT_DIRECTORY + "/b c": b"\x00\xff",
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


def test_a_command_is_called_command_or_in_the_paper_code() -> None:
    assert orders.parse_command({"command": "a", "code": "b"}).command == "a"
    assert orders.parse_command({"code": "b"}).command == "b"
    assert orders.parse_command({"command": "a", "timeout": 5}).timeout_ms == 5
    for body in ({}, {"command": ""}, {"command": 1}, {"command": "a", "timeout": 900_001}):
        with pytest.raises(Problem):
            orders.parse_command(body)


@pytest.mark.parametrize(
    ("body", "shell"),
    [
        ({}, "bash"),
        ({"shell": "python3"}, "python3"),
        ({"language": "python"}, "python3"),
        ({"shell": "python"}, "python3"),
        ({"language": "bash", "shell": "python3"}, "python3"),
        ({"language": 5}, "bash"),
    ],
)
def test_the_shell_of_a_session(body: dict[str, Any], shell: str) -> None:
    assert orders.parse_session(body, shells).shell == shell


def test_zero_asks_for_the_longest_time_to_live() -> None:
    assert orders.parse_session({"ttl": 0}, shells).ttl_seconds == 86_400
    assert orders.parse_session({}, shells).ttl_seconds == 3600


def test_semitrusted_is_not_offered_and_says_so() -> None:
    with pytest.raises(Problem, match="use 'zerotrust'") as caught:
        orders.parse_session({"network_mode": "semitrusted"}, shells)
    assert caught.value.error == "network_mode_unavailable"


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
        lambda: orders.parse_session(complete, shells),
    )
    for parse in parsers:
        try:
            parse()
        except Problem as problem:
            assert problem.status == 400
            assert problem.fields["field"] in problem.message
