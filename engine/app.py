"""The front door: machines, a store, and the runs in it.

::

    app = App([Payment], store=open_store("sqlite:///runs.db"))
    async with app:
        run = await app.start(Payment, Invoice(...), key="order-42")
        await app.send(run.run_id, Paid(amount_atomic=100), key="tx-1")
        outcome = await app.wait(run.run_id)

Inside `async with`, a worker moves whatever is due, also what an earlier process left behind.
`App(..., work=False)` only looks and sends.  Synchronous programs use `engine.blocking`.
"""

from __future__ import annotations

import asyncio
import os
import secrets as secrets_module
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import msgspec
import structlog

from engine.clock import seconds
from engine.codec import Codec
from engine.committer import HereIo, ThreadIo
from engine.control import CANCEL, PAUSE, RESUME
from engine.decide import Decision, Violation, begin
from engine.definition import Machine
from engine.desk import Desk
from engine.errors import (
    BadPayload,
    KeyConflict,
    Refused,
    SecretsError,
)
from engine.events import Event, event_id
from engine.limits import check_key
from engine.log import configure
from engine.performing import Performer
from engine.ports import Claimed, Delivery, Query, Receipt, Store
from engine.run import HELD, Run
from engine.runner import Runner
from engine.secrets import SecretsCodec, load_codec
from engine.table import Table, compile_table
from engine.view import Outcome, Permission, View, unknown_run
from engine.waiting import Waiters
from engine.worker import Lease, Worker
from engine.world import World

log = structlog.get_logger("turtles.app")


class RunRef(msgspec.Struct, frozen=True):
    """The answer to a start: `created` is false when the key had been used before."""

    run_id: str
    created: bool


