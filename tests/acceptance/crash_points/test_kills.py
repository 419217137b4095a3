"""The crash points of docs/reliability.md with real processes and real signals.

Each worker is a process of its own (`worker`), killed from inside at an exact statement; whoever
comes next is another one.  The outside's ledger is a file that was synced before each call went on.
The same rows in process, at every statement: tests/engine/test_crash_points.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3

import pytest

from engine import hours, minutes
from engine.ports import Query
from engine.worker import LEASE_MS
from persistence import migrate, schema
from tests.acceptance.crash_points.conftest import EPOCH_MS
from tests.acceptance.crash_points.old import OLD, check_upgraded

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]
ON_SQLITE = pytest.mark.parametrize("stage", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("stage", ["postgresql"], indirect=True)


def at(*places: str, server: tuple[str, ...]) -> pytest.MarkDecorator:
    """Killed at each of these places on SQLite, and at some of them on PostgreSQL."""
    cases = [("sqlite", place) for place in places] + [("postgresql", place) for place in server]
    return pytest.mark.parametrize(("stage", "where"), cases, indirect=["stage"])


_ALL = Query()
SALE = ("start:Sale/one", "send:Sale/one:pay:pay", "settle")


@pytest.mark.parametrize("serve", ["settle", "serve"])
def test_row_01_killed_after_the_accept(stage, serve):
    answers = stage.kill("after COMMIT accept", serve, "start:Errand/one")
    assert answers in ([None], [0])
    accepted = stage.look("Errand/one")
    assert (accepted.run.state, accepted.run.seq) == ("running", 1)
    assert stage.run("settle") == [1]
    assert stage.look("Errand/one").run.status == "completed"
    assert stage.outside.names() == ["run"]


def test_row_02_killed_after_the_claim(stage):
    """Known dead on the same host: taken at once.  On another host: when its lease is over."""
    stage.set_clock(f"={EPOCH_MS}")
    stage.run("start:Errand/one")
    for fence, host in ((1, None), (2, "elsewhere")):
        where = {} if host is None else {"host": host}
        stage.kill("after COMMIT claim", "settle", **where)
        assert stage.look("Errand/one").fence == fence
        assert stage.look("Errand/one").owner is not None
    stage.set_clock(f"={EPOCH_MS + LEASE_MS - 1}")
    assert stage.run("settle") == [0]
    stage.set_clock(f"={EPOCH_MS + LEASE_MS}")
    assert stage.run("settle") == [1]
    assert stage.look("Errand/one").fence == 3
    assert stage.outside.names() == ["run"]


@ON_SQLITE
def test_row_03_killed_again_and_again_while_waiting(stage):
    stage.run(*SALE)
    before = stage.look("Sale/one")
    assert (before.run.state, before.run.status, before.stalls) == ("packing", "waiting", 0)
    for _ in range(2):
        stage.kill("after COMMIT lease", "settle")
        assert stage.run("settle") == [0]
    assert stage.look("Sale/one") == before
    stage.run("send:Sale/one:pack:pack", "settle")
    assert stage.look("Sale/one").run.state == "sold"
    assert stage.outside.done() == ["reserve", "charge"]


def test_row_04_killed_before_the_call(stage):
    stage.kill("before effect run", "start:Errand/one", "settle")
    assert stage.outside.names() == []
    stage.run("settle")
    assert stage.outside.names() == ["asked-run", "run"]
    assert stage.look("Errand/one").run.state == "home"


def test_row_05_killed_after_the_call(stage):
    stage.kill("after effect run", "start:Errand/one", "settle")
    assert stage.outside.names() == ["run"]
    stage.run("settle")
    assert stage.outside.names() == ["run", "asked-run"]
    assert stage.look("Errand/one").run.state == "home"


@pytest.mark.parametrize("deed", ["kill_at", "fail_at"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_row_06_lost_in_the_commit(stage, deed, when):
    """Killed, or told by the driver that it failed; before it is durable, or after."""
    steps = ("serve", "start:Errand/one", "wait:Errand/one")
    ended = stage.end(stage.spawn(*steps, **{deed: f"{when} COMMIT step"}))
    assert ended.killed == (deed == "kill_at")
    stage.run("settle")
    assert stage.look("Errand/one").run.seq == 2
    assert stage.events("Errand/one") == ["done"]
    assert stage.outside.done() == ["run"]


@ON_SQLITE
def test_row_07_the_file_is_locked_for_a_while(stage):
    """Another process has locked it, in the middle of the load, until that has been noticed."""
    stage.run("many:Errand:50")
    worker = stage.stopped("after COMMIT claim", "serve", "drain", busy_ms="20")
    with contextlib.closing(sqlite3.connect(stage.directory / "runs.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        os.kill(worker.pid, signal.SIGCONT)
        noticed = worker.stderr.readline()
        assert "another process held the write lock too long" in noticed
        other.execute("ROLLBACK")
    ended = stage.end(worker)
    assert ended.code == 0, ended.errors[-2000:]
    assert stage.outside.done() == ["run"] * 50


@ON_POSTGRESQL
@pytest.mark.parametrize("how", ["terminated", "fast", "immediate"])
def test_row_07_the_server_is_restarted(stage, postgres, how):
    """In the middle of the load: every connection ended, or the server stopped and started."""
    stage.run("many:Errand:50")
    worker = stage.stopped("after COMMIT claim", "serve", "drain")
    if how == "terminated":
        assert postgres.terminate_backends() > 0
    else:
        postgres.stop(how)
        postgres.start()
    os.kill(worker.pid, signal.SIGCONT)
    ended = stage.end(worker)
    assert ended.code == 0, ended.errors[-2000:]
    assert stage.outside.done() == ["run"] * 50


def test_row_08_stopped_past_its_lease_and_continued(stage):
    """Both before the write of what it did, and just before it does it.

    Between the last look at the lease and the call itself nobody can help: there the call is made
    twice, under one key, and recorded once.
    """
    for where, key, calls in (("after effect run", "one", 1), ("before effect run", "two", 2)):
        zombie = stage.stopped(where, f"start:Errand/{key}", "settle")
        stage.set_clock(f"+{(calls) * LEASE_MS}")
        stage.run("settle")
        assert stage.look(f"Errand/{key}").run.seq == 2
        os.kill(zombie.pid, signal.SIGCONT)
        ended = stage.end(zombie)
        assert ended.answers[-1]["error"] == "LostOwnership"
        run = stage.look(f"Errand/{key}").run
        assert (run.seq, run.state) == (2, "home")
        lines = (stage.directory / "ledger").read_text().splitlines()
        made = [line for line in lines if line.startswith("run ") and run.run_id in line]
        assert (len(made), len(set(made))) == (calls, 1)


@ON_SQLITE
def test_row_09_timer_and_event_at_once(stage):
    """The event was accepted in the timer's very instant, and its sender and a worker killed."""
    stage.set_clock(f"={EPOCH_MS}")
    stage.run("start:Alarm/event", "start:Alarm/timer")
    stage.set_clock(f"={EPOCH_MS + hours(1)}")
    stage.kill("after COMMIT deliver", "send:Alarm/event:stop:stop")
    stage.kill("before COMMIT step", "settle")
    stage.kill("after COMMIT step:2", "settle")
    (again,) = stage.run("send:Alarm/timer:stop:stop")
    stage.run("settle")
    assert stage.events("Alarm/event") == ["stop"]
    assert stage.events("Alarm/timer") == ["ring"]
    assert again["status"] == "rejected"


