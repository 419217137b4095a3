"""The crash points of docs/reliability.md, in process: a death at every statement of each row.

Each row is a small program that may be run again: it starts and sends with keys.  It runs once to
count its boundaries (before and after each SQL statement, each transaction of the store and each
call of an effect), then once for each of them: the process dies there, the clock passes its lease,
and another process runs the same program over the same file.  Some rows do something else at each
boundary: the statement fails, the worker sleeps past its lease, the clock is stepped.

The same rows with real processes and SIGKILL: tests/acceptance/crash_points.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine import hours, minutes
from engine.app import App
from engine.committer import InlineIo
from engine.errors import LostOwnership, StoreError, StoreFull, TooLarge
from engine.journal import fold, replay
from engine.ports import Query
from engine.secrets import SecretsCodec
from engine.testing import Boundary, Crash, CrashPlan, Harness, ManualClock
from engine.worker import LEASE_MS
from engine.world import World
from persistence.store import SqlStore, open_store
from tests.acceptance.crash_points.machines import (
    MACHINES,
    Alarm,
    Basket,
    Errand,
    Family,
    Fickle,
    Outside,
    Sale,
)
from tests.acceptance.crash_points.statements import report_store
from tests.verification.kills.killing import work_directory

SECRETS = SecretsCodec(b"k" * 32)
SOON = minutes(10)
"""How far a program moves the clock by itself: not to the timers of an hour."""
Program = Callable[[Harness], Awaitable[None]]


class Failing(CrashPlan):
    """At the boundary it was told, the statement fails as the driver would say it, once."""

    error = "disk I/O error"

    def happen(self, boundary: Boundary) -> None:
        """Fail; before the boundary's statement, or after it, when it has taken effect."""
        if _is_statement(boundary.name):
            raise sqlite3.OperationalError(self.error)


def _is_statement(name: str) -> bool:
    """Whether it is a boundary of the database, not of the store's methods or of an effect."""
    return "." not in name and name.split()[1] not in ("effect", "reconcile")


class Full(Failing):
    """The disk is full."""

    error = "database or disk is full"


class Meanwhile(CrashPlan):
    """At the boundary it was told, something else happens, and the process goes on."""

    def __init__(self, at: int | None, deed: Callable[[], None]) -> None:
        super().__init__(at)
        self._deed = deed

    def happen(self, boundary: Boundary) -> None:
        """Let it happen."""
        self._deed()


