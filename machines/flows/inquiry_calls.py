"""What flow 11 asks of the platform and its portal: seven questions that change nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from engine.effects import Call, effect
from engine.errors import Transient
from machines.clients.ports import (
    ClientError,
    Quote,
    ReplyLost,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.introspection import Facilities
from machines.flows.inquiry import (
    ASKING,
    LIVE,
    NOES_MAX,
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
    cut,
)
from machines.flows.keyed import credentials_of, later
from machines.flows.money import platform_of, portal_of

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
        raise later(error) from error
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
