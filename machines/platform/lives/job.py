"""The life of a job: code that runs once.

::

    pending ──begin──► running ──finish──► completed | timeout
       │                  │
       └──── fail, withdraw, lose──► failed, cancelled, lost

Source: platform-api.md 3; `lost` is shown as failed: the platform died while it ran.
"""

from __future__ import annotations

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.events import Context, Event


class JobTerms(Context):
    """What a job is: the slots it holds, its exit code when it ran to an end, or why it did not."""

    vcpu: int
    exit_code: int | None = None
    reason: str = ""


class Begin(Event, tag="begin"):
    """Its sandbox is being made."""


class Finish(Event, tag="finish"):
    """The program ended, or was stopped at its time limit."""

    exit_code: int
    timed_out: bool


class Fail(Event, tag="fail"):
    """The platform could not run it."""

    reason: str


class Withdraw(Event, tag="withdraw"):
    """Somebody asked for its end."""


class Lose(Event, tag="lose"):
    """Nobody knows how it ended."""


class JobLife(Machine[JobTerms]):
    """One execution of somebody's code."""

    pending = State(initial=True, waits=True, invariant="is_fresh")  # turtles: ignore[V009] asked
    running = State(waits=True, invariant="is_fresh")  # turtles: ignore[V009] asked
    completed = State(final=True, invariant="has_an_exit_code")
    timeout = State(final=True, invariant="has_an_exit_code")
    failed = State(final=True, failure=True, invariant="has_none")
    cancelled = State(final=True, invariant="has_none")
    lost = State(final=True, failure=True, invariant="has_none")

    begin = pending.to(running)
    finish = running.to(timeout, cond="ran_too_long") | running.to(completed)
    fail = pending.to(failed) | running.to(failed)
    withdraw = pending.to(cancelled) | running.to(cancelled)
    lose = pending.to(lost) | running.to(lost)

    def ran_too_long(self, event: Finish) -> bool:
        return event.timed_out

    def on_finish(self, context: JobTerms, event: Finish) -> JobTerms:
        return self.but(context, exit_code=event.exit_code)

    def on_fail(self, context: JobTerms, event: Fail) -> JobTerms:
        return self.but(context, reason=event.reason)

    def on_withdraw(self, context: JobTerms) -> JobTerms:
        return self.but(context, reason="cancelled on request")

    def on_lose(self, context: JobTerms) -> JobTerms:
        return self.but(context, reason="the result was lost")

    @requires(finish)
    def exit_code_is_one(self, event: Finish) -> bool:
        return 0 <= event.exit_code <= 255

    @requires(fail)
    def failure_is_explained(self, event: Fail) -> bool:
        return event.reason != ""

    @ensures(finish, fail, withdraw, lose)
    def ends_once(self, old: JobTerms) -> bool:
        return old.exit_code is None and old.reason == ""

    def is_fresh(self, context: JobTerms) -> bool:
        return context.exit_code is None and context.reason == ""

    @invariant
    def holds_a_slot(self, context: JobTerms) -> bool:
        return 1 <= context.vcpu <= 8

    def has_an_exit_code(self, context: JobTerms) -> bool:
        return context.exit_code is not None and 0 <= context.exit_code <= 255

    def has_none(self, context: JobTerms) -> bool:
        return context.exit_code is None and context.reason != ""
