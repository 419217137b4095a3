"""Flow 4: prove an identity with a signed call.

::

                 ┌─ accepted ──────────────► authenticated ◄── accepted ──┐
    verifying ───┤                                                        │
       │         ├─ out_of_step, server's time known ──► resyncing ───────┤
       │         │                                           │            │
       │         └─ out_of_step, no time, or far off ──┐     │ out_of_step│ denied, nobody_answers
       │ denied                                        ▼     ▼            ▼
       ├──► rejected, expired, suspended, rotated    skewed ◄┘   (as from verifying)
       └ nobody_answers ──► unreachable

Promise: the secret signs and never travels, and shows up in no text.  A signature counts for 300 s
on either side of the server's time; when ours is off, the offset is measured from the `Date` of the
refusal and the call is made once more, once only, with the corrected time; the machine's own clock
is never touched.  An offset above `offset_ms_max` is not followed: a signature for a far-off time
would be good for whoever recorded it, then.  A known key whose signature is refused was `rotated`
if it had been proven before (`proven_before`), otherwise it is `rejected`.

Source: platform-api.md 1.1, 10 and 18; paper, Flow 4.
"""

from __future__ import annotations

from typing import Literal

from engine.clock import hours, minutes
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.effects import Call, effect
from engine.events import Context, Event, GaveUp
from engine.retry import Retry
from engine.secret import Secret
from machines.clients.ports import (
    Credentials,
    KeyInfo,
    NotFound,
    Record,
    Rejected,
    Unauthorized,
)
from machines.flows.money import asking, platform_of

Reason = Literal["invalid_key", "invalid_signature", "expired", "suspended", "other"]
"""Why a key is refused."""
OFFSET_MS_MAX = hours(24)
"""A clock that is further off than this is not corrected but reported."""


class Proof(Context):
    """Whose identity to prove, and what was learnt.

    Args:
        proven_before: the key has worked earlier, so a bad signature means a new secret exists.
        offset_ms: server's time less ours, as measured; added to our time when signing.
    """

    public_key: str
    secret_key: Secret[str]
    proven_before: bool = False
    offset_ms_max: int = OFFSET_MS_MAX
    timeout_ms: int = minutes(10)
    offset_ms: int = 0
    resyncs: int = 0
    tier: int = 0
    concurrency: int = 0
    requests_per_minute: int = 0
    reason: str = ""


class Identity(Record):
    """What a proven key may do, and how far our clock is off."""

    offset_ms: int
    tier: int
    concurrency: int
    requests_per_minute: int


class Accepted(Event, tag="accepted"):
    """The platform knows the key and the signature fits."""

    tier: int
    concurrency: int
    requests_per_minute: int


class OutOfStep(Event, tag="out_of_step"):
    """The signature's time was refused; `server_ms` is the server's own, if it said."""

    server_ms: int | None
    local_ms: int


class Denied(Event, tag="denied"):
    """The platform refuses the key, for good."""

    reason: Reason
    detail: str


class Unanswered(GaveUp, tag="unanswered"):
    """No answer after all attempts."""


@effect(idempotent=True, retry=Retry(attempts=30, first_ms=500, max_ms=15_000))
async def prove(context: Proof, call: Call) -> Accepted | OutOfStep | Denied:
    """Sign a call and let the platform judge it."""
    credentials = Credentials(public_key=context.public_key, secret_key=context.secret_key)
    with asking("validate key"):
        try:
            known = await platform_of(call).validate_key(credentials, offset_ms=context.offset_ms)
        except Unauthorized as error:
            if error.reason == "invalid_timestamp":
                return OutOfStep(server_ms=error.server_ms, local_ms=call.now_ms)
            return _denied(error.reason)
        except (Rejected, NotFound) as error:
            return Denied(reason="other", detail=str(error))
    return _judged(known)


def _judged(known: KeyInfo) -> Accepted | Denied:
    if not known.valid:
        return _denied(known.reason or "other")
    if min(known.tier, known.concurrency, known.requests_per_minute) < 1:
        return Denied(
            reason="other",
            detail=f"the key is valid, but of tier {known.tier} with {known.concurrency} slots "
            f"and {known.requests_per_minute} requests a minute: expected 1 of each at least",
        )
    return Accepted(
        tier=known.tier,
        concurrency=known.concurrency,
        requests_per_minute=known.requests_per_minute,
    )


def _denied(reason: str) -> Denied:
    match reason:
        case "invalid_key" | "invalid_signature" | "expired" | "suspended":
            return Denied(reason=reason, detail=reason)
        case _:
            return Denied(reason="other", detail=reason)


