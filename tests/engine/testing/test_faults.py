"""A crash before and after every transaction of the store and every call of an effect.

Each scenario is a small program that may be run again: it starts with a key and sends with keys.
It runs once without a crash to count its boundaries, then once for each of them: the process dies
there, the clock passes its lease, another process runs the same program over the same store.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import (
    Call,
    Child,
    ChildEnded,
    ChildMoved,
    Context,
    Event,
    GaveUp,
    Machine,
    NotDone,
    Permanent,
    Retry,
    State,
    effect,
    minutes,
)
from engine.testing import Crash, CrashingConnection, CrashPlan
from engine.worker import LEASE_MS


class Yard:
    """An outside world of things that are made and unmade, in order, by key."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.made: dict[str, str] = {}
        self.meanwhile: Any = None

    async def make(self, what: str, call: Call) -> None:
        if self.meanwhile is not None:
            await self.meanwhile(what)
        assert call.key not in self.made, f"{what} made twice under one key"
        self.made[call.key] = what
        self.log.append(f"+{what}")

    def unmake(self, what: str) -> None:
        for key in [key for key, made in self.made.items() if made == what]:
            del self.made[key]
            self.log.append(f"-{what}")


class Plan(Context):
    depth: int = 0
    fail: bool = False
    seen: int = 0
    total: int = 0


class Made(Event, tag="made"):
    """The thing is there."""


class Wired(Event, tag="wired"):
    """The second thing is there."""


class NotWired(GaveUp, tag="not_wired"):
    """The second thing cannot be had."""


class Removed(Event, tag="removed"):
    """A thing is gone."""


class Total(Context):
    total: int


class Inner(ChildEnded, tag="inner"):
    output: Total | None = None


class Passed(ChildMoved, tag="passed"):
    """The child reached a milestone."""


QUICK = Retry(attempts=3, first_ms=100, jitter=0)


def creating(what: str, event: type[Event]):
    @effect(retry=QUICK, name=f"make_{what}")
    async def make(context: Plan, call: Call):
        if what == "wire" and context.fail:
            raise Permanent("no wire today")
        await call.resource(Yard).make(f"{what}{context.depth}", call)
        return event()

    @make.reconcile
    async def find(context: Plan, call: Call):
        return event() if call.key in call.resource(Yard).made else NotDone()

    return make


def removing(what: str):
    @effect(idempotent=True, retry=QUICK, name=f"remove_{what}")
    async def remove(context: Plan, call: Call) -> Removed:
        call.resource(Yard).unmake(f"{what}{context.depth}")
        return Removed()

    return remove


class Tower(Machine[Plan]):
    """Make a post and a wire, then the same one level up, then take the wire down again."""

    payloads = (Made, Wired, NotWired, Removed)

    posting = State(initial=True, effect=creating("post", Made), compensation=removing("post"))
    wiring = State(
        effect=creating("wire", Wired), compensation=removing("wire"), on_exhausted="not_wired",
        milestone=True,
    )  # fmt: skip
    resting = State(timeout=minutes(1), on_timeout="rise")
    above = State(child="next_level", on_child="inner", on_child_moved="passed")
    unwiring = State(effect=removing("wire"), undoes="wiring")
    done = State(final=True)
    fallen = State(final=True, failure=True)

    made = posting.to(wiring)
    wired = wiring.to(resting)
    not_wired = wiring.to(fallen)
    rise = resting.to(above, unless="is_top") | resting.to(unwiring)
    passed = above.to.itself()
    inner = above.to(unwiring, cond="is_good") | above.to(fallen)
    removed = unwiring.to(done)

    def is_top(self, context: Plan) -> bool:
        return context.depth == 0

    def is_good(self, event: Inner) -> bool:
        return event.succeeded

    def next_level(self, context: Plan) -> Child:
        return Child("Tower", {"depth": context.depth - 1, "fail": context.fail})

    def on_passed(self, context: Plan, event: Passed) -> Plan:
        return self.but(context, seen=context.seen + 1)

    def on_inner(self, context: Plan, event: Inner) -> Plan:
        return self.but(context, total=event.output.total if event.output else -1)

    def output(self, context: Plan) -> Total:
        return Total(total=context.total + 1)