class Room:
    """One database file, one clock, one outside; processes come and go."""

    def __init__(self, template: Path, folder: Path, *machines: str) -> None:
        self.machines = [MACHINES[name] for name in machines]
        self.file = folder / "runs.db"
        for old in folder.glob("runs.db*"):
            old.unlink()
        shutil.copy(template, self.file)
        self.clock = ManualClock()
        self.lines: list[str] = []
        self.outside = Outside(self.lines.append, lambda: self.lines)

    def store(self, plan: CrashPlan | None = None) -> SqlStore:
        store = open_store(
            f"sqlite:///{self.file}", synchronous="NORMAL", busy_timeout_seconds=0.05
        )
        if plan is not None:
            report_store(store, plan)
        return store

    @contextlib.asynccontextmanager
    async def process(self, plan: CrashPlan | None = None) -> AsyncIterator[Harness]:
        plan = plan or CrashPlan()
        store = self.store(plan)
        harness = Harness(
            self.machines, store=store, clock=self.clock, plan=plan,
            secrets=SECRETS, resources={Outside: self.outside},
        )  # fmt: skip
        try:
            async with harness:
                yield harness
        finally:
            store.close()

    async def run(self, program: Program, plan: CrashPlan | None = None) -> None:
        async with self.process(plan) as harness:
            await program(harness)

    def stored(self, harness: Harness, key: str = "one") -> Any:
        """The run that was started with this key, whatever its machine."""
        (found,) = (
            one for one in harness.store.runs.select(Query(limit=1_000)) if one.run.key == key
        )
        return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with the newest schema and every machine registered."""
    file = tmp_path_factory.mktemp("template") / "runs.db"
    open_store(f"sqlite:///{file}").close()
    return file


@pytest.fixture(params=[8, pytest.param(10_000, marks=pytest.mark.acceptance)], ids=["some", "all"])
def most(request: pytest.FixtureRequest) -> int:
    """At how many boundaries of a program; `-m acceptance`: at all."""
    count: int = request.param
    return count


@pytest.fixture
def new_room(template: Path) -> Iterator[Callable[..., Room]]:
    """Makes a room of these machines, in place of the last one, on a file system in memory."""
    with work_directory() as folder:
        yield lambda *machines: Room(template, folder, *machines)


async def sound(harness: Harness) -> None:
    """Every storage rule holds, no run is lost, every journal folds to its run and replays."""
    store: Any = harness.store
    assert store.inspector.findings() == []
    assert store.inspector.relations() == []
    for stored in store.runs.select(Query(limit=1_000)):
        found = await harness.app.get(stored.run.run_id)
        journal = await harness.app.journal(stored.run.run_id)
        assert [entry.seq for entry in journal] == list(range(1, found.seq + 1))
        folded = fold(journal)
        assert (folded.seq, folded.state, folded.context) == (found.seq, found.state, found.context)
        assert replay(harness.app.tables[found.machine], journal) == []


def spread(count: int, most: int) -> range:
    """So many of the numbers from 1 to `count`, evenly spread."""
    return range(1, count + 1, max(1, round(count / most)))


async def everywhere(
    new_room: Callable[[], Room],
    program: Program,
    judge: Callable[[Room, Harness], Awaitable[None]],
    plan: Callable[[int], CrashPlan] = lambda at: CrashPlan(at=at),
    *,
    most: int,
) -> list[str]:
    """Disturb the program at its boundaries, run it again, judge; the boundaries' names.

    Args:
        most: at so many of them, evenly spread.
    """
    counted = CrashPlan()
    await new_room().run(program, counted)
    count = len(counted.passed)
    for at in spread(count, most):
        room, disturbed = new_room(), plan(at)
        with contextlib.suppress(Crash, StoreError):
            await room.run(program, disturbed)
        assert len(disturbed.passed) >= at, "the program never came to this boundary"
        room.clock.advance(LEASE_MS)
        async with room.process() as harness:
            await sound(harness)
            await program(harness)
            await judge(room, harness)
            await sound(harness)
    assert count >= 10
    return [boundary.name for boundary in counted.passed]


def met(names: Iterable[str], words: str) -> bool:
    """Whether one of these boundaries has all the words."""
    return any({*words.split()} <= {*name.split()} for name in names)


def ended(state: str, *done: str) -> Callable[[Room, Harness], Awaitable[None]]:
    """A judge: the run is in this state, and the outside did exactly this, in this order."""

    async def judge(room: Room, harness: Harness) -> None:
        assert room.stored(harness).run.state == state
        assert room.outside.done() == list(done)

    return judge


# -- programs: each may be run again --------------------------------------------------------------


async def errand(harness: Harness) -> None:
    await harness.app.start(Errand, Basket(), key="one")
    await harness.until_idle(horizon_ms=SOON)


async def paid_sale(harness: Harness) -> str:
    run = await harness.app.start(Sale, Basket(), key="one")
    await harness.app.send(run.run_id, "pay", key="pay")
    await harness.until_idle(horizon_ms=SOON)
    return run.run_id


async def cancelled_sale(harness: Harness) -> None:
    run_id = await paid_sale(harness)
    await harness.app.cancel(run_id)
    await harness.until_idle(horizon_ms=SOON)


# -- the rows -------------------------------------------------------------------------------------


async def test_row_01_what_was_accepted_is_there_in_its_first_state(new_room, most):
    room = new_room("Errand")
    with pytest.raises(Crash, match="after COMMIT accept"):
        await room.run(errand, CrashPlan(where="after COMMIT accept"))
    async with room.process() as another:
        accepted = room.stored(another)
        assert (accepted.run.state, accepted.run.seq) == ("running", 1)
        await another.app.settle()
        assert room.stored(another).run.state == "home"
    names = await everywhere(partial(new_room, "Errand"), errand, ended("home", "run"), most=most)
    assert met(names, "before accept") and met(names, "after COMMIT accept first")


async def test_row_02_what_was_claimed_goes_on_elsewhere_within_a_lease(new_room):
    room = new_room("Errand")
    with pytest.raises(Crash, match="after COMMIT claim"):
        await room.run(errand, CrashPlan(where="after COMMIT claim"))
    async with room.process() as another:
        held = room.stored(another)
        assert held.owner is not None
        assert await another.app.settle() == 0
        room.clock.advance(LEASE_MS)
        await another.app.beat()
        assert await another.app.settle() == 1
        assert room.stored(another).fence == held.fence + 1
    assert room.outside.names() == ["run"]


async def test_row_03_restarts_while_waiting_change_nothing(new_room):
    room = new_room("Sale")
    await room.run(paid_sale)
    async with room.process() as harness:
        before = room.stored(harness)
    assert (before.run.state, before.run.status) == ("packing", "waiting")
    for _ in range(20):
        with pytest.raises(Crash):
            await room.run(
                lambda harness: harness.until_idle(), CrashPlan(where="after COMMIT lease")
            )
        room.clock.advance(LEASE_MS)
    async with room.process() as harness:
        await harness.until_idle()
        assert room.stored(harness) == before
        assert before.stalls == 0
        await harness.app.send(before.run.run_id, "pack", key="pack")
        await harness.until_idle()
        await sound(harness)
        await ended("sold", "reserve", "charge")(room, harness)


async def test_row_04_recorded_and_not_called_is_called_once(new_room):
    room = new_room("Errand")
    with pytest.raises(Crash):
        await room.run(errand, CrashPlan(where="before effect run"))
    room.clock.advance(LEASE_MS)
    async with room.process() as another:
        (recorded,) = another.store.effects.read(room.stored(another).run.run_id)
        assert (recorded.attempts, recorded.open) == (1, True)
        await errand(another)
        await sound(another)
    assert room.outside.names() == ["asked-run", "run"]


async def test_row_05_called_and_not_recorded_is_never_called_again(new_room):
    room = new_room("Errand")
    with pytest.raises(Crash):
        await room.run(errand, CrashPlan(where="after effect run"))
    room.clock.advance(LEASE_MS)
    async with room.process() as another:
        await errand(another)
        await sound(another)
        await ended("home", "run")(room, another)
    assert room.outside.names() == ["run", "asked-run"]


async def test_row_06_a_connection_lost_in_a_commit_leaves_one_transition(new_room, most):
    """The statement fails before it took effect, or after: the program cannot know which."""

    async def judge(room: Room, harness: Harness) -> None:
        await ended("home", "run")(room, harness)
        assert room.stored(harness).run.seq == 2
        assert len(harness.store.runs.select(Query())) == 1

    names = await everywhere(
        partial(new_room, "Errand"), errand, judge, lambda at: Failing(at=at), most=most
    )
    assert met(names, "before COMMIT move step") and met(names, "after COMMIT move step")


async def test_row_07_a_database_that_goes_away_stops_no_worker(new_room):
    """Every statement fails for a while; the same worker goes on when it is back."""
    room = new_room("Errand")
    outage = Outage()
    store = room.store(outage)
    world = World(clock=room.clock, io=InlineIo())
    app = App(room.machines, store, world=world, secrets=SECRETS, resources={Outside: room.outside})
    async with app:
        runs = [await app.start(Errand, Basket(), key=f"{n}") for n in range(30)]
        outage.begin(statements=40)
        outcomes = [await _patient(app, run.run_id) for run in runs]
        assert outage.left == 0
    assert {one.status for one in outcomes} == {"completed"}
    assert Counter(line.split()[2] for line in room.lines if line.startswith("run ")) == {
        run.run_id: 1 for run in runs
    }
    assert store.inspector.findings() == []
    store.close()


class Outage(CrashPlan):
    """While it lasts, every statement fails."""

    left = 0

    def begin(self, *, statements: int) -> None:
        """From now on, so many."""
        self.left = statements

    def pass_by(self, name: str) -> None:
        """Fail, while it lasts."""
        if self.left and name.startswith("before "):
            self.left -= 1
            raise sqlite3.OperationalError("unable to open database file")


async def _patient(app: App, run_id: str) -> Any:
    """A caller that asks again when the database did not answer."""
    while True:
        with contextlib.suppress(StoreError):
            return await app.wait(run_id)


async def test_row_08_a_worker_that_wakes_after_its_lease_is_refused(new_room, most):
    """It sleeps at each boundary at which it holds no lock, and others go on meanwhile.

    Between the last look at the lease and the call itself nobody can help: there the call is made
    twice, under one key.
    """
    counted = CrashPlan()
    await new_room("Errand").run(errand, counted)
    free = [one for one in counted.passed if _outside_transactions(one.name)]
    calling = [one for one in free if one.name.endswith("effect run")]
    for at, name in ((one.number, one.name) for one in {*free[:: len(free) // most + 1], *calling}):
        room = new_room("Errand")

        def sleep(room: Room = room) -> None:
            room.clock.advance(LEASE_MS)
            _elsewhere(room, errand)

        frozen = Meanwhile(at, sleep)
        with contextlib.suppress(LostOwnership):
            await room.run(errand, frozen)
        async with room.process() as harness:
            await errand(harness)
            await sound(harness)
            assert room.stored(harness).run.state == "home"
            assert room.stored(harness).run.seq == 2
        calls = [line for line in room.lines if line.startswith("run ")]
        assert len(set(calls)) == 1, name
        assert len(calls) == (2 if name == "before effect run" else 1), name


async def test_row_08_the_fence_alone_refuses_the_former_owner(new_room):
    """Another one has claimed the run and not moved it yet: same state, same seq, other fence."""
    room = new_room("Errand")

    async def claim(harness: Harness) -> None:
        await harness.app.settle()

    def sleep() -> None:
        room.clock.advance(LEASE_MS)
        with contextlib.suppress(Crash):
            _elsewhere(room, claim, CrashPlan(where="after COMMIT claim"))

    counted = CrashPlan()
    await new_room("Errand").run(errand, counted)
    called = next(one.number for one in counted.passed if one.name == "after effect run")
    room = new_room("Errand")
    with pytest.raises(LostOwnership):
        await room.run(errand, Meanwhile(called, sleep))
    async with room.process() as harness:
        assert room.stored(harness).run.seq == 1
        room.clock.advance(LEASE_MS)
        await harness.app.beat()
        await errand(harness)
        await sound(harness)
    assert room.outside.names() == ["run", "asked-run"]


def _outside_transactions(name: str) -> bool:
    return (
        name.startswith(("before BEGIN", "after COMMIT"))
        or name.split()[1] == "effect"
        or ("." in name and name.startswith("after "))
    )


def _elsewhere(room: Room, program: Program, plan: CrashPlan | None = None) -> None:
    """Another process runs the program, with a thread and an event loop of its own."""

    _in_thread(lambda: room.run(program, plan))


def _in_thread(run: Callable[[], Awaitable[None]]) -> None:
    """Run it with an event loop of its own, to its end."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


