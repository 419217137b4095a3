"""Writing one step of a run: its transition, its effect, its children and its messages at once.

A `Job` is a claimed run in a worker's hands; the `Desk` turns what was decided about it into one
`Write` and commits it through the committer.  Everything that must happen together is in that one
write: the journal's entry, the new effect with its first attempt, the events consumed, the child
runs started, the parent told, the orphaned child cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import structlog

from engine import control
from engine.clock import Clock
from engine.codec import Codec
from engine.committer import Committer
from engine.decide import Decision, Violation, begin
from engine.errors import LostOwnership, Refused, TurtlesError
from engine.limiting import Limiting
from engine.limiting import read as read_limits
from engine.limiting import written as written_limits
from engine.limits import CHILD_DEPTH_MAX
from engine.ports import Claimed, Consumed, Delivery, InboxEvent, Start, Write, Written
from engine.run import Pending, Run
from engine.table import Place, Table

log = structlog.get_logger("turtles.desk")


class Job:
    """A claimed run in this worker's hands."""

    def __init__(self, table: Table, run: Run, claimed: Claimed, *, performs: bool = True) -> None:
        self.table = table
        self.run = run
        self.stored = claimed.run
        """The run as the store has it, encoded: what was written last is not encoded again."""
        self.fence = claimed.fence
        self.term = claimed.term
        self.inbox = claimed.inbox
        self.limits = read_limits(claimed.limits)
        """The limits of which it has a slot and a token that is not spent."""
        self.held = bool(self.limits)
        """Whether it may have slots."""
        self.performs = performs
        """Whether this worker goes on to perform effects, so that it may count first attempts."""
        self.fresh = claimed.fresh
        """Whether the open attempt was recorded by this very worker a moment ago."""
        self.doubt = False
        """Whether an attempt before the present one may have taken effect."""
        self.released = False
        """Whether the last write gave the run up, because nothing more was due."""

    @property
    def place(self) -> Place:
        """The state the run is in."""
        return self.table.places[self.run.state]


class _Step(NamedTuple):
    """A decision, the run after it as this worker knows it, and what is written."""

    decision: Decision
    after: Run
    write: Write
    fresh: bool


