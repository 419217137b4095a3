"""A database of real runs is clean; whatever is damaged in it is found and named."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from engine import (
    Call,
    ChildEnded,
    Context,
    Event,
    GaveUp,
    Machine,
    Permanent,
    Retry,
    Secret,
    State,
    effect,
    invariant,
)
from engine.clock import hours
from engine.errors import SchemaMismatch, StoreCorrupt, UsageError
from engine.secrets import SecretsCodec
from engine.table import Child, compile_table
from engine.testing import Harness, ManualClock
from engine.verification import environment, findings, history
from engine.verification.environment import Environment, always
from engine.verification.history import (
    HistoryReport,
    check_history,
    examine_history,
    history_json,
    history_lines,
    pages,
    require_database,
)
from persistence import open_store

KEY = b"h" * 32
ONCE = Retry(attempts=2, first_ms=1_000, factor=1, jitter=0)


class Booked(Event, tag="booked"):
    number: int


class Rented(Event, tag="rented"):
    number: int


class Undone(Event, tag="undone_it"):
    """Given back."""


class NoCar(GaveUp, tag="no_car"):
    """There was no car."""


class Back(ChildEnded, tag="back"):
    """The walk is over."""


class Plan(Context):
    nights: int
    pin: Secret[str]
    car: bool = True
    number: int = 0


@effect(idempotent=True, retry=ONCE)
async def book(context: Plan, call: Call) -> Booked:
    return Booked(number=7)


@effect(idempotent=True, retry=ONCE)
async def unbook(context: Plan, call: Call) -> Undone:
    return Undone()


@effect(idempotent=True, retry=ONCE)
async def rent(context: Plan, call: Call) -> Rented:
    if not context.car:
        raise Permanent("no car left")
    return Rented(number=9)


@effect(idempotent=True, retry=ONCE)
async def bring_back(context: Plan, call: Call) -> Undone:
    return Undone()


class Walk(Machine[Plan]):
    """Somewhere, until somebody says that it is over."""

    walking = State(initial=True, waits=True, timeout=hours(5), on_timeout="lost")
    over = State(final=True)
    astray = State(final=True, failure=True)
    enough = walking.to(over)
    lost = walking.to(astray)


class Trip(Machine[Plan]):
    """A room, a car, a walk; given back in reverse when the walk fails."""

    payloads = (NoCar, Back)

    booking = State(initial=True, effect=book, compensation=unbook)
    renting = State(effect=rent, compensation=bring_back, on_exhausted="no_car")
    walking = State(child="walk", on_child="back")
    home = State(final=True)
    failed = State(final=True, failure=True)

    booked = booking.to(renting)
    rented = renting.to(walking)
    no_car = renting.to(failed)
    back = walking.to(home, cond="went_well") | walking.to(failed, unless="went_well")

    def went_well(self, event: Back) -> bool:
        return event.succeeded

    def on_booked(self, context: Plan, event: Booked) -> Plan:
        return self.but(context, number=event.number)

    def walk(self, context: Plan) -> Child:
        return Child("Walk", context)

    def output(self, context: Plan) -> int:
        return context.number

    @invariant
    def some_nights(self, context: Plan) -> bool:
        return context.nights > 0


class Shop:
    """A database file, and what happens in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()

    def harness(self, *machines: Any, key: bytes = KEY) -> Harness:
        store = open_store(f"sqlite:///{self.path}", synchronous="NORMAL")
        return Harness(
            machines or (Trip, Walk), store=store, clock=self.clock, secrets=SecretsCodec(key)
        )

    async def live(self) -> None:
        """One run of each kind."""
        async with self.harness() as harness:
            app = harness.app
            for key, car in (("good", True), ("sad", True), ("no car", False), ("cancel", True)):
                await app.start(Trip, Plan(nights=2, pin=Secret("1234"), car=car), key=key)
                await app.settle()
            for key, event in (("good", "enough"), ("sad", "lost")):
                run = await app.get(await app.find(Trip, key) or "")
                await app.send(run.child or "", event, key="once")
                await app.settle()
            await app.cancel(await app.find(Trip, "cancel") or "")
            for key in ("held", "open"):
                await app.start(Walk, Plan(nights=1, pin=Secret("9")), key=key)
            await app.settle()
            held = await app.find(Walk, "held") or ""
            for step in (app.pause, app.resume, app.pause):
                await step(held)
                await app.settle()
        harness.store.close()

    def check(self, *machines: Any, key: bytes = KEY, **options: Any) -> HistoryReport:
        """What the oracles say of the file."""
        harness = self.harness(*machines, key=key)
        try:
            return check_history(harness.app, **options)
        finally:
            harness.store.close()

    def damage(self, *statements: str) -> None:
        """Change the file behind everybody's back."""
        database = sqlite3.connect(self.path)
        with database:
            for statement in statements:
                for name, text in NAMES.items():
                    statement = statement.replace(name, text)
                database.execute(statement)
        database.close()

    def run_id(self, key: str) -> str:
        """The run that was started with a key."""
        return self.ask("SELECT run_id FROM turtles_run WHERE key = ?", key)

    def ask(self, query: str, *values: Any) -> Any:
        """One value of the file."""
        database = sqlite3.connect(self.path)
        try:
            return database.execute(query, values).fetchone()[0]
        finally:
            database.close()