async def test_row_09_of_a_timer_and_an_event_at_once_one_wins(new_room, most):
    async def event_first(harness: Harness) -> None:
        run = await harness.app.start(Alarm, Basket(), key="one")
        harness.clock.advance_to((await harness.app.get(run.run_id)).deadline_ms or 0)
        await harness.app.beat()
        await harness.app.send(run.run_id, "stop", key="stop")
        await harness.app.settle()

    async def timer_first(harness: Harness) -> None:
        run = await harness.app.start(Alarm, Basket(), key="one")
        harness.clock.advance_to((await harness.app.get(run.run_id)).created_ms + hours(1))
        await harness.app.beat()
        await harness.app.settle()
        await harness.app.send(run.run_id, "stop", key="stop")
        await harness.app.settle()

    async def only_stopped(room: Room, harness: Harness) -> None:
        run_id = room.stored(harness).run.run_id
        events = [entry.event for entry in await harness.app.journal(run_id)]
        assert events[1:] == ["stop"]

    async def only_rung(room: Room, harness: Harness) -> None:
        run_id = room.stored(harness).run.run_id
        events = [entry.event for entry in await harness.app.journal(run_id)]
        receipt = harness.store.inbox.receipt(run_id, "stop")
        assert (events[1:], receipt.status, receipt.seq) == (["ring"], "rejected", None)

    await everywhere(partial(new_room, "Alarm"), event_first, only_stopped, most=most)
    await everywhere(partial(new_room, "Alarm"), timer_first, only_rung, most=most)