def test_row_10_early_repeated_and_late(stage):
    """The sender is killed before it hears the receipt, and sends again."""
    stage.run("start:Sale/one")
    stage.kill("after COMMIT deliver", "send:Sale/one:note:note")
    stage.kill("before COMMIT deliver", "send:Sale/one:pay:pay")
    again, paid = stage.run("send:Sale/one:note:note", "send:Sale/one:pay:pay")
    assert (again["duplicate"], again["same"], paid["duplicate"]) == (True, True, False)
    stage.kill("after COMMIT step consume:1", "settle")
    stage.run("settle", "send:Sale/one:pack:pack", "settle")
    late, repeated = stage.run("send:Sale/one:note:late", "send:Sale/one:pack:pack")
    assert (late["status"], late["reason"]) == ("rejected", "the run is completed")
    assert (repeated["duplicate"], repeated["status"], repeated["seq"]) == (True, "applied", 6)
    assert stage.events("Sale/one") == ["note", "pay", "reserved", "charged", "pack"]
    assert stage.outside.done() == ["reserve", "charge"]


@ON_SQLITE
def test_row_11_code_that_raises(stage):
    """Killed while such runs are set aside, before and after; none ever moves by half."""
    words = ("guard", "action", "postcondition")
    stage.run(*(f"start:Fickle/{word}:{word}" for word in words),
              *(f"send:Fickle/{word}:move:move" for word in words))  # fmt: skip
    stage.kill("before COMMIT move", "settle")
    stage.kill("after COMMIT move:2", "settle")
    stage.run("settle")
    for word in words:
        found = stage.look(f"Fickle/{word}").run
        assert (found.state, found.seq, found.status) == ("idle", 1, "quarantined")
        assert stage.events(f"Fickle/{word}") == []


