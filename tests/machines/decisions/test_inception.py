"""Inception, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.clock import hours
from engine.decide import Decision, decide
from engine.secret import Secret
from engine.table import compile_table
from machines.flows.f13_inception import Inception
from machines.flows.layer import (
    DEPTH_MAX,
    LOST_MAX,
    Bought,
    ChildLost,
    ClearedUp,
    Created,
    Discovered,
    Equipped,
    EquippedNot,
    Executed,
    ExecutionFailed,
    ExecutionGivenUp,
    InnerEnded,
    KeyReceipt,
    Layer,
    LayerReport,
    Layers,
    NoSlot,
    NotClearedUp,
    PaymentMoved,
    Proof,
    Proven,
    Released,
    Surroundings,
)

LAYER = Layer(depth=1, max_depth=2, currency="LTC", budget_cents=1_400)
KEY = {"public_key": "pk", "secret_key": Secret("sk"), "paid_cents": 700, "txids": ("t1",)}
BUYING = {"status": "waiting", "child": True, "sends": {"on_child_moved": "payment_moved"}}
FAILS = {"status": "failed"}
PLACES: dict[str, dict[str, Any]] = {
    "inside_sandbox": {"status": "waiting", "child": True, "sends": {"on_child_moved": "looked"}},
    "discover_tools": {"status": "waiting", "child": True},
    **dict.fromkeys(
        ("fetch_pricing", "create_invoice", "send_payment", "poll_confirmation"),
        BUYING,
    ),
    "receive_keys": {"status": "waiting", "child": True},
    "prove_identity": {"status": "waiting", "child": True},
    "install_tools": {"status": "running", "sends": {"on_exhausted": "equipped_not"}},
    "create_child": {"status": "running", "sends": {"on_exhausted": "no_slot_left"}},
    "clear_up": {
        "status": "running",
        "waits_for_cancel": True,
        "sends": {"on_exhausted": "not_cleared_up"},
    },
    "execute_in_child": {
        "status": "running",
        "due": lambda c, now_ms: now_ms + hours(1),
        "sends": {"on_timeout": "execution_stuck", "on_exhausted": "execution_given_up"},
    },
    "bury_child": {"status": "running"},
    "descend": {"status": "waiting", "child": True},
    "release_child": {"status": "running"},
    "done": {"status": "completed"},
    **dict.fromkeys(
        ("too_deep", "unaware", "unaffordable", "payment_failed", "unproven", "no_tools",
         "no_slot", "execution_refused", "cut_short"),
        FAILS,
    ),
}  # fmt: skip
OPEN = {**KEY, "session_id": "s1", "last_session_id": "s1"}
ANSWER = "turtle 1 of 2 was here\n{}"
RECURSIVE = ANSWER + '\n{"sibling":"beside","reason":""}\n'
SIBLINGS = {
    "": {},
    ANSWER: {"no_sibling": "the sandbox did not say"},
    RECURSIVE: {"sibling": "beside"},
    f'{ANSWER}\n{{"sibling":"{"s" * 400}"}}': {"sibling": "s" * 300},
}
NO_WAY = {"refusal": "discovery found no way to orchestrate"}
SEEN = {"awareness": "sandboxed", "profile": "docker", "tools": ("un",)}


def _ended(kind: Any, machine: str, state: str, succeeded: bool, output: Any = None) -> Any:
    return kind(run_id="c", machine=machine, state=state, succeeded=succeeded, output=output)


def _discovered(state: str, succeeded: bool, output: Any, to: str, **more: Any) -> dict[str, Any]:
    event = _ended(Discovered, "Discovery", "capable", succeeded, output)
    return {"state": state, "event": event, "to": to, **more}


def _moved(state: str, milestone: str, to: str) -> dict[str, Any]:
    event = PaymentMoved(run_id="c", state=milestone)
    if to == state:
        return {"state": state, "event": event, "refused": "guard"}
    return {"state": state, "event": event, "to": to}


STEPS = {
    "fetch_pricing": ("invoicing", "create_invoice"),
    "create_invoice": ("paying", "send_payment"),
    "send_payment": ("confirming", "poll_confirmation"),
    "poll_confirmation": ("settling", "receive_keys"),
}
MILESTONES = ("invoicing", "paying", "confirming", "settling", "key_stored")


def _not_bought(state: str) -> list[dict[str, Any]]:
    short = state in ("fetch_pricing", "create_invoice", "send_payment")
    ends = {"over_budget": "unaffordable", "unfunded": "unaffordable", "rejected": "payment_failed"}
    return [
        {"state": state, "event": _ended(Bought, "Payment", end, False),
         "to": to if short else "payment_failed",
         "gives": {"refusal": f"the purchase ended as {end}"}}
        for end, to in ends.items()
    ]  # fmt: skip


def _bought(**fields: Any) -> Any:
    return _ended(Bought, "Payment", "completed", True, KeyReceipt(**{**KEY, **fields}))


def _receipt_without_success() -> dict[str, Any]:
    event = _ended(Bought, "Payment", "unsettled", False, KeyReceipt(**KEY))  # type: ignore[arg-type]
    return {"state": "receive_keys", "event": event, "to": "payment_failed",
            "gives": {"refusal": "the purchase ended as unsettled"}}  # fmt: skip


def _report(depth: int, key: str, paid_cents: int) -> LayerReport:
    return LayerReport(depth=depth, public_key=key, paid_cents=paid_cents, txids=("t",),
                       session_id="s", stdout="", latency_ms=1, awareness="sandboxed",
                       profile=None)  # fmt: skip


def _inner(succeeded: bool, output: Layers | None, **gives: Any) -> dict[str, Any]:
    return {"state": "descend",
            "event": _ended(InnerEnded, "Inception", "done" if succeeded else "no_slot", succeeded,
                            output),
            "given": OPEN, "to": "release_child", "gives": gives}  # fmt: skip


BELOW = (_report(2, "pk-2", 700),)
NO_SLOT = NoSlot(effect="create_session", reason="full", attempts=9)
ROWS: list[dict[str, Any]] = [
    {"state": "inside_sandbox", "event": "looked",
     "to": "discover_tools"},
    *(_discovered(state, succeeded, output, "unaware", gives=NO_WAY)
      for state in ("inside_sandbox", "discover_tools")
      for succeeded, output in ((False, None), (True, None), (False, Surroundings(**SEEN)))),
    _discovered("inside_sandbox", True, Surroundings(**SEEN), "", refused="guard"),
    _discovered("discover_tools", True, Surroundings(**SEEN), "fetch_pricing", gives=SEEN),
    _discovered("discover_tools", True, Surroundings(**SEEN), "fetch_pricing", gives=SEEN,
                given={"depth": 2}),
    _discovered("discover_tools", True, Surroundings(**SEEN), "too_deep", given={"depth": 3},
                gives={**SEEN, "refusal": "depth 3 is below the bound 2"}),
    _discovered("discover_tools", True, Surroundings(**SEEN), "fetch_pricing", gives=SEEN,
                given={"depth": DEPTH_MAX, "max_depth": 99}),
    _discovered("discover_tools", True, Surroundings(**SEEN), "too_deep",
                given={"depth": 9, "max_depth": 99},
                gives={**SEEN, "refusal": "depth 9 is below the bound 8"}),
    *(_moved(state, milestone, to if milestone == expected else state)
      for state, (expected, to) in STEPS.items() for milestone in MILESTONES),
    *(row for state in (*STEPS, "receive_keys") for row in _not_bought(state)),
    *({"state": state, "event": _bought(), "to": "payment_failed", "gives": KEY}
      for state in STEPS),
    {"state": "receive_keys", "event": _bought(), "to": "prove_identity", "gives": KEY},
    {"state": "receive_keys", "event": _bought(paid_cents=1_400), "to": "prove_identity",
     "gives": {**KEY, "paid_cents": 1_400}},
    {"state": "receive_keys", "event": _bought(paid_cents=1_401),
     "refused": "never_more_than_the_budget"},
    _receipt_without_success(),
    {"state": "receive_keys", "event": _ended(Bought, "Payment", "completed", True),
     "to": "payment_failed", "gives": {"refusal": "the purchase ended as completed"}},
    {"state": "prove_identity",
     "event": _ended(Proven, "Authentication", "authenticated", True,
                     Proof(offset_ms=5, concurrency=2)),
     "to": "install_tools", "gives": {"offset_ms": 5, "concurrency": 2}},
    *({"state": "prove_identity",
       "event": _ended(Proven, "Authentication", "rejected", succeeded, output),
       "to": "unproven", "gives": {"refusal": "the new key is rejected"}}
      for succeeded, output in ((False, None), (True, None),
                                (False, Proof(offset_ms=5, concurrency=2)))),
    {"state": "install_tools", "event": Equipped(digest="d"), "to": "create_child",
     "gives": {"tool_digest": "d"}},
    {"state": "install_tools", "event": EquippedNot(effect="equip", reason="no sh", attempts=3),
     "to": "no_tools", "gives": {"refusal": "no sh"}},
    {"state": "create_child", "event": Created(session_id="s1"), "given": KEY,
     "to": "execute_in_child", "gives": {"session_id": "s1", "last_session_id": "s1"}},
    {"state": "create_child", "event": Created(session_id="s2"), "given": OPEN,
     "refused": "one_sandbox_at_a_time"},
    {"state": "create_child", "event": NO_SLOT, "to": "clear_up", "gives": {"refusal": "full"}},
    {"state": "clear_up", "event": ClearedUp(), "to": "no_slot"},
    {"state": "clear_up", "event": NotClearedUp(effect="clear", reason="gone", attempts=3),
     "given": {"refusal": "full"}, "to": "no_slot",
     "gives": {"refusal": "full; clearing up failed: gone"}},
    {"state": "execute_in_child", "event": Executed(stdout=ANSWER, latency_ms=9), "given": OPEN,
     "to": "descend", "gives": {"stdout": ANSWER, "latency_ms": 9}},
    {"state": "execute_in_child",
     "event": Executed(stdout="turtle 2 of 2 was here\n{}", latency_ms=9),
     "given": {**OPEN, "depth": 2}, "to": "release_child",
     "gives": {"stdout": "turtle 2 of 2 was here\n{}", "latency_ms": 9}},
    *({"state": "execute_in_child", "event": Executed(stdout=stdout, latency_ms=9), "given": OPEN,
       "to": "execution_refused", "gives": {"refusal": "the child did not answer the greeting"}}
      for stdout in ("", "turtle 1 of 2 was here\n", "turtle 2 of 2 was here\n{}")),
    {"state": "execute_in_child", "event": Executed(stdout=RECURSIVE, latency_ms=9),
     "given": {**OPEN, "network_mode": "semitrusted"},
     "to": "descend", "gives": {"stdout": RECURSIVE, "latency_ms": 9}},
    *({"state": "execute_in_child", "event": Executed(stdout=stdout, latency_ms=9),
       "given": {**OPEN, "network_mode": "semitrusted"}, "to": "execution_refused",
       "gives": {"refusal": f"the child could not make a sibling: {reason}"}}
      for stdout, reason in (
          (ANSWER, "the sandbox did not say"),
          (f"{ANSWER}\n{{\"sibling\":\"s\",\"reason\":\"not ended\"}}", "not ended"),
          (f"{ANSWER}\n{{\"sibling\":\"\",\"reason\":\"no\\u0000way\"}}", "no?way"),
          (f"{ANSWER}\n{{\"sibling\":7}}", "the sandbox did not say"),
      )),
    {"state": "execute_in_child", "event": Executed(stdout="no greeting", latency_ms=9),
     "given": {**OPEN, "network_mode": "semitrusted"}, "to": "execution_refused",
     "gives": {"refusal": "the child did not answer the greeting"}},
    {"state": "execute_in_child", "event": ChildLost(),
     "given": {**OPEN, "lost": LOST_MAX - 2}, "to": "bury_child", "gives": {"lost": LOST_MAX - 1}},
    {"state": "execute_in_child", "event": ChildLost(), "given": {**OPEN, "lost": LOST_MAX - 1},
     "to": "execution_refused",
     "gives": {"lost": LOST_MAX, "refusal": "20 sandboxes died, one after another"}},
    {"state": "execute_in_child",
     "event": ExecutionGivenUp(effect="inspect_child", reason="no", attempts=5), "given": OPEN,
     "to": "execution_refused", "gives": {"refusal": "no"}},
    {"state": "execute_in_child", "event": ExecutionFailed(exit_code=2), "given": OPEN,
     "to": "execution_refused", "gives": {"refusal": "the command in the child exited 2"}},
    {"state": "execute_in_child", "event": "execution_stuck", "given": OPEN,
     "to": "execution_refused",
     "gives": {"refusal": "the command in the child did not end in time"}},
    _inner(True, Layers(layers=BELOW, complete=True, refusal=""), inner=BELOW),
    _inner(True, Layers(layers=BELOW, complete=False, refusal="so"), inner=BELOW,
           refusal="layer 2 ended as done: so"),
    _inner(False, Layers(layers=BELOW, complete=True, refusal=""), inner=BELOW,
           refusal="layer 2 ended as no_slot: "),
    _inner(False, None, refusal="layer 2 ended as no_slot: "),
    _inner(True, None, refusal="layer 2 ended as done: "),
    {"state": "bury_child", "event": Released(), "given": OPEN, "to": "create_child",
     "gives": {"session_id": ""}},
    {"state": "release_child", "event": Released(), "given": OPEN, "to": "done",
     "gives": {"session_id": ""}},
    {"state": "release_child", "event": Released(), "given": {**OPEN, "refusal": "so"},
     "to": "cut_short", "gives": {"session_id": ""}},
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Inception, LAYER, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Inception, LAYER, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Inception, LAYER, PLACES)


@pytest.mark.parametrize("state", ["execute_in_child", "descend", "release_child", "create_child"])
def test_a_milestone_is_none_of_a_layers(state: str) -> None:
    """A layer tells the one above of its end only."""
    assert not compile_table(Inception).places[state].milestone


@pytest.mark.parametrize("state", ["bury_child", "release_child"])
def test_a_sandbox_that_was_let_go_is_not_let_go_again(run_in: Any, state: str) -> None:
    table = compile_table(Inception)
    run = run_in(Inception, LAYER, state, **OPEN).but(undo=("create_child",), child=None)
    result = decide(table, run, "let_go", Released(), 10_000, from_effect=True)
    assert isinstance(result, Decision)
    assert result.after.undo == ()


def test_a_sandbox_that_was_made_is_to_be_let_go(run_in: Any) -> None:
    table = compile_table(Inception)
    run = run_in(Inception, LAYER, "create_child", **KEY).but(child=None)
    made = decide(table, run, "created", Created(session_id="s1"), 10_000, from_effect=True)
    assert isinstance(made, Decision) and made.after.undo == ("create_child",)
    stuck = decide(table, made.after, "execution_stuck", None, 20_000)
    assert isinstance(stuck, Decision)
    assert (stuck.after.closing, stuck.after.effect.name) == ("failed", "delete_session")  # type: ignore[union-attr]


@pytest.mark.parametrize("refusal", ["", "so"])
@pytest.mark.parametrize("stdout", list(SIBLINGS))
@pytest.mark.parametrize("key", ["", "pk"])
def test_output(output_of: Any, refusal: str, stdout: str, key: str) -> None:
    fields = {**OPEN, "public_key": key, "stdout": stdout, "refusal": refusal, "latency_ms": 9}
    told = output_of(Inception, LAYER, inner=BELOW, **fields)
    own = LayerReport(depth=1, public_key="pk", paid_cents=700, txids=("t1",), session_id="s1",
                      stdout=stdout.split("\n")[0], latency_ms=9, awareness="unknown",
                      profile=None, **SIBLINGS[stdout])  # fmt: skip
    assert told == Layers(
        layers=(own, *BELOW) if key else BELOW,
        complete=not refusal and bool(stdout),
        refusal=refusal,
    )


def test_the_next_layer_has_what_is_left(run_in: Any) -> None:
    context = run_in(Inception, LAYER, "descend", **OPEN, stdout=ANSWER).context
    child = compile_table(Inception).places["descend"].child
    assert child is not None
    asked = child({"context": context})
    assert (asked.machine, asked.context["depth"]) == ("Inception", 2)
    assert (asked.context["budget_cents"], asked.context["inspection"]) == (700, "{}")


def test_contracts(verdicts: Any, ensured: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Inception, LAYER)
    assert holds("depth_counts_from_one", depth=1) and not holds("depth_counts_from_one", depth=0)
    assert holds("a_sandbox_needs_a_key") and holds("a_sandbox_needs_a_key", **OPEN)
    assert not holds("a_sandbox_needs_a_key", session_id="s1")
    assert holds("released") and not holds("released", session_id="s1")
    after = ensured(Inception, LAYER)
    assert after("a_key_was_paid_for") and after("a_key_was_paid_for", **KEY)
    assert after("a_key_was_paid_for", **{**KEY, "paid_cents": 1})
    assert not after("a_key_was_paid_for", **{**KEY, "paid_cents": 0})
    assert not after("a_key_was_paid_for", **{**KEY, "txids": ()})
    assert after("keys_are_pairwise_different", **KEY, inner=BELOW)
    assert not after("keys_are_pairwise_different", **KEY, inner=(_report(2, "pk", 1),))
    assert after("subtree_within_budget", **KEY, inner=BELOW)
    assert not after("subtree_within_budget", **KEY, inner=(_report(2, "pk-2", 701),))
    assert after("the_child_answered", stdout=ANSWER) and after("the_child_answered", refusal="x")
    assert not after("the_child_answered", stdout="no")