async def test_row_10_an_event_counts_once_early_repeated_or_late(new_room, most):
    async def program(harness: Harness) -> None:
        run = await harness.app.start(Sale, Basket(), key="one")
        for _ in range(2):  # before any worker has seen the run
            await harness.app.send(run.run_id, "note", key="note")
            await harness.app.send(run.run_id, "pay", key="pay")
        await harness.until_idle(horizon_ms=SOON)
        await harness.app.send(run.run_id, "pack", key="pack")
        await harness.app.settle()
        for key in ("pack", "late"):
            await harness.app.send(run.run_id, "pack", key=key)

    async def judge(room: Room, harness: Harness) -> None:
        await ended("sold", "reserve", "charge")(room, harness)
        run_id = room.stored(harness).run.run_id
        assert (await harness.app.get(run_id)).context.notes == 1
        first = harness.store.inbox.receipt(run_id, "pack")
        again = await harness.app.send(run_id, "pack", key="pack")
        assert (first.status, again.status, again.seq) == ("applied", "applied", first.seq)
        assert again.duplicate and again.same
        late = harness.store.inbox.receipt(run_id, "late")
        assert (late.status, late.reason) == ("rejected", "the run is completed")

    await everywhere(partial(new_room, "Sale"), program, judge, most=most)


@pytest.mark.parametrize("word", ["guard", "action", "postcondition"])
async def test_row_11_code_that_raises_moves_nothing(new_room, most, word):
    async def program(harness: Harness) -> None:
        run = await harness.app.start(Fickle, Basket(word=word), key="one")
        await harness.app.send(run.run_id, "move", key="move")
        await harness.app.settle()

    async def judge(room: Room, harness: Harness) -> None:
        found = await harness.app.get(room.stored(harness).run.run_id)
        assert (found.state, found.seq, found.context.notes) == ("idle", 1, 0)
        assert found.status == "quarantined"
        assert found.last_error

    await everywhere(partial(new_room, "Fickle"), program, judge, most=most)


