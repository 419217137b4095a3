"""What a platform may answer an `Authentication`, for its verification.

A key that works, with the least that counts as an offer; every refusal that has a name of its own;
a clock that is off by nothing known, by the most that is followed, to either side, or by one more.
The patience ends between the first retry and the second.

Of each event the first payload is the one with which the run is lost to another worker meanwhile,
so another one comes first for a proven key, and on a retry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.secret import Secret
from engine.verification.environment import (
    Done,
    Environment,
    always,
    payloads,
    sometimes,
)
from engine.verification.result import Scope
from machines.flows.f04_authentication import (
    Accepted,
    Authentication,
    Denied,
    OutOfStep,
    Proof,
    Reason,
)

OFFSET_MS_MAX = 1_000
TIMEOUT_MS = 750
REASONS: tuple[Reason, ...] = (
    "expired",
    "suspended",
    "invalid_signature",
    "invalid_key",
    "other",
)
CAUSES: dict[str, frozenset[Reason]] = {
    "expired": frozenset({"expired"}),
    "suspended": frozenset({"suspended"}),
    "rotated": frozenset({"invalid_signature"}),
    "rejected": frozenset({"invalid_key", "invalid_signature", "other"}),
}
"""Which refusals may end a run in which state."""


class OfAuthentication(Environment):
    """A platform with a clock and an opinion of its own."""

    machine = Authentication
    scope = Scope(contexts=2, messages=1, cancels=True)

    def contexts(self) -> Iterator[Proof]:
        """A new key, and one that has worked before."""
        for proven_before in (False, True):
            yield Proof(
                public_key="key",
                secret_key=Secret("secret"),
                proven_before=proven_before,
                offset_ms_max=OFFSET_MS_MAX,
                timeout_ms=TIMEOUT_MS,
            )

    @payloads("accepted")
    def offers(self) -> Iterator[Accepted]:
        """The least; the flow calls less than that a refusal."""
        yield Accepted(tier=1, concurrency=1, requests_per_minute=1)

    @payloads("out_of_step")
    def clocks(self, context: Proof, now_ms: int) -> Iterator[OutOfStep]:
        """No time told; as far off as is followed, to either side; one millisecond more."""
        most_ms = context.offset_ms_max
        off = [None, most_ms, -most_ms, most_ms + 1]
        turn = int(now_ms > 0)
        for off_ms in (*off[turn:], *off[:turn]):
            server_ms = None if off_ms is None else now_ms + off_ms
            yield OutOfStep(server_ms=server_ms, local_ms=now_ms)

    @payloads("denied")
    def refusals(self, context: Proof, now_ms: int) -> Iterator[Denied]:
        """Every reason."""
        turn = 2 * context.proven_before + (now_ms > 0)
        for reason in (*REASONS[turn:], *REASONS[:turn]):
            yield Denied(reason=reason, detail=reason)

    @always
    def asks_with_two_clocks_at_most(self, done: Sequence[Done]) -> bool:
        """Ours, and ours corrected; a third would be for whoever recorded the second."""
        return len({one.key for one in done}) <= 2

    @always
    def is_authenticated_by_the_platform_alone(self, state: str, done: Sequence[Done]) -> bool:
        """No way to be known but its word."""
        return state != "authenticated" or any(isinstance(one.event, Accepted) for one in done)

    @always
    def ends_for_the_reason_given(self, state: str, context: Proof, done: Sequence[Done]) -> bool:
        """A refusal, or a clock, that the platform did tell of; and the run says which."""
        if state == "skewed":
            return context.reason != "" and any(isinstance(one.event, OutOfStep) for one in done)
        given = {one.event.reason for one in done if isinstance(one.event, Denied)}
        return state not in CAUSES or context.reason in CAUSES[state] & given

    @always
    def offset_was_measured(self, context: Proof, done: Sequence[Done]) -> bool:
        """What is added when signing is what a refusal showed."""
        shown = [
            one.event.server_ms - one.event.local_ms
            for one in done
            if isinstance(one.event, OutOfStep) and one.event.server_ms is not None
        ]
        return context.offset_ms in (0, *shown)

    @sometimes
    def is_authenticated_with_a_corrected_clock(self, state: str, context: Proof) -> bool:
        """What the second call is for."""
        return state == "authenticated" and context.offset_ms != 0

    @sometimes
    def is_rotated_after_a_correction(self, state: str, context: Proof) -> bool:
        """A wrong signature and a wrong clock, told apart."""
        return state == "rotated" and context.resyncs == 1
