"""The effect decorator, and what a call is given."""

from __future__ import annotations

import pytest

from engine import Call, Retry, effect, seconds
from engine.effects import Effect
from engine.errors import UsageError


class Gateway:
    """A resource."""


def test_an_effect_has_a_name_and_a_policy():
    @effect(retry=Retry(attempts=2), timeout_ms=seconds(5))
    async def charge(context, call):
        return None

    assert isinstance(charge, Effect)
    assert (charge.name, charge.idempotent, charge.timeout_ms) == ("charge", False, 5_000)
    assert charge.retry == Retry(attempts=2)
    assert charge.ask is None

    @charge.reconcile
    async def find(context, call):
        return None

    assert charge.ask is find


def test_defaults_and_another_name():
    @effect(idempotent=True, name="send it")
    async def send(context, call):
        return None

    assert (send.name, send.idempotent, send.retry, send.timeout_ms) == (
        "send it", True, Retry(), 60_000,
    )  # fmt: skip


def test_a_call_hands_out_what_the_app_was_given():
    gateway = Gateway()
    call = Call("r1", "k", 1, 0, {Gateway: gateway})
    assert call.resource(Gateway) is gateway
    assert "Gateway" not in repr(call)
    with pytest.raises(UsageError, match=r"needs the resource str.*App\(\.\.\., resources="):
        call.resource(str)