async def test_row_12_no_child_outlives_a_cancelled_parent(new_room, most):
    async def program(harness: Harness) -> None:
        run = await harness.app.start(Family, Basket(), key="one")
        await harness.app.send(run.run_id, "go", key="go")
        await harness.until_idle(horizon_ms=SOON)
        await harness.app.cancel(run.run_id)
        await harness.until_idle(horizon_ms=SOON)

    async def judge(room: Room, harness: Harness) -> None:
        await ended("above", "reserve", "release")(room, harness)
        runs = harness.store.runs.select(Query())
        assert [one.run.status for one in runs] == ["cancelled", "cancelled"]

    names = await everywhere(partial(new_room, "Family", "Nap"), program, judge, most=most)
    assert met(names, "before COMMIT step accept")  # the parent's step, with its child


async def test_row_13_compensation_goes_on_at_the_first_thing_not_undone(new_room, most):
    judge = ended("packing", "reserve", "charge", "refund", "release")
    names = await everywhere(partial(new_room, "Sale"), cancelled_sale, judge, most=most)
    assert met(names, "before effect refund") and met(names, "after effect release")


async def test_row_15_a_removed_run_is_gone_as_a_whole(new_room, most):
    """With all that is below it; its key gives no old result, and a new run when it is free."""

    async def ended_family(harness: Harness) -> None:
        run = await harness.app.start(Family, Basket(), key="family")
        await harness.app.send(run.run_id, "go", key="go")
        await errand(harness)
        await harness.until_idle()

    def prepared() -> Room:
        room = new_room("Errand", "Family", "Nap")
        _in_thread(lambda: room.run(ended_family))
        room.clock.advance(hours(1))
        return room

    async def remove(harness: Harness) -> None:
        now_ms = harness.clock.now_ms()
        harness.store.retention.remove(now_ms, now_ms, most=10)

    async def judge(room: Room, harness: Harness) -> None:
        assert harness.store.runs.select(Query()) == []
        old = await harness.app.start(Errand, Basket(), key="one")
        assert not old.created
        assert harness.store.runs.select(Query()) == []
        assert harness.store.retention.forget(room.clock.now_ms() + 1, most=10) == 3
        new = await harness.app.start(Errand, Basket(), key="one")
        assert (new.created, new.run_id != old.run_id) == (True, True)
        await errand(harness)
        assert (await harness.app.outcome(new.run_id)).status == "completed"
        assert room.outside.done().count("run") == 2

    names = await everywhere(prepared, remove, judge, most=most)
    assert met(names, "before remember") and met(names, "after COMMIT remove")