class Authentication(Machine[Proof]):
    """Prove one key, correcting our clock by the server's at most once."""

    payloads = (Unanswered,)

    verifying = State(
        initial=True,
        effect=prove,
        on_exhausted="unanswered",
        timeout="patience",
        on_timeout="nobody_answers",
    )
    resyncing = State(
        effect=prove, on_exhausted="unanswered", timeout="patience", on_timeout="nobody_answers"
    )
    authenticated = State(final=True, invariant="is_known")
    skewed = State(final=True, failure=True)
    rejected = State(final=True, failure=True)
    expired = State(final=True, failure=True)
    suspended = State(final=True, failure=True)
    rotated = State(final=True, failure=True, invariant="was_proven_before")
    unreachable = State(final=True, failure=True)

    accepted = verifying.to(authenticated) | resyncing.to(authenticated)
    out_of_step = (
        verifying.to(resyncing, cond="can_be_corrected", on="measure_offset")
        | verifying.to(skewed, on="note_skew")
        | resyncing.to(skewed, on="note_skew")
    )
    denied = (
        verifying.to(expired, cond="is_expired")
        | verifying.to(suspended, cond="is_suspended")
        | verifying.to(rotated, cond="has_a_newer_secret")
        | verifying.to(rejected)
        | resyncing.to(expired, cond="is_expired")
        | resyncing.to(suspended, cond="is_suspended")
        | resyncing.to(rotated, cond="has_a_newer_secret")
        | resyncing.to(rejected)
    )
    unanswered = verifying.to(unreachable) | resyncing.to(unreachable)
    nobody_answers = verifying.to(unreachable) | resyncing.to(unreachable)

    def patience(self, context: Proof) -> int:
        return context.timeout_ms

    def can_be_corrected(self, context: Proof, event: OutOfStep) -> bool:
        if event.server_ms is None:
            return False
        return abs(event.server_ms - event.local_ms) <= context.offset_ms_max

    def is_expired(self, event: Denied) -> bool:
        return event.reason == "expired"

    def is_suspended(self, event: Denied) -> bool:
        return event.reason == "suspended"

    def has_a_newer_secret(self, context: Proof, event: Denied) -> bool:
        return event.reason == "invalid_signature" and context.proven_before

    def measure_offset(self, context: Proof, event: OutOfStep) -> Proof:
        server_ms = event.local_ms if event.server_ms is None else event.server_ms
        offset_ms = server_ms - event.local_ms
        return self.but(context, offset_ms=offset_ms, resyncs=context.resyncs + 1)

    def note_skew(self, context: Proof, event: OutOfStep) -> Proof:
        if event.server_ms is None:
            return self.but(context, reason="our clock is off, and the server does not tell its")
        off_ms = event.server_ms - event.local_ms
        side = "behind" if off_ms > 0 else "ahead of"
        return self.but(context, reason=f"our clock is {abs(off_ms)} ms {side} the server's")

    def on_accepted(self, context: Proof, event: Accepted) -> Proof:
        return self.but(
            context,
            tier=event.tier,
            concurrency=event.concurrency,
            requests_per_minute=event.requests_per_minute,
        )

    def on_denied(self, context: Proof, event: Denied) -> Proof:
        return self.but(context, reason=event.detail)

    def on_unanswered(self, context: Proof, event: Unanswered) -> Proof:
        return self.but(context, reason=event.reason)

    @requires(accepted)
    def offers_something(self, event: Accepted) -> bool:
        """Tier, slots and rate of a real key (platform-api.md 14)."""
        return event.tier >= 1 and event.concurrency >= 1 and event.requests_per_minute >= 1

    @ensures(out_of_step)
    def offset_is_the_servers(self, old: Proof, new: Proof, event: OutOfStep) -> bool:
        """Measured, never drifting: the offset used is the one the server's time shows."""
        if new.resyncs == old.resyncs:
            return new.offset_ms == old.offset_ms
        return event.server_ms is not None and event.local_ms + new.offset_ms == event.server_ms

    @invariant
    def resyncs_once(self, context: Proof) -> bool:
        return context.resyncs <= 1

    @invariant
    def offset_is_bounded(self, context: Proof) -> bool:
        return abs(context.offset_ms) <= context.offset_ms_max

    def is_known(self, context: Proof) -> bool:
        return context.tier >= 1

    def was_proven_before(self, context: Proof) -> bool:
        return context.proven_before

    def output(self, context: Proof) -> Identity | None:
        if context.tier < 1:
            return None
        return Identity(
            offset_ms=context.offset_ms,
            tier=context.tier,
            concurrency=context.concurrency,
            requests_per_minute=context.requests_per_minute,
        )
