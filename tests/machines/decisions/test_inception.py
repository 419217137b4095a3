"""Inception, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.clock import hours
from engine.control import cancel
from engine.decide import Decision, decide
from engine.secret import Secret
from engine.table import compile_table
from machines.flows.f13_inception import Inception
from machines.flows.layer import (
    DEPTH_MAX,
    LOST_MAX,
    Layer,
    LayerReport,
    Layers,
    Step,
)
from machines.flows.layer_events import (
    Bought,
    BoughtCard,
    CardBought,
    ChildLost,
    ClearedUp,
    Created,
    Discovered,
    Equipped,
    EquippedNot,
    Executed,
    ExecutionFailed,
    ExecutionGivenUp,
    Furnished,
    InnerEnded,
    InnerMoved,
    InnerOdd,
    InnerTold,
    KeyReceipt,
    NoSlot,
    NotClearedUp,
    NotSettled,
    PaymentMoved,
    Priced,
    Proof,
    Proven,
    Redeemed,
    RedeemedKey,
    Released,
    Settled,
    Surroundings,
    Tool,
    Unpriced,
)
from machines.flows.layer_wire import Told

LAYER = Layer(depth=1, max_depth=2, currency="LTC", budget_cents=1_400)
KEY = {"public_key": "pk", "secret_key": Secret("sk"), "paid_cents": 700, "txids": ("t1",)}
NESTED = {"network_mode": "semitrusted", "tool_digest": "d"}
CODE = Secret("four words")
GIVEN = {**NESTED, "depth": 2, "card_code": CODE, "chain": "root", "price_cents": 700}
CARD = {"card_id": "c1", "card_code": CODE, "card_cents": 700, "card_left_cents": 700}
BUYING = {"status": "waiting", "child": True, "sends": {"on_child_moved": "payment_moved"}}
WITH_CHILD = {"status": "waiting", "child": True}
FAILS = {"status": "failed"}
PLACES: dict[str, dict[str, Any]] = {
    "inside_sandbox": {"status": "waiting", "child": True, "sends": {"on_child_moved": "looked"}},
    "discover_tools": WITH_CHILD,
    "fetch_pricing": {"status": "running", "sends": {"on_exhausted": "unpriced"}},
    **dict.fromkeys(("create_invoice", "send_payment", "poll_confirmation"), BUYING),
    **dict.fromkeys(
        ("receive_keys", "redeem_card", "prove_identity", "buy_card", "equip_child", "descend"),
        WITH_CHILD,
    ),
    "end_orphans": {"status": "running", "sends": {"on_exhausted": "not_cleared_up"}},
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
    "release_child": {"status": "running"},
    "settle_card": {
        "status": "running",
        "waits_for_cancel": True,
        "sends": {"on_exhausted": "not_settled"},
    },
    "done": {"status": "completed"},
    **dict.fromkeys(
        ("too_deep", "unaware", "unpriceable", "unaffordable", "too_few_slots", "too_slow",
         "payment_failed", "card_refused", "unproven", "no_card", "no_tools", "no_slot",
         "execution_refused", "cut_short", "unsettled"),
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
    f'{ANSWER}\n{{"sibling":"","reason":"no\\u0000way"}}': {"no_sibling": "no?way"},
    f'{ANSWER}\n{{"sibling":7}}': {"no_sibling": "the sandbox did not say"},
}
NO_WAY = {"refusal": "discovery found no way to orchestrate"}
SEEN = {"awareness": "sandboxed", "profile": "docker", "tools": ("un",)}
STEP = Step("r", "Inception", 1, "$start", "", "inside_sandbox", 5)
REFUSED = "execution_refused"


def _ended(kind: Any, machine: str, state: str, succeeded: bool, output: Any = None) -> Any:
    return kind(run_id="c", machine=machine, state=state, succeeded=succeeded, output=output)


def _discovered(state: str, succeeded: bool, output: Any, to: str, **more: Any) -> dict[str, Any]:
    event = _ended(Discovered, "Discovery", "capable", succeeded, output)
    return {"state": state, "event": event, "to": to, **more}


def _priced(to: str, given: Any, price_cents: int = 700, slots: int = 1, **gives: Any) -> Any:
    kept = {"price_cents": price_cents, "concurrency": slots, **gives}
    changes = {name: value for name, value in kept.items() if given.get(name) != value}
    event = Priced(price_cents=price_cents, concurrency=slots)
    return {"state": "fetch_pricing", "event": event, "given": given, "to": to, "gives": changes}


def _moved(state: str, milestone: str, to: str) -> dict[str, Any]:
    event = PaymentMoved(run_id="c", state=milestone)
    if to == state:
        return {"state": state, "event": event, "refused": "guard"}
    return {"state": state, "event": event, "to": to}


STEPS = {
    "create_invoice": ("paying", "send_payment"),
    "send_payment": ("confirming", "poll_confirmation"),
    "poll_confirmation": ("settling", "receive_keys"),
}
MILESTONES = ("invoicing", "paying", "confirming", "settling", "key_stored")


def _not_bought(state: str) -> list[dict[str, Any]]:
    short = state in ("create_invoice", "send_payment")
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


BY_CARD = {**KEY, "txids": ("redemption 628b49d96dcde97a",)}
FROM_CARD = RedeemedKey(
    public_key="pk", secret_key=Secret("sk"), paid_cents=700, redemption_id="t1"
)


def _redeemed(to: str, succeeded: bool, output: Any, gives: Any, **given: Any) -> dict[str, Any]:
    end = "redeemed" if succeeded else "too_little"
    return {"state": "redeem_card", "event": _ended(Redeemed, "Redemption", end, succeeded, output),
            "given": {**GIVEN, **given}, "to": to, "gives": gives}  # fmt: skip


def _card(to: str, succeeded: bool, output: Any, gives: Any) -> dict[str, Any]:
    end = "issued" if succeeded else "unfunded"
    return {"state": "buy_card", "event": _ended(CardBought, "GiftCard", end, succeeded, output),
            "given": {**KEY, **NESTED, "price_cents": 700}, "to": to, "gives": gives}  # fmt: skip


def _furnished(to: str, end: str, output: Any, lost: int = 0, **gives: Any) -> dict[str, Any]:
    event = _ended(Furnished, "ToolInstall", end, end == "installed", output)
    return {"state": "equip_child", "event": event, "given": {**OPEN, **NESTED, "lost": lost},
            "to": to, "gives": gives}  # fmt: skip


def _report(depth: int, key: str, paid_cents: int) -> LayerReport:
    return LayerReport(depth=depth, public_key=key, paid_cents=paid_cents, txids=("t",),
                       session_id="s", stdout="", latency_ms=1, awareness="sandboxed",
                       profile=None)  # fmt: skip


def _inner(succeeded: bool, output: Layers | None, **gives: Any) -> dict[str, Any]:
    return {"state": "descend",
            "event": _ended(InnerEnded, "Inception", "done" if succeeded else "no_slot", succeeded,
                            output),
            "given": OPEN, "to": "release_child", "gives": gives}  # fmt: skip


def _told(depth: int, state: str, complete: bool, layers: Any, **gives: Any) -> dict[str, Any]:
    told = Told(said="hello", state=state, status="s", complete=complete, refusal="so",
                layers=layers, journal=(STEP,))  # fmt: skip
    kept = {"told": True, "stdout": "hello", "latency_ms": 9, "journal": (STEP,), **gives}
    if layers:
        kept["inner"] = layers
    return {"state": "execute_in_child", "event": InnerTold(latency_ms=9, twigs=(), told=told),
            "given": {**OPEN, **NESTED, "depth": depth}, "to": "release_child",
            "gives": kept}  # fmt: skip


def _executed(event: Any, refusal: str) -> dict[str, Any]:
    return {"state": "execute_in_child", "event": event, "given": OPEN, "to": "release_child",
            "gives": {"ending": REFUSED, "refusal": refusal}}  # fmt: skip


BELOW = (_report(2, "pk-2", 700),)
NO_SLOT = NoSlot(effect="create_session", reason="full", attempts=9)
NOT_CLEARED = NotClearedUp(effect="clear", reason="gone", attempts=3)
ENDINGS = {"": "done", "cut_short": "cut_short", REFUSED: REFUSED, "no_tools": "no_tools"}
SECRET = {"public_key": "pk", "secret_key": Secret("sk")}
DIED = f"{LOST_MAX} sandboxes died, one after another"
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
    _priced("create_invoice", {}),
    _priced("create_invoice", {"one_key": True, "budget_cents": 700}, slots=2),
    _priced("too_few_slots", {"one_key": True, "tier": 3}, refusal="2 sandboxes at once are "
            "needed; a key of tier 3 allows 1"),
    _priced("unaffordable", {}, price_cents=701,
            refusal="2 keys of 701 cents are over the budget of 1400"),
    _priced("unaffordable", {"depth": 2}, price_cents=1_401,
            refusal="1 keys of 1401 cents are over the budget of 1400"),
    _priced("create_invoice", {"latency_ms_max": 1_000}),
    _priced("too_slow", {"latency_ms_max": 999}, refusal="1000 ms are expected for each "
            "operation at the bottom (0 measured so far), at most 999 wanted"),
    _priced("too_slow", {"latency_ms_max": 1_000, "latency_above_ms": 1}, refusal="1001 ms are "
            "expected for each operation at the bottom (1 measured so far), at most 1000 wanted"),
    _priced("prove_identity", {**SECRET, "one_key": True, "budget_cents": 0}, slots=2),
    _priced("redeem_card", {**GIVEN, "budget_cents": 700}),
    {"state": "fetch_pricing", "event": Unpriced(effect="fetch_prices", reason="no", attempts=1),
     "to": "unpriceable", "gives": {"refusal": "no"}},
    *(_moved(state, milestone, to if milestone == expected else state)
      for state, (expected, to) in STEPS.items() for milestone in MILESTONES),
    *(row for state in (*STEPS, "receive_keys") for row in _not_bought(state)),
    *({"state": state, "event": _bought(), "to": "payment_failed", "gives": KEY}
      for state in STEPS),
    {"state": "receive_keys", "event": _bought(), "to": "prove_identity", "gives": KEY},
    {"state": "receive_keys", "event": _bought(), "given": NESTED, "to": "buy_card", "gives": KEY},
    {"state": "receive_keys", "event": _bought(), "given": {**NESTED, "depth": 2},
     "to": "install_tools", "gives": KEY},
    {"state": "receive_keys", "event": _bought(), "given": {**NESTED, "card_code": CODE},
     "to": "install_tools", "gives": KEY},
    {"state": "receive_keys", "event": _ended(Bought, "Payment", "completed", True),
     "given": NESTED, "to": "payment_failed",
     "gives": {"refusal": "the purchase ended as completed"}},
    {"state": "receive_keys", "event": _ended(Bought, "Payment", "completed", True),
     "given": {**NESTED, "depth": 2}, "to": "payment_failed",
     "gives": {"refusal": "the purchase ended as completed"}},
    {"state": "receive_keys", "event": _bought(paid_cents=1_400), "to": "prove_identity",
     "gives": {**KEY, "paid_cents": 1_400}},
    {"state": "receive_keys", "event": _bought(paid_cents=1_401),
     "refused": "never_more_than_the_budget"},
    _receipt_without_success(),
    {"state": "receive_keys", "event": _ended(Bought, "Payment", "completed", True),
     "to": "payment_failed", "gives": {"refusal": "the purchase ended as completed"}},
    _redeemed("install_tools", True, FROM_CARD, BY_CARD),
    _redeemed("end_orphans", True, FROM_CARD, BY_CARD, incarnation=1),
    *(_redeemed("card_refused", succeeded, output, {"refusal": f"the redemption ended as {end}"},
                incarnation=incarnation)
      for incarnation in (0, 1)
      for succeeded, output, end in ((False, None, "too_little"), (True, None, "redeemed"),
                                     (False, FROM_CARD, "too_little"))),
    {"state": "prove_identity",
     "event": _ended(Proven, "Authentication", "authenticated", True,
                     Proof(offset_ms=5, concurrency=2)),
     "to": "install_tools", "gives": {"offset_ms": 5, "concurrency": 2}},
    *({"state": "prove_identity",
       "event": _ended(Proven, "Authentication", "rejected", succeeded, output),
       "to": "unproven", "gives": {"refusal": "the new key is rejected"}}
      for succeeded, output in ((False, None), (True, None),
                                (False, Proof(offset_ms=5, concurrency=2)))),
    {"state": "end_orphans", "event": ClearedUp(), "to": "install_tools"},
    {"state": "end_orphans", "event": NOT_CLEARED, "to": "no_slot",
     "gives": {"refusal": "clearing up failed: gone"}},
    _card("install_tools", True, BoughtCard("c1", CODE, 700, 700), CARD),
    *(_card("no_card", succeeded, output, {"refusal": f"the gift card ended as {end}"})
      for succeeded, output, end in ((False, None, "unfunded"), (True, None, "issued"),
                                     (False, BoughtCard("c1", CODE, 700, 700), "unfunded"))),
    {"state": "install_tools", "event": Equipped(digest="d", offset_ms=6), "to": "create_child",
     "gives": {"tool_digest": "d", "offset_ms": 6}},
    {"state": "install_tools", "event": EquippedNot(effect="equip", reason="no sh", attempts=3),
     "to": "no_tools", "gives": {"refusal": "no sh"}},
    {"state": "create_child", "event": Created(session_id="s1"), "given": KEY,
     "to": "execute_in_child", "gives": {"session_id": "s1", "last_session_id": "s1"}},
    {"state": "create_child", "event": Created(session_id="s1"), "given": {**KEY, **NESTED},
     "to": "equip_child", "gives": {"session_id": "s1", "last_session_id": "s1"}},
    {"state": "create_child", "event": Created(session_id="s2"), "given": OPEN,
     "refused": "one_sandbox_at_a_time"},
    {"state": "create_child", "event": NO_SLOT, "to": "clear_up",
     "gives": {"refusal": "full", "ending": "no_slot"}},
    {"state": "clear_up", "event": ClearedUp(), "to": "no_slot"},
    {"state": "clear_up", "event": ClearedUp(), "given": CARD, "to": "settle_card"},
    {"state": "clear_up", "event": NOT_CLEARED, "given": {"refusal": "full"}, "to": "no_slot",
     "gives": {"refusal": "full; clearing up failed: gone"}},
    {"state": "clear_up", "event": NOT_CLEARED, "given": {**CARD, "refusal": "full"},
     "to": "settle_card", "gives": {"refusal": "full; clearing up failed: gone"}},
    _furnished("execute_in_child", "installed", Tool(digest="d")),
    _furnished("release_child", "installed", None, ending="no_tools",
               refusal="the installation in the child ended as installed"),
    _furnished("release_child", "refused", None, ending="no_tools",
               refusal="the installation in the child ended as refused"),
    {**_furnished("bury_child", "session_gone", None), "gives": {"lost": 1}},
    {**_furnished("bury_child", "session_gone", None, LOST_MAX - 2),
     "gives": {"lost": LOST_MAX - 1}},
    {**_furnished("release_child", "session_gone", None, LOST_MAX - 1),
     "gives": {"lost": LOST_MAX, "ending": "no_tools", "refusal": DIED}},
    {"state": "execute_in_child", "event": Executed(stdout=ANSWER, latency_ms=9), "given": OPEN,
     "to": "descend", "gives": {"stdout": ANSWER, "latency_ms": 9}},
    {"state": "execute_in_child",
     "event": Executed(stdout="turtle 2 of 2 was here\n{}", latency_ms=9),
     "given": {**OPEN, "depth": 2}, "to": "release_child",
     "gives": {"stdout": "turtle 2 of 2 was here\n{}", "latency_ms": 9}},
    *(_executed(Executed(stdout=stdout, latency_ms=9), "the child did not answer the greeting")
      for stdout in ("", "turtle 1 of 2 was here\n", "turtle 2 of 2 was here\n{}")),
    {"state": "execute_in_child", "event": InnerMoved(latency_ms=9, twigs=()),
     "given": {**OPEN, **NESTED}, "to": "execute_in_child", "gives": {"latency_ms": 9}},
    _told(1, "done", True, BELOW),
    _told(1, "no_slot", False, (), ending="cut_short", refusal="layer 2 ended as no_slot: so"),
    _told(1, "too_deep", False, (), ending="cut_short", refusal="layer 2 ended as too_deep: so"),
    _told(2, "too_deep", False, ()),
    _told(2, "unaware", False, (), ending="cut_short", refusal="layer 3 ended as unaware: so"),
    _executed(InnerOdd(reason="so"), "the engine in the child is not believed: so"),
    {"state": "execute_in_child", "event": ChildLost(),
     "given": {**OPEN, "lost": LOST_MAX - 2}, "to": "bury_child", "gives": {"lost": LOST_MAX - 1}},
    {"state": "execute_in_child", "event": ChildLost(), "given": {**OPEN, "lost": LOST_MAX - 1},
     "to": "release_child", "gives": {"lost": LOST_MAX, "ending": REFUSED, "refusal": DIED}},
    _executed(ExecutionGivenUp(effect="run_in_child", reason="no", attempts=5), "no"),
    _executed(ExecutionFailed(exit_code=2), "the command in the child exited 2"),
    _executed("execution_stuck", "the command in the child did not end in time"),
    _inner(True, Layers(layers=BELOW, complete=True, refusal=""), inner=BELOW),
    _inner(True, Layers(layers=BELOW, complete=False, refusal="so"), inner=BELOW,
           ending="cut_short", refusal="layer 2 ended as done: so"),
    _inner(False, Layers(layers=BELOW, complete=True, refusal=""), inner=BELOW,
           ending="cut_short", refusal="layer 2 ended as no_slot: "),
    _inner(False, None, ending="cut_short", refusal="layer 2 ended as no_slot: "),
    _inner(True, None, ending="cut_short", refusal="layer 2 ended as done: "),
    {"state": "bury_child", "event": Released(), "given": OPEN, "to": "create_child",
     "gives": {"session_id": ""}},
    *({"state": "release_child", "event": Released(), "given": {**OPEN, "ending": ending},
       "to": to, "gives": {"session_id": ""}} for ending, to in ENDINGS.items()),
    *({"state": "release_child", "event": Released(), "given": {**OPEN, **CARD, "ending": ending},
       "to": "settle_card", "gives": {"session_id": ""}} for ending in ENDINGS),
    *({"state": "settle_card", "event": Settled(left_cents=0), "given": {**CARD, "ending": ending},
       "to": to, "gives": {"card_left_cents": 0}}
      for ending, to in {**ENDINGS, "no_slot": "no_slot"}.items()),
    {"state": "settle_card", "event": NotSettled(effect="read_balance", reason="no", attempts=1),
     "given": CARD, "to": "unsettled", "gives": {"refusal": "the rest of the card: no"}},
    {"state": "settle_card", "event": NotSettled(effect="read_balance", reason="no", attempts=1),
     "given": {**CARD, "refusal": "so"}, "to": "unsettled",
     "gives": {"refusal": "so; the rest of the card: no"}},
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
    stopped = cancel(table, made.after.but(effect=None), 20_000)
    assert isinstance(stopped, Decision)
    assert (stopped.after.closing, stopped.after.effect.name) == ("cancelled", "delete_session")  # type: ignore[union-attr]


@pytest.mark.parametrize("refusal", ["", "so"])
@pytest.mark.parametrize("stdout", list(SIBLINGS))
@pytest.mark.parametrize("key", ["", "pk"])
def test_output(output_of: Any, refusal: str, stdout: str, key: str) -> None:
    fields = {**OPEN, "public_key": key, "stdout": stdout, "refusal": refusal, "latency_ms": 9,
              "card_left_cents": 5, "journal": (STEP,)}  # fmt: skip
    told = output_of(Inception, LAYER, inner=BELOW, **fields)
    own = LayerReport(depth=1, public_key="pk", paid_cents=700, txids=("t1",), session_id="s1",
                      stdout=stdout.split("\n")[0], latency_ms=9, awareness="unknown",
                      profile=None, journal=(STEP,), **SIBLINGS[stdout])  # fmt: skip
    assert told == Layers(
        layers=(own, *BELOW) if key else BELOW,
        complete=not refusal and bool(stdout),
        refusal=refusal,
        card_left_cents=5,
    )


def test_the_output_of_a_nested_layer_tells_of_no_sibling(output_of: Any) -> None:
    told = output_of(Inception, LAYER, **{**OPEN, **NESTED}, stdout="turtle 1 of 2 was here")
    assert (told.layers[0].sibling, told.layers[0].no_sibling) == ("", "")


def _child_of(run_in: Any, state: str, **fields: Any) -> Any:
    context = run_in(Inception, LAYER, state, **fields).context
    child = compile_table(Inception).places[state].child
    assert child is not None
    return child({"context": context})


def test_the_next_layer_has_what_is_left(run_in: Any) -> None:
    asked = _child_of(run_in, "descend", **OPEN, stdout=ANSWER, latency_ms=9, latency_above_ms=1)
    assert (asked.machine, asked.context["depth"]) == ("Inception", 2)
    assert (asked.context["budget_cents"], asked.context["inspection"]) == (700, "{}")
    assert (asked.context["latency_above_ms"], asked.context["above"]) == (10, ())
    assert "public_key" not in asked.context


def test_the_next_layer_shares_the_one_key(run_in: Any) -> None:
    fields = {**OPEN, "one_key": True, "above": ("s0",), "stdout": ANSWER}
    asked = _child_of(run_in, "descend", **fields)
    assert (asked.context["public_key"], asked.context["above"]) == ("pk", ("s0", "s1"))
    assert asked.context["one_key"] is True


@pytest.mark.parametrize(
    ("given", "cents"),
    [({}, 700), ({"depth": 2}, 1_400), ({"max_depth": 1}, 1_400), ({"one_key": True}, 1_400)],
)
def test_a_purchase_leaves_what_the_layers_below_need(
    run_in: Any, given: dict[str, Any], cents: int
) -> None:
    asked = _child_of(run_in, "create_invoice", price_cents=700, **given)
    assert (asked.machine, asked.context["budget_cents"]) == ("Payment", cents)


def test_a_card_is_worth_the_keys_below(run_in: Any) -> None:
    asked = _child_of(run_in, "buy_card", **KEY, max_depth=4, budget_cents=2_900, price_cents=700)
    assert asked.machine == "GiftCard"
    assert (asked.context["amount_cents"], asked.context["budget_cents"]) == (2_100, 2_200)


def test_a_redemption_is_named_after_the_layer(run_in: Any) -> None:
    asked = _child_of(run_in, "redeem_card", **GIVEN)
    assert (asked.machine, asked.context["redemption_key"]) == ("Redemption", "root-layer-2")
    assert (asked.context["code"], asked.context["budget_cents"]) == (CODE, 700)


def test_the_other_children(run_in: Any) -> None:
    assert _child_of(run_in, "inside_sandbox", inspection="{}").context == {"evidence": "{}"}
    assert _child_of(run_in, "prove_identity", **KEY).context == SECRET
    tool = _child_of(run_in, "equip_child", **OPEN, **NESTED, offset_ms=5)
    assert tool.machine == "ToolInstall"
    assert tool.context == {**SECRET, "offset_ms": 5, "session_id": "s1", "digest": "d"}


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
    shared = (_report(2, "pk", 0),)
    assert after("keys_are_pairwise_different", **KEY, one_key=True, inner=shared)
    assert not after("keys_are_pairwise_different", **KEY, one_key=True, inner=BELOW)
    assert after("the_card_paid_the_price") and after("the_card_paid_the_price", **KEY,
                                                      price_cents=700)  # fmt: skip
    assert not after("the_card_paid_the_price", **KEY, price_cents=699)
    assert after("the_card_is_worth_the_subtree")
    assert after("the_card_is_worth_the_subtree", **CARD, price_cents=700)
    assert not after("the_card_is_worth_the_subtree", **CARD, price_cents=701)
    assert after("a_card_never_grows", **CARD)
    assert after("a_card_never_grows", **{**CARD, "card_left_cents": 0})
    assert not after("a_card_never_grows", **{**CARD, "card_left_cents": -1})
    assert not after("a_card_never_grows", **{**CARD, "card_left_cents": 701})
