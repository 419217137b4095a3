"""What a platform may do with a session, for the verification of `Session`.

A session lives for as long as it likes, and ends for the reason that fits.  What was frozen by us,
or by somebody else, is told by the next look.  Times are short, so that every look is due at once.

A message may arrive in every call, which is what most of the ways are made of.  So what leads to
the same place later is said once: what has been changed by a message is looked at to be over, what
has refused one to be alive, and anything else befalls the session that nobody has touched.  The
script of two cells tries the refusals and the end after it, the other context everything else.
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
    Ask,
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
SILENT = "the platform did not answer"
"""What a run says when nobody answers."""
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

    @payloads("ask")
    def messages(self, context: SessionRun, state: str) -> Iterator[Ask]:
        """Each order where it has an effect."""
        found = (
            (Unfreeze(),) if state == "frozen" else (Execute(command="c"), Freeze(), Boost(vcpu=2))
        )
        for order in (*found, Extend(seconds=1), End()):
            yield Ask(order=order)

    @payloads("created")
    def sessions(self) -> Iterator[Created]:
        """Always the same one: one key, one session."""
        yield Created(session_id=ID, vcpu=1, expires_ms=SHORT_MS, idles_ms=SHORT_MS)

    @payloads("refused")
    def refusals(self, context: SessionRun, now_ms: int) -> Iterator[Refused]:
        """Every kind, of a script, the first time that it is asked for."""
        for kind in STATES.values() if context.cells and now_ms < SHORT_MS else ():
            yield Refused(kind=kind, detail=kind)

    @payloads("cell_ended")
    def results(self) -> Iterator[CellEnded]:
        """As of a platform that has lost them: what a result says decides nothing.

        Long ago, so that idle time ends with the time to live.
        """
        yield CellEnded(result=CellResult("unknown"), at_ms=SHORT_MS - IDLE_MS)

    @payloads("seen")
    def views(self, context: SessionRun, state: str) -> Iterator[Seen]:
        """As it should be; a look may find the other, too.

        Frozen by others is what was left alone so far, or what refuses a cell; woken by others is
        what we could not wake.  What we have changed is over when its time has come.
        """
        frozen = state == "freezing" or (context.frozen and state != "unfreezing")
        found = [frozen]
        if state == "checking" and not context.end_after:
            differs = is_untouched(context) or refused_a_cell(context) or context.frozen
            found += [not frozen] if differs else []
            found = found if context.problem or is_untouched(context) else []
        for one in found:
            yield Seen(
                frozen=one,
                vcpu=context.amount if state == "boosting" else max(context.slots, 1),
                expires_ms=context.expires_ms + (state == "extending"),
                idles_ms=SHORT_MS,
            )

    @payloads("over")
    def ends(self, context: SessionRun, state: str) -> Iterator[Over]:
        """When we end it, because of that; otherwise at its time, idle if it runs.

        What was left alone is busy until then, or dies, and what refuses a cell is dead; what
        refuses another change lives on, and so does what has run its script.
        """
        if state == "ending":
            yield Over(reason="deleted")
            return
        busy = is_untouched(context)
        if context.cells or not context.problem:
            yield Over(reason="expired", idle=not (busy or context.frozen))
        if busy or refused_a_cell(context):
            yield Over(reason="sandbox_died")

    @payloads("declined")
    def refused_operations(self, context: SessionRun, state: str) -> Iterator[Declined]:
        """Everything but a script, and more time for a frozen one.

        In the words of silence, as what follows is the same.
        """
        if not (context.end_after or (state == "extending" and context.frozen)):
            yield Declined(detail=SILENT)

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
    def keeps_to_its_script(self, context: SessionRun) -> bool:
        """What was given is what has been run, and what is left."""
        return not context.end_after or context.done + len(context.cells) == len(SCRIPT)

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
        return state == "terminated" and context.done == len(SCRIPT)

    @sometimes
    def a_session_is_frozen_and_wakes(self, context: SessionRun, done: Sequence[Done]) -> bool:
        """By message, or by somebody else."""
        return not context.frozen and any(
            isinstance(one.event, Seen) and one.event.frozen for one in done
        )

    @sometimes
    def a_cell_is_refused_and_the_session_lives(self, state: str, context: SessionRun) -> bool:
        """It was frozen by somebody else."""
        return state == "frozen" and [one.outcome for one in context.results] == ["refused"]


def is_untouched(context: SessionRun) -> bool:
    """It runs as it was made."""
    made = not context.frozen and (context.slots, context.expires_ms) == (1, SHORT_MS)
    return made and context.done == 0 and context.problem == ""


def refused_a_cell(context: SessionRun) -> bool:
    """The last thing it was asked for."""
    refused = [one.outcome == "refused" for one in context.results]
    return context.problem != "" and refused == [True]
