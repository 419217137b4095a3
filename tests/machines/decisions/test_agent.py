"""Agent, edge by edge."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.control import cancel
from engine.decide import Decision, decide
from engine.secret import Secret
from engine.table import compile_table
from machines.flows.agent_plan import (
    AgentReport,
    Cleared,
    Discovered,
    Ended,
    Frozen,
    Identity,
    KeyReceipt,
    Lost,
    NotCleared,
    NotFrozen,
    NotOffered,
    NotOpened,
    NotRun,
    Opened,
    Place,
    Plan,
    Priced,
    Proven,
    Provisioned,
    Ran,
    Woken,
)
from machines.flows.f14_agent import Agent

PLAN = Plan(currency="LTC", budget_cents=700, silence_ms=60, overdue_ms=70)
CARD = {"gift_code": Secret("four words")}
KEY = {"public_key": "pk", "secret_key": Secret("sk"), "paid_cents": 700}
OPEN = {**KEY, "session_id": "s1", "last_session_id": "s1"}
CHILD: dict[str, Any] = {"status": "waiting", "child": True}
FAILS = {"status": "failed"}
PROGRAM: dict[str, Any] = {
    "status": "running",
    "due": lambda c, now_ms: now_ms + 70,
    "sends": {"on_timeout": "overdue", "on_exhausted": "not_run"},
}
FREEZE: dict[str, Any] = {"status": "running", "sends": {"on_exhausted": "not_frozen"}}
PLACES: dict[str, dict[str, Any]] = {
    "discovering": CHILD,
    "learning_prices": {
        "status": "running",
        "due": lambda c, now_ms: now_ms + 60,
        "sends": {"on_timeout": "nobody_answers"},
    },
    "provisioning": CHILD,
    "proving": CHILD,
    "opening": {"status": "running", "sends": {"on_exhausted": "not_opened"}},
    "clearing_up": {
        "status": "running",
        "waits_for_cancel": True,
        "sends": {"on_exhausted": "not_cleared"},
    },
    "executing": PROGRAM,
    "freezing": FREEZE,
    "unfreezing": FREEZE,
    "executing_again": PROGRAM,
    "ending": {"status": "running", "waits_for_cancel": True},
    "done": {"status": "completed"},
    **dict.fromkeys(
        ("incapable", "not_sold", "unaffordable", "unpriced", "unfunded", "card_refused",
         "not_provisioned", "unproven", "no_sandbox", "program_failed", "froze_not", "forgotten",
         "sandbox_lost", "stuck"),
        FAILS,
    ),
}  # fmt: skip


def _ended(kind: Any, state: str, succeeded: bool, output: Any = None) -> Any:
    return kind(run_id="c", machine="Child", state=state, succeeded=succeeded, output=output)


def _gave_up(kind: Any) -> Any:
    return kind(effect="e", reason="no", attempts=200)


RECEIPT = KeyReceipt(public_key="pk", secret_key=Secret("sk"), paid_cents=700)
NO_WAY = {"refusal": "discovery found no way to orchestrate"}


def _bought(state: str, succeeded: bool, output: Any = None, **more: Any) -> dict[str, Any]:
    event = _ended(Provisioned, state, succeeded, output)
    return {"state": "provisioning", "event": event, **more}


def _not_bought(state: str, to: str, **more: Any) -> dict[str, Any]:
    return _bought(state, False, to=to, gives={"refusal": f"Child ended as {state}"}, **more)


def _paid(paid_cents: int) -> KeyReceipt:
    return KeyReceipt(public_key="pk", secret_key=Secret("sk"), paid_cents=paid_cents)


BEFORE = [
    {"state": "discovering", "event": _ended(Discovered, "capable", True, Place(tools=())),
     "to": "learning_prices"},
    {"state": "discovering", "event": _ended(Discovered, "unaware", False, Place(tools=())),
     "to": "incapable", "gives": NO_WAY},
    {"state": "discovering", "event": _ended(Discovered, "capable", True), "to": "incapable",
     "gives": NO_WAY},
    {"state": "learning_prices", "event": Priced(price_cents=700), "to": "provisioning",
     "gives": {"price_cents": 700}},
    {"state": "learning_prices", "event": Priced(price_cents=1), "to": "provisioning",
     "gives": {"price_cents": 1}},
    {"state": "learning_prices", "event": Priced(price_cents=701), "to": "unaffordable",
     "gives": {"price_cents": 701, "refusal": "the key costs 701 cents, over 700"}},
    {"state": "learning_prices", "event": Priced(price_cents=0), "refused": "is_a_price"},
    {"state": "learning_prices", "event": NotOffered(), "to": "not_sold",
     "gives": {"refusal": "no key of tier 1 for 1 months is sold"}},
    {"state": "learning_prices", "event": "nobody_answers", "to": "unpriced",
     "gives": {"refusal": "the portal told no prices in time"}},
    _bought("completed", True, RECEIPT, to="proving", gives=KEY),
    _bought("completed", True, _paid(1), to="proving", gives={**KEY, "paid_cents": 1}),
    _bought("redeemed", True, RECEIPT, given=CARD, to="proving", gives=KEY),
    _bought("completed", True, _paid(701), refused="within_budget"),
    _bought("completed", True, _paid(0), refused="within_budget"),
    _bought("completed", True, to="not_provisioned",
            gives={"refusal": "Child ended as completed"}),
    _bought("expired_unpaid", False, RECEIPT, to="not_provisioned",
            gives={"refusal": "Child ended as expired_unpaid"}),
    _not_bought("over_budget", "unfunded"),
    _not_bought("unfunded", "unfunded"),
    _not_bought("unconfirmed", "not_provisioned"),
    _not_bought("over_budget", "card_refused", given=CARD),
    _not_bought("denied", "card_refused", given=CARD),
    {"state": "proving", "event": _ended(Proven, "authenticated", True, Identity(offset_ms=5)),
     "given": KEY, "to": "opening", "gives": {"offset_ms": 5}},
    {"state": "proving", "event": _ended(Proven, "rejected", False, Identity(offset_ms=5)),
     "given": KEY, "to": "unproven", "gives": {"refusal": "the new key is rejected"}},
    {"state": "proving", "event": _ended(Proven, "skewed", True), "given": KEY,
     "to": "unproven", "gives": {"refusal": "the new key is skewed"}},
    {"state": "opening", "event": Opened(session_id="s1"), "given": KEY, "to": "executing",
     "gives": {"session_id": "s1", "last_session_id": "s1"}},
    {"state": "opening", "event": _gave_up(NotOpened), "given": KEY, "to": "clearing_up",
     "gives": {"refusal": "no"}},
    {"state": "clearing_up", "event": Cleared(), "given": {**KEY, "refusal": "no"},
     "to": "no_sandbox"},
    {"state": "clearing_up", "event": _gave_up(NotCleared), "given": {**KEY, "refusal": "first"},
     "to": "no_sandbox", "gives": {"refusal": "first; clearing up failed: no"}},
]  # fmt: skip


def _inside(state: str, event: Any, to: str, **gives: Any) -> dict[str, Any]:
    return {"state": state, "event": event, "given": OPEN, "to": to, "gives": gives}


def _troubled(state: str, event: Any, trouble: str, refusal: str, **gives: Any) -> dict[str, Any]:
    return _inside(state, event, "ending", trouble=trouble, refusal=refusal, **gives)


FAILED = "the program exited with 3"
LATE = "the program did not end in time"
INSIDE = [
    _inside("executing", Ran(stdout="hi", exit_code=0), "freezing", first_stdout="hi"),
    _troubled("executing", Ran(stdout="hi", exit_code=3), "program_failed", FAILED),
    _inside("freezing", Frozen(), "unfreezing"),
    _inside("unfreezing", Woken(), "executing_again", freezes=1),
    _inside("executing_again", Ran(stdout=" 42\n", exit_code=0), "ending",
            second_stdout=" 42\n"),
    _troubled("executing_again", Ran(stdout="41", exit_code=0), "forgotten",
              "expected '42' after the freeze", second_stdout="41"),
    _troubled("executing_again", Ran(stdout="42", exit_code=3), "program_failed", FAILED),
    *(_troubled(state, _gave_up(NotRun), "stuck", "no")
      for state in ("executing", "executing_again")),
    *(_troubled(state, "overdue", "stuck", LATE) for state in ("executing", "executing_again")),
    *(_troubled(state, _gave_up(NotFrozen), "not_frozen", "no")
      for state in ("freezing", "unfreezing")),
    *(_troubled(state, Lost(), "lost", "the sandbox is gone")
      for state in ("executing", "freezing", "unfreezing", "executing_again")),
]  # fmt: skip
WELL = {**OPEN, "freezes": 1, "second_stdout": "42\n"}
ENDS = {
    "program_failed": "program_failed",
    "not_frozen": "froze_not",
    "forgotten": "forgotten",
    "lost": "sandbox_lost",
    "stuck": "stuck",
}


def _ending(to: str, event: Any, **more: Any) -> dict[str, Any]:
    return {"state": "ending", "event": event, "given": WELL, "to": to,
            "gives": {"session_id": ""}} | more  # fmt: skip


AFTER = [
    _ending("done", Ended()),
    *(_ending(to, Ended(), given={**WELL, "trouble": trouble}) for trouble, to in ENDS.items()),
]  # fmt: skip
ROWS: list[dict[str, Any]] = [*BEFORE, *INSIDE, *AFTER]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Agent, PLAN, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Agent, PLAN, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Agent, PLAN, PLACES)


def _child(state: str, **fields: Any) -> tuple[str, Any]:
    start = compile_table(Agent).places[state].child
    assert start is not None
    child = start({"context": msgspec.structs.replace(PLAN, **fields)})
    return child.machine, child.context


def test_children() -> None:
    wanted = {"tier": 1, "months": 1, "budget_cents": 700, "poll_ms": 14_000}
    assert _child("discovering") == ("Discovery", {})
    assert _child("provisioning") == ("Payment", {**wanted, "currency": "LTC"})
    assert _child("provisioning", **CARD) == (
        "Redemption", {**wanted, "code": Secret("four words")},
    )  # fmt: skip
    assert _child("proving", **KEY) == (
        "Authentication", {"public_key": "pk", "secret_key": Secret("sk")},
    )  # fmt: skip


def test_a_sandbox_that_was_ended_is_not_ended_again(run_in: Any) -> None:
    table = compile_table(Agent)
    run = run_in(Agent, PLAN, "ending", **WELL).but(undo=("opening",), child=None)
    result = decide(table, run, "ended", Ended(), 10_000, from_effect=True)
    assert isinstance(result, Decision) and result.after.undo == ()


def test_a_sandbox_that_was_opened_is_to_be_ended(run_in: Any) -> None:
    table = compile_table(Agent)
    run = run_in(Agent, PLAN, "opening", **KEY).but(child=None)
    made = decide(table, run, "opened", Opened(session_id="s1"), 10_000, from_effect=True)
    assert isinstance(made, Decision) and made.after.undo == ("opening",)
    stopped = cancel(table, made.after.but(effect=None), 20_000)
    assert isinstance(stopped, Decision)
    assert (stopped.after.closing, stopped.after.effect.name) == ("cancelled", "end_session")  # type: ignore[union-attr]


def test_output(output_of: Any) -> None:
    assert output_of(Agent, PLAN) is None
    fields = {**WELL, "session_id": "", "first_stdout": "hi"}
    assert output_of(Agent, PLAN, **fields) == AgentReport(
        public_key="pk", paid_cents=700, session_id="s1", first_stdout="hi",
        second_stdout="42\n", freezes=1,
    )  # fmt: skip


def test_contracts(verdicts: Any, ensured: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Agent, PLAN)
    assert holds("a_sandbox_needs_a_key", **OPEN) and holds("a_sandbox_needs_a_key")
    assert not holds("a_sandbox_needs_a_key", **{**OPEN, "secret_key": None})
    assert not holds("a_sandbox_needs_a_key", **{**OPEN, "paid_cents": 0})
    assert holds("a_sandbox_needs_a_key", **{**OPEN, "paid_cents": 1})
    assert holds("freezes_once", freezes=1) and not holds("freezes_once", freezes=2)
    assert holds("paid_nothing") and not holds("paid_nothing", paid_cents=1)
    assert not holds("paid_nothing", secret_key=Secret("sk"))
    assert holds("released") and not holds("released", **OPEN)
    done = {**WELL, "session_id": ""}
    assert holds("remembered", **done)
    for wrong in ({"session_id": "s1"}, {"freezes": 0}, {"second_stdout": "4"}):
        assert not holds("remembered", **(done | wrong))
    kept = ensured(Agent, PLAN)
    assert kept("the_sandbox_has_a_name", session_id="s") and not kept("the_sandbox_has_a_name")
    old = Plan(currency="LTC", budget_cents=700, session_id="s1", last_session_id="s1")
    assert kept("nothing_is_left", old=old, last_session_id="s1")
    assert not kept("nothing_is_left", old=old, last_session_id="s2")
    assert not kept("nothing_is_left", old=old, session_id="s1", last_session_id="s1")