async def test_row_16_a_full_disk_is_said_and_leaves_no_half(new_room, most):
    counted = CrashPlan()
    await new_room("Errand").run(errand, counted)
    for at in spread(len(counted.passed), most):
        room = new_room("Errand")
        with contextlib.suppress(StoreFull):
            await room.run(errand, Full(at=at))
        async with room.process() as harness:
            await sound(harness)
            await errand(harness)
            await ended("home", "run")(room, harness)


async def test_row_17_housekeeping_is_done_once_whoever_dies_of_it(new_room, most):
    """A dead worker's runs are freed and due timers promoted, with a death at each statement."""

    async def begin(harness: Harness) -> None:
        await harness.app.start(Alarm, Basket(), key="alarm")
        await errand(harness)

    def abandoned() -> Room:
        room = new_room("Errand", "Alarm")
        with contextlib.suppress(Crash):
            _in_thread(lambda: room.run(begin, CrashPlan(where="after effect run")))
        room.clock.advance(hours(2))
        return room

    async def keep_house(harness: Harness) -> None:
        await harness.until_idle()

    async def judge(room: Room, harness: Harness) -> None:
        await ended("home", "run")(room, harness)
        assert room.stored(harness, "alarm").run.state == "rung"
        assert [one.worker_id for one, _ in harness.store.workers.all()] == [
            harness.store.workers.all()[0][0].worker_id
        ]

    names = await everywhere(abandoned, keep_house, judge, most=most)
    assert met(names, "before free") and met(names, "after COMMIT forget")


async def test_row_17_a_tick_starts_one_run_whoever_is_first(new_room):
    """Two processes start the same tick, one of them in the middle of the other."""

    async def tick(harness: Harness) -> None:
        await harness.app.start(Alarm, Basket(), key="tick-2026-11-23")

    counted = CrashPlan()
    await new_room("Alarm").run(tick, counted)
    tried = 0
    for at, boundary in enumerate(counted.passed, 1):
        if not _outside_transactions(boundary.name):
            continue
        room, tried = new_room("Alarm"), tried + 1
        other = Meanwhile(at, lambda room=room: _elsewhere(room, tick))
        async with room.process(other) as harness:
            await tick(harness)
            assert len(harness.store.runs.select(Query())) == 1
            await sound(harness)
    assert tried >= 4


