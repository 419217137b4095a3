"""Bodies about sessions: what passes comes out complete, what does not is named."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.platform import session_orders
from machines.platform.replies import Problem
from machines.platform.transfers import INPUT_DIRECTORY


def shells() -> frozenset[str]:
    return frozenset({"bash", "python3"})


def parse(body: dict[str, Any], **query: str) -> session_orders.SessionOrder:
    return session_orders.parse_session(body, shells, query)


@pytest.mark.parametrize(
    ("body", "shell"),
    [
        ({}, "bash"),
        ({"shell": None, "language": None}, "bash"),
        ({"shell": "python3"}, "python3"),
        ({"language": "python"}, "python3"),
        ({"shell": "python"}, "python3"),
        ({"language": "bash", "shell": "python3"}, "python3"),
    ],
)
def test_the_shell_of_a_session(body: dict[str, Any], shell: str) -> None:
    assert parse(body).shell == shell


def test_defaults_and_the_longest_time_to_live() -> None:
    order = parse({})
    assert (order.ttl_seconds, order.vcpu, order.network_mode) == (3600, 1, "zerotrust")
    assert (order.multiplexer, order.files, order.image, order.audited) == (None, {}, None, False)
    assert parse({"ttl": 0}).ttl_seconds == 86_400
    assert parse({"network_mode": "semitrusted"}).network_mode == "semitrusted"


@pytest.mark.parametrize(
    ("body", "multiplexer"),
    [
        ({"multiplexer": "tmux"}, "tmux"),
        ({"multiplexer": "screen", "tmux": True}, "screen"),
        ({"tmux": True}, "tmux"),
        ({"tmux": False, "screen": True}, "screen"),
        ({"multiplexer": None, "tmux": False, "screen": None}, None),
    ],
)
def test_the_multiplexer_has_three_spellings(body: dict[str, Any], multiplexer: str) -> None:
    assert parse(body).multiplexer == multiplexer


@pytest.mark.parametrize(("said", "toolbox"), [(True, True), (False, False), (None, False)])
def test_a_toolbox_is_asked_for(said: Any, toolbox: bool) -> None:
    assert parse({"toolbox": said}).toolbox is toolbox
    assert parse({}).toolbox is False


@pytest.mark.parametrize("said", [0, 1, 1.0, "true", [], {}])
def test_a_toolbox_is_a_boolean(said: Any) -> None:
    with pytest.raises(Problem, match=r"toolbox.*expected true or false"):
        parse({"toolbox": said})


def test_files_image_and_audit() -> None:
    content = base64.b64encode(b"\x00\xff").decode()
    order = parse({"input_files": [{"filename": "a", "content": content}], "image": "i"}, audit="1")
    assert (order.files, order.image, order.audited) == (
        {f"{INPUT_DIRECTORY}/a": b"\x00\xff"},
        "i",
        True,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shell", "fish"),
        ("shell", ""),
        ("language", 5),
        ("language", "cobol"),
        ("ttl", -1),
        ("ttl", 86_401),
        ("vcpu", 0),
        ("vcpu", 9),
        ("vcpu", True),
        ("network_mode", "open"),
        ("multiplexer", "byobu"),
        ("multiplexer", ["tmux"]),
        ("tmux", "yes"),
        ("screen", 1.5),
        ("image", ""),
        ("image", 5),
        ("image", "x" * 101),
        ("input_files", {}),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(Problem) as caught:
        parse({field: value})
    assert (caught.value.status, caught.value.fields) == (400, {"field": field})


def test_what_a_query_may_say() -> None:
    assert session_orders.parse_audit({"audit": "1"})
    assert not session_orders.parse_audit({"audit": "0"})
    assert not session_orders.parse_audit({})
    assert session_orders.parse_listing({}) is None
    assert session_orders.parse_listing({"status": "frozen"}) == "frozen"
    with pytest.raises(Problem, match="field 'audit'"):
        session_orders.parse_audit({"audit": "2"})
    with pytest.raises(Problem, match="active, frozen, locked"):
        session_orders.parse_listing({"status": "FROZEN"})


def test_boosts_and_extensions_are_bounded() -> None:
    assert session_orders.parse_boost({}) is None
    assert session_orders.parse_boost({"vcpu": 8}) == 8
    assert session_orders.parse_extension({}) == 3600
    assert session_orders.parse_extension({"ttl": 86_400}) == 86_400
    vcpus: tuple[Any, ...] = (0, 9, "2", 2.0, True, [], 10**30)
    for value in vcpus:
        with pytest.raises(Problem, match="field 'vcpu'"):
            session_orders.parse_boost({"vcpu": value})
    seconds: tuple[Any, ...] = (0, -1, 86_401, "60", 1.5, False)
    for value in seconds:
        with pytest.raises(Problem, match="field 'ttl'"):
            session_orders.parse_extension({"ttl": value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
NAMES = "language shell network_mode network ttl vcpu multiplexer tmux screen input_files image"


@given(body=st.dictionaries(st.sampled_from(NAMES.split()), JSON))
def test_any_json_is_an_order_or_a_named_refusal(body: dict[str, Any]) -> None:
    for check in (parse, session_orders.parse_boost, session_orders.parse_extension):
        try:
            check(body)
        except Problem as problem:
            assert problem.status == 400
            assert problem.fields["field"] in problem.message