class Desk:
    """Commits the steps of one worker's jobs.

    Args:
        moved: called after every transition, with its decision.
        arrived: called when a run was given up for which events had come in meanwhile, or which
            others may have waited for.
        limiting: what effects need.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        codec: Codec,
        committer: Committer,
        clock: Clock,
        moved: Callable[[Decision], None],
        arrived: Callable[[], None] = lambda: None,
        limiting: Limiting | None = None,
    ) -> None:
        self._worker_id = worker_id
        self._codec = codec
        self._committer = committer
        self._clock = clock
        self._moved = moved
        self._arrived = arrived
        self._limiting = Limiting() if limiting is None else limiting

    def admits(self, job: Job) -> bool:
        """Whether the job has what its pending effect needs."""
        return not self._limiting or self._limiting.needed(job.run) <= job.limits

    async def give_up(self, job: Job) -> None:
        """Leave the run to whoever can claim it with what its effect needs."""
        await self.release(job)
        job.released = True

    async def violated(self, job: Job, result: Violation, event: InboxEvent | None) -> None:
        consumed: tuple[Consumed, ...] = ()
        if event is not None:
            consumed = (Consumed(number=event.number, status="rejected", reason=result.reason),)
        await self.quarantine(job, f"event {result.event}: {result.reason}", consumed)

    async def quarantine(self, job: Job, reason: str, consumed: tuple[Consumed, ...] = ()) -> None:
        log.error("run.quarantined", run_id=job.run.run_id, state=job.run.state, reason=reason)
        await self.write(job, control.quarantined(job.run, reason), consumed=consumed)

    async def set_aside(self, claimed: Claimed, reason: str) -> Run:
        """Quarantine a run that cannot even be read (a lost key, a context of another shape)."""
        log.error("run.unreadable", run_id=claimed.run.run_id, reason=reason)
        after = control.quarantined(claimed.run, reason)
        write = Write(
            fence=claimed.fence,
            before=claimed.run,
            after=after,
            release=True,
            held=claimed.limits is not None,
            at_ms=self._clock.now_ms(),
        )
        await self._committer.write(write)
        return after

    async def commit(
        self,
        job: Job,
        decision: Decision,
        *,
        consumed: tuple[Consumed, ...] = (),
        outcome: Any = None,
    ) -> None:
        try:
            step = self._step(job, decision, consumed=consumed, outcome=outcome)
        except TurtlesError as error:
            reason = f"event {decision.entry.event}: {error}"
            refused = tuple(
                msgspec.structs.replace(one, status="rejected", reason=reason) for one in consumed
            )
            await self.quarantine(job, reason, refused)
            return
        self._settle(job, step, await self._committer.write(step.write))

    async def commit_with(self, job: Job, work: Callable[[Any], Decision]) -> None:
        """Commit the decision that `work` comes to, in the transaction in which it comes to it.

        Args:
            work: is given a connection of that transaction, in the store's thread; whatever it
                raises takes all of it back.  A store that is busy may have it called again.

        Raises:
            LostOwnership: another worker has the run; nothing that `work` wrote is there.
            Refused: a child that the decision starts cannot begin; likewise.
        """
        steps: list[_Step] = []

        def writing(connection: Any) -> Write:
            decision = work(connection)
            try:
                steps.append(self._step(job, decision, outcome="done"))
            except TurtlesError as error:
                raise Refused(f"event {decision.entry.event}: {error}") from error
            return steps[-1].write

        written = await self._committer.write_with(writing)
        self._settle(job, steps[-1], written)

    def _step(
        self,
        job: Job,
        decision: Decision,
        *,
        consumed: tuple[Consumed, ...] = (),
        outcome: Any = None,
    ) -> _Step:
        """What a decision writes.

        Raises:
            TurtlesError: a child that it starts cannot begin.
        """
        after, starts = decision.after, self._starts(decision)
        # Only a newly decided effect is performed without asking.  One that was pending before this
        # transition (a deferred $cancel, a $resume) may be in doubt: reconcile comes first.
        now_ms, effect = self._clock.now_ms(), after.effect
        fresh = (
            effect is not None
            and job.performs
            and effect.next_ms <= now_ms
            and _is_new(effect, job.run.effect)
            and (not self._limiting or self._limiting.needed(after) <= job.limits)
        )
        if fresh and after.effect is not None:
            first = msgspec.structs.replace(after.effect, attempts=1, open=True, calls=1)
            after = after.but(effect=first)
        sends, output = self._sends(job, decision, after)
        after, write = self._write_of(
            job,
            after,
            decision=decision,
            consumed=consumed,
            outcome=outcome,
            starts=starts,
            sends=sends,
            output=output,
            at_ms=now_ms,
        )
        return _Step(decision, after, write, fresh)

    def _settle(self, job: Job, step: _Step, written: Written) -> None:
        self._written(job, step.after, step.write, written)
        job.fresh, job.doubt = step.fresh, False
        self._moved(step.decision)

    def _starts(self, decision: Decision) -> tuple[Start, ...]:
        child = decision.child
        if child is None:
            return ()
        table = self._codec.table(child.child.machine)
        depth = decision.after.depth + 1
        if depth > CHILD_DEPTH_MAX:
            raise Refused(f"child run at depth {depth}, the limit is {CHILD_DEPTH_MAX}")
        begun = begin(
            table,
            run_id=child.run_id,
            context=self._codec.context(table, child.child.context),
            now_ms=decision.entry.at_ms,
            parent=child.parent,
            depth=depth,
            priority=decision.after.priority,
            tenant=decision.after.tenant,
        )
        if isinstance(begun, Violation):
            raise Refused(f"child {child.child.machine} cannot begin: {begun.reason}")
        return (self.start_for(begun),)

    def start_for(self, begun: Decision, owner: str | None = None) -> Start:
        """The encoded start of a run that has been accepted, with the children it starts.

        Args:
            owner: the worker that moves it at once: its effect's first attempt is counted.
        """
        after = begun.after
        needed = self._limiting.needed(after)
        if needed:
            owner = None  # who claims it brings what the effect needs
        if owner is not None and after.effect is not None:
            first = msgspec.structs.replace(after.effect, attempts=1, open=True, calls=1)
            after = after.but(effect=first)
        run = self._codec.seal_run(after)
        return Start(
            run=run,
            entry=self._codec.seal_entry(begun.entry, self._worker_id, context=run.context),
            children=self._starts(begun),
            owner=owner,
            limits=written_limits(needed),
        )

    def _sends(
        self, job: Job, decision: Decision, after: Run
    ) -> tuple[tuple[Delivery, ...], bytes | None]:
        if after.parent is None and job.run.child is None and not after.terminal:
            return (), None
        sends: list[Delivery] = []
        at_ms = decision.entry.at_ms
        orphan = self._orphan(job, decision, after)
        if orphan is not None:
            key = f"parent:{after.run_id}:{after.seq}"
            sends.append(
                Delivery(run_id=orphan, key=key, event=control.CANCEL, payload=None, at_ms=at_ms)
            )
        output = self._output(job, after) if after.terminal else None
        parent = after.parent
        if parent is not None and after.terminal:
            payload = self._ended_payload(after, output)
            sends.append(
                self._to_parent(after, parent.on_ended, ended_key(after.run_id), payload, at_ms)
            )
        elif parent is not None and decision.moved and parent.on_moved is not None:
            body = {"event": parent.on_moved, "run_id": after.run_id, "state": after.state}
            key = f"child:{after.run_id}:{after.seq}"
            sends.append(self._to_parent(after, parent.on_moved, key, body, at_ms))
        return tuple(sends), None if output is None else self._codec.encode(output)

    def _orphan(self, job: Job, decision: Decision, after: Run) -> str | None:
        """The live child that this transition leaves behind, if it has to be cancelled."""
        child = job.run.child
        over = decision.entry.event in (job.place.on_child, control.CHILD_ENDED)
        kept = after.child == child and after.closing is None
        if over or kept or job.run.closing is not None:
            return None
        return None if job.place.on_parent_end == "abandon" else child

    def _to_parent(
        self, run: Run, event: str, key: str, body: dict[str, Any], at_ms: int
    ) -> Delivery:
        assert run.parent is not None
        payload = self._codec.encode(body)
        return Delivery(
            run_id=run.parent.run_id, key=key, event=event, payload=payload, at_ms=at_ms
        )

    def _output(self, job: Job, after: Run) -> Any:
        return job.table.output({"context": after.context})

    def _ended_payload(self, run: Run, output: Any) -> dict[str, Any]:
        assert run.parent is not None
        body = {
            "event": run.parent.on_ended,
            "run_id": run.run_id,
            "machine": run.machine,
            "state": run.state,
            "succeeded": run.status == "completed",
        }
        kind = self._codec.table(run.parent.machine).payloads.get(run.parent.on_ended)
        if kind is not None and "output" in kind.__struct_fields__:
            body["output"] = output
        return body

    async def write(self, job: Job, after: Run, *, consumed: tuple[Consumed, ...] = ()) -> None:
        """Write what is no transition: attempts, events refused, a quarantine."""
        after, write = self._write_of(job, after, consumed=consumed, at_ms=self._clock.now_ms())
        self._written(job, after, write, await self._committer.write(write))

    def _write_of(
        self,
        job: Job,
        after: Run,
        *,
        at_ms: int,
        decision: Decision | None = None,
        consumed: tuple[Consumed, ...] = (),
        outcome: Any = None,
        starts: tuple[Start, ...] = (),
        sends: tuple[Delivery, ...] = (),
        output: bytes | None = None,
    ) -> tuple[Run, Write]:
        after = _counted(job.run.effect, after)
        sealed = self._codec.seal_run(after)
        entry = None
        if decision is not None:
            context = sealed.context
            entry = self._codec.seal_entry(decision.entry, self._worker_id, context=context)
        release = self._rests(job, after, consumed, at_ms)
        limits = None
        if self._limiting or job.held:
            needed = self._limiting.needed(after)
            release = release or self._must_wait(job, after, needed, consumed, at_ms)
            limits = written_limits(needed if release else needed & job.limits)
        return after, Write(
            fence=job.fence,
            before=job.stored,
            after=sealed,
            entry=entry,
            outcome=outcome,
            consumed=consumed,
            starts=starts,
            sends=sends,
            output=output,
            release=release,
            limits=limits,
            held=job.held,
            at_ms=at_ms,
        )

    def _written(self, job: Job, after: Run, write: Write, written: Written) -> None:
        if not written.ok:
            raise LostOwnership(f"run {job.run.run_id}: moved by another worker; work dropped")
        before, had = job.run.effect, job.limits
        job.run, job.stored = after, write.after
        job.inbox, job.released = written.arrived, write.release
        if job.held:
            job.limits = had & read_limits(write.limits)
            if _attempted(before, after.effect):
                job.limits = self._limiting.spent(job.limits)
        freed = job.held and (write.release or not had <= read_limits(write.limits))
        if freed or (write.release and (written.arrived or write.limits)):
            self._arrived()

    def _must_wait(
        self,
        job: Job,
        after: Run,
        needed: frozenset[str],
        consumed: tuple[Consumed, ...],
        now_ms: int,
    ) -> bool:
        """Whether nothing is left to do but an effect for which the job lacks a slot or token."""
        if needed <= job.limits or len(job.inbox) > len(consumed) or after.cancel_requested:
            return False
        timer_is_due = after.deadline_ms is not None and after.deadline_ms <= now_ms
        return after.effect is not None and after.effect.next_ms <= now_ms and not timer_is_due

    def _rests(self, job: Job, after: Run, consumed: tuple[Consumed, ...], now_ms: int) -> bool:
        """Whether nothing is left to do for the run now, so that the same write gives it up.

        What arrives meanwhile makes the store wake the run, for any worker.
        """
        if after.terminal:
            return True
        if len(job.inbox) > len(consumed) or after.cancel_requested:
            return False
        due_ms = after.due_ms
        return due_ms is None or due_ms > now_ms or not job.performs

    async def release(self, job: Job) -> None:
        limits = written_limits(self._limiting.needed(job.run))
        written = await self._committer.write(
            Write(
                fence=job.fence,
                before=job.stored,
                after=job.stored,
                release=True,
                limits=limits,
                held=job.held,
                at_ms=self._clock.now_ms(),
            )
        )
        if written.arrived or limits or job.held:
            self._arrived()


def _counted(before: Pending | None, after: Run) -> Run:
    """The run with the attempts that this step adds counted among its effect's calls."""
    effect = after.effect
    if effect is None:
        return after
    same = before is not None and before.key == effect.key
    known, tried = (before.calls, before.attempts) if same and before else (0, 0)
    calls = known + max(effect.attempts - tried, 0)
    if calls == effect.calls:
        return after
    return after.but(effect=msgspec.structs.replace(effect, calls=calls))


def _attempted(before: Pending | None, after: Pending | None) -> bool:
    """Whether an attempt was counted between the two."""
    if after is None:
        return False
    known = before.calls if before is not None and before.key == after.key else 0
    return after.calls > known


def _is_new(effect: Pending | None, before: Pending | None) -> bool:
    return effect is not None and (before is None or before.key != effect.key)


def ended_key(run_id: str) -> str:
    """The dedupe key of the event that tells a parent of its child's end."""
    return f"child:{run_id}:ended"


def child_in(key: str) -> str | None:
    """The child run that sent its parent the event with this dedupe key, if a child did."""
    kind, _, rest = key.partition(":")
    return rest.partition(":")[0] if kind == "child" else None
