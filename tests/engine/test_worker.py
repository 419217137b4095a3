"""Leases and heartbeats; a worker that stops, one that is killed, one that comes back too late."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

from engine import App, Context, Machine, State
from engine.errors import CommitUnknown, StoreBusy, StoreUnavailable, UsageError
from engine.ports import WorkerIdentity
from engine.process import host_id, known_dead, process_start
from engine.testing import ManualClock
from engine.worker import AGAIN, LEASE_MS, SAFETY_MS, Lease
from engine.world import World
from persistence.store import open_store

CHECKOUT = Path(__file__).resolve().parents[2]


async def until(condition, *, turns=2_000):
    """Let other tasks run until the condition holds; no time passes."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to pass")


@pytest.fixture
def app(bench, zoo):
    return App(
        [zoo.Shop, zoo.Errand],
        bench.store,
        world=World(clock=bench.clock),
        secrets=bench.secrets,
        resources={zoo.Ledger: bench.ledger},
    )


def lease_of(bench):
    ((_, until_ms),) = bench.store.workers.all()
    return until_ms


async def test_a_lease_is_safe_until_shortly_before_its_end(bench):
    harness = bench.harness()
    lease = harness.app._lease
    assert not lease.safe
    async with harness:
        assert lease.safe
        assert lease_of(bench) == bench.clock.now_ms() + LEASE_MS
        bench.clock.advance(LEASE_MS - SAFETY_MS - 1)
        assert lease.safe
        bench.clock.advance(1)
        assert not lease.safe
        await lease.beat()
        assert lease.safe
    assert bench.store.workers.all() == []


async def test_a_beat_that_fails_leaves_the_lease_to_run_out(bench):
    async with bench.harness() as harness:
        lease: Lease = harness.app._lease
        beat = bench.store.workers.beat

        def busy(*args, **kw):
            raise StoreBusy("database: locked for 10 s")

        bench.store.workers.beat = busy
        bench.clock.advance(LEASE_MS - SAFETY_MS)
        with pytest.raises(StoreBusy):
            await lease.beat()
        assert not lease.safe
        bench.store.workers.beat = beat


async def test_a_served_app_moves_what_is_due(app, bench, zoo):
    async with app:
        run = await app.start(zoo.Errand, zoo.Order())
        outcome = await app.wait(run.run_id)
        assert outcome.status == "completed"
    assert bench.store.workers.all() == []


async def test_a_worker_waits_for_what_falls_due_later(app, bench, zoo):
    bench.ledger.script = ["later 60000"]
    async with app:
        run = await app.start(zoo.Errand, zoo.Order())
        await until(lambda: bench.ledger.attempts == [1])
        await until(lambda: bench.store.runs.get(run.run_id).owner is None)
        bench.clock.advance(59_999)
        for _ in range(50):
            await asyncio.sleep(0)
        assert bench.ledger.attempts == [1]
        bench.clock.advance(1)
        assert (await app.wait(run.run_id)).status == "completed"


async def test_many_runs_at_once(app, bench, zoo):
    async with app:
        runs = [await app.start(zoo.Errand, zoo.Order()) for _ in range(30)]
        outcomes = [await app.wait(run.run_id) for run in runs]
    assert {outcome.status for outcome in outcomes} == {"completed"}
    assert len(bench.ledger.charged) == len(set(bench.ledger.charged)) == 30


async def test_a_heartbeat_that_is_lost_starts_no_effect(app, bench, zoo):
    gate, entered = asyncio.Event(), asyncio.Event()

    class Slow:
        async def perform(self, effect, context, call):
            entered.set()
            await gate.wait()
            return bench.ledger.charge(call)

    app._runner._performer._calls = Slow()
    async with app:
        first = await app.start(zoo.Errand, zoo.Order())
        await entered.wait()
        beat = bench.store.workers.beat

        def busy(*args, **kw):
            raise StoreBusy("database: locked for 10 s")

        bench.store.workers.beat = busy
        bench.clock.advance(LEASE_MS - SAFETY_MS)
        second = await app.start(zoo.Errand, zoo.Order())
        for _ in range(50):
            await asyncio.sleep(0)
        assert bench.store.runs.get(second.run_id).owner is None
        gate.set()
        await until(lambda: bench.store.runs.get(first.run_id).owner is None)
        bench.store.workers.beat = beat
        assert (await app.wait(second.run_id)).status == "completed"
        assert (await app.wait(first.run_id)).status == "completed"


