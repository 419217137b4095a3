"""What the runtime asks of a store: one small Protocol per noun, all of them behind `Store`.

Stores keep bytes: contexts, payloads and outputs arrive encoded (`engine.codec`), so a store knows
no machine.  All methods are synchronous and are called from one thread at a time; each one is one
transaction.  Every method may raise `StoreError`; nothing is half-written when it does.

Rules a store keeps (checked by `Inspector.findings`, asserted by the tests after every step):

1. every run that is not terminal or held has a due time, an awaited event, or a live child;
2. `run.seq` equals the number of its journal entries, whose last one names its state and context;
3. at most one worker owns a run; a write with an old fence or an old seq changes nothing;
4. an inbox event is consumed in the transaction of the transition it caused, once;
5. an effect has at most one outcome, and its attempts are counted before the call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, dataclass_transform

import msgspec

from engine.journal import Entry
from engine.limiting import Limit
from engine.run import Run


@dataclass_transform(frozen_default=True)
class Record(msgspec.Struct, frozen=True, gc=False):
    """Base of the values below."""


class Delivery(Record):
    """An event for a run.  The same (run, key) is accepted once; the first receipt stands."""

    run_id: str
    key: str
    event: str
    payload: bytes | None
    at_ms: int


class Receipt(Record):
    """What became of a delivery.

    `accepted` waits in the inbox, `applied` caused transition `seq`, `rejected` was refused and
    `reason` says why.  `duplicate` is true when the key had been used before; the receipt is then
    the first one's.  `same` is false when that first one had another event or payload.
    """

    run_id: str
    key: str
    status: Literal["accepted", "applied", "rejected"]
    duplicate: bool = False
    same: bool = True
    seq: int | None = None
    reason: str | None = None


class InboxEvent(Record):
    """An accepted event that no transition has consumed yet, oldest first by `number`."""

    number: int
    key: str
    event: str
    payload: bytes | None
    at_ms: int


class Start(Record):
    """A run to be accepted: its first state and its first journal entry, both encoded.

    `children` are the runs that its first state starts; they are accepted only if it is.
    """

    run: Run
    entry: Entry
    children: tuple[Start, ...] = ()
    owner: str | None = None
    """A registered worker that has the run at once, at fence 1; its children are for anybody."""
    limits: str | None = None
    """What its first effect needs (`engine.limiting.written`)."""


class Started(Record):
    """The run that answers a start; `created` is false when its key had been used before."""

    run_id: str
    created: bool
    owned: bool = False
    """Whether the worker that the start named has the run."""


class Claimed(Record):
    """A run that this worker owns now, with what waits for it.

    `term` and `fresh` are the worker's own notes, at which no store looks: the lease under which it
    claimed, and whether the open attempt of the effect is its own and not made yet.
    """

    run: Run
    fence: int
    inbox: tuple[InboxEvent, ...]
    stalls: int
    term: int = 0
    fresh: bool = False
    limits: str | None = None
    """Of which limits the claim brought a slot and a token (`engine.limiting.written`)."""


class Consumed(Record):
    """What became of one inbox event, or of the outcome of an effect."""

    number: int
    status: Literal["applied", "rejected"]
    reason: str | None = None


class Write(Record):
    """One atomic step of one run, valid only under `fence` and at `before.seq`.

    Args:
        before: the run as it was loaded or last written (encoded).
        after: the run as it shall be (encoded).  The store compares their effects: an effect that
            is in `before` and no longer in `after` is closed with `outcome` (or `abandoned`); a
            new one is recorded; the same one is updated (attempts, open, next_ms, last_error).
        entry: the transition's journal entry; None for bookkeeping that is no transition.
        outcome: how the effect of `before` ended: `done`, `given_up`, or None.
        consumed: inbox events settled by this step.
        starts: child runs to accept in the same transaction.
        sends: events for other runs, in the same transaction.
        output: the encoded output of a run that has ended.
        release: give the run up afterwards.
        limits: what the run needs when it is claimed next; of a run that is kept, of which limits
            it keeps the slots.
        held: the run may have slots, of which those are freed that it does not keep.
    """

    fence: int
    before: Run
    after: Run
    at_ms: int
    entry: Entry | None = None
    outcome: Literal["done", "given_up"] | None = None
    consumed: tuple[Consumed, ...] = ()
    starts: tuple[Start, ...] = ()
    sends: tuple[Delivery, ...] = ()
    output: bytes | None = None
    release: bool = False
    limits: str | None = None
    held: bool = False


class Written(Record):
    """Whether a write took effect.

    `arrived` lists inbox events that came in since the run was claimed or last written, so that
    the worker need not read again.  With `release`, a run for which events have arrived is made
    due at once instead of being forgotten.
    """

    ok: bool
    arrived: tuple[InboxEvent, ...] = ()


class Batch(Record):
    """What shares one transaction: starts, then deliveries, then writes."""

    starts: tuple[Start, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    writes: tuple[Write, ...] = ()


class Done(Record):
    """The answers to a batch, each in the order of what was asked.

    The receipt of a delivery to a run that does not exist is None.
    """

    started: list[Started]
    receipts: list[Receipt | None]
    written: list[Written]


class StoredRun(Record):
    """A run with what only the store knows of it."""

    run: Run
    fence: int
    owner: str | None
    due_ms: int | None
    stalls: int
    updated_ms: int
    output: bytes | None


class EffectRecord(Record):
    """One recorded effect of a run."""

    run_id: str
    seq: int
    name: str
    key: str
    attempts: int
    open: bool
    next_ms: int
    status: Literal["pending", "done", "given_up", "abandoned"]
    undo_of: str | None
    last_error: str | None


class PastEffect(EffectRecord):
    """A recorded effect with what only its history needs.

    `calls` counts every attempt there has been; `closed_seq` is the transition that settled it.
    """

    calls: int
    closed_seq: int | None


class PastEvent(Record):
    """An event that a run was given, and what became of it."""

    number: int
    key: str
    event: str
    status: Literal["accepted", "applied", "rejected"]
    consumed_seq: int | None


class History(Record):
    """All that is stored of one run, as it was at one moment.

    Args:
        stored: the run, encoded.
        entries: its journal in order, encoded, but for the verdicts.
        verdicts: those of each entry, as JSON: few readers need them.
        fences: that of each entry.
        effects: in the order in which they were decided.
        inbox: in the order of arrival.
        cut: the journal is longer than was asked for; `entries` is its beginning.
        unreadable: what the store itself could not read; the rest may then be empty.
    """

    run_id: str
    stored: StoredRun | None = None
    entries: tuple[Entry, ...] = ()
    verdicts: tuple[bytes, ...] = ()
    fences: tuple[int, ...] = ()
    effects: tuple[PastEffect, ...] = ()
    inbox: tuple[PastEvent, ...] = ()
    cut: bool = False
    unreadable: str | None = None


class Query(Record):
    """Which runs to list: newest first."""

    machine: str | None = None
    statuses: tuple[str, ...] = ()
    parent_id: str | None = None
    limit: int = 100


class WorkerIdentity(Record):
    """A process that moves runs: random id, and how to see on this host whether it still lives."""

    worker_id: str
    host: str
    pid: int
    process_start: str
    """The kernel's start time of the process, so that a recycled pid is not taken for it."""


