"""A run of flow 12: what is promised at each level, what is seen from inside, what it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from engine.clock import minutes
from engine.events import Event, GaveUp
from machines.clients.ports import Record
from machines.flows import wall_probes
from machines.flows.keyed import Keyed

Level = Literal["zerotrust", "semitrusted"]
Seen = Literal["open", "closed", "inconclusive"]
Verdict = Literal["", "proven", "breached", "inconclusive", "lost"]

PROBES: tuple[str, ...] = tuple(probe.__name__ for probe in wall_probes.PROBES)
PROMISES: Mapping[Level, Mapping[str, Seen]] = {
    "zerotrust": dict.fromkeys(PROBES, "closed"),
    "semitrusted": {**dict.fromkeys(PROBES, "closed"), "proxy": "open"},
}
"""What each probe must see at each level."""
REASON_CHARACTERS_MAX = 300
SESSION_SECONDS = 3600
MAY_BE_LEFT = "one may live on to its ttl"


class Sight(Record):
    """What one probe saw from inside, in the session's own words."""

    probe: str
    seen: Seen
    detail: str = ""


class Trial(Keyed):
    """What is wanted (first seven), and what has been seen.

    Args:
        trust: a level, or `least`: the smaller one that serves.
        needs_platform: code inside must reach the platform.
        keep: hand the session over when it is proven; otherwise it is ended.
        opening_ms: how long a slot is waited for.
        probing_ms: how long the probes may take, with all repetitions.
    """

    trust: Literal["zerotrust", "semitrusted", "least"] = "least"
    needs_platform: bool = False
    keep: bool = True
    ttl_seconds: int = SESSION_SECONDS
    opening_ms: int = minutes(10)
    reading_ms: int = minutes(5)
    probing_ms: int = minutes(5)
    session_id: str = ""
    last_session_id: str = ""
    verdict: Verdict = ""
    sights: tuple[Sight, ...] = ()
    hits: int = 0
    reason: str = ""


class TrustReport(Record):
    """The outcome.  `session_id` is a live session if proven and kept, else empty."""

    trust: Level
    verdict: Verdict
    session_id: str
    sights: tuple[Sight, ...]
    hits: int
    reason: str


class Opened(Event, tag="opened"):
    """A session exists."""

    session_id: str


class NotOpened(GaveUp, tag="not_opened"):
    """The platform gave no session, or nobody knows."""


class Withdrawn(Event, tag="withdrawn"):
    """No session is left of the one that was asked for."""


class NotWithdrawn(GaveUp, tag="not_withdrawn"):
    """Nobody can say whether a session is left; one that there is ends with its time."""


class Promised(Event, tag="promised"):
    """What the platform itself says the session may reach."""

    network_mode: str


class Unread(GaveUp, tag="unread"):
    """The platform does not say what the session may reach."""


class Probed(Event, tag="probed"):
    """The probes ran, or what ran said nothing that makes sense (`problem`)."""

    sights: tuple[Sight, ...]
    hits: int
    problem: str = ""


class Unprobed(GaveUp, tag="unprobed"):
    """The probes could not be run."""


class SessionLost(Event, tag="session_lost"):
    """The session ended before it was proven."""


class Gone(Event, tag="gone"):
    """The session is ended."""


def chosen(context: Trial) -> Level:
    """The level: the one asked for, or the least that serves."""
    if context.trust == "least":
        return "semitrusted" if context.needs_platform else "zerotrust"
    return context.trust


def leaks(context: Trial, sights: tuple[Sight, ...], hits: int) -> tuple[str, ...]:
    """What got through that the level promises to keep in."""
    promise = PROMISES[chosen(context)]
    found = [
        f"{one.probe}: {one.detail}"
        for one in sights
        if one.seen == "open" and promise.get(one.probe) == "closed"
    ]
    return (*found, *([f"{hits} visits to this host's canaries"] if hits else []))


def doubts(context: Trial, sights: tuple[Sight, ...]) -> tuple[str, ...]:
    """What was not seen as promised, without being a leak."""
    seen = {one.probe: one for one in sights}
    return tuple(
        f"{probe}: {seen[probe].seen if probe in seen else 'not tried'}, promised {expected}"
        for probe, expected in PROMISES[chosen(context)].items()
        if probe not in seen or seen[probe].seen != expected
    )


def judge(context: Trial, event: Probed) -> Verdict:
    """What the evidence comes to: any leak, else any doubt, else a proof."""
    if leaks(context, event.sights, event.hits):
        return "breached"
    return "inconclusive" if event.problem or doubts(context, event.sights) else "proven"


def cut(text: str) -> str:
    """As much as a reason may say."""
    return text[:REASON_CHARACTERS_MAX]


def ended(context: Trial) -> bool:
    """No session is left behind."""
    return context.session_id == ""


def says_why(context: Trial) -> bool:
    """A run without a proof names its reason, and leaves no session."""
    return bool(context.reason) and ended(context)


def stands_as_promised(context: Trial) -> bool:
    """Every probe was seen as promised; the session is the caller's, or it is gone."""
    proven = not leaks(context, context.sights, context.hits) and not doubts(
        context, context.sights
    )
    return proven and bool(context.session_id) == context.keep