async def test_a_store_that_is_busy_does_not_end_the_worker(app, bench, zoo):
    inner = bench.store.runs
    failures = ["claim", "next_due_ms", "commit", "commit", "get"]

    class Flaky:
        def __getattr__(self, name):
            if name in failures and busy:
                failures.remove(name)

                def fail(*args, **kw):
                    raise StoreBusy(f"{name}: locked for 10 s")

                return fail
            return getattr(inner, name)

    busy = False
    bench.store.runs = Flaky()
    app._desk._committer._runs = bench.store.runs
    async with app:
        run = await app.start(zoo.Errand, zoo.Order())
        busy = True
        await until(lambda: failures == [] or failures == ["get"])
        busy = False
        outcome = await app.wait(run.run_id)
        assert outcome.status == "completed"
    bench.ledger.assert_once()
    bench.store.runs = inner


async def test_a_bug_of_the_runtime_does_not_end_the_worker(app, bench, zoo):
    async with app:
        advance, calls = app._runner.advance, []

        async def broken(claimed, **kw):
            calls.append(claimed.run.run_id)
            if len(calls) == 1:
                raise RuntimeError("a bug")
            return await advance(claimed, **kw)

        app._runner.advance = broken
        first = await app.start(zoo.Errand, zoo.Order())
        await until(lambda: calls == [first.run_id])
        second = await app.start(zoo.Errand, zoo.Order())
        assert (await app.wait(second.run_id)).status == "completed"


async def test_stop_finishes_the_step_in_hand_and_gives_everything_up(app, bench, zoo):
    gate, entered = asyncio.Event(), asyncio.Event()

    class Slow:
        async def perform(self, effect, context, call):
            entered.set()
            await gate.wait()
            return bench.ledger.charge(call)

    app._runner._performer._calls = Slow()
    async with app:
        run = await app.start(zoo.Shop, zoo.Order())
        await entered.wait()
        stopping = asyncio.create_task(app.stop())
        await asyncio.sleep(0)
        gate.set()
        await stopping
        await app.stop()
    stored = bench.store.runs.get(run.run_id)
    assert (stored.run.state, stored.owner) == ("packing", None)
    assert bench.store.workers.all() == []


async def test_a_step_that_takes_too_long_is_cut_off_and_asked_about_later(app, bench, zoo):
    entered = asyncio.Event()

    class Stuck:
        async def perform(self, effect, context, call):
            bench.ledger.charge(call)
            entered.set()
            await asyncio.Event().wait()

    app._runner._performer._calls = Stuck()
    async with app:
        run = await app.start(zoo.Shop, zoo.Order())
        await entered.wait()
        await app.stop(grace_ms=1)
    stored = bench.store.runs.get(run.run_id)
    assert (stored.run.effect.open, stored.owner) == (True, None)
    async with bench.harness() as harness:
        await harness.until_idle(horizon_ms=60_000)
        assert (await harness.app.get(run.run_id)).state == "packing"
    assert len(bench.ledger.charged) == 1


async def test_machines_of_another_version_are_left_alone(bench, zoo):
    class Box(Context):
        number: int = 0

    class Other(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)

    async with bench.harness(Other) as harness:
        run = await harness.app.start(Other, Box())
    async with bench.harness() as harness:
        bench.clock.advance(LEASE_MS)
        assert await harness.app.settle() == 0
    assert bench.store.runs.get(run.run_id).run.status == "pending" or (
        bench.store.runs.get(run.run_id).run.status == "waiting"
    )


# -- a store that fails ------------------------------------------------------------------------


def replaced(noun, name, call):
    """Put another method in the place of one of a store's noun; a call puts it back."""
    inner = getattr(noun, name)
    setattr(noun, name, lambda *args, **kw: call(inner, *args, **kw))
    return lambda: setattr(noun, name, inner)