class Finding(Record):
    """One breach of a storage rule, found by a check."""

    rule: str
    run_id: str | None
    problem: str


class Held(Record):
    """How many slots of a limit are taken, by the runs of one tenant or ("") of all."""

    limit: str
    tenant: str
    count: int


class Gone(Record):
    """What is remembered of a run that has been removed, and whose key is still in use.

    `digest` is of its first context as it was stored; `engine.codec.digest_of` makes it.
    """

    run_id: str
    machine: str
    key: str | None
    status: str
    ended_ms: int
    removed_ms: int
    digest: str


class Removed(Record):
    """What one transaction of `Retention.remove` did.

    Args:
        trees: root runs removed, each with everything below it.
        runs: runs removed, roots and what was below them.
        kept: roots that had ended long ago and stay, because something below them has not.
        after: where to go on; None at the end.
    """

    trees: int
    runs: int
    kept: int
    after: tuple[int, str] | None


class Runs(Protocol):
    """Runs, and the writes that move them."""

    def start(self, starts: Sequence[Start]) -> list[Started]:
        """Accept runs; one whose (machine, key) exists is answered with the first one's id."""

    def get(self, run_id: str) -> StoredRun | None:
        """One run, encoded."""

    def rested(self, run_ids: Sequence[str]) -> list[StoredRun]:
        """Those of these runs that have ended or are held for a person."""

    def find(self, machine: str, key: str) -> str | None:
        """The id of the run that was started with this key."""

    def select(self, query: Query) -> list[StoredRun]:
        """Runs that match."""

    def claim(
        self,
        worker_id: str,
        now_ms: int,
        *,
        limit: int,
        versions: Collection[str],
        run_id: str | None = None,
    ) -> list[Claimed]:
        """Take due, unowned runs of these machine versions: owner set, fence + 1, stalls + 1.

        With `run_id`: that run alone, due or not, unless it is owned or terminal.
        """

    def commit(self, writes: Sequence[Write]) -> list[Written]:
        """All writes in one transaction; one that has lost its run is skipped, alone.

        A write with an entry resets the run's stalls.
        """

    def group(self, batch: Batch) -> Done:
        """Starts, deliveries and writes of several callers in one transaction."""

    def commit_with(self, work: Callable[[Any], Write]) -> Written:
        """One write in a transaction that also holds what `work` does with its connection.

        `work` is given a SQLAlchemy `Connection`, which it may not commit or roll back.  Whatever
        it raises, and a write that has lost its run, takes all of it back.

        Raises:
            UsageError: `work` tried to end the transaction.
        """

    def next_due_ms(self, versions: Collection[str]) -> int | None:
        """When the next unowned run of these versions falls due, or an earlier time to look again.

        A store may answer with the due time of another version's run instead of searching on.
        """


