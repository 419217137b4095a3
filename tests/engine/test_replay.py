"""Deciding a journal again finds every change of mind, and nothing where there is none."""

from __future__ import annotations

import types

import msgspec
import pytest

from engine import Context, Event, Machine, State, ensures, minutes, requires
from engine.journal import replay
from engine.table import compile_table


class Sum(Context):
    total: int = 0


class Add(Event, tag="add"):
    number: int


def adding(**changes):
    """The same machine, with other code where `changes` says so."""

    def body(attrs):
        low = State(initial=True, waits=True)
        high, end = State(waits=True), State(final=True)
        attrs |= {"low": low, "high": high, "end": end, "payloads": (Add,)}
        attrs["add"] = low.to(high, cond="much") | low.to.itself()
        attrs["stop"] = high.to(end)
        attrs["much"] = changes.get("much", lambda self, context, event: event.number > 5)
        attrs["on_add"] = changes.get(
            "on_add",
            lambda self, context, event: self.but(context, total=context.total + event.number),
        )
        attrs["allowed"] = requires("add")(changes.get("allowed", lambda self, event: True))
        attrs["promised"] = ensures("add")(changes.get("promised", lambda self, new: True))

    return types.new_class("Adding", (Machine[Sum],), {}, body)


@pytest.fixture
async def journal(bench):
    async with bench.harness(adding()) as harness:
        run_id = (await harness.app.start("Adding", Sum())).run_id
        for number in (1, 2, 9):
            await harness.app.send(run_id, Add(number=number))
        await harness.app.send(run_id, "stop")
        await harness.app.settle()
        return await harness.app.journal(run_id)


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({}, []),
        (
            {"on_add": lambda self, context, event: self.but(context, total=context.total - 1)},
            ["entry 2 (add in low): decided context.total -1, recorded 1",
             "entry 3 (add in low): decided context.total 0, recorded 3",
             "entry 4 (add in low): decided context.total 2, recorded 12"],
        ),
        (
            {"much": lambda self, context, event: event.number > 100},
            ["entry 4 (add in low): decided target 'low', recorded 'high'"],
        ),
        (
            {"allowed": lambda self, event: event.number != 2},
            ["entry 3 (add in low): now rejected: "
             "precondition allowed does not hold (event.number=2)"],
        ),
        (
            {"promised": lambda self, new: new.total < 10},
            ["entry 4 (add in low): now a violation: ensures promised"],
        ),
    ],
    ids=["nothing", "action", "guard", "precondition", "postcondition"],
)  # fmt: skip
def test_every_change_of_mind_is_found_where_it_is(journal, changes, differences):
    found = replay(compile_table.__wrapped__(adding(**changes)), journal)
    assert len(found) == len(differences)
    for seen, expected in zip(found, differences, strict=True):
        assert seen.startswith(expected)


@pytest.mark.parametrize(
    ("number", "change", "difference"),
    [
        (1, {"status": "completed"}, "entry 2 (add in low): decided status 'live', recorded"),
        (1, {"context": Sum(total=7)}, "entry 2 (add in low): decided context.total 1, recorded 7"),
        (1, {"event": "stop", "payload": None}, "entry 2 (stop in low): now rejected: state 'low'"),
        (1, {"event": "nope", "payload": None}, "entry 2 (nope in low): machine Adding has no"),
        (1, {"payload": None}, "entry 2 (add in low): event 'add' of Adding expects Add"),
        (1, {"event": "$undone"}, "entry 2 ($undone in low): $undone needs a run that is closing"),
        (1, {"event": "$what"}, "entry 2 ($what in low): $what needs a run that is closing"),
        (4, {"target": "gone"}, "entry 5 (stop in high): decided target 'end', recorded 'gone'"),
        (1, {"verdicts": ()}, "entry 2 (add in low): decided verdicts"),
    ],
)  # fmt: skip
def test_every_falsified_entry_is_found(journal, number, change, difference):
    journal[number] = msgspec.structs.replace(journal[number], **change)
    found = replay(compile_table.__wrapped__(adding()), journal)
    assert found[0].startswith(difference)


async def test_controls_undoing_and_outcomes_replay(bench, zoo):
    """An outcome, a pause in doubt, a deferred cancel, a quarantine, compensation: all in one."""
    bench.ledger.script = ["lost"]
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        await harness.app.settle()
        await harness.app.pause(run_id)
        await harness.app.settle()
        await harness.app.resume(run_id)
        await harness.app.settle()
        await harness.app.send(run_id, zoo.Noted(count=13))
        await harness.app.settle()
        await harness.app.resume(run_id)
        await harness.app.send(run_id, "pack")
        await harness.app.settle()
        await harness.app.cancel(run_id)
        await harness.app.settle()
        assert (await harness.app.get(run_id)).cancel_requested
        await harness.until_idle(horizon_ms=minutes(1))
        journal = await harness.app.journal(run_id)
        table = harness.app.tables["Shop"]
        assert replay(table, journal) == []
        assert [e.event for e in journal] == [
            "$start", "$pause", "$resume", "charged", "$resume", "pack", "$cancel",
        ]  # fmt: skip
        second = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        await harness.until_idle()
        journal = await harness.app.journal(second)
        assert [e.event for e in journal] == ["$start", "charged", "expire", "$undone"]
        assert replay(table, journal) == []
        without = [e for e in journal if e.event != "$undone"]
        assert replay(table, without) == []
        ended = msgspec.structs.replace(journal[-1], status="cancelled")
        assert replay(table, [*without, ended])[0].startswith(
            "entry 4 ($undone in expired): decided status 'failed', recorded 'cancelled'"
        )
