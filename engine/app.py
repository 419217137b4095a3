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
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import structlog

from engine.clock import seconds
from engine.codec import Codec, digest_of
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
    StoreError,
)
from engine.events import Event, event_id
from engine.journal import Entry
from engine.limiting import Limit, Limiting, changed, check_limits, check_share
from engine.limits import check_key
from engine.log import configure
from engine.performing import Performer
from engine.ports import Claimed, Delivery, Gone, Query, Receipt, Start, Started, Store
from engine.retention import Asked, Collected, collect
from engine.run import HELD, Run
from engine.runner import Runner
from engine.secrets import NoKey, SecretsCodec, load_codec
from engine.table import Table, compile_table
from engine.view import Outcome, Permission, View, missing_run
from engine.waiting import Waiters
from engine.worker import LEASE_MS, Lease, Worker, lease_ms_of
from engine.world import World

T = TypeVar("T")
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
        lease_seconds: how long this program may be silent before others take its runs, 1 to 3600;
            more than the store's busy timeout, and more than anything that may hold it up.
        limits: caps on what all workers together do (`engine.limiting`); stored, and read by all.
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
        lease_seconds: float = LEASE_MS / 1000,
        limits: Sequence[Limit] = (),
        moved: Any = None,
    ) -> None:
        lease_ms = lease_ms_of(lease_seconds)
        if not structlog.is_configured():
            configure(json=False)  # warnings to stderr, until the program decides otherwise
        world = world or World()
        compiled = (m if isinstance(m, Table) else compile_table(m) for m in machines)
        tables = {table.name: table for table in compiled}
        check_limits(limits, tables)
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
        # A heartbeat never queues behind work where work waits for a server.
        self._heart_io = self._io if world.io or store.local else ThreadIo()
        self._limits, limiting = tuple(limits), Limiting()
        self._lease = Lease(
            store, self._heart_io, self.clock, world.worker(), lease_ms=lease_ms, limiting=limiting
        )
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
            limiting=limiting,
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False

    # -- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> App:
        try:
            await self.open()
        except BaseException:
            self._close_io()
            raise
        if self._work:
            self._loop = asyncio.get_running_loop()
            self._serving = asyncio.create_task(self._worker.serve(self._runner))
            self.store.listen(self._wake_soon)
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
        if self._limits:
            for before, after in await self._io(
                lambda: self.store.limits.declare(self._limits, now_ms)
            ):
                changed(before, after)
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
        try:
            await self._lease.retire()
        except StoreError as error:  # then the lease has to run out
            self._log.warning("worker.retire_failed", reason=str(error))
        finally:
            self._close_io()

    def _close_io(self) -> None:
        self._io.close()
        if self._heart_io is not self._io:
            self._heart_io.close()

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
        self,
        machine: type[Machine[Any]] | str,
        context: Any,
        *,
        key: str | None = None,
        tenant: str = "",
        priority: int = 0,
        connection: Any = None,
    ) -> RunRef:
        """Accept a run.  The same key gives the same run, however often it is started.

        Args:
            tenant: for whom; tenants that have work get equal shares of the workers.
            priority: of its tenant's runs, those with the higher number go first.  Child runs
                inherit both.
            connection: the caller's own SQLAlchemy `Connection` (or `AsyncConnection`) to the
                store's database, in a transaction: the run is there exactly if it commits.

        Raises:
            UnknownMachine: not one of this app's machines.
            BadPayload: the context is not of the machine's type.
            KeyConflict: the key was used before with another context.
            Refused: the context breaks an invariant of the initial state, or its child's does.
            UsageError: the connection has no transaction, or is to another database.
        """
        if connection is not None:
            return await _with_connection(
                connection,
                lambda own: self.start_within(
                    own, machine, context, key=key, tenant=tenant, priority=priority
                ),
            )
        begun = self._begun(machine, context, key, tenant, priority)
        due_ms, now_ms = begun.after.due_ms, begun.after.created_ms
        due = due_ms is not None and due_ms <= now_ms
        term = self._lease.term
        start = self._desk.start_for(begun, self._worker.taker if due else None)

        def accepted(started: Started) -> None:
            if started.owned:  # whoever asked may have given up; the run is ours all the same
                self._worker.take(
                    Claimed(run=start.run, fence=1, inbox=(), stalls=1, term=term, fresh=True)
                )

        started = await self._committer.start(start, accepted)
        if not started.created:
            self._same_start(start, context, *await self._io(lambda: self._first(started.run_id)))
        elif not started.owned:
            self._worker.wake()
        return RunRef(started.run_id, started.created)

    def start_within(
        self,
        connection: Any,
        machine: type[Machine[Any]] | str,
        context: Any,
        *,
        key: str | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> RunRef:
        """`start` over the caller's connection, in the caller's thread."""
        begun = self._begun(machine, context, key, tenant, priority)
        doors = self.store.within(connection)
        start = self._desk.start_for(begun)
        started = doors.start(start)
        if not started.created:
            run_id = started.run_id
            self._same_start(start, context, doors.first(run_id), doors.gone(run_id))
        doors.on_commit(self._wake_soon)
        return RunRef(started.run_id, started.created)

    def _begun(
        self,
        machine: type[Machine[Any]] | str,
        context: Any,
        key: str | None,
        tenant: str,
        priority: int,
    ) -> Decision:
        table = self._table(machine)
        if type(context) is not table.context:
            raise BadPayload(
                f"machine {table.name} expects a context {table.context.__name__}"
                f"({', '.join(table.context.__struct_fields__)}), got {type(context).__name__}."
            )
        if key is not None:
            check_key("key of the run", key)
        check_share(tenant, priority)
        now_ms = self.clock.now_ms()
        begun = begin(
            table,
            run_id=self._new_id(now_ms),
            context=context,
            now_ms=now_ms,
            key=key,
            priority=priority,
            tenant=tenant,
        )
        if isinstance(begun, Violation):
            raise Refused(f"machine {table.name} cannot begin: {begun.reason}")
        return begun

    def _first(self, run_id: str) -> tuple[Entry | None, Gone | None]:
        entries = self.store.journal.read(run_id, limit=1)
        return (entries[0], None) if entries else (None, self.store.retention.gone(run_id))

    def _same_start(
        self, start: Start, context: Any, first: Entry | None, gone: Gone | None
    ) -> None:
        """Refuse another context than that with which the run of the same key was started."""
        machine, key = start.run.machine, start.run.key
        if first is not None:
            run_id, same = first.run_id, self.codec.open_entry(machine, first).context == context
        elif gone is not None:
            run_id, same = gone.run_id, gone.digest == digest_of(start.run.context)
        else:
            return  # forgotten in this very moment
        if not same:
            raise KeyConflict(
                f"key {key!r} of machine {machine} was used before, by run {run_id}"
                f"{' (since removed)' if gone else ''}, with another context. "
                "Use another key, or the same context to get that run."
            )

    async def send(
        self, run_id: str, event: Event | str, *, key: str | None = None, connection: Any = None
    ) -> Receipt:
        """Give a run an event.  The same key is accepted once; later ones get its receipt.

        Returns at once: the event is durable, and a worker will apply it.  Without a key every
        call counts as another event.

        Args:
            connection: as in `start`: the event is there exactly if its transaction commits.

        Raises:
            UnknownRun, UnknownEvent, BadPayload, KeyConflict.
            UsageError: the connection has no transaction, or is to another database.
        """
        if connection is not None:
            return await _with_connection(
                connection, lambda own: self.send_within(own, run_id, event, key=key)
            )
        delivery = self._delivery((await self._stored(run_id)).run, event, key)
        return await self._deliver(delivery)

    def send_within(
        self, connection: Any, run_id: str, event: Event | str, *, key: str | None = None
    ) -> Receipt:
        """`send` over the caller's connection, in the caller's thread."""
        doors = self.store.within(connection)
        stored = doors.get(run_id)
        if stored is None:
            raise missing_run(run_id, doors.gone(run_id), self.store.name)
        receipt = doors.deliver(self._delivery(stored.run, event, key))
        doors.on_commit(self._wake_soon)
        return self._checked(run_id, receipt)

    def _delivery(self, run: Run, event: Event | str, key: str | None) -> Delivery:
        table = self.codec.table(run.machine)
        name = event if isinstance(event, str) else event_id(type(event))
        payload = None if isinstance(event, str) else event
        table.check_payload(name, payload)
        body = self.codec.seal_payload(payload, f"event {name}")
        if key is None:
            key = f"once:{secrets_module.token_hex(12)}"
        check_key("key of the event", key)
        return self._delivery_of(run.run_id, name, key, body)

    def _delivery_of(self, run_id: str, event: str, key: str, body: bytes | None) -> Delivery:
        at_ms = self.clock.now_ms()
        return Delivery(run_id=run_id, key=key, event=event, payload=body, at_ms=at_ms)

    async def _deliver(self, delivery: Delivery) -> Receipt:
        receipt = self._checked(delivery.run_id, await self._committer.deliver(delivery))
        self._worker.wake()
        return receipt

    def _checked(self, run_id: str, receipt: Receipt | None) -> Receipt:
        if receipt is None:
            raise missing_run(run_id, None, self.store.name)
        if receipt.duplicate and not receipt.same:
            raise KeyConflict(
                f"key {receipt.key!r} of run {run_id} was used before for another event. "
                "Use another key."
            )
        return receipt

    def _wake_soon(self) -> None:
        """Wake the worker from any thread; without one there is nobody to wake."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._worker.wake)

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
        return await self._deliver(self._delivery_of(run_id, event, key, None))

    async def apply(self, receipt: Receipt) -> Receipt:
        """Apply what waits in a run's inbox here and now, if no worker has the run.

        Effects and timers are left to a worker.  Returns the receipt as it then stands.
        """
        if receipt.status == "accepted":
            for claimed in await self._worker.claim(limit=1, run_id=receipt.run_id):
                await self._advance(claimed, effects=False)
        found = await self._io(lambda: self.store.inbox.receipt(receipt.run_id, receipt.key))
        return found or receipt

    async def settle(self) -> int:
        """Move everything that is due now, in the foreground; the number of runs moved.

        Moves nothing once the lease is over; see `beat`.
        """
        moved = 0
        while self._worker.may_go_on() and (claimed := await self._worker.claim(limit=1)):
            await self._advance(claimed[0], effects=True)
            moved += 1
        return moved

    async def _advance(self, claimed: Claimed, *, effects: bool) -> None:
        try:
            await self._runner.advance(claimed, effects=effects)
        except StoreError:
            self._worker.doubt()  # it is still ours
            raise
        finally:
            self._worker.let_go(claimed.run.run_id)

    async def collect(
        self,
        older_than_ms: int,
        *,
        machine: type[Machine[Any]] | str | None = None,
        batch: int = 500,
        forget_keys_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Collected:
        """Remove runs that ended longer ago than that; see `engine.retention`."""
        name = machine if machine is None or isinstance(machine, str) else machine.__name__
        asked = Asked(
            older_than_ms=older_than_ms,
            machine=name,
            batch=batch,
            forget_keys_after_ms=forget_keys_after_ms,
            dry_run=dry_run,
        )
        return await collect(self.store.retention, self._io, self.clock, asked)

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


async def _with_connection(connection: Any, call: Callable[[Any], T]) -> T:
    """`call` with a caller's connection; one for asyncio is used where its driver can wait."""
    run_sync = getattr(connection, "run_sync", None)
    if run_sync is None:
        return call(connection)
    answer: T = await run_sync(call)
    return answer


def _codec_of(store: Store) -> SecretsCodec:
    """The codec of a store: a new key is only made for a store in which nothing was sealed yet."""
    file = store.key_file
    if file is None and not store.in_memory and "TURTLES_MASTER_KEY" not in os.environ:
        return NoKey(store.name)
    missing = file is not None and not file.exists() and "TURTLES_MASTER_KEY" not in os.environ
    if missing and store.runs.select(Query(limit=1)):
        raise SecretsError(
            f"master key file {file}: missing, but {store.name} has runs whose secrets it opens. "
            "Restore the file, or give the key in TURTLES_MASTER_KEY."
        )
    return load_codec(file, os.environ)


__all__ = ["App", "Outcome", "Permission", "RunRef", "View"]