class Limits(Protocol):
    """Caps on what all workers do; see `engine.limiting`."""

    def declare(self, limits: Sequence[Limit], now_ms: int) -> list[tuple[Limit, Limit]]:
        """Store limits; those that were there with other numbers, as they were and as they are."""

    def all(self) -> list[Limit]:
        """Every limit.  What is claimed heeds them from then on."""

    def remove(self, name: str) -> bool:
        """Forget a limit; whether there was one."""

    def held(self) -> list[Held]:
        """How many slots are taken."""


class Journal(Protocol):
    """Transitions, append-only."""

    def read(self, run_id: str, *, after_seq: int = 0, limit: int = 10_000) -> list[Entry]:
        """Entries in order, encoded."""


class Inbox(Protocol):
    """Events for runs."""

    def deliver(self, deliveries: Sequence[Delivery]) -> list[Receipt]:
        """Accept events and make their runs due now.

        Raises nothing for a terminal run: the event is kept as rejected, with the reason.  A
        paused or quarantined run keeps its events but becomes due for `$...` events only.

        Raises:
            UnknownRun: no such run.
        """

    def receipt(self, run_id: str, key: str) -> Receipt | None:
        """What became of an earlier delivery."""

    def waiting(self, run_id: str) -> list[InboxEvent]:
        """Events not consumed yet."""


class Workers(Protocol):
    """Leases: a worker's heartbeat holds all its runs."""

    def beat(self, worker: WorkerIdentity, now_ms: int, *, lease_until_ms: int) -> None:
        """Register, or prolong the lease.

        Raises:
            UsageError: another process has this id, and a lease that is not over.
        """

    def reap(self, now_ms: int, *, dead: Callable[[WorkerIdentity], bool]) -> int:
        """Free the runs of workers whose lease is over or whose process is known to be dead.

        Returns the number of runs freed.  The worker rows are removed.
        """

    def free_strays(self, worker_id: str, kept: Collection[str]) -> int:
        """Free what this worker owns but for these runs; how many it freed."""

    def time_ms(self) -> int | None:
        """What time the database has; None if it has this host's."""

    def retire(self, worker_id: str) -> None:
        """Free this worker's runs and forget it."""

    def all(self) -> list[tuple[WorkerIdentity, int]]:
        """Every registered worker with the end of its lease."""


class Effects(Protocol):
    """Recorded effects."""

    def read(self, run_id: str) -> list[EffectRecord]:
        """Every effect of a run, oldest first."""


class Machines(Protocol):
    """Which shapes of machines have been run."""

    def register(self, name: str, version: str, shape: bytes, now_ms: int) -> None:
        """Remember a version (idempotent)."""

    def shape(self, version: str) -> bytes | None:
        """The shape stored for a version."""


