"""Flow 11, introspection: what is here, and what may I ask for?

::

    asking_health -> asking_limits -> asking_languages -> asking_shells
          -> asking_cluster -> asking_pools -> asking_prices -> complete | partial
                 (any) -- the second silence --> unreachable | partial

Each state asks one thing, with its own time limit.  Its answer is `told`, or it is `kept` because
the document that was given still holds a fresh one, or it is missing: `denied` by the platform, or
no answer (`given_up`, `too_late`).  A missing answer is a finding and no failure: the next question
is asked.  A key that is refused is told so once; what only a key may ask is then left out, prices
are for everybody.  The second silence ends the asking: it has cost its time twice, and whoever
does not answer twice is not there, or hardly.

==========  ===========================  ========================  =================
topic       says                         asked of                  fresh for
==========  ===========================  ========================  =================
health      can sandboxes be opened      `/health`                 `live_fresh_ms`
limits      tier, slots, requests/min    `/keys/validate`          `lists_fresh_ms`
languages   what runs now                `/languages`              `lists_fresh_ms`
shells      what a session may have      `/shells`                 `lists_fresh_ms`
cluster     room, all together           `/cluster`                `live_fresh_ms`
pools       room, by pool                `/pools`                  `live_fresh_ms`
prices      what the budget can buy      `/pricing-for-agents`     `lists_fresh_ms`
==========  ===========================  ========================  =================

Promise: at most five signed requests, of the seven a minute that the lowest tier has, and none for
what is fresh; whoever is over its rate is waited for, within the time of the question.  Every
answer carries the time at which it was given; an older one that could not be renewed stays, with
its age, beside the finding that it is missing.  Nothing is made, nothing is spent.

The outcome is a `CapabilityDocument`: hand its `known` to the next `Introspection`.

Source: flows.md f11; platform-api.md 1.8, 4, 10, 12, 14; paper, Flow 11.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from itertools import pairwise
from typing import Any, Literal, TypeVar

import msgspec

from engine.clock import hours, minutes, seconds
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.effects import Call, Effect, effect
from engine.errors import Transient
from engine.events import Event, GaveUp
from engine.retry import Retry
from machines.clients.ports import (
    ClientError,
    Quote,
    Record,
    ReplyLost,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.introspection import Facilities
from machines.flows.keyed import Keyed, credentials_of
from machines.flows.money import platform_of, portal_of

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


A = TypeVar("A")


def is_fresh(context: Inquiry, topic: Topic, now_ms: int) -> bool:
    """Whether an answer need not be asked for again.  One from the future is not believed."""
    found: Any = getattr(context.known, topic)
    if found is None:
        return False
    if topic == "prices" and found.budget_cents != context.budget_cents:
        return False
    limit_ms = context.live_fresh_ms if topic in LIVE else context.lists_fresh_ms
    return bool(0 <= now_ms - found.at_ms < limit_ms)


async def _asked(
    context: Inquiry, call: Call, topic: Topic, ask: Callable[[], Awaitable[A]]
) -> A | Kept | Denied:
    if is_fresh(context, topic, call.now_ms):
        return Kept()
    try:
        return await ask()
    except Unavailable as error:
        if error.kind not in ("unreachable", "rate_limit") and call.attempt >= NOES_MAX:
            return Denied(reason=cut(str(error)))
        raise Transient(str(error), retry_after_ms=error.retry_after_ms) from error
    except ReplyLost as error:
        raise Transient(str(error)) from error
    except Unauthorized as error:
        return Denied(reason=cut(f"the key is refused: {error.reason}"), key_refused=True)
    except ClientError as error:
        return Denied(reason=cut(str(error)))


def _facilities(call: Call) -> Facilities:
    return call.resource(Facilities)  # type: ignore[type-abstract]


@effect(idempotent=True, retry=ASKING)
async def ask_health(context: Inquiry, call: Call) -> Told | Kept | Denied:
    """Whether it is well, and can open sandboxes."""

    async def ask() -> Told:
        seen = await _facilities(call).health()
        health = Health(at_ms=call.now_ms, sandboxes=not seen.problem, problem=seen.problem)
        return Told(topic="health", answer=Known(health=health))

    return await _asked(context, call, "health", ask)


@effect(idempotent=True, retry=ASKING)
async def ask_limits(context: Inquiry, call: Call) -> Told | Kept | Denied:
    """What the key may do."""

    async def ask() -> Told | Denied:
        seen = await platform_of(call).validate_key(credentials_of(context))
        if not seen.valid:
            reason = cut(f"the key is refused: {seen.reason or 'not valid'}")
            return Denied(reason=reason, key_refused=True)
        least = min(seen.tier, seen.concurrency, seen.requests_per_minute)
        if least < 1:
            return Denied(reason=f"a limit of the key is {least}, expected 1 at least")
        limits = Limits(
            at_ms=call.now_ms,
            tier=seen.tier,
            slots=seen.concurrency,
            requests_per_minute=seen.requests_per_minute,
        )
        return Told(topic="limits", answer=Known(limits=limits))

    return await _asked(context, call, "limits", ask)


@effect(idempotent=True, retry=ASKING)
async def ask_languages(context: Inquiry, call: Call) -> Told | Kept | Denied:
    """What runs now."""

    async def ask() -> Told:
        seen = await _facilities(call).languages(credentials_of(context))
        names = Names(at_ms=call.now_ms, names=seen.languages)
        return Told(topic="languages", answer=Known(languages=names))

    return await _asked(context, call, "languages", ask)


@effect(idempotent=True, retry=ASKING)
async def ask_shells(context: Inquiry, call: Call) -> Told | Kept | Denied:
    """What a session may have."""

    async def ask() -> Told:
        seen = await _facilities(call).shells(credentials_of(context))
        names = Names(at_ms=call.now_ms, names=seen.shells)
        return Told(topic="shells", answer=Known(shells=names))

    return await _asked(context, call, "shells", ask)


@effect(idempotent=True, retry=ASKING)
async def ask_cluster(context: Inquiry, call: Call) -> Told | Kept | Denied:
    """How much room there is."""

    async def ask() -> Told:
        seen = await _facilities(call).cluster(credentials_of(context))
        room = Room(at_ms=call.now_ms, available=seen.available, allocated=seen.allocated)
        return Told(topic="cluster", answer=Known(cluster=room))

    return await _asked(context, call, "cluster", ask)


@effect(idempotent=True, retry=ASKING)
async def ask_pools(context: Inquiry, call: Call) -> Told | Kept | Denied:
    """The same, summed up over the pools."""

    async def ask() -> Told:
        seen = await _facilities(call).pools(credentials_of(context))
        total, available = sum(one.total for one in seen), sum(one.available for one in seen)
        room = Room(at_ms=call.now_ms, available=available, allocated=max(0, total - available))
        return Told(topic="pools", answer=Known(pools=room))

    return await _asked(context, call, "pools", ask)


@effect(idempotent=True, retry=ASKING)
async def ask_prices(context: Inquiry, call: Call) -> Told | Kept | Denied:
    """What the budget can buy."""

    async def ask() -> Told | Denied:
        quotes = await portal_of(call).quotes()
        if not quotes:
            return Denied(reason="the portal offers nothing")
        return Told(topic="prices", answer=Known(prices=compared(quotes, context, call.now_ms)))

    return await _asked(context, call, "prices", ask)


def compared(quotes: Iterable[Quote], context: Inquiry, at_ms: int) -> Prices:
    """The table of prices, seen from a budget: for each duration the highest tier it can buy."""
    listed = sorted(quotes, key=lambda quote: (quote.months, quote.tier))
    best = {
        quote.months: Offer(
            tier=quote.tier,
            months=quote.months,
            price_cents=quote.price_cents,
            requests_per_minute=quote.requests_per_minute,
            slots=quote.concurrency,
        )
        for quote in listed
        if quote.price_cents <= context.budget_cents
    }
    return Prices(
        at_ms=at_ms,
        budget_cents=context.budget_cents,
        quotes=len(listed),
        cheapest_cents=min(quote.price_cents for quote in listed),
        offers=tuple(best.values()),
    )


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


def _asking(asks: Effect, **options: Any) -> State:
    """A question: one effect, given up or too late, with the same patience for all."""
    return State(
        effect=asks,
        on_exhausted="given_up",
        timeout="patience",
        on_timeout="too_late",
        **options,
    )


def _in_turn(*states: State) -> Any:
    """From each question to the next."""
    edges = states[0].to(states[1])
    for state, following in pairwise(states[1:]):
        edges |= state.to(following)
    return edges


def _unanswered(partial: State, unreachable: State, *states: State) -> Any:
    """From each question to the next, unless it was the second silence."""
    first, second, *others = states
    edges = first.to(second)
    edges |= second.to(unreachable, cond="nobody_is_there") | second.to(others[0])
    for state, following in pairwise(others):
        edges |= state.to(unreachable, cond="nobody_is_there")
        edges |= state.to(partial, cond="has_fallen_silent") | state.to(following)
    return edges | others[-1].to(unreachable, cond="nobody_is_there") | others[-1].to(partial)


class Introspection(Machine[Inquiry]):
    """Ask the platform what it can do; a partial answer is an answer."""

    payloads = (GivenUp,)

    asking_health = _asking(ask_health, initial=True)
    asking_limits = _asking(ask_limits)
    asking_languages = _asking(ask_languages)
    asking_shells = _asking(ask_shells)
    asking_cluster = _asking(ask_cluster)
    asking_pools = _asking(ask_pools)
    asking_prices = _asking(ask_prices)
    complete = State(final=True, invariant=all_known)
    partial = State(final=True, invariant=something_missing)
    unreachable = State(final=True, failure=True, invariant=nothing_heard)

    told = (
        _in_turn(
            asking_health, asking_limits, asking_languages, asking_shells, asking_cluster,
            asking_pools, asking_prices,
        )
        | asking_prices.to(partial, cond="lacks_something")
        | asking_prices.to(complete)
    )  # fmt: skip
    kept = (
        _in_turn(
            asking_health, asking_limits, asking_languages, asking_shells, asking_cluster,
            asking_pools, asking_prices,
        )
        | asking_prices.to(partial, cond="lacks_something")
        | asking_prices.to(complete)
    )  # fmt: skip
    denied = (
        asking_limits.to(asking_prices, cond="is_for_the_key")
        | _in_turn(
            asking_health, asking_limits, asking_languages, asking_shells, asking_cluster,
            asking_pools, asking_prices,
        )
        | asking_prices.to(partial)
    )  # fmt: skip
    given_up = _unanswered(
        partial, unreachable, asking_health, asking_limits, asking_languages, asking_shells,
        asking_cluster, asking_pools, asking_prices,
    )  # fmt: skip
    too_late = _unanswered(
        partial, unreachable, asking_health, asking_limits, asking_languages, asking_shells,
        asking_cluster, asking_pools, asking_prices,
    )  # fmt: skip

    def patience(self, context: Inquiry) -> int:
        """How long one question may take."""
        return context.asking_ms

    # -- guards ---------------------------------------------------------------------------------

    def lacks_something(self, context: Inquiry) -> bool:
        """A question before this last one has no answer."""
        return bool(context.missing)

    def is_for_the_key(self, event: Denied) -> bool:
        """It would be refused for every other question that takes a key."""
        return event.key_refused

    def has_fallen_silent(self, context: Inquiry) -> bool:
        """This is the second silence, and there was a word."""
        return context.heard > 0 and context.silences + 1 >= SILENCES_MAX

    def nobody_is_there(self, context: Inquiry) -> bool:
        """This is the second silence, and there was never a word."""
        return context.heard == 0 and context.silences + 1 >= SILENCES_MAX

    # -- actions --------------------------------------------------------------------------------

    def on_told(self, context: Inquiry, event: Told) -> Inquiry:
        """Keep the answer to this question; the others stay as they are."""
        answer = {event.topic: getattr(event.answer, event.topic)}
        return self.but(
            context,
            known=msgspec.structs.replace(context.known, **answer),
            asked=context.asked + 1,
            heard=context.heard + 1,
        )

    def on_kept(self, context: Inquiry) -> Inquiry:
        """Nobody was asked, so nobody was silent."""
        return self.but(context, asked=context.asked + 1)

    def on_denied(self, context: Inquiry, event: Denied) -> Inquiry:
        """A no is an answer, too; one for the key is for every question that takes one."""
        ended = context.asked + 1
        missing = [Missing(topic=TOPICS[context.asked], reason=event.reason)]
        if event.key_refused and TOPICS[context.asked] == "limits":
            ended = TOPICS.index("prices")
            left_out = TOPICS[context.asked + 1 : ended]
            missing += [
                Missing(topic=one, reason="not asked: the key is refused") for one in left_out
            ]
        return self.but(
            context,
            missing=(*context.missing, *missing),
            asked=ended,
            heard=context.heard + 1,
        )

    def on_given_up(self, context: Inquiry) -> Inquiry:
        """Keep that there was no answer; what went wrong stands in the journal."""
        return silent(context)

    def on_too_late(self, context: Inquiry) -> Inquiry:
        """Keep that there was no answer in time."""
        return silent(context)

    # -- contracts ------------------------------------------------------------------------------

    @requires(told)
    def answers_the_question(self, context: Inquiry, event: Told) -> bool:
        """The one that was asked, and no other."""
        given = [topic for topic in TOPICS if getattr(event.answer, topic) is not None]
        return given == [event.topic] == [TOPICS[context.asked]]

    @requires(kept)
    def something_is_kept(self, context: Inquiry) -> bool:
        """Only what is known can be fresh."""
        return getattr(context.known, TOPICS[context.asked]) is not None

    @ensures(told, kept, denied, given_up, too_late)
    def no_other_answer_is_touched(self, old: Inquiry, new: Inquiry) -> bool:
        """An answer changes one topic, a silence none: what was known stays, with its age."""
        return all(
            getattr(new.known, topic) == getattr(old.known, topic)
            for number, topic in enumerate(TOPICS)
            if number != old.asked or new.heard == old.heard
        )

    @ensures(told, kept, denied, given_up, too_late)
    def every_question_is_accounted_for(self, old: Inquiry, new: Inquiry) -> bool:
        """What was passed over without an answer is a finding of its own."""
        passed = TOPICS[old.asked : new.asked]
        found = [one.topic for one in new.missing[len(old.missing) :]]
        return bool(passed) and found in ([], list(passed))

    @invariant
    def each_topic_is_missed_once(self, context: Inquiry) -> bool:
        """A finding is said once."""
        topics = [one.topic for one in context.missing]
        return len(set(topics)) == len(topics) <= context.asked <= len(TOPICS)

    @invariant
    def nothing_beyond_the_budget(self, context: Inquiry) -> bool:
        """An offer that cannot be paid is none."""
        prices = context.known.prices
        return prices is None or all(
            0 <= one.price_cents <= prices.budget_cents for one in prices.offers
        )

    def output(self, context: Inquiry) -> CapabilityDocument:
        """What other machines plan with."""
        complete = context.asked == len(TOPICS) and not context.missing
        return CapabilityDocument(known=context.known, missing=context.missing, complete=complete)


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
