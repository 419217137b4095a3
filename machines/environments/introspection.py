"""What a platform may tell `Introspection`; `turtles verify Introspection` tries it all.

One asks for the first time, the other has a document of everything, which is all fresh.  The
platform tells, denies, refuses the key, or is silent, at any question; it denies one thing in a
life at most, and nothing to who has a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, payloads, sometimes
from engine.verification.result import Scope
from machines.flows.f11_introspection import Introspection
from machines.flows.inquiry import (
    SILENCES_MAX,
    TOPICS,
    Denied,
    Health,
    Inquiry,
    Kept,
    Known,
    Limits,
    Names,
    Offer,
    Prices,
    Room,
    Told,
    Topic,
)

WAIT_MS = 100  # over before the second attempt
BUDGET_CENTS = 2
OFFER = Offer(tier=1, months=1, price_cents=BUDGET_CENTS, requests_per_minute=1, slots=1)
EVERYTHING = Known(
    health=Health(at_ms=0, sandboxes=True),
    limits=Limits(at_ms=0, tier=1, slots=1, requests_per_minute=1),
    languages=Names(at_ms=0, names=("python",)),
    shells=Names(at_ms=0, names=("bash",)),
    cluster=Room(at_ms=0, available=1, allocated=0),
    pools=Room(at_ms=0, available=1, allocated=0),
    prices=Prices(at_ms=0, budget_cents=BUDGET_CENTS, quotes=1, cheapest_cents=1, offers=(OFFER,)),
)


class OfIntrospection(Environment):
    """A platform that knows all of it, and says as much as it likes."""

    machine = Introspection
    scope = Scope(contexts=2, messages=0, cancels=False, attempts=2)

    def contexts(self) -> Iterator[Inquiry]:
        """Nothing known; everything known."""
        for known in (Known(), EVERYTHING):
            yield Inquiry(
                public_key="key",
                secret_key=Secret("secret"),
                budget_cents=BUDGET_CENTS,
                known=known,
                asking_ms=WAIT_MS,
            )

    @payloads("told")
    def answers(self, context: Inquiry) -> Iterator[Told]:
        """The one to the question; nobody asks for what is kept."""
        if not is_kept(context):
            yield Told(topic=topic_of(context), answer=only(topic_of(context)))

    @payloads("kept")
    def fresh_ones(self, context: Inquiry) -> Iterator[Kept]:
        """All of it is fresh."""
        if is_kept(context):
            yield Kept()

    @payloads("denied")
    def refusals(self, context: Inquiry) -> Iterator[Denied]:
        """For this question; and once for the key."""
        topic = topic_of(context)
        if has_document(context) or context.missing:
            return
        yield Denied(reason="no")
        if topic == "limits":
            yield Denied(reason="no key", key_refused=True)

    # -- what must hold, by the ledger of the outside ---------------------------------------------

    @always
    def asks_within_the_lowest_rate(self, done: Sequence[Done]) -> bool:
        """Five signed questions at most, each under one key."""
        signed = {one.key for one in done if one.effect not in ("ask_health", "ask_prices")}
        return len(signed) <= 5

    @always
    def knows_what_it_was_told(self, context: Inquiry, done: Sequence[Done]) -> bool:
        """An answer is the platform's, or it was in the document."""
        told = {one.event.topic for one in done if isinstance(one.event, Told)}
        return all(
            getattr(context.known, topic) is None or topic in told or has_document(context)
            for topic in TOPICS
        )

    @always
    def complete_with_every_answer(self, state: str, done: Sequence[Done]) -> bool:
        """Told or kept, seven times."""
        answered = {one.effect for one in done if isinstance(one.event, Told | Kept)}
        return state != "complete" or len(answered) == len(TOPICS)

    @always
    def unreachable_without_a_word(self, state: str, done: Sequence[Done]) -> bool:
        """A platform that said anything is not unreachable, unless its word came too late."""
        said = [one for one in done if isinstance(one.event, Told | Denied)]
        return state != "unreachable" or len({one.effect for one in said}) <= SILENCES_MAX

    # -- what should be seen ----------------------------------------------------------------------

    @sometimes
    def complete_at_once(self, state: str, context: Inquiry) -> bool:
        """Seven answers."""
        return state == "complete" and context.heard == len(TOPICS)

    @sometimes
    def complete_from_a_document(self, state: str, context: Inquiry) -> bool:
        """Nobody had to be asked."""
        return state == "complete" and context.heard == 0

    @sometimes
    def partial_for_a_refused_key(self, state: str, context: Inquiry) -> bool:
        """Health and prices are for everybody."""
        return state == "partial" and len(context.missing) == 5 and context.silences == 0

    @sometimes
    def partial_after_falling_silent(self, state: str, context: Inquiry) -> bool:
        """It answered first, and then no more."""
        return state == "partial" and context.silences == SILENCES_MAX

    @sometimes
    def unreachable_with_a_document(self, state: str, context: Inquiry) -> bool:
        """What is known from before stays known."""
        return state == "unreachable" and has_document(context)


def topic_of(context: Inquiry) -> Topic:
    """The question that is asked now."""
    return TOPICS[min(context.asked, len(TOPICS) - 1)]


def has_document(context: Inquiry) -> bool:
    """Whether this is the one who knew everything."""
    return context.known.prices is EVERYTHING.prices or context.known == EVERYTHING


def is_kept(context: Inquiry) -> bool:
    """Whether the document's answer is fresh."""
    return has_document(context)


def only(topic: Topic) -> Known:
    """One answer of all."""
    return Known(**{topic: getattr(EVERYTHING, topic)})