class Inspector(Protocol):
    """The storage rules, one query each."""

    def findings(self) -> list[Finding]:
        """Every breach there is; empty when all is well."""

    def relations(self) -> list[Finding]:
        """Breaches between runs, and rows that belong to no run; for `doctor`, not for each step.

        A child has a parent that heard of its end, and does not outlive it unless told to; each
        transition of a run was caused by one event at most.
        """

    def histories(
        self,
        after_run_id: str = "",
        *,
        runs: int = 500,
        entries: int = 100_000,
        run_id: str | None = None,
    ) -> list[History]:
        """The next runs in the order of their ids, each with all its rows, at one moment.

        Args:
            after_run_id: the last run of the page before.
            runs: at most so many.
            entries: stop before so many journal entries, but not before the first run; a single
                run that has more is cut.
            run_id: that run alone, whatever `after_run_id` says.
        """


class Retention(Protocol):
    """Removing what ended long ago, and remembering that it was there."""

    def remove(
        self,
        before_ms: int,
        now_ms: int,
        *,
        most: int,
        machine: str | None = None,
        after: tuple[int, str] | None = None,
        dry_run: bool = False,
    ) -> Removed:
        """Look at the next trees of runs, and remove those that ended before `before_ms`.

        A tree is a run without a parent, with everything below it; it goes as a whole, when all of
        it has ended before then.  All in one transaction.

        Args:
            most: at so many trees.
            machine: of their roots; None for every one.
            after: where the last call stopped (`Removed.after`).
            dry_run: only count.
        """

    def gone(self, run_id: str) -> Gone | None:
        """What is remembered of a run that has been removed."""

    def forget(self, before_ms: int, *, most: int) -> int:
        """Forget runs that were removed before then, and their keys; how many were forgotten."""


class Doors(Protocol):
    """A store seen from within a transaction of the caller's: visible exactly if he commits it."""

    def start(self, start: Start) -> Started:
        """Accept a run; it is nobody's."""

    def deliver(self, delivery: Delivery) -> Receipt | None:
        """Accept an event; None if its run does not exist."""

    def get(self, run_id: str) -> StoredRun | None:
        """One run, encoded."""

    def first(self, run_id: str) -> Entry | None:
        """The first entry of a run's journal, encoded."""

    def gone(self, run_id: str) -> Gone | None:
        """The run, if it has been removed."""

    def on_commit(self, call: Callable[[], None]) -> None:
        """Call this when the caller commits, just before it happens."""


class Moments(Protocol):
    """Saves and restores all that a store holds; for tools that own its content.

    `number` and `order` are SQL over `turtles_run r`: what numbers the runs in the order in which
    they were accepted, and what sorts them so.
    """

    number: str
    order: str

    def save(self) -> bytes:
        """All that is stored now."""

    def load(self, saved: bytes) -> None:
        """Go back to what was saved."""

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query with `?` marks, which disturbs nothing."""


class Store(Protocol):
    """A database, by noun."""

    @property
    def name(self) -> str:
        """The database, as a person would name it."""

    @property
    def key_file(self) -> Path | None:
        """Where the master key of this store's secrets is kept; None for a store in memory."""

    @property
    def moments(self) -> Moments:
        """See `Moments`."""

    @property
    def in_memory(self) -> bool:
        """Whether it is gone when it is closed."""

    def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard`, from any thread, when other processes give work; a hint, no promise."""

    @property
    def local(self) -> bool:
        """Whether a call takes so short that an event loop may wait for it."""

    def hold(self) -> None:
        """Keep a connection for the calling thread, which then waits for others only briefly."""

    @property
    def runs(self) -> Runs:
        """See `Runs`."""

    @property
    def journal(self) -> Journal:
        """See `Journal`."""

    @property
    def inbox(self) -> Inbox:
        """See `Inbox`."""

    @property
    def workers(self) -> Workers:
        """See `Workers`."""

    @property
    def effects(self) -> Effects:
        """See `Effects`."""

    @property
    def machines(self) -> Machines:
        """See `Machines`."""

    @property
    def inspector(self) -> Inspector:
        """See `Inspector`."""

    @property
    def limits(self) -> Limits:
        """See `Limits`."""

    @property
    def retention(self) -> Retention:
        """See `Retention`."""

    def within(self, connection: Any) -> Doors:
        """This store in a transaction that the caller has begun on his own connection to it.

        Args:
            connection: a SQLAlchemy `Connection`.

        Raises:
            UsageError: no such connection, closed, without a transaction, or to another database.
            StoreBusy: the write lock is not to be had (SQLite).
        """

    def close(self) -> None:
        """Close every connection."""


Resources = dict[Any, Any]