@pytest.fixture(autouse=True)
def own_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is forgotten after it."""
    monkeypatch.setattr(environment, "_BY_MACHINE", dict(environment._BY_MACHINE))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    shop = Shop(tmp_path_factory.mktemp("lived") / "runs.db")
    asyncio.run(shop.live())
    structlog.configure(**before)
    return shop.path.read_bytes()


@pytest.fixture
def shop(lived: bytes, tmp_path: Path) -> Shop:
    path = tmp_path / "runs.db"
    path.write_bytes(lived)
    return Shop(path)


def rules(report: HistoryReport) -> set[str]:
    return {one.rule for one in report.errors}


def test_a_database_of_real_runs_is_clean(shop: Shop) -> None:
    seen: list[tuple[int, int]] = []
    report = shop.check(progress=lambda runs, transitions: seen.append((runs, transitions)))
    assert (report.findings, report.notes, report.ok) == ([], [], True)
    assert report.runs == 9
    assert report.transitions == shop.ask("SELECT count(*) FROM turtles_transition") > 30
    assert report.effects == shop.ask("SELECT count(*) FROM turtles_effect")
    assert seen[-1] == (report.runs, report.transitions)
    statuses = shop.ask("SELECT group_concat(DISTINCT status) FROM turtles_run")
    assert set(statuses.split(",")) == {"completed", "failed", "cancelled", "paused", "waiting"}


async def test_it_is_clean_while_runs_move(shop: Shop) -> None:
    async with shop.harness() as harness:
        await harness.app.start(Trip, Plan(nights=1, pin=Secret("1")))
        assert (await examine_history(harness.app)).errors == []
        await harness.app.settle()
        assert (await examine_history(harness.app)).errors == []
    harness.store.close()


NAMES = {
    "$CHILD": "(SELECT run_id FROM turtles_run WHERE parent_id = $GOOD)",
    "$GOOD": "(SELECT run_id FROM turtles_run WHERE key = 'good')",
    "$SAD": "(SELECT run_id FROM turtles_run WHERE key = 'sad')",
    "$OPEN": "(SELECT run_id FROM turtles_run WHERE key = 'open')",
    "$CONTEXT": "CAST(replace(context, '\"number\":7', '\"number\":8') AS BLOB)",
}

MORE = ("INSERT INTO turtles_transition (run_id, seq, event, source, target, status, at_ms, worker,"
        " fence, payload, verdicts, context)")  # fmt: skip
FORGET = ("UPDATE turtles_transition SET effect_seq = NULL, effect_name = NULL,"
          " effect_outcome = NULL, effect_attempts = NULL, effect_calls = NULL,"
          " effect_undo_of = NULL, effect_error = NULL")  # fmt: skip

DAMAGES: list[tuple[str, str, tuple[str, ...]]] = [
    ("state changed", "journal", ("UPDATE turtles_run SET state = 'home' WHERE run_id = $SAD",)),
    ("entry deleted", "journal",
     ("DELETE FROM turtles_transition WHERE run_id = $GOOD AND seq = 2",)),
    ("journal deleted", "journal", ("DELETE FROM turtles_transition WHERE run_id = $OPEN",)),
    ("context of an entry", "replay",
     ("UPDATE turtles_transition SET context = $CONTEXT WHERE run_id = $GOOD AND seq = 2",)),
    ("context of the run", "journal",
     ("UPDATE turtles_run SET context = $CONTEXT WHERE run_id = $GOOD",)),
    ("payload", "replay",
     ("UPDATE turtles_transition SET payload = CAST('{\"event\":\"booked\",\"number\":1}' AS BLOB)"
      " WHERE run_id = $GOOD AND seq = 2",)),
    ("payload is no JSON", "unreadable",
     ("UPDATE turtles_transition SET payload = X'00' WHERE run_id = $GOOD AND seq = 2",)),
    ("context is no JSON", "unreadable",
     ("UPDATE turtles_transition SET context = X'7B' WHERE run_id = $GOOD AND seq = 1",)),
    ("context is a number", "unreadable",
     ("UPDATE turtles_transition SET context = 5 WHERE run_id = $GOOD AND seq = 1",)),
    ("verdicts are no JSON", "unreadable",
     ("UPDATE turtles_transition SET verdicts = X'7B' WHERE run_id = $GOOD AND seq = 1",)),
    ("verdicts forgotten", "replay",
     ("UPDATE turtles_transition SET verdicts = CAST('[]' AS BLOB) WHERE run_id = $GOOD",)),
    ("verdict false", "contract",
     ("UPDATE turtles_transition SET verdicts = CAST(replace(verdicts, '+', '-') AS BLOB)"
      " WHERE run_id = $GOOD AND seq = 2",)),
    ("invariant broken", "invariant",
     ("UPDATE turtles_transition"
      " SET context = CAST(replace(context, '\"nights\":2', '\"nights\":0') AS BLOB)"
      " WHERE run_id = $GOOD AND seq = 3",)),
    ("undo list is no JSON", "unreadable",
     ("UPDATE turtles_run SET undo = '[' WHERE run_id = $GOOD",)),
    ("undo list emptied", "standing",
     ("UPDATE turtles_run SET undo = '[]' WHERE run_id = $GOOD",)),
    ("timer moved", "standing",
     ("UPDATE turtles_run SET deadline_ms = deadline_ms + 1, due_ms = due_ms + 1"
      " WHERE run_id = $OPEN",)),
    ("due too late", "due",
     ("UPDATE turtles_run SET due_ms = due_ms + 1 WHERE run_id = $OPEN",)),
    ("never due", "due", ("UPDATE turtles_run SET due_ms = NULL WHERE run_id = $OPEN",)),
    ("output changed", "output",
     ("UPDATE turtles_run SET output = CAST('8' AS BLOB) WHERE run_id = $GOOD",)),
    ("effect not done", "standing",
     ("UPDATE turtles_transition SET effect_outcome = 'abandoned'"
      " WHERE effect_name = 'rent' AND run_id = $GOOD",)),
    ("effect done, not given up", "compensation order",
     ("UPDATE turtles_transition SET effect_outcome = 'done' WHERE effect_outcome = 'given_up'",)),
    ("effect never called", "effect",
     ("UPDATE turtles_transition SET effect_calls = 0"
      " WHERE effect_name IS NOT NULL AND run_id = $GOOD",)),
    ("effect deleted", "effect",
     (FORGET + " WHERE effect_name = 'book' AND run_id = $GOOD",)),
    ("effect of another name", "effect",
     ("UPDATE turtles_transition SET effect_name = 'rant'"
      " WHERE effect_name = 'rent' AND run_id = $GOOD",)),
    ("effect of another transition", "effect",
     ("UPDATE turtles_transition SET effect_seq = 1 WHERE effect_name = 'rent' AND run_id = $GOOD",
      )),
    ("effect with two outcomes", "effect",
     ("UPDATE turtles_transition SET effect_seq = 1, effect_name = 'book', effect_attempts = 1,"
      " effect_calls = 1, effect_outcome = 'given_up' WHERE run_id = $GOOD AND seq = 4",)),
    ("effect settled before it began", "effect",
     ("UPDATE turtles_transition SET effect_seq = seq + 1"
      " WHERE effect_name = 'rent' AND run_id = $GOOD",)),
    ("compensation forgotten", "compensation skipped",
     (FORGET + " WHERE effect_name = 'unbook' AND run_id = $SAD",)),
    ("compensations in another order", "compensation order",
     ("UPDATE turtles_transition SET effect_undo_of = 'walking'"
      " WHERE effect_undo_of = 'renting' AND run_id = $SAD",
      "UPDATE turtles_transition SET effect_undo_of = 'renting'"
      " WHERE effect_undo_of = 'booking' AND run_id = $SAD",
      "UPDATE turtles_transition SET effect_undo_of = 'booking'"
      " WHERE effect_undo_of = 'walking'")),
    ("moved after its end", "moved after end",
     (MORE + " SELECT run_id, seq + 1, event, target, target, status, at_ms,"  # noqa: S608 - constants
      " worker, fence, payload, verdicts, context FROM turtles_transition"
      " WHERE run_id = $GOOD AND status = 'completed'",)),
    ("woken after its end", "moved after end",
     ("UPDATE turtles_run SET status = 'waiting' WHERE run_id = $CHILD",)),
    ("child told twice", "child told twice",
     (MORE + " SELECT run_id, seq + 1, event, 'walking', target, status,"  # noqa: S608 - constants
      " at_ms, worker, fence, payload, verdicts, context FROM turtles_transition"
      " WHERE run_id = $GOOD AND event = 'back'",
      "UPDATE turtles_transition SET target = 'walking' WHERE run_id = $GOOD AND seq = 4")),
    ("parent never told", "parent not told",
     ("DELETE FROM turtles_inbox WHERE run_id = $GOOD",)),
    ("cause deleted", "no cause", ("DELETE FROM turtles_inbox WHERE run_id = $GOOD",)),
    ("another event as cause", "inbox",
     ("UPDATE turtles_inbox SET event = 'other' WHERE run_id = $GOOD",)),
    ("two events for one entry", "inbox",
     ("INSERT INTO turtles_inbox (run_id, key, event, at_ms, status, consumed_seq)"
      " SELECT run_id, 'k2', event, at_ms, status, consumed_seq FROM turtles_inbox"
      " WHERE run_id = $GOOD",)),
    ("parent deleted", "parent",
     ("DELETE FROM turtles_run WHERE key = 'good'",)),
    ("run deleted", "no run", ("DELETE FROM turtles_run WHERE key = 'good'",)),
    ("child outlives its parent", "orphan child",
     ("UPDATE turtles_run SET status = 'waiting' WHERE run_id = $CHILD",)),
    ("child of somebody else", "child",
     ("UPDATE turtles_run SET child = $OPEN WHERE run_id = $GOOD",)),
    ("child at another depth", "child",
     ("UPDATE turtles_run SET depth = 5 WHERE run_id = $CHILD",)),
    ("old fence", "fence",
     ("UPDATE turtles_transition SET fence = 9 WHERE run_id = $GOOD AND seq = 2",)),
    ("fence of the run", "fence", ("UPDATE turtles_run SET fence = 0 WHERE run_id = $GOOD",)),
    ("two workers under one fence", "fence",
     ("UPDATE turtles_transition SET worker = 'w' WHERE run_id = $GOOD AND seq = 2",)),
    ("quarantined without a reason", "no reason",
     ("UPDATE turtles_run SET status = 'quarantined', due_ms = NULL WHERE run_id = $OPEN",)),
    ("owner without lease", "owner",
     ("UPDATE turtles_run SET owner = 'nobody' WHERE run_id = $OPEN",)),
]  # fmt: skip


@pytest.mark.parametrize(
    "rule, statements",
    [(rule, statements) for _, rule, statements in DAMAGES],
    ids=[name for name, _, _ in DAMAGES],
)
def test_a_damage_is_found_by_name(shop: Shop, rule: str, statements: tuple[str, ...]) -> None:
    shop.damage(*statements)
    report = shop.check()
    assert rule in rules(report), report.findings
    assert all(one.problem and one.remedy for one in report.findings)
    assert report.runs >= 8  # the other runs were looked at


def test_a_run_set_aside_with_a_reason_needs_a_person(shop: Shop) -> None:
    shop.damage(
        "UPDATE turtles_run SET status = 'quarantined', last_error = 'effect x given up: no',"
        " held_from = 'waiting', due_ms = NULL WHERE run_id = $OPEN"
    )
    report = shop.check()
    (finding,) = report.findings
    assert (finding.rule, finding.severity, report.ok) == ("quarantined", "warning", True)
    assert f"turtles resume {shop.run_id('open')}" in finding.remedy


def test_a_run_for_which_nobody_works_is_stuck(shop: Shop) -> None:
    shop.clock.advance(hours(6))
    (finding,) = shop.check().findings
    assert (finding.rule, finding.run_id) == ("stuck", shop.run_id("open"))
    assert finding.severity == "warning"
    assert "since 20" in finding.problem


def test_a_run_of_an_unknown_machine_is_noted_and_folded(shop: Shop) -> None:
    report = shop.check(Walk)
    assert report.ok
    (note,) = report.notes
    assert (note.runs, "Trip is not known here" in note.text) == (4, True)
    shop.damage("UPDATE turtles_run SET seq = seq + 1 WHERE run_id = $GOOD")
    assert rules(shop.check(Walk)) == {"journal"}


def test_a_run_of_another_version_is_noted_and_not_decided_again(shop: Shop) -> None:
    shop.damage(
        "UPDATE turtles_run SET version = 'older' WHERE key = 'good'",
        "UPDATE turtles_transition SET verdicts = CAST('[]' AS BLOB) WHERE run_id = $GOOD",
    )
    report = shop.check()
    assert report.ok
    (note,) = report.notes
    assert "made by version older of Trip" in note.text
    assert note.run_id == shop.run_id("good")


def test_without_the_right_key_the_rest_is_still_checked(shop: Shop) -> None:
    report = shop.check(key=b"x" * 32)
    assert report.ok
    (note,) = report.notes
    assert "secrets stayed closed" in note.text
    assert note.runs == report.runs
    shop.damage(
        "UPDATE turtles_transition SET effect_calls = 0"
        " WHERE effect_name IS NOT NULL AND run_id = $GOOD"
    )
    assert rules(shop.check(key=b"x" * 32)) == {"effect"}


def test_code_that_decides_otherwise_is_found(shop: Shop) -> None:
    (edge,) = compile_table(Trip).edges["booking", "booked"]
    actions = edge.actions
    try:
        object.__setattr__(edge, "actions", ())  # the table is frozen and shared
        assert "replay" in rules(shop.check())
    finally:
        object.__setattr__(edge, "actions", actions)


def test_what_an_author_says_of_the_outside_must_hold(shop: Shop) -> None:
    class OfTrip(Environment):
        machine = Trip

        @always
        def no_car_without_room(self, done: list[Any]) -> bool:
            names = [one.effect for one in done]
            return "rent" not in names or "book" in names

        @always
        def no_trip_goes_wrong(self, status: str) -> bool:
            return status != "failed"

    assert shop.check(environments=()).ok
    report = shop.check()  # the one that was imported
    assert shop.check(environments=[OfTrip()]).findings == report.findings
    assert {(one.rule, one.run_id) for one in report.errors} == {
        ("always", shop.run_id("sad")), ("always", shop.run_id("no car"))
    }  # fmt: skip
    assert all("no_trip_goes_wrong" in one.problem for one in report.errors)


def test_bytes_of_an_older_encoding_that_mean_the_same_are_no_finding(shop: Shop) -> None:
    spaced = "SET context = CAST(replace(context, '\"nights\":', '\"nights\": ') AS BLOB)"
    shop.damage(f"UPDATE turtles_transition {spaced}", f"UPDATE turtles_run {spaced}")
    assert shop.check().findings == []


def test_pages_hold_whole_runs_and_every_run_once(shop: Shop, monkeypatch: Any) -> None:
    harness = shop.harness()
    whole = list(pages(harness.app))
    for runs, entries in ((1, 50), (2, 7), (100, 9)):
        monkeypatch.setattr(history, "RUNS_AT_ONCE", runs)
        monkeypatch.setattr(history, "ENTRIES_AT_ONCE", entries)
        assert list(pages(harness.app)) == whole
    harness.store.close()


def test_a_journal_longer_than_a_page_is_decided_again_up_to_there(
    shop: Shop, monkeypatch: Any
) -> None:
    monkeypatch.setattr(history, "ENTRIES_AT_ONCE", 3)
    report = shop.check()
    assert report.ok
    assert report.runs == 9
    assert "longer than 3 entries" in report.notes[0].text
    shop.damage("UPDATE turtles_transition SET verdicts = CAST('[]' AS BLOB) WHERE seq = 2")
    assert "replay" in rules(shop.check())


def test_findings_beyond_the_limit_are_counted(shop: Shop, monkeypatch: Any) -> None:
    monkeypatch.setattr(findings, "FINDINGS_MAX", 2)
    shop.damage("UPDATE turtles_transition SET verdicts = CAST('[]' AS BLOB)")
    report = shop.check()
    assert len(report.findings) == 2
    assert report.more > 0
    assert any("more" in line for line in history_lines(report))


def test_the_words_name_run_rule_problem_and_remedy(shop: Shop) -> None:
    shop.damage("UPDATE turtles_run SET state = 'home' WHERE run_id = $SAD")
    report = shop.check()
    text = "\n".join(history_lines(report))
    assert "transitions/s" in text
    assert f"FAIL      journal: run {shop.run_id('sad')}: stored at seq" in text
    assert "Restore a backup" in text
    answer = msgspec.json.decode(msgspec.json.encode(history_json(report)))
    assert answer["ok"] is False
    assert {"rule", "run_id", "problem", "remedy", "severity"} == set(answer["findings"][0])


def test_the_words_of_a_clean_database(shop: Shop) -> None:
    lines = list(history_lines(shop.check()))
    assert lines[-1].strip() == "clean"
    assert "9 runs" in lines[0]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Callable[[str, bytes], Path]]:
    def make(name: str, body: bytes) -> Path:
        (tmp_path / name).write_bytes(body)
        return tmp_path / name

    yield make


def test_what_is_no_database_is_refused(files: Any, tmp_path: Path, shop: Shop) -> None:
    with pytest.raises(UsageError, match="found nothing"):
        require_database(tmp_path / "nothing.db")
    with pytest.raises(UsageError, match="found a directory"):
        require_database(tmp_path)
    for body in (b"", b"not a database at all, but long enough to look"):
        with pytest.raises(StoreCorrupt, match="not an SQLite database"):
            require_database(files("other.db", body))
    require_database(shop.path)


def test_a_database_of_another_schema_is_refused(shop: Shop) -> None:
    shop.damage("UPDATE alembic_version SET version_num = 'ffff'")
    with pytest.raises(SchemaMismatch, match="unknown here"):
        shop.check()


def test_a_file_that_is_damaged_inside_is_a_clear_error(files: Any, lived: bytes) -> None:
    path = files("half.db", lived[:4096] + b"\xff" * (len(lived) - 4096))
    with pytest.raises(StoreCorrupt, match="not a readable SQLite database"):
        Shop(path).check()
