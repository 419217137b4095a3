"""Performing effects: count the attempt, call, and turn whatever happens into the next step.

::

    attempt recorded? --no--> record it --> call --+-- event ----------> decide, commit: done
          |                                        +-- Again ----------> later, attempts from 0
          yes, by a worker that is gone            +-- Transient ------> later, or give up
          |                                        +-- Permanent ------> give up
          reconcile --+-- event ----> as above     +-- anything else --> outcome unknown: reconcile
                      +-- NotDone --> record, call
                      +-- unknown --> ask again later, in the end quarantine; never guess
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
import structlog

from engine import control
from engine.clock import Clock
from engine.decide import Decision, decide, pause_ms
from engine.desk import Desk, Job
from engine.effects import Again, Call, Effect, NotDone
from engine.errors import Permanent, Refused, Transient, TurtlesError, UsageError
from engine.events import Event, event_id
from engine.run import Pending

T = TypeVar("T")
log = structlog.get_logger("turtles.effects")
DEFAULT_PAUSE_MS = 1_000


class Calls(Protocol):
    """How effects reach the outside; the one seam that a test or a simulator replaces."""

    async def perform(self, effect: Effect, context: Any, call: Call) -> Event | Again | None:
        """Make the call."""

    async def reconcile(
        self, effect: Effect, context: Any, call: Call
    ) -> Event | Again | NotDone | None:
        """Find out whether the call was made."""


@runtime_checkable
class SqlCalls(Protocol):
    """`Calls` that can perform an effect inside the transaction of its transition.

    Where they cannot (the outside of an exploration, which has no database), such an effect is
    performed like an idempotent one.
    """

    def within(
        self, effect: Effect, context: Any, call: Call, connection: Any
    ) -> Event | Again | None:
        """Do what the effect does, with this connection."""


class OutsideCalls:
    """The real one: calls the effect's functions, each bounded by the effect's timeout."""

    async def perform(self, effect: Effect, context: Any, call: Call) -> Event | Again | None:
        """Make the call; out of time means that its outcome is unknown.

        Raises:
            UsageError: of an effect that needs a transaction, through a wrapper without `within`.
        """
        if effect.transaction:
            raise UsageError(
                f"effect {effect.name}: it is performed inside the transaction of its transition, "
                "but the `calls` of this World have no method `within`. Pass it on to OutsideCalls."
            )
        function: Any = effect.perform
        return await _bounded(function(context, call), effect.timeout_ms)

    def within(
        self, effect: Effect, context: Any, call: Call, connection: Any
    ) -> Event | Again | None:
        """Call the effect's function with the connection of the transaction."""
        function: Any = effect.perform
        answer: Event | Again | None = function(context, call, connection)
        return answer

    async def reconcile(
        self, effect: Effect, context: Any, call: Call
    ) -> Event | Again | NotDone | None:
        """Ask the effect's reconcile function."""
        assert effect.ask is not None
        return await _bounded(effect.ask(context, call), effect.timeout_ms)


async def _bounded(work: Awaitable[T], timeout_ms: int) -> T:
    """The result of a call, bounded in time from the moment that it waits for anything."""
    if not isinstance(work, Coroutine):
        async with asyncio.timeout(timeout_ms / 1000):
            return await work
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    async with asyncio.timeout(timeout_ms / 1000):
        late: T = await _Rest(work, waits_for)
        return late