@at(
    "before COMMIT step accept",  # the child is inserted, the parent's step not committed
    "after COMMIT step accept",
    "before COMMIT deliver step:1",  # the parent, closing, tells its child
    "after COMMIT deliver step:1",
    "after COMMIT deliver step:2",  # the child, cancelled, tells its parent
    server=("before COMMIT step accept", "after COMMIT deliver step:1"),
)
def test_row_12_a_cancelled_parent(stage, where):
    """Killed at a point of the cascade, after which another process cancels, or cancels again."""
    begun = ("start:Family/one", "send:Family/one:go:go", "settle")
    stage.kill(where, *begun, "cancel:Family/one", "settle", "settle")
    if not stage.look("Family/one").run.closing:
        stage.run("cancel:Family/one")
    stage.run("settle", "settle")
    runs = stage.with_store(lambda store: [*store.runs.select(_ALL)])
    assert {one.run.status for one in runs} == {"cancelled"}
    assert stage.outside.done() in ([], ["reserve", "release"])


@at(
    "before effect refund",
    "after effect refund",
    "before COMMIT step:5",
    "after COMMIT step:5",
    "before effect release",
    "after effect release",
    server=("after effect refund", "after COMMIT step:5"),
)
def test_row_13_killed_in_a_compensation(stage, where):
    stage.kill(where, *SALE, "cancel:Sale/one", "settle")
    stage.run("settle")
    assert stage.look("Sale/one").run.status == "cancelled"
    assert stage.outside.done() == ["reserve", "charge", "refund", "release"]


@pytest.mark.parametrize(
    "where", ["after schema:9", "before change:2", "before COMMIT", "after COMMIT schema"]
)
def test_row_14_killed_in_a_migration(old_stage, where):
    """Each run is wholly as it was, and wholly as it is now after whoever comes next."""
    old_stage.kill(where, "settle")
    found = schema.current(old_stage.url)
    assert found == (OLD if "after COMMIT" not in where else migrate.head(schema.SCRIPT_LOCATION))
    old_stage.with_store(check_upgraded)


@at(
    "before remember",
    "before remove:2",
    "before COMMIT remove",
    "after COMMIT remove",
    server=("before COMMIT remove", "after COMMIT remove"),
)
def test_row_15_killed_while_removing(stage, where):
    """A tree of runs goes as a whole; its key then gives no old result, and a new run when free."""
    stage.run("start:Errand/one", "start:Family/two", "send:Family/two:go:go", "settle")
    old = stage.look("Errand/one").run.run_id
    stage.set_clock(f"+{hours(1)}")
    stage.run("start:Alarm/alive", "settle")  # the child of the family has ended, and its parent
    stage.set_clock(f"+{hours(1) + minutes(1)}")
    stage.kill(where, "remove")
    gone = 3 if where == "after COMMIT remove" else 0
    assert len(stage.with_store(lambda store: store.runs.select(_ALL))) == 4 - gone
    stage.check()
    removed, again, forgot, new, _ = stage.run(
        "remove", "start:Errand/one", "forget", "start:Errand/one", "settle"
    )
    assert (removed, forgot) == (3 - gone, 3)
    assert again == {"run_id": old, "created": False}
    assert (new["created"], new["run_id"] != old) == (True, True)
    assert stage.look("Errand/one").run.status == "completed"
    assert stage.outside.done().count("run") == 2


@at(
    "before COMMIT forget",
    "after COMMIT forget",
    "before COMMIT promote",
    "after COMMIT promote claim",
    server=("before COMMIT forget", "after COMMIT promote claim"),
)
def test_row_17_killed_while_keeping_house(stage, where):
    """A dead worker's runs are freed and due timers promoted by whoever comes; and only once."""
    stage.kill("after effect run", "start:Alarm/one", "start:Errand/one", "settle")
    stage.set_clock(f"+{hours(1)}")
    stage.kill(where, "settle")
    stage.run("settle")
    assert (stage.events("Alarm/one"), stage.events("Errand/one")) == (["ring"], ["done"])
    assert stage.outside.done() == ["run"]
    assert stage.with_store(lambda store: store.workers.all()) == []


