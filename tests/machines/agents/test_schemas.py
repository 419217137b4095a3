"""Arguments that do not fit are told with field, value and expectation; jsonschema agrees."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machines.agents.capabilities import offers
from machines.agents.schemas import BadArguments, check_arguments

SCHEMAS = {one.name: one.parameters for one in offers()}


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("execute", {"language": "python"}, "code: missing"),
        ("execute", {"language": "", "code": "x"}, "language: expected some text, got none"),
        ("execute", {"language": "c", "code": 5}, "code: expected string, got 5"),
        ("execute", {"language": "c", "code": "x", "ttl": 901}, "ttl: expected 1 to 900, got 901"),
        ("execute", {"language": "c", "code": "x", "ttl": True}, "expected integer, got True"),
        ("execute", {"language": "c", "code": "x", "env": {"A": 1}}, "env.A: expected string"),
        ("execute", {"language": "c", "code": "x", "input_files": [{"filename": "f"}]},
         "input_files[0].content: missing"),
        ("createSession", {"trust": "none"}, "trust: unknown; there are: shell, network_mode"),
        ("createSession", {"network_mode": "open"},
         "network_mode: expected one of zerotrust, semitrusted, got 'open'"),
        ("provision_key", {"currency": "XMR", "months": 2}, "expected one of 1, 3, 6, 12, 24"),
        ("provision_key", {"currency": "XMR", "idempotency_key": "a b"}, "expected text like"),
        ("provision_key", [], "arguments: expected object, got []"),
        ("createService", {"name": "n", "ports": [0]}, "ports[0]: expected 1 to 65535, got 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(name: str, arguments: Any, words: str) -> None:
    with pytest.raises(BadArguments) as refused:
        check_arguments(name, SCHEMAS[name], arguments)
    assert str(refused.value).startswith(f"tool {name}: ") and words in str(refused.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(BadArguments, match=r"language: missing; code: missing; ttl: expected"):
        check_arguments("execute", SCHEMAS["execute"], {"ttl": 0})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1_000) | st.sampled_from(["", "a", "zerotrust"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("filename"), inner),
    max_leaves=4,
)


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(SCHEMAS)), data=st.data())
def test_the_library_says_the_same(name: str, data: Any) -> None:
    schema = SCHEMAS[name]
    fields = st.sampled_from([*schema["properties"], "other"])
    arguments = data.draw(st.dictionaries(fields, VALUES, max_size=4))
    try:
        check_arguments(name, schema, arguments)
        fits = True
    except BadArguments:
        fits = False
    assert fits == jsonschema_rs.validator_for(schema).is_valid(arguments), arguments
