"""Moves one claimed run until nothing is due: the pipeline of a worker.

Each turn does the first of these that applies, and commits it before it looks again::

    1. a control event ($pause, $resume, $cancel)        5. the state's timer is due
    2. a deferred cancel that has become possible        6. the effect is due: perform it
    3. an attempt without an outcome: reconcile first    7. nothing: give the run up
    4. the oldest event of the inbox

An effect under a limit (`engine.limiting`) is performed only if the claim brought a slot and a
token; else the run is given up, for a claim that does (3, 6).

An effect that was due before the timer goes before it (5, 6): a program that was stopped past a
deadline takes one last look before it gives up.

The first attempt of a new effect is recorded in the transaction that enters its state, and the
worker goes straight on to perform it.  Where a process can die, and who goes on:

- before a commit: nothing happened;
- after an attempt is recorded, before or after the call: `Pending.open` is true, and whoever takes
  the run reconciles first (3);
- a zombie: its writes carry an old fence, change nothing, and raise `LostOwnership` here.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog

from engine import control
from engine.clock import Clock
from engine.codec import Codec
from engine.decide import Decision, Rejection, Violation, decide
from engine.desk import Desk, Job, child_in, ended_key
from engine.errors import LostOwnership, StoreError, TurtlesError
from engine.performing import Performer
from engine.ports import Claimed, Consumed, InboxEvent
from engine.run import HELD, Run

log = structlog.get_logger("turtles.runner")
STALLS_MAX = 50
"""How often workers may die in the same attempt of a run before it is set aside."""


class Runner:
    """Moves claimed runs of one worker.

    Args:
        may_go_on: false when the worker is stopping or its lease is in doubt; looked at between
            steps and before every effect.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        clock: Clock,
        desk: Desk,
        performer: Performer,
        may_go_on: Callable[[int], bool],
    ) -> None:
        self._codec = codec
        self._clock = clock
        self._desk = desk
        self._performer = performer
        self._may_go_on = may_go_on

    async def advance(self, claimed: Claimed, *, effects: bool = True) -> Run:
        """Move a run until nothing is due, then give it up.

        Args:
            effects: false to apply events only, and leave timers and effects to a worker.

        Raises:
            LostOwnership: another worker has the run; nothing of the last step was written.
        """
        try:
            run = self._codec.open_run(claimed.run)
            job = Job(self._codec.table(run.machine), run, claimed, performs=effects)
        except TurtlesError as error:
            return await self._desk.set_aside(claimed, str(error))
        if _is_poison(claimed, run):
            await self._desk.quarantine(
                job, f"claimed {claimed.stalls} times without progress; its workers died each time"
            )
        return await self.go_on(job, effects=effects)

    async def go_on(self, job: Job, *, effects: bool = True) -> Run:
        """Move a run that is in hand until nothing is due, then give it up.

        Raises:
            LostOwnership: as `advance` does.
        """
        try:
            while not job.released and self._may_go_on(job.term) and await self._turn(job, effects):
                pass
        except (LostOwnership, StoreError):
            raise
        except Exception as error:  # noqa: BLE001 - code of the machine; the run must not stay ours
            await self._desk.quarantine(job, _describe(error))
        if not job.released:
            await self._desk.release(job)
        return job.run

    async def _turn(self, job: Job, effects: bool) -> bool:
        """One step; False when nothing is left to do now."""
        run, now_ms = job.run, self._clock.now_ms()
        controls = job.inbox and [one for one in job.inbox if one.event in control.CONTROLS]
        if controls and not run.terminal:
            await self._control(job, controls[0], now_ms)
        elif run.terminal or run.status in HELD:
            return await self._refuse_rest(job, now_ms) if run.terminal else False
        elif run.cancel_requested and self._can_cancel(job):
            await self._cancel(job, None, now_ms)
        elif effects and run.effect and run.effect.open and run.effect.next_ms <= now_ms:
            await self._effect(job, now_ms)
        elif job.inbox:
            await self._event(job, job.inbox[0], now_ms)
        elif effects and _timer_is_next(run, now_ms):
            await self._timer(job, now_ms)
        elif effects and run.effect and run.effect.next_ms <= now_ms:
            await self._effect(job, now_ms)
        else:
            return False
        return True

    async def _effect(self, job: Job, now_ms: int) -> None:
        """Perform the effect, or leave the run to whoever claims it with what the effect needs."""
        run = job.run
        if job.fresh or self._desk.admits(job):
            await self._performer.step(job)
        elif run.effect and not run.effect.open and _is_over(run.deadline_ms, now_ms):
            await self._timer(job, now_ms)  # nothing was begun, and its time is over
        else:
            await self._desk.give_up(job)

    async def _event(self, job: Job, event: InboxEvent, now_ms: int) -> None:
        if job.run.closing is not None:
            await self._event_while_closing(job, event, now_ms)
            return
        child, sender = job.run.child, child_in(event.key)
        if child is not None and sender not in (None, child):
            await self._reject(job, event, f"it comes from run {sender}, a child left behind")
            return
        try:
            payload = self._codec.open_payload(job.table, event.event, event.payload, event.key)
            result = decide(job.table, job.run, event.event, payload, now_ms)
        except TurtlesError as error:
            result = Rejection(event=event.event, state=job.run.state, reason=str(error))
        applied = Consumed(number=event.number, status="applied")
        if isinstance(result, Decision):
            await self._desk.commit(job, result, consumed=(applied,))
        elif child is not None and event.key == ended_key(child):
            # Nobody will say it again, and the run would wait for ever; the event is kept.
            await self._desk.quarantine(job, f"the end of its child was refused: {result.reason}")
        elif isinstance(result, Violation):
            await self._desk.violated(job, result, event)
        else:
            await self._reject(job, event, result.reason)

    async def _event_while_closing(self, job: Job, event: InboxEvent, now_ms: int) -> None:
        if job.run.child is not None and event.key == ended_key(job.run.child):
            decision = control.child_ended(job.table, job.run, now_ms)
            consumed = Consumed(number=event.number, status="applied")
            await self._desk.commit(job, decision, consumed=(consumed,))
        else:
            await self._reject(job, event, f"the run is closing as {job.run.closing}")

    async def _refuse_rest(self, job: Job, now_ms: int) -> bool:
        if not job.inbox:
            return False
        await self._reject(job, job.inbox[0], f"the run is {job.run.status}")
        return True

    async def _reject(self, job: Job, event: InboxEvent, reason: str) -> None:
        log.info("event.rejected", run_id=job.run.run_id, event_name=event.event, reason=reason)
        consumed = Consumed(number=event.number, status="rejected", reason=reason)
        await self._desk.write(job, job.run, consumed=(consumed,))

    async def _timer(self, job: Job, now_ms: int) -> None:
        name = job.place.on_timeout or ""
        result = decide(job.table, job.run, name, None, now_ms)
        if isinstance(result, Decision):
            await self._desk.commit(job, result)
        else:
            await self._desk.quarantine(job, f"timer {name!r}: {result.reason}")

    # -- control --------------------------------------------------------------------------------

    async def _control(self, job: Job, event: InboxEvent, now_ms: int) -> None:
        result: Decision | Rejection
        if event.event == control.CANCEL:
            await self._cancel(job, event, now_ms)
            return
        if event.event == control.PAUSE:
            result = control.pause(job.run, now_ms)
        else:
            result = control.resume(job.table, job.run, now_ms)
        await self._settle_control(job, event, result)

    async def _cancel(self, job: Job, event: InboxEvent | None, now_ms: int) -> None:
        result: Decision | Rejection | Violation
        if (job.run.state, control.CANCEL_EVENT) in job.table.edges and not job.run.closing:
            result = decide(job.table, job.run, control.CANCEL_EVENT, None, now_ms)
            if isinstance(result, Decision):
                after = result.after.but(cancel_requested=False)
                result = msgspec.structs.replace(result, after=after)
        else:
            result = control.cancel(job.table, _as_known(job), now_ms)
        if isinstance(result, Violation):
            await self._desk.violated(job, result, event)
        else:
            await self._settle_control(job, event, result)

    async def _settle_control(
        self, job: Job, event: InboxEvent | None, result: Decision | Rejection
    ) -> None:
        if isinstance(result, Decision):
            consumed = (Consumed(number=event.number, status="applied"),) if event else ()
            await self._desk.commit(job, result, consumed=consumed)
        elif event:
            await self._reject(job, event, result.reason)
        else:
            await self._desk.write(job, job.run.but(cancel_requested=False))

    def _can_cancel(self, job: Job) -> bool:
        effect = _as_known(job).effect
        own = (job.run.state, control.CANCEL_EVENT) in job.table.edges
        return own or (job.place.cancellable and not (effect is not None and effect.open))


