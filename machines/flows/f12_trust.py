"""Flow 12, trust levels: choose one, open a session at it, and prove the walls from inside.

::

    requested ──opened──► created ──promised──► probing ──probed──► proven
        │                    │ promised less,      │ something is open that
        │ not_opened,        │ unread, lost        │ should be closed; probes
        │ no_slot_in_time    │                     │ that could not run; lost
        ▼                    ▼                     ▼
    withdrawing           destroying ◄─────────────┘ (also a proven one that is not kept)
        │                    │ gone
        ▼                    ▼
     refused              breached | inconclusive | lost | proven

The level is the least that serves: `zerotrust` (no network at all), unless code inside must reach
the platform (`needs_platform`): `semitrusted`, where one proxy is the only way out, and answers 403
for everything that its allow list does not name.  From inside the session `wall_probes` tries the
walls; what it sees is compared with the level's promise (`PROMISES`), probe by probe, and beside
it this host's canaries count who came (`canaries.py`).

Promise: `proven` takes every probe, seen as promised, and no visit to a canary; a probe that is
missing, could not run, or makes no sense gives `inconclusive`, never `proven`.  A session that is
`breached`, `inconclusive` or `lost` is destroyed before the run ends so, and a session of which
nobody told us is found by its key and ended (`withdrawing`).  One that is proven is handed over
(`keep`), and is the caller's from then on.  A breach is an end, so that a parent hears of it at
once, with the evidence; a breached session that *cannot be destroyed* quarantines the run: that
is what takes a person.

What this cannot show: the probes run inside, so a sandbox that lies (one whose `python3` is not
python) can claim walls that are not there; only what it opens towards the canaries of this host
would tell.  And it shows the walls of now, not of later.

Source: flows.md f12; paper, Flow 12; isolation.md 8 and 12.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from engine.clock import minutes
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.effects import Call, effect
from engine.errors import Transient
from engine.events import Event, GaveUp
from machines.clients.ports import ClientError, NotFound, Record, Rejected, Unavailable
from machines.clients.ports.introspection import Facilities
from machines.flows import wall_probes
from machines.flows.canaries import Canaries
from machines.flows.keyed import PATIENT, Keyed, credentials_of, later
from machines.flows.money import platform_of

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


def _key(call: Call) -> str:
    """One session for one run, so that one nobody told us of can be found again."""
    return f"trust-{call.run_id}"


async def _open(context: Trial, call: Call) -> str:
    session = await platform_of(call).create_session(  # noqa: S604 - the name of a shell
        credentials_of(context),
        shell="bash",
        network_mode=chosen(context),
        ttl_seconds=context.ttl_seconds,
        key=_key(call),
    )
    return session.session_id


@effect(idempotent=True, retry=PATIENT)
async def open_session(context: Trial, call: Call) -> Opened:
    """Create the session; the same key gives the same one."""
    try:
        return Opened(session_id=await _open(context, call))
    except ClientError as error:
        raise later(error) from error


@effect(idempotent=True, retry=PATIENT)
async def withdraw(context: Trial, call: Call) -> Withdrawn:
    """Ask once more under the same key, which gives the session that there may be, and end it."""
    try:
        session_id = await _open(context, call)
        await platform_of(call).delete_session(credentials_of(context), session_id)
    except Rejected:
        return Withdrawn()  # an order that is refused has made nothing
    except ClientError as error:
        # Without a free slot none is made; the one that there may be would have been given again.
        if isinstance(error, Unavailable) and error.kind == "concurrency":
            return Withdrawn()
        raise later(error) from error
    return Withdrawn()


@effect(idempotent=True, retry=PATIENT)
async def end_session(context: Trial, call: Call) -> Gone:
    """End the session; no error when it is gone."""
    if not context.session_id:
        return Gone()
    try:
        await platform_of(call).delete_session(credentials_of(context), context.session_id)
    except ClientError as error:
        raise later(error) from error
    return Gone()


@effect(idempotent=True, retry=PATIENT)
async def read_promise(context: Trial, call: Call) -> Promised | SessionLost:
    """What the platform says of the session it made."""
    facilities = call.resource(Facilities)  # type: ignore[type-abstract]
    try:
        mode = await facilities.network_mode(credentials_of(context), context.session_id)
    except NotFound:
        return SessionLost()
    except ClientError as error:
        raise later(error) from error
    return SessionLost() if mode == "terminated" else Promised(network_mode=mode)


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(2))
async def probe_walls(context: Trial, call: Call) -> Probed | SessionLost:
    """Try the walls from inside, while this host's canaries listen.

    Every attempt asks anew: the answer to an earlier one would tell of canaries that are gone.
    """
    canaries = call.resource(Canaries)  # type: ignore[type-abstract]
    try:
        async with canaries.placed() as canary:
            done = await platform_of(call).execute(
                credentials_of(context),
                context.session_id,
                wall_probes.command(canary.ask()),
                key=f"{call.key}-{call.attempt}",
            )
    except NotFound:
        return SessionLost()
    except ClientError as error:
        raise later(error) from error
    except OSError as error:
        raise Transient(f"no canary can be placed: {error}") from error
    sights, problem = read_sights(done.stdout, canary.nonce)
    if done.exit_code != 0:
        problem = f"the probes exited {done.exit_code}"
    return Probed(sights=sights, hits=canary.hits, problem=problem)


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    """The shape of `wall_probes.tried`."""

    nonce: str
    sights: dict[str, tuple[Seen, str]]


def read_sights(stdout: str, nonce: str) -> tuple[tuple[Sight, ...], str]:
    """What a session says that it saw, and what is wrong with that; it may say anything.

    Args:
        nonce: what it was asked with; an answer to another question is none.
    """
    if len(stdout) > wall_probes.ANSWER_BYTES_MAX:
        return (), f"the probes said {len(stdout)} characters"
    try:
        told = msgspec.json.decode(stdout, type=_Told)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return (), "the probes said nothing that makes sense"
    if told.nonce != nonce:
        return (), "the probes answered another question"
    strange = sorted(told.sights.keys() - set(PROBES))
    if strange:
        return (), f"the probes tell of {len(strange)} things that nobody asked"
    return tuple(
        Sight(probe=probe, seen=told.sights[probe][0], detail=_shown(told.sights[probe][1]))
        for probe in PROBES
        if probe in told.sights
    ), ""


def _shown(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)[:120]


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


class Trust(Machine[Trial]):
    """Open a session at the least level of trust that serves, and prove its walls from inside."""

    requested = State(
        initial=True,
        effect=open_session,
        compensation=end_session,
        on_exhausted="not_opened",
        timeout="opening",
        on_timeout="no_slot_in_time",
    )
    withdrawing = State(effect=withdraw, on_exhausted="not_withdrawn", cancellable=False)
    created = State(
        effect=read_promise, on_exhausted="unread", timeout="reading", on_timeout="unread_in_time"
    )
    probing = State(
        effect=probe_walls, on_exhausted="unprobed", timeout="patience", on_timeout="probes_stuck"
    )
    # Without `on_exhausted`: a session that cannot be ended takes a person.
    destroying = State(effect=end_session, undoes="requested", cancellable=False)
    proven = State(final=True, invariant=stands_as_promised)
    breached = State(final=True, failure=True, invariant=says_why)
    inconclusive = State(final=True, failure=True, invariant=says_why)
    lost = State(final=True, failure=True, invariant=says_why)
    refused = State(final=True, failure=True, invariant=says_why)

    opened = requested.to(created)
    not_opened = requested.to(withdrawing)
    no_slot_in_time = requested.to(withdrawing)
    withdrawn = withdrawing.to(refused)
    not_withdrawn = withdrawing.to(refused)
    promised = created.to(probing, cond="is_promised") | created.to(
        destroying, on="note_another_promise"
    )
    unread = created.to(destroying)
    unread_in_time = created.to(destroying)
    session_lost = created.to(destroying) | probing.to(destroying)
    probed = probing.to(  # turtles: ignore[V007] only all probes together make it true
        proven, cond="is_proven and is_kept"
    ) | probing.to(destroying)
    unprobed = probing.to(destroying)
    probes_stuck = probing.to(destroying)
    gone = (
        destroying.to(breached, cond="was_breached")
        | destroying.to(lost, cond="was_lost")
        | destroying.to(proven, cond="was_proven")
        | destroying.to(inconclusive)
    )

    # -- times ----------------------------------------------------------------------------------

    def opening(self, context: Trial) -> int:
        """How long a slot is waited for."""
        return context.opening_ms

    def reading(self, context: Trial) -> int:
        """How long the platform may keep its promise to itself."""
        return context.reading_ms

    def patience(self, context: Trial) -> int:
        """How long the probes may take."""
        return context.probing_ms

    # -- guards ---------------------------------------------------------------------------------

    def is_promised(self, context: Trial, event: Promised) -> bool:
        """The platform says of the session what it was asked for."""
        return event.network_mode == chosen(context)

    def is_proven(self, context: Trial, event: Probed) -> bool:
        """Every probe saw what was promised, and nobody came to a canary."""
        return judge(context, event) == "proven"

    def is_kept(self, context: Trial) -> bool:
        """The session is wanted."""
        return context.keep

    def was_breached(self, context: Trial) -> bool:
        """Something was open that should be closed."""
        return context.verdict == "breached"

    def was_lost(self, context: Trial) -> bool:
        """The session ended first."""
        return context.verdict == "lost"

    def was_proven(self, context: Trial) -> bool:
        """The proof was all that was wanted."""
        return context.verdict == "proven"

    # -- actions --------------------------------------------------------------------------------

    def on_opened(self, context: Trial, event: Opened) -> Trial:
        """Keep which session is ours."""
        return self.but(context, session_id=event.session_id, last_session_id=event.session_id)

    def on_not_opened(self, context: Trial, event: NotOpened) -> Trial:
        """Keep why."""
        return self.but(context, reason=cut(f"no session: {event.reason}"))

    def on_no_slot_in_time(self, context: Trial) -> Trial:
        """Keep that it never came."""
        return self.but(context, reason=f"no session within {context.opening_ms} ms")

    def on_not_withdrawn(self, context: Trial, event: NotWithdrawn) -> Trial:
        """Keep that one may be left."""
        return self.but(context, reason=cut(f"{context.reason}; {MAY_BE_LEFT}: {event.reason}"))

    def note_another_promise(self, context: Trial, event: Promised) -> Trial:
        """A promise of more than was asked for is a breach, of less no proof."""
        reason = cut(f"asked for {chosen(context)}, the platform promises {event.network_mode}")
        less = event.network_mode == "zerotrust"
        return self.but(context, verdict="inconclusive" if less else "breached", reason=reason)

    def on_unread(self, context: Trial, event: Unread) -> Trial:
        """Keep why."""
        return self.but(context, verdict="inconclusive", reason=cut(f"no promise: {event.reason}"))

    def on_unread_in_time(self, context: Trial) -> Trial:
        """Keep that it never came."""
        reason = f"the platform did not say within {context.reading_ms} ms what it promises"
        return self.but(context, verdict="inconclusive", reason=reason)

    def on_session_lost(self, context: Trial) -> Trial:
        """Keep that it is gone."""
        return self.but(context, verdict="lost", reason="the session ended before it was proven")

    def on_probed(self, context: Trial, event: Probed) -> Trial:
        """Keep the evidence, and what it comes to."""
        reasons = leaks(context, event.sights, event.hits)
        if not reasons:
            reasons = (event.problem,) if event.problem else doubts(context, event.sights)
        return self.but(
            context,
            sights=event.sights,
            hits=event.hits,
            verdict=judge(context, event),
            reason=cut("; ".join(reasons)),
        )

    def on_unprobed(self, context: Trial, event: Unprobed) -> Trial:
        """Keep why."""
        return self.but(
            context, verdict="inconclusive", reason=cut(f"no probe ran: {event.reason}")
        )

    def on_probes_stuck(self, context: Trial) -> Trial:
        """Keep that they never ended."""
        reason = f"the probes did not end within {context.probing_ms} ms"
        return self.but(context, verdict="inconclusive", reason=reason)

    def on_gone(self, context: Trial) -> Trial:
        """The session is nobody's any more."""
        return self.but(context, session_id="")

    # -- contracts ------------------------------------------------------------------------------

    @requires(opened)
    def one_session_at_a_time(self, context: Trial) -> bool:
        """A run owns at most one session."""
        return context.session_id == ""

    @requires(probed)
    def every_probe_speaks_once(self, event: Probed) -> bool:
        """Only probes that were asked, each with one sight."""
        names = [one.probe for one in event.sights]
        return len(set(names)) == len(names) and set(names) <= set(PROBES)

    @ensures(probed)
    def nothing_open_is_proven(self, new: Trial) -> bool:
        """Whatever was promised: no way out but the proxy, and that one at its level only."""
        ways = {one.probe for one in new.sights if one.seen == "open"}
        allowed = {"proxy"} if chosen(new) == "semitrusted" else set()
        return new.verdict != "proven" or (ways == allowed and new.hits == 0)

    @ensures(probed)
    def a_leak_is_a_breach(self, new: Trial) -> bool:
        """However much else could not be told."""
        return (new.verdict == "breached") == bool(leaks(new, new.sights, new.hits))

    @invariant
    def wanted_is_possible(self, context: Trial) -> bool:
        """Nothing reaches the platform without a network: ask for `semitrusted`, or for `least`."""
        return not (context.trust == "zerotrust" and context.needs_platform)

    @invariant
    def a_verdict_other_than_proven_has_a_reason(self, context: Trial) -> bool:
        """Whoever reads the end must not guess."""
        return context.verdict in ("", "proven") or bool(context.reason)

    def output(self, context: Trial) -> TrustReport:
        """What a parent run receives."""
        return TrustReport(
            trust=chosen(context),
            verdict=context.verdict,
            session_id=context.session_id,
            sights=context.sights,
            hits=context.hits,
            reason=context.reason,
        )