async def happy_shop(harness, zoo):
    run = await harness.app.start(zoo.Shop, zoo.Order(), key="order")
    await harness.until_idle(horizon_ms=minutes(10))
    await harness.app.send(run.run_id, zoo.Noted(count=2), key="note")
    await harness.app.send(run.run_id, "pack", key="pack")
    await harness.until_idle(horizon_ms=minutes(10))
    await harness.app.send(run.run_id, zoo.Shipped(parcels=1), key="ship")
    await harness.until_idle(horizon_ms=minutes(10))
    return run.run_id


async def expired_shop(harness, zoo):
    run = await harness.app.start(zoo.Shop, zoo.Order(), key="order")
    await harness.until_idle()
    return run.run_id


async def tower(harness, zoo):
    run = await harness.app.start(Tower, Plan(depth=1), key="tower")
    await harness.until_idle()
    return run.run_id


async def falling_tower(harness, zoo):
    run = await harness.app.start(Tower, Plan(depth=0, fail=True), key="tower")
    await harness.until_idle()
    return run.run_id


async def cancelled_tower(harness, zoo):
    """The root is cancelled in the very moment in which the tower above it makes its wire."""

    async def cancel(what: str) -> None:
        if what == "wire0" and not (await harness.app.get(run.run_id)).closing:
            await harness.app.cancel(run.run_id)

    run = await harness.app.start(Tower, Plan(depth=1), key="tower")
    harness.yard.meanwhile = cancel
    await harness.until_idle()
    return run.run_id


def judge_happy(bench, yard):
    assert len(bench.ledger.charged) == 1
    assert bench.ledger.refunded == []


def judge_expired(bench, yard):
    assert len(bench.ledger.charged) == 1
    assert len(bench.ledger.refunded) == 1


def judge_tower(bench, yard):
    assert yard.log == ["+post1", "+wire1", "+post0", "+wire0", "-wire0", "-wire1"]


def judge_falling(bench, yard):
    assert yard.log == ["+post0", "-post0"]


def judge_cancelled(bench, yard):
    """What was made is gone, in reverse order; whether the last wire was made depends."""
    with_wire = ["+wire0", "-wire0"] if "+wire0" in yard.log else []
    assert yard.log == ["+post1", "+wire1", "+post0", *with_wire, "-post0", "-wire1", "-post1"]
    assert yard.made == {}


SCENARIOS = [
    (happy_shop, judge_happy, "done", "completed", []),
    (expired_shop, judge_expired, "expired", "failed", ["lost"]),
    (tower, judge_tower, "done", "completed", []),
    (falling_tower, judge_falling, "fallen", "failed", []),
    (cancelled_tower, judge_cancelled, "above", "cancelled", []),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario[0].__name__)
