"""What a platform may do with a session, for the verification of `Session`.

A session lives for as long as it likes, and ends for the reason that fits.  What was frozen by us,
or by somebody else, is told by the next look.  Times are short, so that idle time and time to live
end one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, get_args

from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, payloads, sometimes
from engine.verification.result import Scope
from machines.flows.f07_session import Session
from machines.flows.session_run import (
    IDLE_MS,
    Boost,
    CellEnded,
    CellResult,
    Created,
    Declined,
    End,
    Execute,
    Extend,
    Freeze,
    Over,
    RefusalKind,
    Refused,
    Seen,
    SessionRun,
    Unfreeze,
)

ID = "session-1"
SHORT_MS = 1
"""When everything is over."""
SCRIPT = ("a", "b")
STATES: dict[str, RefusalKind] = {kind: kind for kind in get_args(RefusalKind)}
"""Each refusal ends in the state of its name."""


class OfSession(Environment):
    """A platform that keeps a session, or not."""

    machine = Session
    scope = Scope(contexts=2, messages=1, attempts=2)
    reasons: ClassVar[dict[str, str]] = {
        f"{state} --cancel--> ending x event twice": "a request to stop has no key: a second one "
        "is another request, and the scope has one"
        for state in ("running", "frozen", "executing", "freezing", "unfreezing", "extending",
                      "boosting", "checking", "ending")
    }  # fmt: skip

    def contexts(self) -> Iterator[SessionRun]:
        """A script of two cells and its end; one that waits for messages."""
        for cells in (SCRIPT, ()):
            yield SessionRun(
                public_key="key",
                secret_key=Secret("secret"),
                cells=cells,
                end_after=bool(cells),
                look_ms=SHORT_MS,
            )

    @payloads("execute")
    def commands(self, state: str) -> Iterator[Execute]:
        """A command; also while another one runs."""
        if state in ("running", "executing"):
            yield Execute(command="c")

    @payloads("freeze")
    def freezes(self, state: str) -> Iterator[Freeze]:
        """Of what runs."""
        if state == "running":
            yield Freeze()

    @payloads("unfreeze")
    def unfreezes(self, state: str) -> Iterator[Unfreeze]:
        """Of what is frozen."""
        if state == "frozen":
            yield Unfreeze()

    @payloads("end")
    def requests_to_end(self, state: str) -> Iterator[End]:
        """Of either."""
        if state in ("running", "frozen"):
            yield End()

    @payloads("extend")
    def times(self, state: str) -> Iterator[Extend]:
        """A second."""
        if state in ("running", "frozen"):
            yield Extend(seconds=1)

    @payloads("boost")
    def sizes(self, state: str) -> Iterator[Boost]:
        """Two."""
        if state == "running":
            yield Boost(vcpu=2)

    @payloads("created")
    def sessions(self) -> Iterator[Created]:
        """Always the same one: one key, one session."""
        yield Created(session_id=ID, vcpu=1, expires_ms=SHORT_MS, idles_ms=SHORT_MS)

    @payloads("refused")
    def refusals(self, context: SessionRun) -> Iterator[Refused]:
        """Every kind, of the first session."""
        for kind in STATES.values() if context.cells else ():
            yield Refused(kind=kind, detail=kind)

    @payloads("cell_ended")
    def results(self) -> Iterator[CellEnded]:
        """A result; long ago, so that idle time ends with the time to live."""
        result = CellResult("completed", exit_code=0)
        yield CellEnded(result=result, at_ms=SHORT_MS - IDLE_MS)

    @payloads("seen")
    def views(self, context: SessionRun, state: str) -> Iterator[Seen]:
        """As it should be after the operation; a look may find either."""
        if state != "freezing":
            yield Seen(frozen=False, vcpu=1, expires_ms=SHORT_MS, idles_ms=SHORT_MS)
        if state in ("freezing", "extending", "checking") and not context.end_after:
            yield Seen(frozen=True, vcpu=1, expires_ms=SHORT_MS, idles_ms=SHORT_MS)

    @payloads("over")
    def ends(self, context: SessionRun, state: str) -> Iterator[Over]:
        """At its time, idle, and otherwise; when we end it, because of that."""
        if state == "ending":
            yield Over(reason="deleted")
            return
        if state == "creating" and not context.cells:
            return
        yield Over(reason="expired")
        yield Over(reason="expired", idle=True)
        yield Over(reason="sandbox_died")

    @payloads("declined")
    def refused_operations(self, context: SessionRun) -> Iterator[Declined]:
        """Everything but a script."""
        if not context.end_after:
            yield Declined(detail="no")

    @always
    def makes_one_session(self, done: Sequence[Done]) -> bool:
        """Whatever is lost, all creating is under one key."""
        return len({one.key for one in done if one.effect == "create"}) <= 1

    @always
    def runs_each_cell_under_one_key(self, context: SessionRun, done: Sequence[Done]) -> bool:
        """No more keys than cells that have ended, and the one that runs."""
        keys = {one.key for one in done if one.effect == "run_cell"}
        return len(keys) <= context.done + 1

    @always
    def runs_only_what_was_asked_for(self, context: SessionRun, done: Sequence[Done]) -> bool:
        """A script of two, or the one message."""
        return context.done + len(context.cells) <= len(SCRIPT)

    @always
    def is_gone_only_when_the_platform_says_so(self, state: str, done: Sequence[Done]) -> bool:
        """A look, or the answer to our own wish, comes before every end of a session."""
        if state not in ("terminated", "cancelled", "expired", "idled", "lost"):
            return True
        return any(isinstance(one.event, Over) for one in done)

    @always
    def ends_for_the_reason_given(
        self, state: str, context: SessionRun, done: Sequence[Done]
    ) -> bool:
        """The state is named after what was said."""
        given = [one.event for one in done if isinstance(one.event, Refused)]
        return state not in STATES or any(
            (one.kind, one.detail) == (state, context.reason) for one in given
        )

    @sometimes
    def a_script_runs_to_its_end(self, state: str, context: SessionRun) -> bool:
        """And its session is ended."""
        ended = [one.outcome for one in context.results]
        return state == "terminated" and ended == ["completed", "completed"]

    @sometimes
    def a_session_is_frozen_and_wakes(self, context: SessionRun, done: Sequence[Done]) -> bool:
        """By message, or by somebody else."""
        return not context.frozen and any(
            isinstance(one.event, Seen) and one.event.frozen for one in done
        )

    @sometimes
    def a_cell_is_unknown(self, context: SessionRun) -> bool:
        """And not run again."""
        return any(one.outcome == "unknown" for one in context.results)