def _as_known(job: Job) -> Run:
    """The run as this worker knows it: an attempt it has counted but not made is in no doubt."""
    effect = job.run.effect
    if effect is None or not effect.open or not job.fresh or job.doubt:
        return job.run
    return job.run.but(effect=msgspec.structs.replace(effect, open=False))


def _is_poison(claimed: Claimed, run: Run) -> bool:
    """Whether every worker that took the run died in its effect.

    Claims alone prove nothing: a run that polls, retries or refuses events is claimed often and
    makes no transition.  Attempts that never ended in anything, not even an error, do.
    """
    effect = run.effect
    if run.status in HELD or effect is None or claimed.stalls <= STALLS_MAX:
        return False
    return effect.open and effect.last_error is None and effect.attempts > STALLS_MAX


def _describe(error: Exception) -> str:
    """What went wrong in the machine's code; no foreign message, which may hold a secret."""
    if isinstance(error, TurtlesError):
        return str(error)
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = f" at line {trace.tb_lineno}" if trace else ""
    return f"the machine's code raised {type(error).__name__}{where}"


def _is_over(deadline_ms: int | None, now_ms: int) -> bool:
    return deadline_ms is not None and deadline_ms <= now_ms


def _timer_is_next(run: Run, now_ms: int) -> bool:
    """Whether the state's timer is due, and no effect was due before it."""
    if run.deadline_ms is None or run.deadline_ms > now_ms:
        return False
    return run.effect is None or run.effect.next_ms >= run.deadline_ms
