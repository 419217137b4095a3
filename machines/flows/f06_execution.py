"""Flow 6: run code once, and follow the job to its end.

::

    submitting ──┬─ ended (sync, or known by the same key) ──► completed, timed_out, failed,
        │        │                                             cancelled
        │        ├─ refused ──► unknown_language, language_missing, undetected, out_of_range,
        │        │              rejected, no_slot, unauthorized, unavailable, lost
        │        └─ unanswered, time_up ──► unreachable
        │ submitted (async)
        ▼                                                      ended
     running ── time_to_look ──► polling ───────────────────────────► completed, timed_out, ...
        │  ▲                        │ │
        │  └── still_running ───────┘ ├─ missing, more than 5 times in a row ──► lost
        │      missing                │
        │ cancel        ran_over, unanswered, time_up, cancel
        ▼                             ▼
     withdrawing ◄────────────────────┘
        │ ended: it was quicker ──► completed, timed_out, failed
        └ ended as cancelled, vanished ──► cancelled, overdue or unreachable, by why it was ended

Promise: the code runs at most once.  Submitting carries the run's own idempotency key, so a lost
reply is asked for again and never repeated; where the platform itself has lost the result it says
so, and the run ends as `lost` instead of running the code again.  Polling waits 300, 450, 700, 900,
650, 1600 and 2000 ms, then 2000.  A program that exits with another code than 0 has completed,
without success.  Nothing is left running: a cancelled run ends its job, and so does one that has
waited for longer than the job's time limit or cannot reach the platform any more (which ends it at
that limit by itself).

Source: platform-api.md 2 and 3; paper, Flow 6.
"""

from __future__ import annotations

from engine.clock import minutes, seconds
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.effects import Call, effect
from engine.errors import Transient
from engine.retry import Retry
from machines.clients.ports import ClientError, NotFound, Unauthorized
from machines.clients.ports.executions import Executions, Job
from machines.clients.ports.refusals import Refusal
from machines.flows.backoff import after, lacks_slot
from machines.flows.code_run import (
    MISSES_MAX,
    POLL_MS,
    CodeRun,
    Ended,
    ExecutionReport,
    Missing,
    RanOver,
    RefusalKind,
    Refused,
    StillRunning,
    Submitted,
    Unanswered,
    ended_of,
    order_of,
    problem_of,
)
from machines.flows.keyed import PATIENT, credentials_of

LOOKS = Retry(attempts=30, first_ms=seconds(2), factor=1.0, max_ms=seconds(2), jitter=0.0)
"""Looks that fail are repeated every 2 s, 30 times in a row at most (platform-api.md 3)."""
KINDS: dict[str, RefusalKind] = {
    "unknown_language": "unknown_language",
    "language_unavailable": "language_missing",
    "wasm_unavailable": "language_missing",
    "undetected_language": "undetected",
    "sandbox_unavailable": "unavailable",
    "outcome_unknown": "lost",
}
"""What the platform's codes mean; any other one is `rejected`."""


def _executions_of(call: Call) -> Executions:
    return call.resource(Executions)  # type: ignore[type-abstract]


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(16))
async def submit(context: CodeRun, call: Call) -> Submitted | Ended | Refused:
    """Send the code under the run's key; the same key never runs it twice."""
    problem = problem_of(context)
    if problem is not None:
        return problem
    port = _executions_of(call)
    send = port.execute if context.mode == "sync" else port.submit
    try:
        job = await send(credentials_of(context), order_of(context), key=call.key)
    except Refusal as error:
        kind = KINDS.get(error.code, "rejected")
        return Refused(kind=kind, detail=str(error), provides=error.provides)
    except Unauthorized as error:
        return Refused(kind="unauthorized", detail=str(error))
    except ClientError as error:
        if lacks_slot(error) and call.attempt >= context.slot_attempts:
            return Refused(kind="no_slot", detail=str(error))
        raise after(error) from error
    if not _is_live(job):
        return ended_of(job)
    return Submitted(job_id=job.job_id, language=job.language, at_ms=call.now_ms)


def _is_live(job: Job) -> bool:
    return job.status in ("pending", "running")


@effect(idempotent=True, retry=LOOKS)
async def look(context: CodeRun, call: Call) -> Ended | StillRunning | Missing | RanOver:
    """How the job stands."""
    try:
        job = await _executions_of(call).job(credentials_of(context), context.job_id)
    except NotFound:
        return Missing()
    except ClientError as error:
        raise after(error) from error
    if not _is_live(job):
        return ended_of(job)
    return RanOver() if call.now_ms >= context.give_up_ms else StillRunning()


@effect(idempotent=True, retry=PATIENT)
async def withdraw(context: CodeRun, call: Call) -> Ended | Missing:
    """End the job; one that was quicker keeps its result."""
    try:
        job = await _executions_of(call).cancel(credentials_of(context), context.job_id)
    except NotFound:
        return Missing()
    except ClientError as error:
        raise after(error) from error
    if _is_live(job):
        raise Transient("the job goes on although it was told to end")
    return ended_of(job)


