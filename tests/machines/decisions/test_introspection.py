"""Introspection, edge by edge."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.secret import Secret
from machines.flows.f11_introspection import Introspection
from machines.flows.inquiry import (
    TOPICS,
    CapabilityDocument,
    Denied,
    GivenUp,
    Health,
    Inquiry,
    Kept,
    Known,
    Limits,
    Missing,
    Names,
    Offer,
    Prices,
    Room,
    Told,
)

INQUIRY = Inquiry(public_key="pk", secret_key=Secret("sk"), asking_ms=100)
ASKING = {
    "status": "running",
    "due": lambda c, now_ms: now_ms + 100,
    "sends": {"on_timeout": "too_late", "on_exhausted": "given_up"},
}
STATES = [f"asking_{topic}" for topic in TOPICS]
PLACES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(STATES, ASKING),
    "complete": {"status": "completed"},
    "partial": {"status": "completed"},
    "unreachable": {"status": "failed"},
}
OFFER = Offer(tier=1, months=1, price_cents=5, requests_per_minute=7, slots=1)
PRICES = Prices(at_ms=1, budget_cents=5, quotes=1, cheapest_cents=5, offers=(OFFER,))
ALL = Known(
    health=Health(at_ms=1, sandboxes=True),
    limits=Limits(at_ms=1, tier=1, slots=1, requests_per_minute=7),
    languages=Names(at_ms=1, names=("python",)),
    shells=Names(at_ms=1, names=("bash",)),
    cluster=Room(at_ms=1, available=1, allocated=0),
    pools=Room(at_ms=1, available=1, allocated=0),
    prices=PRICES,
)
SILENCE = GivenUp(effect="x", reason="down", attempts=2)
NO = Denied(reason="no")
NO_KEY = Denied(reason="no key", key_refused=True)


def _only(topic: str) -> Known:
    return Known(**{topic: getattr(ALL, topic)})


def _without(topic: str) -> Known:
    return msgspec.structs.replace(ALL, **{topic: None})


def _missed(reason: str, *topics: Any) -> tuple[Missing, ...]:
    return tuple(Missing(topic=topic, reason=reason) for topic in topics)


BEFORE = _missed("no", "health")
NOBODY = "not asked: nobody answers"


def _rows(number: int) -> list[dict[str, Any]]:
    """What every question does alike."""
    topic = TOPICS[number]
    state, is_last = STATES[number], number == 6
    to = "complete" if is_last else STATES[number + 1]
    worse = "partial" if is_last else to
    asked, was, onward = {"asked": number}, {"known": _without(topic)}, {"asked": number + 1}
    heard = {"heard": 3, "silences": 1}
    told = Told(topic=topic, answer=_only(topic))
    missed = {"missing": _missed("no answer", topic)}
    denied = {**onward, "missing": _missed("no", topic)}
    rest = TOPICS[number + 1 :]
    end = {"asked": 7, "silences": 2, "missing": (*_missed("no answer", topic),
                                                  *_missed(NOBODY, *rest))}  # fmt: skip
    second = number == 1
    rows: list[dict[str, Any]] = [
        {"event": told, "given": was | asked, "to": to,
         "gives": onward | {"known": ALL, "heard": 1}},
        {"event": told, "given": was | asked | heard, "to": to,
         "gives": onward | {"known": ALL, "heard": 4}},
        {"event": Told(topic=topic, answer=ALL), "given": asked,
         "refused": "answers_the_question"},
        {"event": Told(topic=TOPICS[number - 1], answer=_only(TOPICS[number - 1])), "given": asked,
         "refused": "answers_the_question"},
        {"event": Told(topic=topic, answer=Known()), "given": asked,
         "refused": "answers_the_question"},
        {"event": Kept(), "given": asked | {"known": ALL, "silences": 1}, "to": to,
         "gives": onward},
        {"event": Kept(), "given": asked | was, "refused": "something_is_kept"},
        {"event": NO, "given": asked, "to": worse, "gives": denied | {"heard": 1}},
        {"event": NO, "given": asked | heard, "to": worse,
         "gives": denied | {"heard": 4}},
        *({"event": event, "given": asked | {"heard": count}, "to": worse,
           "gives": onward | missed | {"silences": 1}}
          for event in (SILENCE, "too_late") for count in (0, 1)),
    ]  # fmt: skip
    if number:
        rows += [
            {"event": event, "given": asked | {"silences": 1}, "to": "unreachable", "gives": end}
            for event in (SILENCE, "too_late")
        ]
        if not second:
            rows += [
                {"event": event, "given": asked | {"silences": 1, "heard": 1}, "to": "partial",
                 "gives": end} for event in (SILENCE, "too_late")
            ]  # fmt: skip
    if is_last:
        rows += [
            {"event": told, "given": was | asked | {"missing": BEFORE}, "to": "partial",
             "gives": onward | {"known": ALL, "heard": 1}},
            {"event": Kept(), "given": {"known": ALL, "missing": BEFORE} | asked, "to": "partial",
             "gives": onward},
        ]  # fmt: skip
    if not second:
        gives = onward | {"heard": 1, "missing": _missed("no key", topic)}
        rows.append({"event": NO_KEY, "given": asked, "to": worse, "gives": gives})
    return [{"state": state, **row} for row in rows]


LEFT_OUT = _missed("not asked: the key is refused", "languages", "shells", "cluster", "pools")
ROWS = [
    *(row for number in range(7) for row in _rows(number)),
    {"state": "asking_limits", "event": NO_KEY, "given": {"asked": 1, "missing": BEFORE},
     "to": "asking_prices", "gives": {
         "asked": 6, "heard": 1,
         "missing": (*BEFORE, *_missed("no key", "limits"), *LEFT_OUT)}},
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Introspection, INQUIRY, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Introspection, INQUIRY, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Introspection, INQUIRY, PLACES)


@pytest.mark.parametrize(
    ("asked", "missing", "complete"), [(7, (), True), (6, (), False), (7, BEFORE, False)]
)
def test_output(output_of: Any, asked: int, missing: Any, complete: bool) -> None:
    fields = {"known": ALL, "asked": asked, "missing": missing}
    assert output_of(Introspection, INQUIRY, **fields) == CapabilityDocument(
        known=ALL, missing=missing, complete=complete
    )


def test_contracts(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Introspection, INQUIRY)
    assert holds("all_known", known=ALL)
    assert not holds("all_known", known=ALL, missing=BEFORE)
    assert not any(holds("all_known", known=_without(topic)) for topic in TOPICS)
    assert holds("something_missing", missing=BEFORE) and not holds("something_missing")
    assert not holds("something_missing", missing=_missed("", "health"))
    assert holds("nothing_heard", silences=2)
    assert not holds("nothing_heard", silences=1)
    assert not holds("nothing_heard", silences=2, heard=1)
    once = "each_topic_is_missed_once"
    assert holds(once, asked=1, missing=BEFORE) and holds(once, asked=7)
    assert not holds(once, asked=8) and not holds(once, missing=BEFORE)
    assert not holds(once, asked=3, missing=BEFORE * 2)
    budget = "nothing_beyond_the_budget"
    assert holds(budget) and holds(budget, known=ALL)
    for cents, good in [(0, True), (-1, False), (6, False)]:
        offer = msgspec.structs.replace(OFFER, price_cents=cents)
        prices = msgspec.structs.replace(PRICES, offers=(OFFER, offer))
        assert holds(budget, known=Known(prices=prices)) is good


def test_postconditions(ensured: Any) -> None:
    """Each at its limit."""
    holds = ensured(Introspection, INQUIRY)
    other = "no_other_answer_is_touched"
    assert holds(other, known=_only("health"), heard=1)
    assert not holds(other, known=_only("health"))
    assert not holds(other, known=_only("limits"), heard=1)
    assert holds(other)
    accounted = "every_question_is_accounted_for"
    assert holds(accounted, asked=1) and holds(accounted, asked=1, missing=BEFORE)
    assert not holds(accounted) and not holds(accounted, asked=2, missing=BEFORE)
    old = msgspec.structs.replace(INQUIRY, asked=1, missing=BEFORE)
    assert holds(accounted, old=old, asked=2, missing=(*BEFORE, *_missed("no", "limits")))
    assert not holds(accounted, old=old, asked=2, missing=(*BEFORE, *_missed("no", "pools")))