class App(View):
    """Machines over a store.

    Args:
        machines: the classes whose runs this program moves, child machines included; or what they
            compile to.
        store: from `persistence.open_store(...)`.
        resources: what effects may ask for with `call.resource(Kind)`.
        secrets: the codec for `Secret` fields; by default from `TURTLES_MASTER_KEY` or the key
            file beside the store.
        world: clock, names, calls of effects and all else that tests and the explorer replace.
        work: whether to move runs; without, the app only looks and sends.
        moved: called after every transition this program makes.
    """

    def __init__(
        self,
        machines: Iterable[type[Machine[Any]] | Table],
        store: Store,
        *,
        resources: Mapping[Any, Any] | None = None,
        secrets: SecretsCodec | None = None,
        world: World | None = None,
        work: bool = True,
        moved: Any = None,
    ) -> None:
        if not structlog.is_configured():
            configure(json=False)  # warnings to stderr, until the program decides otherwise
        world = world or World()
        compiled = (m if isinstance(m, Table) else compile_table(m) for m in machines)
        tables = {table.name: table for table in compiled}
        secrets = secrets or _codec_of(store)
        store = world.store(store)
        super().__init__(
            tables=tables,
            store=store,
            codec=Codec(secrets, tables),
            clock=world.clock,
            io=world.io or (HereIo() if store.local else ThreadIo()),
        )
        self._log = log.bind()  # once: binding costs more than a line that nobody wants
        self._work = work
        self._listener = moved
        self._new_id = world.new_id
        self._lease = Lease(store, self._io, self.clock, world.worker())
        self._worker = Worker(
            store=store,
            io=self._io,
            clock=self.clock,
            lease=self._lease,
            versions=lambda: frozenset(t.fingerprint for t in self.tables.values()),
        )
        self._committer = world.committer(store, self._io, lambda: self._worker.alone)
        self._desk = Desk(
            worker_id=self._lease.identity.worker_id,
            codec=self.codec,
            committer=self._committer,
            clock=self.clock,
            moved=self._note,
            arrived=self._worker.wake,
        )
        self._waiters = Waiters(store, self._io, self.clock, self.codec)
        performer = Performer(
            desk=self._desk,
            clock=self.clock,
            resources=dict(resources or {}),
            calls=world.calls,
            may_go_on=self._worker.may_go_on,
        )
        self._runner = Runner(
            codec=self.codec,
            clock=self.clock,
            desk=self._desk,
            performer=performer,
            may_go_on=self._worker.may_go_on,
        )
        self._serving: asyncio.Task[None] | None = None
        self._stopped = False

    # -- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> App:
        try:
            await self.open()
        except BaseException:
            self._io.close()
            raise
        if self._work:
            self._serving = asyncio.create_task(self._worker.serve(self._runner))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def open(self) -> None:
        """Register the machines and take a lease, without starting to work."""
        if self._io.in_place:
            self.store.hold()
        now_ms = self.clock.now_ms()
        for table in self.tables.values():
            shape = msgspec.json.encode(table.shape)
            await self._io(
                lambda t=table, s=shape: self.store.machines.register(  # type: ignore[misc]
                    t.name, t.fingerprint, s, now_ms
                )
            )
        await self._lease.beat()

    async def beat(self) -> None:
        """Prolong the lease; the background worker does it by itself."""
        await self._lease.beat()

    async def stop(self, *, grace_ms: int = seconds(10)) -> None:
        """Take no more work, finish the steps in hand, give every run up.  Once is enough."""
        if self._stopped:
            return
        self._stopped = True
        await self._worker.stop(grace_ms=grace_ms)
        if self._serving is not None:
            await self._serving
            self._serving = None
        await self._lease.retire()
        self._io.close()

    def _note(self, decision: Decision) -> None:
        after, entry = decision.after, decision.entry
        if after.terminal or after.status in HELD:
            self._waiters.rests(after)
        if decision.child or after.closing or (after.parent and (decision.moved or after.terminal)):
            self._worker.wake()  # another run may have become due
        self._log.info("run.moved", run_id=entry.run_id, machine=after.machine, seq=entry.seq,
                       event_name=entry.event, source=entry.source, target=entry.target,
                       status=after.status)  # fmt: skip
        if self._listener is not None:
            self._listener(decision)

    # -- doors ----------------------------------------------------------------------------------

    async def start(
        self, machine: type[Machine[Any]] | str, context: Any, *, key: str | None = None
    ) -> RunRef:
        """Accept a run.  The same key gives the same run, however often it is started.

        Raises:
            UnknownMachine: not one of this app's machines.
            BadPayload: the context is not of the machine's type.
            KeyConflict: the key was used before with another context.
            Refused: the context breaks an invariant of the initial state, or its child's does.
        """
        table = self._table(machine)
        if type(context) is not table.context:
            raise BadPayload(
                f"machine {table.name} expects a context {table.context.__name__}"
                f"({', '.join(table.context.__struct_fields__)}), got {type(context).__name__}."
            )
        if key is not None:
            check_key("key of the run", key)
        now_ms = self.clock.now_ms()
        begun = begin(table, run_id=self._new_id(now_ms), context=context, now_ms=now_ms, key=key)
        if isinstance(begun, Violation):
            raise Refused(f"machine {table.name} cannot begin: {begun.reason}")
        due = begun.after.due_ms is not None and begun.after.due_ms <= now_ms
        start = self._desk.start_for(begun, self._worker.taker if due else None)
        started = await self._committer.start(start)
        if started.owned:
            self._worker.take(Claimed(run=start.run, fence=1, inbox=(), stalls=1, fresh=True))
        elif not started.created:
            await self._same_start(table, started.run_id, key or "", context)
        else:
            self._worker.wake()
        return RunRef(started.run_id, started.created)

    async def _same_start(self, table: Table, run_id: str, key: str, context: Any) -> None:
        entries = await self._io(lambda: self.store.journal.read(run_id, limit=1))
        first = self.codec.open_entry(table.name, entries[0])
        if first.context != context:
            raise KeyConflict(
                f"key {key!r} of machine {table.name} was used before, by run {run_id}, with "
                "another context. Use another key, or the same context to get that run."
            )

    async def send(self, run_id: str, event: Event | str, *, key: str | None = None) -> Receipt:
        """Give a run an event.  The same key is accepted once; later ones get its receipt.

        Returns at once: the event is durable, and a worker will apply it.  Without a key every
        call counts as another event.

        Raises:
            UnknownRun, UnknownEvent, BadPayload, KeyConflict.
        """
        stored = await self._stored(run_id)
        table = self.codec.table(stored.run.machine)
        name = event if isinstance(event, str) else event_id(type(event))
        payload = None if isinstance(event, str) else event
        table.check_payload(name, payload)
        body = self.codec.seal_payload(payload, f"event {name}")
        if key is None:
            key = f"once:{secrets_module.token_hex(12)}"
        check_key("key of the event", key)
        return await self._deliver(stored.run, name, key, payload, body)

    async def _deliver(
        self, run: Run, name: str, key: str, payload: Event | None, body: bytes | None
    ) -> Receipt:
        delivery = Delivery(
            run_id=run.run_id, key=key, event=name, payload=body, at_ms=self.clock.now_ms()
        )
        receipt = await self._committer.deliver(delivery)
        if receipt is None:
            raise unknown_run(run.run_id, self.store.name)
        if receipt.duplicate and not receipt.same:
            raise KeyConflict(
                f"key {key!r} of run {run.run_id} was used before for another event. "
                "Use another key."
            )
        self._worker.wake()
        return receipt

    async def pause(self, run_id: str) -> Receipt:
        """Stop moving a run until `resume`; events are kept."""
        return await self._control(run_id, PAUSE)

    async def resume(self, run_id: str) -> Receipt:
        """Go on with a paused or quarantined run."""
        return await self._control(run_id, RESUME)

    async def cancel(self, run_id: str) -> Receipt:
        """Ask a run to stop, its children first; what it made is compensated."""
        return await self._control(run_id, CANCEL)

    async def _control(self, run_id: str, event: str) -> Receipt:
        stored = await self._stored(run_id)
        # The same request twice is one, but never one that was settled before: settling needs a
        # claim, which raises the fence.
        key = f"{event}:{stored.run.seq}:{stored.fence}:{stored.updated_ms}"
        return await self._deliver(stored.run, event, key, None, None)

    async def apply(self, receipt: Receipt) -> Receipt:
        """Apply what waits in a run's inbox here and now, if no worker has the run.

        Effects and timers are left to a worker.  Returns the receipt as it then stands.
        """
        if receipt.status == "accepted":
            for claimed in await self._worker.claim(limit=1, run_id=receipt.run_id):
                await self._runner.advance(claimed, effects=False)
        found = await self._io(lambda: self.store.inbox.receipt(receipt.run_id, receipt.key))
        return found or receipt

    async def settle(self) -> int:
        """Move everything that is due now, in the foreground; the number of runs moved.

        Moves nothing once the lease is over; see `beat`.
        """
        moved = 0
        while self._worker.may_go_on() and (claimed := await self._worker.claim(limit=1)):
            await self._runner.advance(claimed[0])
            moved += 1
        return moved

    # -- looking --------------------------------------------------------------------------------

    async def wait(self, run_id: str, *, timeout_seconds: float | None = None) -> Outcome:
        """The outcome of a run, when it has ended (or is quarantined or paused).

        Raises:
            TimeoutError: it has not ended in time.
            StoreError: the store has refused this program's work for some seconds.
        """
        async with asyncio.timeout(timeout_seconds):
            return self._outcome(
                await self._waiters.wait(run_id, self._worker.has(run_id), self._check_worker)
            )

    def _check_worker(self) -> None:
        """Raise what stops the worker: nobody should wait for what cannot happen."""
        failure = self._worker.failure()
        if failure is not None:
            raise failure
        if self._serving is not None and self._serving.done():
            self._serving.result()


def _codec_of(store: Store) -> SecretsCodec:
    """The codec of a store: a new key is only made for a store in which nothing was sealed yet."""
    file = store.key_file
    missing = file is not None and not file.exists() and "TURTLES_MASTER_KEY" not in os.environ
    if missing and store.runs.select(Query(limit=1)):
        raise SecretsError(
            f"master key file {file}: missing, but {store.name} has runs whose secrets it opens. "
            "Restore the file, or give the key in TURTLES_MASTER_KEY."
        )
    return load_codec(file, os.environ)


__all__ = ["App", "Outcome", "Permission", "RunRef", "View"]
