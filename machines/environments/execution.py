"""What a platform may do with a piece of code, for the verification of `Execution`.

Jobs are looked at from the last pause but one, and one answer "no such job" is left, so that the
end of both is near.  A job goes on for as long as it likes; over is it only after its time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, get_args

from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, payloads, sometimes
from engine.verification.result import Scope
from machines.flows.code_run import (
    MISSES_MAX,
    POLL_MS,
    CodeRun,
    Ended,
    Missing,
    Outcome,
    Output,
    RanOver,
    RefusalKind,
    Refused,
    StillRunning,
    Submitted,
)
from machines.flows.f06_execution import Execution

JOB = "job-1"
STATES: dict[str, RefusalKind] = {kind: kind for kind in get_args(RefusalKind)}
"""Each refusal ends in the state of its name."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class OfExecution(Environment):
    """A platform that takes code, or not, and a job that ends, or not."""

    machine = Execution
    scope = Scope(contexts=1, messages=0)
    reasons: ClassVar[dict[str, str]] = {
        f"{state} --cancel--> withdrawing x event twice": "a request to stop has no key: a second "
        "one is another request, and the scope has one"
        for state in ("running", "polling", "withdrawing")
    }

    def contexts(self) -> Iterator[CodeRun]:
        """A short program; the pauses and the misses are nearly used up."""
        yield CodeRun(
            public_key="key",
            secret_key=Secret("secret"),
            code="1",
            ttl_seconds=1,
            submit_ms=1,
            grace_ms=1_000,
            polls=len(POLL_MS) - 2,
            misses=MISSES_MAX - 1,
        )

    @payloads("submitted")
    def jobs(self, now_ms: int) -> Iterator[Submitted]:
        """Always the same job: one key, one job."""
        yield Submitted(job_id=JOB, language="python", at_ms=now_ms)

    @payloads("refused")
    def refusals(self) -> Iterator[Refused]:
        """Every kind."""
        for kind in STATES.values():
            yield Refused(kind=kind, detail=kind, provides="apt" * (kind == "language_missing"))

    @payloads("ended")
    def ends(self) -> Iterator[Ended]:
        """Every outcome; a program that completes may do so with or without success."""
        for outcome in OUTCOMES:
            codes = (0, 1) if outcome == "completed" else (None,)
            for exit_code in codes:
                yield Ended(outcome=outcome, output=Output(exit_code=exit_code, stdout="1"))

    @payloads("still_running")
    def goes_on(self, context: CodeRun, now_ms: int) -> Iterator[StillRunning]:
        """Until its time is over."""
        if now_ms < context.give_up_ms:
            yield StillRunning()

    @payloads("missing")
    def unknown(self) -> Iterator[Missing]:
        """At any time."""
        yield Missing()

    @payloads("ran_over")
    def over(self, context: CodeRun, now_ms: int) -> Iterator[RanOver]:
        """Only then."""
        if now_ms >= context.give_up_ms:
            yield RanOver()

    @always
    def runs_once(self, done: Sequence[Done]) -> bool:
        """Whatever is lost, all submitting is under one key."""
        return len({one.key for one in done if one.effect == "submit"}) <= 1

    @always
    def tells_what_the_platform_told(self, context: CodeRun, done: Sequence[Done]) -> bool:
        """No result that nobody gave."""
        given = [one.event for one in done if isinstance(one.event, Ended)]
        told = [(one.outcome, one.output) for one in given]
        return context.outcome == "" or (context.outcome, context.output) in told

    @always
    def refuses_for_the_reason_given(
        self, state: str, context: CodeRun, done: Sequence[Done]
    ) -> bool:
        """The state is named after what was said; `lost` may also be a job that nobody knows."""
        if state not in STATES or (state == "lost" and context.job_id):
            return True
        given = [one.event for one in done if isinstance(one.event, Refused)]
        return any((one.kind, one.detail) == (state, context.reason) for one in given)

    @always
    def leaves_no_job_behind(self, state: str, context: CodeRun, done: Sequence[Done]) -> bool:
        """A job that was taken has ended, is unknown to the platform, or was given up last."""
        if state not in ("cancelled", "overdue") or not context.job_id:
            return True
        return any(isinstance(one.event, Ended | Missing) for one in done)

    @always
    def is_patient_with_a_late_job(self, state: str, context: CodeRun) -> bool:
        """It is lost only after more misses than are tolerated."""
        lost = state == "lost" and context.job_id != ""
        return not lost or context.misses == MISSES_MAX + 1

    @sometimes
    def a_job_is_quicker_than_its_cancellation(self, state: str, context: CodeRun) -> bool:
        """And keeps its result."""
        return state == "completed" and context.stopping == "cancel"

    @sometimes
    def a_job_is_found_after_misses(self, state: str, context: CodeRun) -> bool:
        """A late registration."""
        return state == "completed" and context.misses == MISSES_MAX

    @sometimes
    def a_program_fails(self, state: str, context: CodeRun) -> bool:
        """It completes, without success."""
        return state == "completed" and context.output.exit_code == 1
