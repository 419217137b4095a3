"""What a platform and a session may show to `Trust`; `turtles verify Trust` tries it all.

A session at either level; the lower one is handed over when it is proven, the other is ended.
What the probes see is as promised, or differs in one thing: a proxy that is open or silent where
the other was promised, an answer that is none, a visit to a canary while the session claims that
all is closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, payloads, sometimes
from engine.verification.result import Scope
from machines.flows.f12_trust import Trust
from machines.flows.trial import (
    MAY_BE_LEFT,
    PROMISES,
    Gone,
    Opened,
    Probed,
    Promised,
    SessionLost,
    Sight,
    Trial,
    Withdrawn,
    chosen,
)

WAIT_MS = 100  # over before the second attempt


class OfTrust(Environment):
    """A platform that keeps its promises, or does not, and sessions that tell of it."""

    machine = Trust
    scope = Scope(contexts=2, messages=0, cancels=True, attempts=2)

    def contexts(self) -> Iterator[Trial]:
        """The least level, kept; the other one, proven for the proof's sake."""
        for needs_platform in (False, True):
            yield Trial(
                public_key="key",
                secret_key=Secret("secret"),
                needs_platform=needs_platform,
                keep=not needs_platform,
                opening_ms=WAIT_MS,
                reading_ms=WAIT_MS,
                probing_ms=WAIT_MS,
            )

    @payloads("opened")
    def sessions(self) -> Iterator[Opened]:
        """One session."""
        yield Opened(session_id="session")

    @payloads("promised")
    def promises(self, context: Trial) -> Iterator[Promised]:
        """What was asked for, and the other one."""
        yield Promised(network_mode=chosen(context))
        yield Promised(network_mode="semitrusted" if context.keep else "zerotrust")

    @payloads("probed")
    def sights(self, context: Trial) -> Iterator[Probed]:
        """As promised; a leak; a doubt; a visit that the session does not tell of; nonsense."""
        kept = as_promised(context)
        yield Probed(sights=kept, hits=0)
        if context.keep:
            yield Probed(sights=but(kept, "proxy", "open"), hits=0)
            yield Probed(sights=kept, hits=1)
            yield Probed(sights=(), hits=0, problem="nonsense")
        else:
            yield Probed(sights=but(kept, "proxy", "closed"), hits=0)

    @payloads("session_lost")
    def ends(self) -> Iterator[SessionLost]:
        """It died with its platform, or its time was over."""
        yield SessionLost()

    @payloads("gone")
    def releases(self) -> Iterator[Gone]:
        """It is gone."""
        yield Gone()

    @payloads("withdrawn")
    def withdrawals(self) -> Iterator[Withdrawn]:
        """None was there, or it is gone."""
        yield Withdrawn()

    # -- what must hold, by the ledger of the outside ---------------------------------------------

    @always
    def no_session_without_a_proof(self, status: str, context: Trial, done: Sequence[Done]) -> bool:
        """A run that failed has ended or withdrawn what it opened, or says that it cannot tell."""
        if status != "failed" or not made(done, "open_session") or MAY_BE_LEFT in context.reason:
            return True
        return bool(made(done, "end_session") or made(done, "withdraw"))

    @always
    def proven_by_probes_alone(self, state: str, context: Trial, done: Sequence[Done]) -> bool:
        """No way to a proof but all of the probes, seen as promised, and no visit."""
        wanted = as_promised(context)
        return state != "proven" or any(
            isinstance(one.event, Probed) and one.event.sights == wanted and one.event.hits == 0
            for one in done
        )

    @always
    def breached_by_evidence(self, state: str, context: Trial, done: Sequence[Done]) -> bool:
        """A leak that was seen, or a promise that was none."""
        if state != "breached":
            return True
        return any(
            (isinstance(one.event, Probed) and one.event.sights == context.sights)
            or (isinstance(one.event, Promised) and one.event.network_mode != chosen(context))
            for one in done
        )

    @always
    def hands_over_what_is_wanted(self, state: str, context: Trial, done: Sequence[Done]) -> bool:
        """The caller's session lives, one that is not kept is ended."""
        ended = made(done, "end_session")
        return state != "proven" or (bool(context.session_id) == context.keep != bool(ended))

    # -- what should be seen ----------------------------------------------------------------------

    @sometimes
    def proven_and_handed_over(self, state: str, context: Trial) -> bool:
        """The session is the caller's."""
        return state == "proven" and context.session_id != ""

    @sometimes
    def proven_semitrusted(self, state: str, context: Trial) -> bool:
        """One way out, and it was there."""
        return state == "proven" and chosen(context) == "semitrusted"

    @sometimes
    def betrayed_by_a_canary(self, state: str, context: Trial) -> bool:
        """The session claimed that all was closed."""
        return state == "breached" and context.sights == as_promised(context)

    @sometimes
    def breached_without_a_probe(self, state: str, context: Trial) -> bool:
        """The platform promised another level than was asked for."""
        return state == "breached" and context.sights == ()

    @sometimes
    def cancelled_with_a_session(self, status: str, done: Sequence[Done]) -> bool:
        """What was opened is ended before the run is."""
        return status == "cancelled" and bool(made(done, "open_session"))


def as_promised(context: Trial) -> tuple[Sight, ...]:
    """Every probe of a sandbox that keeps what its level promises."""
    promise = PROMISES[chosen(context)]
    return tuple(Sight(probe=probe, seen=seen) for probe, seen in promise.items())


def but(sights: tuple[Sight, ...], probe: str, seen: str) -> tuple[Sight, ...]:
    """The same, with another sight of one probe."""
    return tuple(
        msgspec.structs.replace(one, seen=seen, detail="differs") if one.probe == probe else one
        for one in sights
    )


def made(done: Sequence[Done], effect: str) -> int:
    """Under how many keys the outside has done calls of an effect."""
    return len({one.key for one in done if one.effect == effect})