def lost(inner, *args, **kw):
    """It happens, and nobody is told."""
    inner(*args, **kw)
    raise CommitUnknown("database: the connection was lost during COMMIT")


class Sleeper(ManualClock):
    """Remembers for how long each task slept."""

    def __init__(self):
        super().__init__()
        self.slept = []

    async def sleep(self, duration_ms):
        self.slept.append(duration_ms)
        await super().sleep(duration_ms)


async def test_a_claim_that_happened_unheard_keeps_no_run_from_being_moved(app, bench, zoo):
    async with App(
        [zoo.Shop, zoo.Errand], bench.store, world=World(clock=bench.clock), work=False,
        secrets=bench.secrets,
    ) as other:  # fmt: skip
        run = await other.start(zoo.Errand, zoo.Order())
        back = replaced(bench.store.runs, "claim", lost)
        async with app:
            await until(lambda: bench.store.runs.get(run.run_id).owner is not None)
            back()
            assert (await app.wait(run.run_id)).status == "completed"
    bench.ledger.assert_once()


async def test_a_start_that_happened_unheard_is_moved_all_the_same(app, bench, zoo):
    async with app:
        back = replaced(bench.store.runs, "group", lost)
        with pytest.raises(CommitUnknown):
            await app.start(zoo.Errand, zoo.Order(), key="once")
        back()
        run = await app.start(zoo.Errand, zoo.Order(), key="once")
        assert not run.created
        assert (await app.wait(run.run_id)).status == "completed"
    bench.ledger.assert_once()


async def test_a_run_in_hand_is_no_stray(app, bench, zoo):
    gate, entered = asyncio.Event(), asyncio.Event()

    class Slow:
        async def perform(self, effect, context, call):
            entered.set()
            await gate.wait()
            return bench.ledger.charge(call)

    app._runner._performer._calls = Slow()
    async with app:
        run = await app.start(zoo.Errand, zoo.Order())
        await entered.wait()
        owner = bench.store.runs.get(run.run_id).owner
        freed = []

        def free(inner, *args):
            freed.append(inner(*args))
            return freed[-1]

        back = replaced(bench.store.workers, "free_strays", free)
        app._worker.doubt()
        await until(lambda: freed == [0])
        back()
        assert bench.store.runs.get(run.run_id).owner == owner
        gate.set()
        assert (await app.wait(run.run_id)).status == "completed"
    bench.ledger.assert_once()


async def test_runs_of_one_failure_are_given_back_together(app, bench, zoo):
    failing, commits = False, []

    def group(inner, batch):
        if failing and batch.writes:
            raise StoreUnavailable("database: the server went away")
        return inner(batch)

    def commit(inner, writes):
        if failing:
            raise StoreUnavailable("database: the server went away")
        commits.append(len(writes))
        return inner(writes)

    gate = asyncio.Event()

    class Slow:
        async def perform(self, effect, context, call):
            await gate.wait()
            return bench.ledger.charge(call)

    app._runner._performer._calls = Slow()
    backs = [replaced(bench.store.runs, "group", group)]
    backs.append(replaced(bench.store.runs, "commit", commit))
    async with app:
        runs = [await app.start(zoo.Errand, zoo.Order()) for _ in range(20)]
        failing = True
        gate.set()
        await until(lambda: len(app._worker._returning) == 20)
        failing = False
        for run in runs:
            assert (await app.wait(run.run_id)).status == "completed"
    assert 20 in commits
    # The outcomes were lost with the writes: each idempotent call is made again, under its key.
    assert sorted(bench.ledger.charged) == sorted([*set(bench.ledger.charged)] * 2)
    assert len(set(bench.ledger.charged)) == 20
    for back in backs:
        back()


async def test_a_claim_that_fails_is_tried_again_after_growing_pauses(bench, zoo):
    clock = Sleeper()
    one = App([zoo.Errand], bench.store, world=World(clock=clock), secrets=bench.secrets)
    failures = []

    def claim(inner, *args, **kw):
        failures.append(len(clock.slept))
        raise StoreUnavailable("database: the server went away")

    back = replaced(bench.store.runs, "claim", claim)
    async with one:
        await until(lambda: len(failures) == 8)
        back()
    worker_id = one._lease.identity.worker_id
    pauses = [AGAIN.delay_ms(failure, worker_id) for failure in range(1, 7)]
    assert set(pauses) <= set(clock.slept)
    assert all(50 * 2**n <= pause <= 100 * 2**n for n, pause in enumerate(pauses[:5]))
    assert AGAIN.delay_ms(3, "w1") != AGAIN.delay_ms(3, "w2")


