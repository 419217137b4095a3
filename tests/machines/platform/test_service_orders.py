"""Bodies of `/services`: what is well-formed, and which field a refusal names."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.platform.replies import Problem
from machines.platform.sandbox.backend import EGRESS_PORT
from machines.platform.service_orders import (
    BOOTSTRAP_BYTES_MAX,
    COMMAND_BYTES_MAX,
    DOMAINS_MAX,
    INPUT_BYTES_MAX,
    PORTS_MAX,
    Bootstrap,
    Change,
    DomainChange,
    parse_change,
    parse_command,
    parse_domain_change,
    parse_redeploy,
    parse_service,
    parse_vcpu,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = (
    "name",
    "ports",
    "bootstrap",
    "bootstrap_content",
    "network_mode",
    "network",
    "custom_domains",
    "domains",
    "add",
    "remove",
    "vcpu",
    "service_type",
    "unfreeze_on_demand",
    "show_freeze_page",
    "golden_image",
    "input_files",
    "command",
    "code",
    "timeout",
)


def refused(parse: Callable[[dict[str, Any]], object], body: dict[str, Any]) -> str:
    """The field that a 400 names."""
    with pytest.raises(Problem) as problem:
        parse(body)
    assert problem.value.status == 400
    return str(problem.value.fields.get("field"))


def test_everything_that_may_be_asked_for() -> None:
    order = parse_service(
        {
            "name": "Web-1",
            "ports": [8000, 9000, 8000],
            "bootstrap": "python3 -m http.server",
            "network_mode": "zerotrust",
            "custom_domains": ["WWW.example.com"],
            "vcpu": 2,
            "service_type": "tcp",
            "unfreeze_on_demand": True,
            "input_files": [{"filename": "a", "content": base64.b64encode(b"A").decode()}],
        }
    )
    assert (order.name, order.ports, order.vcpu) == ("web-1", (8000, 9000), 2)
    assert order.bootstrap == Bootstrap(script="python3 -m http.server")
    assert order.custom_domains == ("www.example.com",)
    assert (order.network_mode, order.service_type) == ("zerotrust", "tcp")
    assert order.unfreeze_on_demand
    assert order.input_files == {"/tmp/input/a": b"A"}  # noqa: S108


def test_defaults() -> None:
    order = parse_service({"name": "web", "golden_image": None, "bootstrap": ""})
    assert (order.network_mode, order.vcpu, order.ports) == ("semitrusted", 1, ())
    assert order.bootstrap is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", None),
        ("name", ""),
        ("name", 1),
        ("name", "a" * 64),
        ("name", "-a"),
        ("name", "a-"),
        ("name", "a.b"),
        ("name", "a b"),
        ("name", "\u00e9"),
        ("name", "unsb-service-1"),
        ("name", "a\n"),
        ("ports", "http"),
        ("ports", "80,99999"),
        ("ports", 80),
        ("ports", [0]),
        ("ports", [65_536]),
        ("ports", [True]),
        ("ports", [80.0]),
        ("ports", ["80"]),
        ("ports", [EGRESS_PORT]),
        ("ports", list(range(1, PORTS_MAX + 2))),
        ("bootstrap", 1),
        ("bootstrap", "a\0b"),
        ("bootstrap", "x" * (BOOTSTRAP_BYTES_MAX + 1)),
        ("bootstrap", "\u00e9" * BOOTSTRAP_BYTES_MAX),
        ("bootstrap", "http://example.com/a b"),
        ("bootstrap", "https://example.com/" + "a" * 2000),
        ("bootstrap_content", ["x"]),
        ("network_mode", "open"),
        ("custom_domains", "www.example.com"),
        ("custom_domains", [1]),
        ("custom_domains", ["localhost"]),
        ("custom_domains", ["web.on.example.com"]),
        ("custom_domains", ["10.0.0.1"]),
        ("custom_domains", ["API.unsandbox.com"]),
        ("custom_domains", ["a..com"]),
        ("custom_domains", ["a.com\n"]),
        ("custom_domains", ["a" * 64 + ".com"]),
        ("custom_domains", [f"a{n}.example.com" for n in range(DOMAINS_MAX + 1)]),
        ("vcpu", 0),
        ("vcpu", 9),
        ("vcpu", True),
        ("vcpu", 10**40),
        ("service_type", "http"),
        ("service_type", ["tcp"]),
        ("unfreeze_on_demand", 1),
        ("golden_image", "golden-alpine-3.21"),
        ("input_files", {}),
        ("input_files", [{"filename": "../a", "content": ""}]),
        ("input_files", [{"filename": "a", "content": "%"}]),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    assert refused(parse_service, {"name": "web", field: value}) == field


def test_bootstraps() -> None:
    url = "https://example.com/setup.sh"
    assert parse_service({"name": "a", "bootstrap": url}).bootstrap == Bootstrap(url=url)
    content = parse_service({"name": "a", "bootstrap_content": url}).bootstrap
    assert content == Bootstrap(script=url)
    both = {"name": "a", "bootstrap": "x", "bootstrap_content": "y"}
    assert refused(parse_service, both) == "bootstrap_content"
    walled = {"name": "a", "bootstrap": url, "network_mode": "zerotrust"}
    assert refused(parse_service, walled) == "bootstrap"


def test_input_files_have_a_bound_in_all() -> None:
    half = base64.b64encode(bytes(INPUT_BYTES_MAX // 2 + 1)).decode()
    files = [{"filename": name, "content": half} for name in "ab"]
    assert refused(parse_service, {"name": "a", "input_files": files}) == "input_files"


def test_ports_as_one_client_sends_them() -> None:
    assert parse_service({"name": "a", "ports": "8000, 9000"}).ports == (8000, 9000)
    assert parse_service({"name": "a", "ports": ""}).ports == ()


def test_redeploys() -> None:
    assert parse_redeploy({}, "semitrusted").bootstrap is None
    assert parse_redeploy({}, "semitrusted").input_files is None
    assert parse_redeploy({"input_files": []}, "semitrusted").input_files == {}
    given_one = parse_redeploy({"bootstrap_content": "echo"}, "zerotrust")
    assert given_one.bootstrap == Bootstrap(script="echo")


def test_changes() -> None:
    assert parse_change({"vcpu": 2, "show_freeze_page": False}) == Change(
        vcpu=2, show_freeze_page=False
    )
    assert parse_change({"domains": ["a.example.com"]}).custom_domains == ("a.example.com",)
    for body in ({}, {"vcpu": None}, {"unknown": 1}):
        assert refused(parse_change, body) == "None"
    assert refused(parse_change, {"vcpu": 9}) == "vcpu"
    assert refused(parse_change, {"show_freeze_page": "no"}) == "show_freeze_page"
    assert refused(parse_vcpu, {}) == "vcpu"


def test_domain_changes() -> None:
    present = ("a.example.com", "b.example.com")
    for body, after in (
        ({"custom_domains": ["c.example.com"]}, ("c.example.com",)),
        ({"custom_domains": []}, ()),
        ({"add": ["a.example.com", "c.example.com"]}, (*present, "c.example.com")),
        ({"remove": ["a.example.com", "c.example.com"]}, ("b.example.com",)),
    ):
        assert parse_domain_change(body).applied(present) == after
    assert refused(parse_domain_change, {}) == "custom_domains"
    assert refused(parse_domain_change, {"add": [], "remove": []}) == "remove"
    assert refused(parse_domain_change, {"add": ["x"]}) == "add"
    full = tuple(f"a{n}.example.com" for n in range(DOMAINS_MAX))
    one_more = DomainChange(kind="add", domains=("b.example.com",))
    assert refused(lambda _body: one_more.applied(full), {}) == "add"


def test_commands() -> None:
    command = parse_command({"command": "ls"})
    assert (command.command, command.timeout_ms, command.input_files) == ("ls", 30_000, {})
    assert parse_command({"code": "ls"}).command == "ls"
    assert refused(parse_command, {}) == "command"
    assert refused(parse_command, {"command": "x" * (COMMAND_BYTES_MAX + 1)}) == "command"
    assert refused(parse_command, {"command": "\u00e9" * COMMAND_BYTES_MAX}) == "command"
    assert refused(parse_command, {"command": "a\0"}) == "command"
    assert refused(parse_command, {"command": "ls", "timeout": 0}) == "timeout"


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_parsed_or_refused(body: dict[str, Any]) -> None:
    for parse in (parse_service, parse_change, parse_domain_change, parse_command):
        try:
            parse({"name": "web"} | body)
        except Problem as problem:
            assert problem.status == 400
