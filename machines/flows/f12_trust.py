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

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from machines.flows.trial import (
    MAY_BE_LEFT,
    PROBES,
    NotOpened,
    NotWithdrawn,
    Opened,
    Probed,
    Promised,
    Trial,
    TrustReport,
    Unprobed,
    Unread,
    chosen,
    cut,
    doubts,
    judge,
    leaks,
    says_why,
    stands_as_promised,
)
from machines.flows.trial_calls import (
    end_session,
    open_session,
    probe_walls,
    read_promise,
    withdraw,
)


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