async def test_a_heartbeat_that_fails_is_tried_again_soon(bench, zoo):
    clock = Sleeper()
    one = App([zoo.Errand], bench.store, world=World(clock=clock), secrets=bench.secrets)
    beats = []

    async with one:

        def beat(inner, *args, **kw):
            beats.append(args)
            if len(beats) <= 3:
                raise StoreUnavailable("database: the server went away")
            return inner(*args, **kw)

        back = replaced(bench.store.workers, "beat", beat)
        await until(lambda: len(beats) >= 5)
        back()
    worker_id = one._lease.identity.worker_id
    assert {AGAIN.delay_ms(failure, worker_id) for failure in (1, 2, 3)} <= set(clock.slept)
    assert all(AGAIN.delay_ms(failure, worker_id) < LEASE_MS // 6 for failure in range(1, 99))
    regular = [slept for slept in clock.slept if slept > 4_000]
    assert all(LEASE_MS // 3 * 0.9 <= slept <= LEASE_MS // 3 for slept in regular)
    assert len(set(regular)) > 1


async def test_the_next_beat_is_at_the_end_of_a_lost_workers_lease(bench):
    async with bench.harness() as harness:
        lease = harness.app._lease
        assert lease.next_beat_ms == LEASE_MS // 3
        gone = WorkerIdentity(worker_id="gone", host="elsewhere", pid=1, process_start="1")
        now_ms = bench.clock.now_ms()
        bench.store.workers.beat(gone, now_ms, lease_until_ms=now_ms + LEASE_MS)
        await lease.beat()
        assert lease.next_beat_ms == LEASE_MS // 3
        bench.clock.advance(LEASE_MS - 2_000)
        await lease.beat()
        assert lease.next_beat_ms == 2_000
        bench.clock.advance(2_000)
        assert lease.next_beat_ms == LEASE_MS // 30
        await lease.beat()
        assert lease.next_beat_ms == LEASE_MS // 3
        assert len(bench.store.workers.all()) == 1


async def test_a_worker_whose_id_was_taken_stops(bench, zoo):
    one = App([zoo.Errand], bench.store, world=World(clock=bench.clock), secrets=bench.secrets)
    async with one:
        run = await one.start(zoo.Errand, zoo.Order())
        mine = one._lease.identity
        other = msgspec.structs.replace(mine, pid=mine.pid + 1)
        bench.clock.advance(LEASE_MS)
        now_ms = bench.clock.now_ms()
        bench.store.workers.beat(other, now_ms, lease_until_ms=now_ms + LEASE_MS)
        with pytest.raises(UsageError, match="under this id"):
            await one.wait(run.run_id)
        with pytest.raises(UsageError, match="under this id"):
            await one._serving
        one._serving = None
    bench.store.workers.retire(mine.worker_id)


async def test_two_processes_of_one_name_are_refused_at_the_start(bench, zoo):
    first = WorkerIdentity(worker_id="alpha", host="a", pid=1, process_start="1")
    second = msgspec.structs.replace(first, host="b")
    apps = [
        App([zoo.Errand], bench.store, secrets=bench.secrets,
            world=World(clock=bench.clock, worker=lambda one=one: one))
        for one in (first, second)
    ]  # fmt: skip
    async with apps[0]:
        with pytest.raises(UsageError, match=r"worker 'alpha': another process \(pid 1 on a\)"):
            await apps[1].open()


@pytest.mark.parametrize("seconds", [0, 0.99, 3600.5, -1, float("nan")])
def test_a_lease_has_bounds(bench, zoo, seconds):
    with pytest.raises(UsageError, match="lease_seconds: expected 1 to 3600, got"):
        App([zoo.Errand], bench.store, secrets=bench.secrets, lease_seconds=seconds)


async def test_a_short_lease(bench, zoo):
    one = App(
        [zoo.Errand], bench.store, world=World(clock=bench.clock), secrets=bench.secrets,
        lease_seconds=2, work=False,
    )  # fmt: skip
    async with one:
        assert lease_of(bench) == bench.clock.now_ms() + 2_000
        assert one._lease.next_beat_ms == 666
        bench.clock.advance(1_599)
        assert one._lease.safe
        bench.clock.advance(1)
        assert not one._lease.safe


async def test_a_store_that_is_gone_at_the_end_leaves_the_lease_to_run_out(app, bench):
    def gone(inner, *args):
        raise StoreUnavailable("database: the server went away")

    async with app:
        back = replaced(bench.store.workers, "retire", gone)
    back()
    assert len(bench.store.workers.all()) == 1


# -- a real process -----------------------------------------------------------------------------

CHILD = """
import asyncio, sys
sys.path.insert(0, {checkout!r})
from engine import App, Context, Event, Machine, State, effect
from persistence.store import open_store

class Box(Context):
    number: int = 0

class Done(Event, tag="done"):
    number: int

@effect(idempotent=True)
async def work(context: Box, call) -> Done:
    if {hang!r}:
        print("started", flush=True)
        await asyncio.Event().wait()
    return Done(number=call.attempt)

class Job(Machine[Box]):
    working = State(initial=True, effect=work)
    end = State(final=True)
    done = working.to(end)

    def on_done(self, context: Box, event: Done) -> Box:
        return self.but(context, number=event.number)

async def main():
    async with App([Job], open_store({url!r})) as app:
        run = await app.start(Job, Box(), key="job")
        outcome = await app.wait(run.run_id)
        print(outcome.status, outcome.context.number, flush=True)

asyncio.run(main())
"""


def program(tmp_path, *, hang):
    url = f"sqlite:///{tmp_path}/runs.db"
    code = textwrap.dedent(CHILD).format(checkout=str(CHECKOUT), url=url, hang=hang)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )


def last_line(text):
    return text.strip().splitlines()[-1]


def test_a_killed_process_is_known_dead_and_its_run_goes_on_at_once(tmp_path):
    first = program(tmp_path, hang=True)
    while "started" not in first.stdout.readline():
        assert first.poll() is None
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    ((worker, _),) = store.workers.all()
    assert worker.pid == first.pid
    assert not known_dead(worker)
    first.kill()
    first.wait()
    first.stdout.close()
    assert known_dead(worker)
    store.close()
    second = program(tmp_path, hang=False)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert last_line(out) == "completed 2"
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    assert store.inspector.findings() == []
    assert store.workers.all() == []
    store.close()


def test_a_worker_elsewhere_is_never_known_dead():
    start = process_start(1) or "1"
    elsewhere = WorkerIdentity(worker_id="w", host="elsewhere/1/2", pid=2**22, process_start=start)
    assert not known_dead(elsewhere)
    here = WorkerIdentity(worker_id="w", host=host_id(), pid=2**22 + 1, process_start=start)
    assert known_dead(here)


async def test_two_apps_over_one_file_share_the_work(tmp_path, zoo):
    url, clock = f"sqlite:///{tmp_path}/runs.db", ManualClock()
    ledger = zoo.Ledger()
    stores = [open_store(url), open_store(url)]
    apps = [
        App([zoo.Errand], store, world=World(clock=clock), resources={zoo.Ledger: ledger})
        for store in stores
    ]
    async with apps[0], apps[1]:
        runs = [await apps[i % 2].start(zoo.Errand, zoo.Order(), key=f"k{i}") for i in range(12)]
        same = await apps[0].start(zoo.Errand, zoo.Order(), key="k1")
        assert (same.run_id, same.created) == (runs[1].run_id, False)
        outcomes = [await apps[(i + 1) % 2].wait(run.run_id) for i, run in enumerate(runs)]
    assert {outcome.status for outcome in outcomes} == {"completed"}
    assert len(ledger.charged) == len(set(ledger.charged)) == 12
    assert stores[0].inspector.findings() == []
    for store in stores:
        store.close()
