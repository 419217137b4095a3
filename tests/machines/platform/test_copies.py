"""Recipes: what a copy takes over, and what a request may say instead."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.copies import (
    Recipe,
    parse_kind,
    parse_service_copy,
    parse_session_copy,
    recipe_of,
    recipe_of_session,
)
from machines.platform.replies import Problem
from machines.platform.service_orders import Bootstrap

SERVICE = Recipe(
    kind="service",
    network_mode="semitrusted",
    vcpu=2,
    ports=(8000,),
    service_type="tcp",
    bootstrap=Bootstrap(url="http://example.test/run"),
)
SESSION = Recipe(kind="session", network_mode="zerotrust", vcpu=4, shell="python3")  # noqa: S604


def shells() -> frozenset[str]:
    return frozenset({"bash", "python3"})


@pytest.mark.parametrize("recipe", [SERVICE, SESSION])
def test_a_recipe_is_stored_whole(recipe: Recipe) -> None:
    assert recipe_of({"recipe": recipe.stored()}) == recipe


def test_a_session_is_made_as_its_source_was() -> None:
    order = parse_session_copy({}, SESSION, shells)
    assert (order.shell, order.network_mode, order.vcpu) == ("python3", "zerotrust", 4)
    said: dict[str, Any] = {
        "shell": "bash",
        "network_mode": "semitrusted",
        "vcpu": 1,
        "ttl": 60,
        "tmux": True,
    }
    order = parse_session_copy(said, SESSION, shells)
    assert (order.shell, order.network_mode, order.vcpu) == ("bash", "semitrusted", 1)
    assert (order.ttl_seconds, order.multiplexer) == (60, "tmux")


def test_a_session_keeps_its_toolbox_unless_the_request_says_otherwise() -> None:
    row = {"network_mode": "zerotrust", "base_vcpu": 1, "shell": "bash", "toolbox": 1}
    recipe = recipe_of({"recipe": recipe_of_session(row).stored()})
    assert parse_session_copy({}, recipe, shells).toolbox
    assert not parse_session_copy({"toolbox": False}, recipe, shells).toolbox
    assert parse_session_copy({"toolbox": True}, SESSION, shells).toolbox
    older = '{"kind":"session","network_mode":"zerotrust","vcpu":1}'
    assert not parse_session_copy({}, recipe_of({"recipe": older}), shells).toolbox


def test_a_session_of_a_service_has_a_shell() -> None:
    assert parse_session_copy({}, SERVICE, shells).shell == "bash"


def test_a_service_is_made_as_its_source_was() -> None:
    order = parse_service_copy({"name": "copy"}, SERVICE)
    assert (order.ports, order.vcpu, order.service_type) == ((8000,), 2, "tcp")
    assert order.bootstrap == SERVICE.bootstrap
    said = {"name": "copy", "ports": "1,2", "bootstrap": "echo up", "vcpu": 1}
    order = parse_service_copy(said, SERVICE)
    assert (order.ports, order.vcpu) == ((1, 2), 1)
    assert order.bootstrap == Bootstrap(script="echo up")
    assert parse_service_copy({"name": "copy", "ports": []}, SERVICE).ports == ()


def test_a_url_is_not_taken_over_where_nothing_can_fetch_it() -> None:
    order = parse_service_copy({"name": "copy", "network_mode": "zerotrust"}, SERVICE)
    assert order.bootstrap is None


def test_a_service_needs_a_name_and_a_kind_is_one_of_two() -> None:
    with pytest.raises(Problem, match="'name'"):
        parse_service_copy({}, SERVICE)
    assert parse_kind({}, "type", "session") == "session"
    for body in ({"type": "disk"}, {"type": {}}, {"type": True}):
        with pytest.raises(Problem, match="'type'"):
            parse_kind(body, "type", "session")
