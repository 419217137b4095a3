"""What an agent's plan asks of portal and platform; each call is harmless to repeat."""

from __future__ import annotations

from engine.clock import minutes
from engine.effects import Call, effect
from engine.errors import Permanent
from engine.retry import Retry
from machines.clients.ports import NotFound
from machines.clients.ports.sessions import SessionOrder, Sessions
from machines.flows.agent_plan import (
    Cleared,
    Ended,
    Frozen,
    Lost,
    NotOffered,
    Opened,
    Plan,
    Priced,
    Ran,
    Woken,
)
from machines.flows.keyed import PATIENT, calling, credentials_of
from machines.flows.money import platform_of, portal_of, watching

STDOUT_CHARACTERS_MAX = 10_000
"""What a sandbox says is not trusted."""
SHELL = "python3"


def sessions_of(call: Call) -> Sessions:
    """The sessions of the API host this program talks to."""
    return call.resource(Sessions)  # type: ignore[type-abstract]


@effect(idempotent=True, retry=Retry(attempts=1_000_000_000, first_ms=500, max_ms=15_000))
async def learn_price(context: Plan, call: Call) -> Priced | NotOffered:
    """Look the wanted key up in the portal's table."""
    with watching("read prices"):
        quotes = await portal_of(call).quotes()
    for quote in quotes:
        if (quote.tier, quote.months) == (context.tier, context.months):
            return Priced(price_cents=quote.price_cents)
    return NotOffered()


@effect(idempotent=True, retry=PATIENT)
async def open_session(context: Plan, call: Call) -> Opened:
    """Make the sandbox; the same key gives the same one."""
    order = SessionOrder(
        shell=SHELL,
        network_mode=context.network_mode,
        ttl_seconds=context.session_ttl_seconds,
        vcpu=1,
    )
    with calling():
        made = await sessions_of(call).create(credentials_of(context), order, key=call.key)
    return Opened(session_id=made.session_id)


@effect(idempotent=True, retry=PATIENT)
async def clear_sessions(context: Plan, call: Call) -> Cleared:
    """End every sandbox of the key, which is this plan's own: at most one nobody told us of."""
    platform, credentials = platform_of(call), credentials_of(context)
    with calling():
        for session in await platform.sessions(credentials):
            await platform.delete_session(credentials, session.session_id)
    return Cleared()


async def _run(context: Plan, call: Call, code: str) -> Ran | Lost:
    with calling():
        try:
            done = await sessions_of(call).run(
                credentials_of(context),
                context.session_id,
                code,
                timeout_ms=context.program_ms,
                key=call.key,
            )
        except NotFound:
            return Lost()
    if done.exit_code is None:
        raise Permanent(f"the program was {done.status}, not run to its end")
    return Ran(stdout=done.stdout[:STDOUT_CHARACTERS_MAX], exit_code=done.exit_code)


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(3))
async def run_first(context: Plan, call: Call) -> Ran | Lost:
    """Run the first program; the same key runs it once."""
    return await _run(context, call, context.first_code)


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(3))
async def run_second(context: Plan, call: Call) -> Ran | Lost:
    """Run the second program; the same key runs it once."""
    return await _run(context, call, context.second_code)


@effect(idempotent=True, retry=PATIENT)
async def freeze(context: Plan, call: Call) -> Frozen | Lost:
    """Stop the sandbox's clock."""
    with calling():
        try:
            await sessions_of(call).freeze(credentials_of(context), context.session_id)
        except NotFound:
            return Lost()
    return Frozen()


@effect(idempotent=True, retry=PATIENT)
async def unfreeze(context: Plan, call: Call) -> Woken | Lost:
    """Let the sandbox go on."""
    with calling():
        try:
            await sessions_of(call).unfreeze(credentials_of(context), context.session_id)
        except NotFound:
            return Lost()
    return Woken()


@effect(idempotent=True, retry=PATIENT)
async def end_session(context: Plan, call: Call) -> Ended:
    """End the sandbox; no error when it is gone."""
    with calling():
        await platform_of(call).delete_session(credentials_of(context), context.session_id)
    return Ended()