class _Rest(Awaitable[T]):
    """A coroutine that has been begun, awaited from where it waits."""

    def __init__(self, work: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._work = work
        self._waits_for = [waits_for]

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        return self._waits_for.pop() if self._waits_for else self._work.send(value)

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()


class Performer:
    """Performs the effects of one worker's jobs.

    An effect with `transaction=True` is performed, decided on and committed at once, by `_within`;
    whatever comes of it but a decision takes its transaction back first.

    Args:
        may_go_on: false when the worker is stopping or its lease is in doubt.
    """

    def __init__(
        self,
        *,
        desk: Desk,
        clock: Clock,
        resources: Mapping[Any, Any],
        calls: Calls,
        may_go_on: Callable[[int], bool],
    ) -> None:
        self._desk = desk
        self._clock = clock
        self._resources = resources
        self._calls = calls
        self._may_go_on = may_go_on

    async def step(self, job: Job) -> None:
        """Whatever the pending effect needs next."""
        pending = job.run.effect
        assert pending is not None
        effect = self._definition(job, pending)
        if pending.open and not job.fresh:
            await self._reconcile(job, effect, pending)
        elif not pending.open:
            await self._count_attempt(job, pending, doubt=False)
        else:
            await self._perform(job, effect, pending)

    def _definition(self, job: Job, pending: Pending) -> Effect:
        if pending.undo_of is not None:
            found = job.table.places[pending.undo_of].compensation
        else:
            found = job.place.effect
        assert found is not None
        return found

    async def _count_attempt(self, job: Job, pending: Pending, *, doubt: bool) -> None:
        counted = msgspec.structs.replace(pending, attempts=pending.attempts + 1, open=True)
        await self._desk.write(job, job.run.but(effect=counted, status="running"))
        job.fresh, job.doubt = True, doubt

    async def _reconcile(self, job: Job, effect: Effect, pending: Pending) -> None:
        if effect.ask is None:  # idempotent: performing again is the same as once
            if effect.retry.exhausted(pending.attempts):
                await self._give_up(job, effect, pending, pending.last_error or "no outcome")
            else:
                # What died inside its transaction certainly did nothing.
                doubt = not (effect.transaction and isinstance(self._calls, SqlCalls))
                await self._count_attempt(job, pending, doubt=doubt)
            return
        try:
            answer = await self._calls.reconcile(effect, job.run.context, self._call(job, pending))
        except Exception as error:  # noqa: BLE001 - whatever it was, we still do not know
            await self._still_unknown(job, effect, pending, error)
            return
        if isinstance(answer, NotDone) and job.run.cancel_requested:
            # No doubt is left, so a waiting cancel request comes before another attempt.
            settled = msgspec.structs.replace(pending, open=False)
            await self._desk.write(job, job.run.but(effect=settled))
        elif isinstance(answer, NotDone):
            await self._count_attempt(job, pending, doubt=False)
        else:
            await self._outcome(job, effect, pending, answer)

    async def _perform(self, job: Job, effect: Effect, pending: Pending) -> None:
        job.fresh = False
        if not self._may_go_on(job.term):
            return
        if effect.transaction and isinstance(self._calls, SqlCalls):
            await self._within(self._calls, job, effect, pending)
            return
        try:
            answer = await self._calls.perform(effect, job.run.context, self._call(job, pending))
        except Transient as error:
            await self._retry(job, effect, pending, error)
        except Permanent as error:
            await self._give_up(job, effect, pending, str(error))
        except Exception as error:  # noqa: BLE001 - nobody knows whether the call took effect
            await self._still_unknown(job, effect, pending, error)
        else:
            await self._outcome(job, effect, pending, answer)

    async def _within(self, calls: SqlCalls, job: Job, effect: Effect, pending: Pending) -> None:
        """Perform an effect inside the transaction that commits its outcome."""

        def work(connection: Any) -> Decision:
            try:
                answer = calls.within(effect, job.run.context, self._call(job, pending), connection)
            except Exception as error:  # also what a database would be said to have refused
                raise _Failed(error) from error
            return self._decided(job, pending, answer)

        try:
            await self._desk.commit_with(job, work)
        except _Failed as failed:
            await self._failed(job, effect, pending, failed.cause)
        except _Undecided as other:
            if isinstance(other.answer, Again):
                await self._outcome(job, effect, pending, other.answer)
            else:
                reason = f"outcome of effect {effect.name}: {other.reason}"
                await self._desk.quarantine(job, reason)
        except Refused as error:
            await self._desk.quarantine(job, str(error))
        except UsageError as error:  # it tried to end the transaction
            await self._failed(job, effect, pending, error)

    def _decided(self, job: Job, pending: Pending, answer: Event | Again | None) -> Decision:
        now_ms = self._clock.now_ms()
        if isinstance(answer, Again):
            raise _Undecided(answer)
        if pending.undo_of is not None:
            return control.undone(job.table, job.run, now_ms)
        if answer is None:
            raise _Undecided(None, "it returned None, expected an event")
        name = event_id(type(answer))
        try:
            result = decide(job.table, job.run, name, answer, now_ms, from_effect=True)
        except TurtlesError as error:
            raise _Undecided(answer, str(error)) from error
        if not isinstance(result, Decision):
            raise _Undecided(answer, result.reason)
        return result

    async def _failed(self, job: Job, effect: Effect, pending: Pending, error: Exception) -> None:
        """All of it was taken back, so nothing happened, whatever the error."""
        if isinstance(error, Permanent):
            await self._give_up(job, effect, pending, str(error))
        elif isinstance(error, Transient):
            await self._retry(job, effect, pending, error)
        else:
            await self._retry(job, effect, pending, Transient(_describe(error)))

    def _call(self, job: Job, pending: Pending) -> Call:
        return Call(
            run_id=job.run.run_id,
            key=pending.key,
            attempt=pending.attempts,
            now_ms=self._clock.now_ms(),
            resources=self._resources,
        )

    async def _outcome(
        self, job: Job, effect: Effect, pending: Pending, answer: Event | Again | None
    ) -> None:
        now_ms = self._clock.now_ms()
        if isinstance(answer, Again):
            pause = answer.after_ms
            if pause is None:
                pause = pause_ms(job.place, job.run.context) or DEFAULT_PAUSE_MS
            await self._reschedule(job, pending, now_ms + pause, attempts=0, last_error=None)
        elif pending.undo_of is not None:
            decision = control.undone(job.table, job.run, now_ms)
            await self._desk.commit(job, decision, outcome="done")
        elif answer is None:
            await self._desk.quarantine(
                job, f"effect {effect.name} returned None, expected an event"
            )
        else:
            await self._apply_outcome(job, effect, answer, now_ms)

    async def _apply_outcome(self, job: Job, effect: Effect, event: Event, now_ms: int) -> None:
        name = event_id(type(event))
        try:
            result = decide(job.table, job.run, name, event, now_ms, from_effect=True)
        except TurtlesError as error:
            await self._desk.quarantine(job, f"outcome of effect {effect.name}: {error}")
            return
        if isinstance(result, Decision):
            await self._desk.commit(job, result, outcome="done")
        else:
            await self._desk.quarantine(job, f"outcome of effect {effect.name}: {result.reason}")

    async def _retry(self, job: Job, effect: Effect, pending: Pending, error: Transient) -> None:
        if effect.retry.exhausted(pending.attempts):
            await self._give_up(job, effect, pending, str(error))
            return
        delay = effect.retry.delay_ms(pending.attempts, pending.key)
        delay = max(delay, error.retry_after_ms or 0)
        log.info("effect.retry", run_id=job.run.run_id, effect=effect.name,
                 attempt=pending.attempts, delay_ms=delay, reason=str(error))  # fmt: skip
        # This attempt did nothing; an earlier one whose end nobody knows may still have.
        await self._reschedule(
            job,
            pending,
            self._clock.now_ms() + delay,
            in_doubt=job.doubt,
            last_error=str(error),
        )

    async def _still_unknown(
        self, job: Job, effect: Effect, pending: Pending, error: Exception
    ) -> None:
        """The call may have happened.  Ask again later; never guess."""
        reason = _describe(error)
        asked = msgspec.structs.replace(pending, attempts=pending.attempts + 1)
        log.warning("effect.unknown", run_id=job.run.run_id, effect=effect.name, reason=reason)
        if effect.retry.exhausted(pending.attempts):
            if effect.ask is None:
                await self._give_up(job, effect, pending, reason)
            else:
                await self._desk.quarantine(
                    job, f"outcome of effect {effect.name} unknown: {reason}"
                )
            return
        counted = asked if effect.ask is not None else pending
        delay = effect.retry.delay_ms(pending.attempts, pending.key)
        await self._reschedule(
            job, counted, self._clock.now_ms() + delay, in_doubt=True, last_error=reason
        )

    async def _give_up(self, job: Job, effect: Effect, pending: Pending, reason: str) -> None:
        name = None if pending.undo_of else job.place.on_exhausted
        if name is None:
            await self._desk.quarantine(job, f"effect {effect.name} given up: {reason}")
            return
        kind = job.table.payloads.get(name)
        payload = (
            None
            if kind is None
            else kind(effect=effect.name, reason=reason, attempts=pending.attempts)
        )
        result = decide(job.table, job.run, name, payload, self._clock.now_ms())
        if isinstance(result, Decision):
            await self._desk.commit(job, result, outcome="given_up")
        else:
            await self._desk.quarantine(job, f"effect {effect.name} given up: {result.reason}")

    async def _reschedule(
        self,
        job: Job,
        pending: Pending,
        next_ms: int,
        *,
        attempts: int | None = None,
        in_doubt: bool = False,
        last_error: str | None,
    ) -> None:
        later = msgspec.structs.replace(
            pending,
            next_ms=next_ms,
            attempts=pending.attempts if attempts is None else attempts,
            open=in_doubt,
            last_error=last_error,
        )
        job.fresh = False
        await self._desk.write(job, job.run.but(effect=later, status="waiting"))


class _Failed(Exception):
    """What an effect raised inside a transaction, on its way out of the store."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Undecided(Exception):
    """An effect inside a transaction came to nothing that can be committed."""

    def __init__(self, answer: Event | Again | None, reason: str = "") -> None:
        super().__init__(reason)
        self.answer = answer
        self.reason = reason


def _describe(error: Exception) -> str:
    if isinstance(error, TurtlesError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__} in the effect"