class Execution(Machine[CodeRun]):
    """Run code once, on a sandbox of its own, and report how it ended."""

    payloads = (Unanswered,)

    submitting = State(
        initial=True,
        effect=submit,
        on_exhausted="unanswered",
        timeout="submit_time",
        on_timeout="time_up",
        invariant="nothing_is_known",
    )
    running = State(timeout="pause", on_timeout="time_to_look", invariant="has_a_job")
    polling = State(
        effect=look,
        on_exhausted="unanswered",
        timeout=minutes(5),
        on_timeout="time_up",
        invariant="has_a_job",
    )
    # No state timeout: `PATIENT` gives up in less than an hour, and that is `unanswered`; by then
    # the platform has ended the job at its time limit.
    withdrawing = State(
        effect=withdraw,
        on_exhausted="unanswered",
        cancellable=False,
        invariant="is_ended_for_a_reason",
    )
    completed = State(final=True, invariant="has_completed")
    timed_out = State(final=True, failure=True, invariant="has_timed_out")
    failed = State(final=True, failure=True, invariant="has_failed")
    cancelled = State(final=True, failure=True, invariant="was_cancelled")
    overdue = State(final=True, failure=True, invariant="was_ended_by_us")
    unknown_language = State(final=True, failure=True, invariant="nothing_ran")
    language_missing = State(final=True, failure=True, invariant="nothing_ran")
    undetected = State(final=True, failure=True, invariant="nothing_ran")
    out_of_range = State(final=True, failure=True, invariant="nothing_ran")
    rejected = State(final=True, failure=True, invariant="nothing_ran")
    no_slot = State(final=True, failure=True, invariant="nothing_ran")
    unauthorized = State(final=True, failure=True, invariant="nothing_ran")
    unavailable = State(final=True, failure=True, invariant="nothing_ran")
    lost = State(final=True, failure=True, invariant="nothing_is_told")
    unreachable = State(final=True, failure=True, invariant="nothing_is_told")

    submitted = submitting.to(running)
    refused = (
        submitting.to(unknown_language, cond="names_no_language")
        | submitting.to(language_missing, cond="needs_an_installation")
        | submitting.to(undetected, cond="is_no_known_language")
        | submitting.to(out_of_range, cond="asks_for_too_much_time")
        | submitting.to(no_slot, cond="finds_no_slot")
        | submitting.to(unauthorized, cond="is_not_allowed")
        | submitting.to(unavailable, cond="meets_no_isolation")
        | submitting.to(lost, cond="was_forgotten")
        | submitting.to(rejected)
    )
    ended = (
        submitting.to(completed, cond="is_completed")
        | submitting.to(timed_out, cond="is_timed_out")
        | submitting.to(cancelled, cond="is_cancelled")
        | submitting.to(failed)
        | polling.to(completed, cond="is_completed")
        | polling.to(timed_out, cond="is_timed_out")
        | polling.to(cancelled, cond="is_cancelled")
        | polling.to(failed)
        | withdrawing.to(completed, cond="is_completed")
        | withdrawing.to(timed_out, cond="is_timed_out")
        | withdrawing.to(overdue, cond="is_cancelled and ran_too_long")
        | withdrawing.to(unreachable, cond="is_cancelled and fell_silent")
        | withdrawing.to(cancelled, cond="is_cancelled")
        | withdrawing.to(failed)
    )
    time_to_look = running.to(polling)
    still_running = polling.to(running)
    missing = (
        polling.to(running, cond="may_be_late")
        | polling.to(lost)
        | withdrawing.to(overdue, cond="ran_too_long")
        | withdrawing.to(unreachable, cond="fell_silent")
        | withdrawing.to(cancelled)
    )
    ran_over = polling.to(withdrawing, on="note_overdue")
    unanswered = (
        submitting.to(unreachable)
        | polling.to(withdrawing, on="note_silence")
        | withdrawing.to(unreachable)
    )
    time_up = submitting.to(unreachable) | polling.to(withdrawing, on="note_silence")
    cancel = (
        running.to(withdrawing, on="note_cancel")
        | polling.to(withdrawing, on="note_cancel")
        | withdrawing.to.itself()
    )

    # -- times --------------------------------------------------------------------------------

    def submit_time(self, context: CodeRun) -> int:
        return context.submit_ms + seconds(max(context.ttl_seconds, 0))

    def pause(self, context: CodeRun) -> int:
        return POLL_MS[context.polls]

    # -- guards -------------------------------------------------------------------------------

    def names_no_language(self, event: Refused) -> bool:
        return event.kind == "unknown_language"

    def needs_an_installation(self, event: Refused) -> bool:
        return event.kind == "language_missing"

    def is_no_known_language(self, event: Refused) -> bool:
        return event.kind == "undetected"

    def asks_for_too_much_time(self, event: Refused) -> bool:
        return event.kind == "out_of_range"

    def finds_no_slot(self, event: Refused) -> bool:
        return event.kind == "no_slot"

    def is_not_allowed(self, event: Refused) -> bool:
        return event.kind == "unauthorized"

    def meets_no_isolation(self, event: Refused) -> bool:
        return event.kind == "unavailable"

    def was_forgotten(self, event: Refused) -> bool:
        return event.kind == "lost"

    def is_completed(self, event: Ended) -> bool:
        return event.outcome == "completed"

    def is_timed_out(self, event: Ended) -> bool:
        return event.outcome == "timed_out"

    def is_cancelled(self, event: Ended) -> bool:
        return event.outcome == "cancelled"

    def ran_too_long(self, context: CodeRun) -> bool:
        return context.stopping == "overdue"

    def fell_silent(self, context: CodeRun) -> bool:
        return context.stopping == "silence"

    def may_be_late(self, context: CodeRun) -> bool:
        return context.misses < MISSES_MAX

    # -- actions ------------------------------------------------------------------------------

    def on_submitted(self, context: CodeRun, event: Submitted) -> CodeRun:
        return self.but(
            context,
            job_id=event.job_id,
            ran_language=event.language,
            give_up_ms=event.at_ms + seconds(context.ttl_seconds) + context.grace_ms,
        )

    def on_refused(self, context: CodeRun, event: Refused) -> CodeRun:
        return self.but(context, reason=event.detail, provides=event.provides)

    def on_ended(self, context: CodeRun, event: Ended) -> CodeRun:
        return self.but(
            context,
            outcome=event.outcome,
            output=event.output,
            ran_language=event.language or context.ran_language,
            reason=event.detail or context.reason,
        )

    def on_still_running(self, context: CodeRun) -> CodeRun:
        return self.but(context, misses=0, polls=min(context.polls + 1, len(POLL_MS) - 1))

    def on_missing(self, context: CodeRun) -> CodeRun:
        return self.but(
            context,
            misses=context.misses + 1,
            polls=min(context.polls + 1, len(POLL_MS) - 1),
            reason=context.reason or "the platform knows no job of this id",
        )

    def note_overdue(self, context: CodeRun) -> CodeRun:
        over = f"still running {context.grace_ms // 1000} s after its time limit; it was ended"
        return self.but(context, stopping="overdue", reason=over)

    def note_silence(self, context: CodeRun) -> CodeRun:
        return self.but(context, stopping="silence", reason="the platform did not answer")

    def on_unanswered(self, context: CodeRun, event: Unanswered) -> CodeRun:
        return self.but(context, reason=event.reason)

    def note_cancel(self, context: CodeRun) -> CodeRun:
        return self.but(context, stopping="cancel", reason="cancelled on request")

    def on_enter_withdrawing(self, context: CodeRun) -> CodeRun:
        return self.but(context, polls=0, misses=0)

    # -- contracts ----------------------------------------------------------------------------

    @requires(submitted)
    def job_has_a_name(self, event: Submitted) -> bool:
        """Without one it could be neither followed nor ended."""
        return event.job_id != ""

    @requires(ended)
    def exit_code_is_of_a_completed_program(self, event: Ended) -> bool:
        """A program that was stopped has none of its own."""
        return (event.output.exit_code is not None) == (event.outcome == "completed")

    @ensures(time_to_look, still_running, missing, ran_over, cancel)
    def follows_one_job(self, old: CodeRun, new: CodeRun) -> bool:
        """Never another one, and never for longer."""
        return (old.job_id, old.give_up_ms) == (new.job_id, new.give_up_ms)

    @invariant
    def exit_code_only_when_completed(self, context: CodeRun) -> bool:
        return (context.output.exit_code is not None) == (context.outcome == "completed")

    @invariant
    def looks_are_counted(self, context: CodeRun) -> bool:
        return 0 <= context.polls < len(POLL_MS) and 0 <= context.misses <= MISSES_MAX + 1

    def nothing_is_known(self, context: CodeRun) -> bool:
        return context.job_id == "" and context.outcome == "" and context.stopping == ""

    def has_a_job(self, context: CodeRun) -> bool:
        return context.job_id != "" and context.outcome == "" and context.stopping == ""

    def is_ended_for_a_reason(self, context: CodeRun) -> bool:
        return context.job_id != "" and context.outcome == "" and context.stopping != ""

    def has_completed(self, context: CodeRun) -> bool:
        return context.outcome == "completed"

    def has_timed_out(self, context: CodeRun) -> bool:
        return context.outcome == "timed_out"

    def has_failed(self, context: CodeRun) -> bool:
        return context.outcome == "failed"

    def was_cancelled(self, context: CodeRun) -> bool:
        return context.outcome == "cancelled" or context.stopping == "cancel"

    def was_ended_by_us(self, context: CodeRun) -> bool:
        return context.stopping == "overdue" and context.outcome in ("", "cancelled")

    def nothing_ran(self, context: CodeRun) -> bool:
        """A refusal: no job, no output, and the reason is told."""
        return context.job_id == "" and context.outcome == "" and context.reason != ""

    def nothing_is_told(self, context: CodeRun) -> bool:
        """Nobody knows how the code ended; no result is made up."""
        return context.outcome in ("", "cancelled") and context.output.exit_code is None

    def output(self, context: CodeRun) -> ExecutionReport:
        return ExecutionReport(
            outcome=context.outcome,
            success=context.output.exit_code == 0,
            language=context.ran_language,
            output=context.output,
            reason=context.reason,
            provides=context.provides,
        )