async def test_row_18_timers_due_at_once_are_taken_in_portions(new_room):
    """After an outage: none is lost or rings twice, and no worker has too many in hand."""
    room, many, capacity = new_room("Errand", "Alarm"), 1_200, 1_000
    store, order, in_hand = room.store(), Counter(), []

    def moved(decision: Any) -> None:
        order[decision.after.machine] += 1
        if order.total() % 300 == 0:
            runs = store.runs.select(Query(limit=many + 1))
            in_hand.append(sum(one.owner is not None for one in runs))

    def app(**options: Any) -> App:
        world = World(clock=room.clock, io=InlineIo())
        resources = {Outside: room.outside}
        return App(
            room.machines, store, world=world, secrets=SECRETS, resources=resources, **options
        )

    async with app(work=False) as before:
        await asyncio.gather(
            *(before.start(Alarm, Basket(), key=f"{number}") for number in range(many))
        )
    room.clock.advance(hours(24))
    async with app(moved=moved) as after:
        new = await after.start(Errand, Basket(), key="new")
        assert (await after.wait(new.run_id)).status == "completed"
        for stored in store.runs.select(Query(machine="Alarm", limit=many)):
            assert (await after.wait(stored.run.run_id)).state == "rung"
    assert order == {"Alarm": many, "Errand": 1}
    assert in_hand and max(in_hand) <= capacity
    store.close()


@pytest.mark.parametrize("by_ms", [hours(1), -hours(1)], ids=["forwards", "backwards"])
async def test_row_19_a_stepped_clock_does_nothing_early_or_twice(new_room, most, by_ms):
    async def program(harness: Harness) -> None:
        for machine, key in ((Alarm, "alarm"), (Errand, "one")):
            await harness.app.start(machine, Basket(), key=key)
        for _ in range(3):  # a worker's heart beats, whatever time it is
            await harness.app.beat()
            await harness.app.settle()

    counted = CrashPlan()
    await new_room("Errand", "Alarm").run(program, counted)
    for at in spread(len(counted.passed), most):
        room = new_room("Errand", "Alarm")
        stepped = Meanwhile(at, lambda room=room: room.clock.advance(by_ms))
        with contextlib.suppress(LostOwnership):
            await room.run(program, stepped)
        async with room.process() as harness:
            await program(harness)
            alarm = await harness.app.get(room.stored(harness, "alarm").run.run_id)
            rang = [one for one in await harness.app.journal(alarm.run_id) if one.event == "ring"]
            assert all(one.at_ms >= alarm.created_ms + hours(1) for one in rang)
            await harness.until_idle()
            await ended("home", "run")(room, harness)
            assert room.stored(harness, "alarm").run.state == "rung"
            await sound(harness)


async def test_row_20_what_is_too_large_is_refused_before_the_commit(new_room, most):
    async def program(harness: Harness) -> None:
        await harness.app.start(Errand, Basket(word="long"), key="one")
        await harness.until_idle(horizon_ms=SOON)

    async def judge(room: Room, harness: Harness) -> None:
        found = await harness.app.get(room.stored(harness).run.run_id)
        assert (found.state, found.seq, found.status) == ("running", 1, "quarantined")
        assert "1200002 bytes" in found.last_error or "bytes encoded" in found.last_error

    await everywhere(partial(new_room, "Errand"), program, judge, most=most)
    room = new_room("Errand")
    async with room.process() as harness:
        with pytest.raises(TooLarge, match=r"context.*bytes encoded, the limit is"):
            await harness.app.start(Errand, Basket(word="x" * 300_000), key="big")
        assert harness.store.runs.select(Query()) == []
