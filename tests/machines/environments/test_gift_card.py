"""`GiftCard` and `Redemption` in their environments: what their properties are there to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from engine.secret import Secret
from engine.verification.environment import Done, Environment
from engine.verification.explore import explore
from engine.verification.result import Scope
from machines.environments.gift_card import AMOUNT_CENTS, OfGiftCard, OfRedemption
from machines.flows.f03b_gift_card import GiftCard, Redemption
from machines.flows.gift_card import CardMade, Decided, NewSecret, Taken, Weighed
from persistence.store import open_store

CARD, CLAIM = OfGiftCard(), OfRedemption()
ORDER = next(iter(CARD.contexts()))
AGENT = next(iter(CLAIM.contexts()))
NOBODY_CANCELS = Scope(contexts=3, messages=0, cancels=False)


def _given(of: Environment, event: str, context: Any, state: str, now_ms: int = 0) -> list[Any]:
    found = of.payloads_of(event, context=context, state=state, now_ms=now_ms)
    assert found is not None
    return found


MADE: CardMade = _given(CARD, "card_made", ORDER, "creating")[0]
WEIGHED: Weighed = _given(CLAIM, "weighed", AGENT, "checking_balance")[0]
TAKEN: list[Taken] = _given(CLAIM, "taken", AGENT, "redeeming")
WHOLE = next(one for one in TAKEN if one.secret_key is not None)


@pytest.mark.parametrize("machine", [GiftCard, Redemption])
def test_everything_is_explored_and_nothing_is_wrong(machine: Any) -> None:
    """Without requests to stop, which treble the work; `turtles verify` makes them."""
    report = explore(machine, open_store("sqlite://"), scope=NOBODY_CANCELS, budget_seconds=25)
    coverage = report.coverage
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert (coverage.missing_transitions, coverage.missing_cells) == ([], [])
    assert coverage.missing_marks == []
    assert report.executions < 5_000


def test_no_outcome_is_refused(refused_outcomes: Callable[[Environment], list[str]]) -> None:
    assert refused_outcomes(CLAIM) == []


def test_whoever_names_a_redemption_may_have_had_its_secret() -> None:
    """In the life before this one; so it never comes with the reply again."""
    again = [one for one in CLAIM.contexts() if one.redemption_key]
    for context in again:
        told = _given(CLAIM, "taken", context, "redeeming")
        assert told and all(one.secret_key is None for one in told)


def test_odd_answers_come_at_once_or_never() -> None:
    for of, event, context, state in [
        (CARD, "limits", ORDER, "checking_limits"),
        (CARD, "card_made", ORDER, "creating"),
        (CLAIM, "weighed", AGENT, "checking_balance"),
    ]:
        assert len(_given(of, event, context, state)) > 1
        assert len(_given(of, event, context, state, now_ms=1)) == 1


def test_balance_and_what_was_taken_are_the_card() -> None:
    """But for one look, which is there to be disputed."""
    paid = msgspec.structs.replace(ORDER, balance_cents=AMOUNT_CENTS)
    looks = [one for one in _given(CARD, "seen", paid, "active") if one.standing != "expired"]
    odd = [one for one in looks if one.balance_cents + one.taken_cents != AMOUNT_CENTS]
    assert len(looks) == 4 and len(odd) == 1


KEPT = msgspec.structs.replace(
    ORDER, card_id=MADE.card_id, code=MADE.code, invoice=MADE.invoice, refund_address="ours"
)
ORDERED = Done("order_card", "o1", MADE)
POOR = msgspec.structs.replace(ORDER, budget_cents=AMOUNT_CENTS - 1)
ASKED = msgspec.structs.replace(AGENT, redemption_key=WEIGHED.redemption_key)
GOT = msgspec.structs.replace(ASKED, taken_cents=WHOLE.price_cents, secret_key=WHOLE.secret_key)
WEIGHT, REDEEMED = Done("weigh", "w1", WEIGHED), Done("redeem", "r1", WHOLE)
REPLACED = NewSecret(public_key="key", secret_key=Secret("new"))


def _broken(of: Environment, context: Any, *done: Done, state: str = "redeeming") -> list[str]:
    return list(of.broken(context=context, done=done, state=state, status="running", now_ms=0))


@pytest.mark.parametrize(
    ("of", "context", "done"),
    [
        (CARD, ORDER, ()),
        (CARD, KEPT, (ORDERED,)),
        (CLAIM, AGENT, ()),
        (CLAIM, ASKED, (WEIGHT,)),
        (CLAIM, GOT, (WEIGHT, REDEEMED, REDEEMED)),
        (CLAIM, GOT, (WEIGHT, REDEEMED, *(Done("replace_secret", k, REPLACED) for k in "ab"))),
    ],
)
def test_properties_hold(of: Environment, context: Any, done: Any) -> None:
    assert _broken(of, context, *done) == []


@pytest.mark.parametrize(
    ("rule", "of", "context", "done"),
    [
        ("pays_the_card_whose_code_it_holds", CARD, KEPT, ()),
        (
            "pays_the_card_whose_code_it_holds",
            CARD,
            msgspec.structs.replace(KEPT, code=Secret("of another card")),
            (ORDERED,),
        ),
        (
            "few_cards_are_ordered",
            CARD,
            ORDER,
            tuple(Done("order_card", key, MADE) for key in ("o1", "o2", "o3")),
        ),
        ("orders_only_what_it_can_pay", CARD, POOR, (ORDERED,)),
        ("redeems_once", CLAIM, GOT, (WEIGHT, REDEEMED, Done("redeem", "r2", WHOLE))),
        ("redeems_once", CLAIM, GOT, (REDEEMED,)),
        (
            "takes_what_the_portal_took",
            CLAIM,
            msgspec.structs.replace(GOT, taken_cents=2),
            (WEIGHT, REDEEMED),
        ),
        (
            "has_no_key_without_approval",
            CLAIM,
            msgspec.structs.replace(GOT, secret_key=Secret("guessed")),
            (
                WEIGHT,
                REDEEMED,
                Done("await_decision", "d1", _given(CLAIM, "decided", ASKED, "")[2]),
            ),
        ),
        (
            "secrets_are_asked_for_a_few_times",
            CLAIM,
            GOT,
            (WEIGHT, REDEEMED, *(Done("replace_secret", k, REPLACED) for k in "abc")),
        ),
    ],
)
def test_properties_can_fail(rule: str, of: Environment, context: Any, done: Any) -> None:
    assert _broken(of, context, *done) == [rule]


def test_decisions_are_told_with_and_without_the_secret() -> None:
    told: list[Decided] = _given(CLAIM, "decided", ASKED, "pending_approval")
    assert [(one.standing, one.secret_key is None) for one in told] == [
        ("redeemed", False),
        ("redeemed", True),
        ("denied", True),
    ]
