"""Payloads and contexts are frozen structs that refuse what they do not know."""

from __future__ import annotations

import msgspec
import pytest

from engine import ChildEnded, Context, Event, GaveUp
from engine.events import event_id


class Paid(Event, tag="paid"):
    amount_atomic: int


class Ended(ChildEnded, tag="ended"):
    output: int | None = None


class Lost(GaveUp, tag="lost"):
    """Given up."""


class Box(Context):
    number: int = 0


def test_the_tag_is_the_events_name():
    assert [event_id(kind) for kind in (Paid, Ended, Lost)] == ["paid", "ended", "lost"]
    body = msgspec.json.encode(Paid(amount_atomic=3))
    assert msgspec.json.decode(body) == {"event": "paid", "amount_atomic": 3}
    assert msgspec.json.decode(body, type=Paid) == Paid(amount_atomic=3)


def test_the_wrong_tag_does_not_decode():
    with pytest.raises(msgspec.ValidationError, match="Invalid value 'unpaid'"):
        msgspec.json.decode(b'{"event":"unpaid","amount_atomic":3}', type=Paid)


@pytest.mark.parametrize("one", [Paid(amount_atomic=1), Box()])
def test_frozen_and_strict(one):
    with pytest.raises(AttributeError):
        one.number = 5
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({**msgspec.to_builtins(one), "extra": 1}, type(one))


def test_what_the_engine_sends_fits_a_subclass():
    ended = Ended(run_id="r1", machine="M", state="s", succeeded=True)
    assert ended.output is None
    assert Lost(effect="e", reason="r", attempts=1).attempts == 1