@at(
    "before COMMIT accept",
    "after COMMIT accept",
    server=("before COMMIT accept", "after COMMIT accept"),
)
def test_row_17_a_tick_starts_one_run(stage, where):
    """Two processes start the run of the same tick; the first is killed, with or without it."""
    stage.kill(where, "start:Alarm/tick-2026-11-23")
    first, again = stage.run("start:Alarm/tick-2026-11-23", "start:Alarm/tick-2026-11-23")
    assert first["created"] == (where == "before COMMIT accept")
    assert again == {"run_id": first["run_id"], "created": False}
    assert len(stage.with_store(lambda store: store.runs.select(_ALL))) == 1


def test_row_18_ten_thousand_timers_after_an_outage(stage):
    """A worker dies among them; the next one takes portions, and new work does not wait for all."""
    many = 10_000
    stage.run(f"many:Alarm:{many}")
    stage.set_clock(f"+{hours(24)}")
    stage.kill("after COMMIT step:3", "serve", "drain")
    _, _, _, before, new, after, _ = stage.run(
        "serve", f"wait:Alarm/{many // 2}",
        "start:Errand/new", "left", "wait:Errand/new", "left", "drain",
    )  # fmt: skip
    assert before["held"] <= 1_100 < before["left"]  # a start may come while a claim is on its way
    assert new["status"] == "completed"
    assert after["left"] > 0
    runs = stage.with_store(lambda store: store.runs.select(Query(machine="Alarm", limit=many)))
    assert {(one.run.state, one.run.seq) for one in runs} == {("rung", 2)}
    assert len(runs) == many


@ON_SQLITE
@pytest.mark.parametrize("by_ms", [hours(1), -hours(1)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("where", ["before effect run", "after COMMIT claim"])
def test_row_19_the_clock_is_stepped(stage, where, by_ms):
    """Under a worker, which is the clock of everybody who has this file."""
    stage.set_clock(f"={EPOCH_MS}")
    worker = stage.stopped(where, "start:Alarm/one", "start:Errand/one", "settle", "settle")
    stage.set_clock(f"={EPOCH_MS + by_ms}")
    os.kill(worker.pid, signal.SIGCONT)
    ended = stage.end(worker)
    assert ended.code == 0, ended.errors[-2000:]
    assert stage.events("Alarm/one") == (["ring"] if by_ms > 0 else [])
    stage.set_clock(f"={EPOCH_MS + by_ms + hours(2)}")
    stage.run("settle")
    assert stage.events("Alarm/one") == ["ring"]
    assert stage.events("Errand/one") == ["done"]
    assert stage.outside.done() == ["run"]


@ON_POSTGRESQL
@pytest.mark.parametrize("wall_ms", [hours(1), -hours(1)], ids=["ahead", "behind"])
def test_row_19_a_host_whose_clock_is_wrong(stage, wall_ms):
    """It goes by the database's time: no timer rings early, nobody's lease is taken away."""
    right, wrong = {"wall_ms": "0"}, {"wall_ms": str(wall_ms)}
    worker = stage.stopped("after effect run", "start:Alarm/one", "start:Errand/one", "settle",
                           **right)  # fmt: skip
    begun, moved = stage.run("start:Alarm/two", "settle", **wrong)
    assert (begun["created"], moved) == (True, 0)
    os.kill(worker.pid, signal.SIGCONT)
    ended = stage.end(worker)
    assert (ended.code, ended.answers[-1]) == (0, 1)
    assert stage.run("start:Errand/two", "settle", **wrong)[-1] == 1
    apart_ms = stage.look("Alarm/two").run.created_ms - stage.look("Alarm/one").run.created_ms
    assert 0 <= apart_ms < minutes(5)
    assert stage.events("Alarm/one") == stage.events("Alarm/two") == []
    assert stage.outside.done() == ["run", "run"]


@ON_SQLITE
def test_row_20_too_large(stage):
    """A context is refused with its name; a result is set aside, killed before and after that."""
    (refused,) = stage.run("start:Errand/huge:huge")
    assert refused["error"] == "TooLarge"
    assert "bytes encoded, the limit is 262144" in refused["reason"]
    assert stage.with_store(lambda store: store.runs.select(_ALL)) == []
    stage.kill("before COMMIT move:2", "start:Errand/one:long", "settle")
    stage.kill("after COMMIT move", "settle")
    stage.run("settle")
    found = stage.look("Errand/one").run
    assert (found.state, found.seq, found.status) == ("running", 1, "quarantined")
    assert "bytes encoded, the limit is 262144" in found.last_error
    assert stage.outside.done() == ["run"]
