"""Capabilities fit the machines whose runs they start."""

from __future__ import annotations

import msgspec
import pytest

from engine.table import compile_table
from machines.agents.capabilities import CAPABILITIES, Capability, offers
from machines.agents.tools import TOOLS
from machines.app import MACHINES

CONTEXTS = {machine.__name__: compile_table(machine).context for machine in MACHINES}
STARTING = [one for one in CAPABILITIES if one.machine is not None]
FILLED = {"public_key", "secret_key", "budget_cents"}
"""Fields that the dispatcher adds."""


@pytest.mark.parametrize("one", STARTING, ids=lambda one: one.name)
def test_arguments_are_fields_of_the_machine(one: Capability) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(CONTEXTS[one.machine or ""])}
    named = {one.fields.get(name, name) for name in one.parameters["properties"]}
    assert named | set(one.given) <= set(fields)
    needed = {name for name, field in fields.items() if field.required}
    required = {one.fields.get(name, name) for name in one.parameters["required"]}
    filled = FILLED if one.priced or one.keyed else set()
    assert needed <= required | set(one.given) | filled
    if one.machine != "Introspection":  # which only says what a budget would buy
        assert one.priced == ("budget_cents" in fields), "whatever spends has a bound"
    assert one.keyed == ("secret_key" in needed)


def test_every_machine_that_an_agent_may_want_is_offered() -> None:
    """Spend and Confirmation are steps of a Payment, and nobody's own."""
    offered = {one.machine for one in STARTING}
    assert set(CONTEXTS) - offered == {"Spend", "Confirmation"}


def test_names_are_of_one_thing_and_other_arguments_are_few() -> None:
    listed = offers()
    assert len({one.name for one in listed}) == len(listed) == len(CAPABILITIES) + len(TOOLS)
    by_name = {one.name: set(one.parameters["properties"]) for one in listed}
    assert {"idempotency_key", "wait_seconds"} <= by_name["provision_key"]
    assert "wait_seconds" in by_name["wait_for_run"]
    assert by_name["get_prices"] == set()
    assert by_name["getShells"] == {"public_key"}
    assert by_name["deleteSession"] == {"session_id", "public_key", "idempotency_key"}
