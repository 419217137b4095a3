"""The dispatcher: the same call is the same run, secrets stay, keys are chosen by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.errors import KeyConflict, TurtlesError, UnknownRun, UsageError
from engine.ports import Query
from machines.agents.dispatcher import Progress, ToolRefused, derived
from machines.agents.schemas import BadArguments

LTC = {"currency": "LTC"}
PYTHON = {"shell": "python3"}


async def test_the_same_call_is_the_same_run_also_after_a_restart(bench: Any) -> None:
    first = await bench.dispatcher.call("provision_key", LTC, conversation="a")
    again = await bench.another().call("provision_key", LTC, conversation="a")
    named = await bench.another().call(
        "provision_key", {**LTC, "idempotency_key": first["idempotency_key"]}, conversation="b"
    )
    assert first["run_id"] == again["run_id"] == named["run_id"]
    assert [one["repeated"] for one in (first, again, named)] == [False, True, True]
    assert bench.embedded.spends() == 1


@pytest.mark.acceptance
async def test_another_conversation_or_key_is_another_purchase(bench: Any) -> None:
    for conversation, key in (("a", None), ("b", None), ("a", "second")):
        asked = LTC if key is None else {**LTC, "idempotency_key": key}
        told = await bench.dispatcher.call("provision_key", asked, conversation=conversation)
        assert (told["state"], told["repeated"]) == ("completed", False)
    assert bench.embedded.spends() == 3


async def test_a_key_that_is_used_for_something_else_is_refused(bench: Any) -> None:
    named = {"idempotency_key": "mine", "wait_seconds": 0}
    await bench.dispatcher.call("provision_key", {**LTC, **named})
    with pytest.raises(KeyConflict, match="was used before"):
        await bench.dispatcher.call("provision_key", {"currency": "BTC", **named})


async def test_nobody_has_to_wait(bench: Any) -> None:
    told = await bench.dispatcher.call("provision_key", {**LTC, "wait_seconds": 0})
    assert (told["ended"], told["output"]) == (False, None)
    seen = await bench.dispatcher.call("wait_for_run", {"run_id": told["run_id"]})
    assert (seen["ended"], seen["output"]["paid_cents"]) == (True, 700)
    assert seen == await bench.dispatcher.call("see_run", {"run_id": told["run_id"]})


@pytest.mark.acceptance
async def test_steps_are_reported_once_and_in_order(bench: Any) -> None:
    heard: list[Progress] = []

    async def report(step: Progress) -> None:
        heard.append(step)

    await bench.dispatcher.call("provision_key", LTC, report=report)
    numbers = [step.seq for step in heard]
    assert numbers == sorted(set(numbers))
    assert heard[0].line() == "Payment pricing" and heard[-1].state == "completed"


async def test_a_budget_is_kept_to(bench: Any) -> None:
    told = await bench.dispatcher.call("provision_key", {**LTC, "budget_cents": 699})
    assert (told["state"], told["status"]) == ("over_budget", "failed")
    plan = await bench.dispatcher.call("self_sandbox", {**LTC, "budget_cents": 1})
    assert (plan["state"], plan["refusal"]) == ("unaffordable", "the key costs 700 cents, over 1")
    assert (bench.embedded.spends(), bench.embedded.left()) == (0, {})


async def test_creating_is_once_and_acting_is_every_time(bench: Any) -> None:
    call = bench.dispatcher.call
    await call("provision_key", LTC)
    made = await call("createSession", PYTHON)
    assert (await call("createSession", PYTHON))["id"] == made["id"]
    one = {"session_id": made["id"]}
    await call("executeInSession", {**one, "command": "x = 1"})
    first = await call("executeInSession", {**one, "command": "print(x)"})
    second = await call("executeInSession", {**one, "command": "print(x)"})
    assert first["job_id"] != second["job_id"]
    bench.revive()
    named = {**one, "command": "print(x)", "idempotency_key": "k"}
    third = await call("executeInSession", named)
    assert third["job_id"] == (await call("executeInSession", named))["job_id"]
    fourth = await call("executeInSession", {**one, "command": "print(x)"}, call_id="c1")
    fifth = await call("executeInSession", {**one, "command": "print(x)"}, call_id="c1")
    assert fourth["job_id"] == fifth["job_id"] != third["job_id"]


async def test_a_source_text_is_sent_as_it_is(bench: Any) -> None:
    await bench.dispatcher.call("provision_key", LTC)
    told = await bench.dispatcher.call("run", {"code": "#!/bin/bash\necho hi", "ttl": 5})
    assert told["detected_language"] == "bash"


@pytest.mark.acceptance
async def test_keys_are_chosen_by_name_where_there_are_several(bench: Any) -> None:
    call = bench.dispatcher.call
    with pytest.raises(ToolRefused, match=r"no key was named; .* none; buy one with"):
        await call("getLanguages")
    assert (await call("healthCheck"))["status"] == "ok"
    keys = []
    for conversation in ("a", "b"):
        told = await call("provision_key", LTC, conversation=conversation)
        keys.append(told["output"]["public_key"])
    with pytest.raises(ToolRefused, match=f"{keys[1]}, {keys[0]}"):
        await call("getLanguages")
    with pytest.raises(ToolRefused, match="key 'unsb-pk-other' is not known"):
        await call("getLanguages", {"public_key": "unsb-pk-other"})
    assert "python" in (await call("getLanguages", {"public_key": keys[0]}))["languages"]
    proven = await call("prove_key", {"public_key": keys[1]})
    assert proven["state"] == "authenticated"


async def test_a_secret_is_told_by_the_one_tool_that_is_for_it(bench: Any, capsys: Any) -> None:
    with capture_logs() as logs:
        bought = await bench.dispatcher.call("provision_key", LTC)
        told = [bought]
        for name, arguments in (
            ("prove_key", {}),
            ("see_run", {"run_id": bought["run_id"]}),
            ("journal", {"run_id": bought["run_id"]}),
            ("list_runs", {}),
            ("getShells", {}),
        ):
            told.append(await bench.dispatcher.call(name, arguments))
        shown = await bench.dispatcher.call("reveal_secret")
    secret = shown["secret_key"]
    assert re.match(r"unsb-sk-", secret)
    assert shown["public_key"] == bought["output"]["public_key"]
    text = repr(told) + repr(logs) + "".join(capsys.readouterr())
    assert secret not in text
    wrong = {"public_key": secret}
    with pytest.raises(ToolRefused):
        await bench.dispatcher.call("reveal_secret", wrong)


@pytest.mark.acceptance
async def test_a_card_is_bought_shown_once_asked_and_redeemed(bench: Any) -> None:
    call = bench.dispatcher.call
    card = await call("buy_gift_card", {**LTC, "amount_cents": 1_400})
    assert (card["status"], card["output"]["code"]) == ("completed", "***")
    code = (await call("reveal_gift_code", {"run_id": card["run_id"]}))["code"]
    assert len(code.split("-")) == 4 and code not in repr(card)
    told = await call("redeem_gift_card", {"code": code})
    assert (told["output"]["paid_cents"], told["output"]["balance_cents"]) == (700, 700)
    done = await call("execute_code", {"code": "print(6)", "language": "python"})
    assert done["status"] == "completed" and "6" in repr(done["output"])
    with pytest.raises(ToolRefused, match="expected a card that was bought"):
        await call("reveal_gift_code", {"run_id": told["run_id"]})
    assert bench.embedded.left() == {}


@pytest.mark.acceptance
async def test_runs_that_act_with_the_key(bench: Any) -> None:
    call = bench.dispatcher.call
    await call("provision_key", {**LTC, "tier": 8})
    seen = await call("introspect", {"budget_cents": 700})
    assert seen["ended"], seen
    cells = {"shell": "python3", "cells": ["x = 42", "print(x)"]}
    ran = await call("run_session", cells)
    assert ran["status"] == "completed" and "42" in repr(ran["output"]), ran
    assert bench.embedded.left() == {}


async def test_runs_can_be_looked_at_and_stopped(bench: Any) -> None:
    call = bench.dispatcher.call
    begun = await call("provision_key", {**LTC, "wait_seconds": 0})
    (row,) = (await call("list_runs", {"machine": "Payment", "limit": 5}))["runs"]
    assert row["run_id"] == begun["run_id"]
    await call("wait_for_run", {"run_id": begun["run_id"]})
    steps = (await call("journal", {"run_id": begun["run_id"]}))["steps"]
    assert (steps[0]["to"], steps[-1]["to"]) == ("pricing", "completed")
    assert (await call("cancel_run", {"run_id": begun["run_id"]}))["asked"] in (
        "accepted", "rejected",
    )  # fmt: skip
    with pytest.raises(UnknownRun):
        await call("see_run", {"run_id": "r0"})


async def test_what_cannot_be_called_starts_nothing(bench: Any) -> None:
    for name, arguments, kind in (
        ("nothing", {}, UsageError),
        ("provision_key", {"currency": "LTC", "months": 2}, BadArguments),
        ("deleteSession", {}, BadArguments),
        ("createSession", {"ttl": -1}, BadArguments),
    ):
        with pytest.raises(kind):
            await bench.dispatcher.call(name, arguments)
    assert await bench.app.runs(Query()) == []


async def test_what_the_platform_refuses_is_a_message(bench: Any) -> None:
    await bench.dispatcher.call("provision_key", LTC)
    with pytest.raises(TurtlesError, match="getSession: status 404"):
        await bench.dispatcher.call("getSession", {"session_id": "unsb-session-none"})


def test_derived_keys_differ_with_all_they_are_derived_from() -> None:
    keys = {
        derived("a", "t", {"x": 1}), derived("b", "t", {"x": 1}), derived("a", "u", {"x": 1}),
        derived("a", "t", {"x": 2}), derived("a", "t", {}),
    }  # fmt: skip
    assert len(keys) == 5
    assert derived("a", "t", {"x": 1, "y": 2}) == derived("a", "t", {"y": 2, "x": 1})