async def test_a_crash_at_every_boundary(make_bench, zoo, scenario, capsys):
    program = scenario[0]
    assert not await _with_a_crash(make_bench(), zoo, scenario, CrashPlan())
    at = 1
    while await _with_a_crash(make_bench(), zoo, scenario, CrashPlan(at=at)):
        at += 1
    with capsys.disabled():
        print(f"\n{program.__name__}: {at - 1} boundaries, a crash at each")
    assert at > 30


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario[0].__name__)
@given(deaths=st.lists(st.integers(1, 40), min_size=2, max_size=5))
@settings(
    max_examples=max(settings.default.max_examples // 8, 3),
    suppress_health_check=list(HealthCheck),  # make_bench makes a new store each time
)
def test_crash_after_crash(make_bench, zoo, scenario, deaths):
    async def run():
        plans = [CrashPlan(at=at) for at in deaths]
        await _with_a_crash(make_bench(), zoo, scenario, *plans)

    asyncio.run(run())


async def _with_a_crash(bench, zoo, scenario, *plans) -> bool:
    """Run the program under each plan, then to its end; whether the first plan's crash came."""
    program, judge, state, status, script = scenario
    yard = Yard()
    bench.ledger.script = list(script)
    machines = (zoo.Shop, Tower)
    for plan in plans:
        harness = bench.harness(*machines, plan=plan, resources={Yard: yard})
        harness.yard = yard
        with contextlib.suppress(Crash):
            async with harness:
                await program(harness, zoo)
        bench.clock.advance(LEASE_MS)
    async with bench.harness(*machines, resources={Yard: yard}) as harness:
        harness.yard = yard
        run_id = await program(harness, zoo)
        outcome = await harness.app.outcome(run_id)
        if outcome.status == "quarantined" and len(plans) > 1:
            # Attempts are counted before the call, so deaths can use them all up; a person resumes.
            assert outcome.last_error.endswith("no outcome") or "unknown" in outcome.last_error
            await harness.app.apply(await harness.app.resume(run_id))
            await harness.until_idle()
            outcome = await harness.app.outcome(run_id)
        assert (outcome.state, outcome.status) == (state, status), plans[0].passed[-1]
        judge(bench, yard)
        bench.ledger.assert_once()
        await bench.sound(harness)
    bench.store.close()
    return plans[0].dead


# -- the plan itself ----------------------------------------------------------------------------


def test_a_plan_crashes_once_and_refuses_whatever_the_dead_still_try():
    plan = CrashPlan(at=2)
    with pytest.raises(Crash, match="2: after one"):
        plan.around("one", lambda: 1)
    with pytest.raises(Crash, match="after death: before two"):
        plan.around("two", lambda: 1)
    assert [(b.number, b.name) for b in plan.passed] == [(1, "before one"), (2, "after one")]


def test_a_plan_without_a_crash_counts():
    plan = CrashPlan()
    assert plan.around("one", lambda: 7) == 7
    assert (len(plan.passed), plan.dead) == (2, False)


def test_a_plan_crashes_where_a_name_has_all_the_words():
    plan = CrashPlan(where="COMMIT step", count=2)
    for name in ("before COMMIT claim", "before COMMIT move step", "after step"):
        plan.pass_by(name)
    with pytest.raises(Crash, match="4: after COMMIT step move"):
        plan.pass_by("after COMMIT step move")


def reported(plan: CrashPlan) -> CrashingConnection:
    inner = sqlite3.connect(":memory:", isolation_level=None)
    return CrashingConnection(inner, lambda statement, call: plan.around(statement, call))


def test_every_statement_of_a_connection_is_a_boundary():
    plan = CrashPlan()
    connection = reported(plan)
    connection.execute("BEGIN")
    connection.execute("CREATE TABLE t (n INTEGER)")
    connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
    cursor = connection.cursor()
    cursor.execute("SELECT n FROM t")
    assert list(cursor) == [(1,), (2,)]
    assert connection.in_transaction
    connection.commit()
    connection.row_factory = sqlite3.Row
    assert connection.execute("SELECT n FROM t").fetchone()["n"] == 1
    connection.close()
    said = [boundary.name for boundary in plan.passed]
    statements = ["BEGIN", "CREATE TABLE t (n INTEGER)", "INSERT INTO t VALUES (?)"]
    statements += ["SELECT n FROM t", "COMMIT", "SELECT n FROM t"]
    assert said == [f"{side} {one}" for one in statements for side in ("before", "after")]


def test_what_dies_in_a_transaction_leaves_nothing():
    plan = CrashPlan(where="after INSERT")
    connection = reported(plan)
    connection.execute("CREATE TABLE t (n INTEGER)")
    connection.execute("BEGIN")
    with pytest.raises(Crash):
        connection.execute("INSERT INTO t VALUES (1) RETURNING n")
    with pytest.raises(Crash, match="after death"):
        connection.execute("COMMIT")
    connection.rollback()  # the database does it; it is no boundary
    assert plan.passed[-1].name == "after INSERT INTO t VALUES (1) RETURNING n"
    plan.dead = False
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    connection.close()
