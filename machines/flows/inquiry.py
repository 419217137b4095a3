"""A run of flow 11: the questions, the answers with their times, and what is made of silence."""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.clock import hours, minutes, seconds
from engine.events import Event, GaveUp
from engine.retry import Retry
from machines.clients.ports import (
    Record,
)
from machines.flows.keyed import Keyed

Topic = Literal["health", "limits", "languages", "shells", "cluster", "pools", "prices"]
TOPICS: tuple[Topic, ...] = (
    "health", "limits", "languages", "shells", "cluster", "pools", "prices",
)  # fmt: skip
LIVE: tuple[Topic, ...] = ("health", "cluster", "pools")
"""What changes from minute to minute."""
SILENCES_MAX = 2
NO_ANSWER = "no answer"
NOES_MAX = 3
"""A platform that says so often that it cannot now (503) has answered: no."""
REASON_CHARACTERS_MAX = 200
ASKING = Retry(attempts=20, first_ms=500, max_ms=15_000)


class Health(Record):
    """`sandboxes`: whether any can be opened; `problem` says why not."""

    at_ms: int
    sandboxes: bool
    problem: str = ""


class Limits(Record):
    """What the key may do."""

    at_ms: int
    tier: int
    slots: int
    requests_per_minute: int


class Names(Record):
    """A list as the platform gave it."""

    at_ms: int
    names: tuple[str, ...]


class Room(Record):
    """Sandboxes: how many there are, and how many more there is room for."""

    at_ms: int
    available: int
    allocated: int


class Offer(Record):
    """The highest tier that the budget can buy for some months."""

    tier: int
    months: int
    price_cents: int
    requests_per_minute: int
    slots: int


class Prices(Record):
    """What `budget_cents` can buy; `cheapest_cents` is the lowest price, affordable or not."""

    at_ms: int
    budget_cents: int
    quotes: int
    cheapest_cents: int
    offers: tuple[Offer, ...]


class Known(Record):
    """An answer to each question, with its time; None where there never was one."""

    health: Health | None = None
    limits: Limits | None = None
    languages: Names | None = None
    shells: Names | None = None
    cluster: Room | None = None
    pools: Room | None = None
    prices: Prices | None = None


class Missing(Record):
    """A question without an answer, and why."""

    topic: Topic
    reason: str


class CapabilityDocument(Record):
    """What is here, and what can be afforded.  `missing` was asked now, in vain."""

    known: Known
    missing: tuple[Missing, ...]
    complete: bool

    def runs(self, language: str) -> bool:
        """Whether code of a language can be run, as far as is known."""
        return self.known.languages is not None and language in self.known.languages.names

    def has_room(self) -> bool:
        """Whether one more sandbox may be opened, as far as is known."""
        health, room = self.known.health, self.known.cluster
        return (health is None or health.sandboxes) and (room is None or room.available > 0)

    def best_offer(self, months: int) -> Offer | None:
        """The highest tier that the budget can buy for so long."""
        offers = self.known.prices.offers if self.known.prices else ()
        return next((offer for offer in offers if offer.months == months), None)


class Inquiry(Keyed):
    """Who asks, what may be spent, what is known from before, and how old that may be.

    Args:
        budget_cents: for what the prices are compared with; introspection spends nothing.
        known: an earlier document's.
        asked: how many questions are done with; the next one is `TOPICS[asked]`.
        heard: how many were answered now; `silences`: how many had none.
    """

    budget_cents: int = 0
    known: Known = Known()
    lists_fresh_ms: int = hours(1)
    live_fresh_ms: int = minutes(1)
    asking_ms: int = seconds(75)
    missing: tuple[Missing, ...] = ()
    asked: int = 0
    heard: int = 0
    silences: int = 0


class Told(Event, tag="told"):
    """One answer: the field of its topic is set, no other."""

    topic: Topic
    answer: Known


class Kept(Event, tag="kept"):
    """What is known is fresh; nobody was asked."""


class Denied(Event, tag="denied"):
    """The platform answers that it will not tell; `key_refused` if it is for the key."""

    reason: str
    key_refused: bool = False


class GivenUp(GaveUp, tag="given_up"):
    """No answer after all attempts."""


def cut(text: str) -> str:
    """As much as a reason may say."""
    return text[:REASON_CHARACTERS_MAX]


def all_known(context: Inquiry) -> bool:
    """Every question has an answer that is fresh or new."""
    return not context.missing and None not in msgspec.structs.astuple(context.known)


def something_missing(context: Inquiry) -> bool:
    """At least one question was asked in vain, and it is said which and why."""
    return bool(context.missing) and all(one.reason for one in context.missing)


def nothing_heard(context: Inquiry) -> bool:
    """Nobody answered anything."""
    return context.heard == 0 and context.silences == SILENCES_MAX


def silent(context: Inquiry) -> Inquiry:
    """One silence more; with the second, what was not asked is missing as well."""
    silences = context.silences + 1
    missing = [Missing(topic=TOPICS[context.asked], reason=NO_ANSWER)]
    ended = context.asked + 1
    if silences >= SILENCES_MAX:
        ended = len(TOPICS)
        left_out = TOPICS[context.asked + 1 :]
        missing += [Missing(topic=one, reason="not asked: nobody answers") for one in left_out]
    return msgspec.structs.replace(
        context, missing=(*context.missing, *missing), asked=ended, silences=silences
    )
