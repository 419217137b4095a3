"""The stores that the conformance tests run over, and short ways to make what a store is given.

Every test that takes `store` runs once for each backend; another one joins by a line in
`BACKENDS` (and one in `damage`).  When such a test ends, the storage rules are checked: a test
that breaks them on purpose takes `breakable` instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg
import pytest

from engine.contracts import Verdict
from engine.ids import idempotency_key
from engine.journal import Entry
from engine.ports import Claimed, Consumed, Delivery, InboxEvent, Start, WorkerIdentity, Write
from engine.run import Parent, Pending, Run
from persistence import tables
from persistence.store import SqlStore, open_store
from tests.postgres_server import PostgresServer, server

Opener = Callable[[], SqlStore]


class Backend(NamedTuple):
    """A kind of database: its url in a folder of its own, and what can be asked of it."""

    url: Callable[[Path], str] | None
    """None for a database of the server of this session."""
    shared: bool
    """Whether several processes can open it."""
    examples: int
    """How many random histories the model test plays; fewer where a commit waits for a disk."""


BACKENDS = {
    "sqlite-file": Backend(lambda folder: f"sqlite:///{folder / 'runs.db'}", True, 8),
    "sqlite-memory": Backend(lambda folder: "sqlite://", False, 60),
    "postgresql": Backend(None, True, 4),
}
SHARED = [name for name, backend in BACKENDS.items() if backend.shared]
SHAPE = msgspec.json.encode(
    {
        "machine": "M",
        "states": [
            {"name": "idle", "waits": True},
            {"name": "busy", "waits": False},
            {"name": "done", "waits": False},
        ],
        "edges": [{"source": "idle", "event": "go", "target": "busy"}],
    }
)


class Make:
    """Runs, entries and writes of a made-up machine with the states idle, busy and done."""

    version = "v1"
    machine = "M"
    shape = SHAPE

    def worker(self, worker_id: str = "w1", pid: int = 1) -> WorkerIdentity:
        return WorkerIdentity(worker_id=worker_id, host="here", pid=pid, process_start="0")

    def run(self, run_id: str = "r1", **changes: Any) -> Run:
        run = Run(
            run_id=run_id,
            machine=self.machine,
            version=self.version,
            key=None,
            state="idle",
            status="waiting",
            seq=1,
            entered_seq=1,
            context=b'{"n":0}',
            created_ms=1000,
        )
        return run.but(**changes)

    def start(self, run_id: str = "r1", **changes: Any) -> Start:
        run = self.run(run_id, **changes)
        return Start(run=run, entry=self.entry(None, run, "$start", run.created_ms))

    def due(self, run_id: str = "r1", due_ms: int = 1000, **changes: Any) -> Start:
        """A run in `busy` whose effect is due."""
        effect = self.effect(run_id, 1, next_ms=due_ms)
        return self.start(run_id, state="busy", status="pending", effect=effect, **changes)

    def effect(self, run_id: str, seq: int, **changes: Any) -> Pending:
        effect = Pending(
            seq=seq,
            name="call",
            key=idempotency_key(run_id, seq, "call"),
            attempts=0,
            open=False,
            next_ms=1000,
        )
        changes.setdefault("calls", changes.get("attempts", 0))
        return msgspec.structs.replace(effect, **changes)

    def parent(self, run_id: str) -> Parent:
        return Parent(
            run_id=run_id, machine="M", on_ended="ended", on_moved=None, on_parent_end="cancel"
        )

    def entry(self, before: Run | None, after: Run, event: str, at_ms: int, **more: Any) -> Entry:
        return Entry(
            run_id=after.run_id,
            seq=after.seq,
            event=event,
            source=before.state if before else "",
            target=after.state,
            payload=more.get("payload"),
            verdicts=more.get("verdicts", (Verdict("enough", "guard", True),)),
            context=after.context,
            status=after.status,
            at_ms=at_ms,
            worker=more.get("worker", "w1"),
        )

    def step(self, run: Run, fence: int, *, at_ms: int = 2000, **changes: Any) -> Write:
        """A transition of `run`; keywords that `Write` knows go there, the rest to the run."""
        settings = {name: changes.pop(name) for name in Write.__struct_fields__ if name in changes}
        event = changes.pop("event", "go")
        after = run.but(seq=run.seq + 1, entered_seq=run.seq + 1, **changes)
        entry = self.entry(run, after, event, at_ms)
        return Write(fence=fence, before=run, after=after, entry=entry, at_ms=at_ms, **settings)

    def note(self, run: Run, fence: int, *, at_ms: int = 2000, **changes: Any) -> Write:
        """Bookkeeping: a write that is no transition."""
        settings = {name: changes.pop(name) for name in Write.__struct_fields__ if name in changes}
        after = run.but(**changes)
        return Write(fence=fence, before=run, after=after, at_ms=at_ms, **settings)

    def delivery(
        self, run_id: str = "r1", key: str = "k1", event: str = "go", **more: Any
    ) -> Delivery:
        return Delivery(
            run_id=run_id,
            key=key,
            event=event,
            payload=more.get("payload", b"{}"),
            at_ms=more.get("at_ms", 1500),
        )

    def applied(self, *events: InboxEvent) -> tuple[Consumed, ...]:
        return tuple(Consumed(number=event.number, status="applied") for event in events)

    def claim(self, store: SqlStore, run_id: str, *, worker_id: str = "w1") -> Claimed:
        """Register the worker and take this run, due or not."""
        store.workers.beat(self.worker(worker_id), 1000, lease_until_ms=9_000_000)
        (claimed,) = store.runs.claim(
            worker_id, 1000, limit=1, versions=[self.version], run_id=run_id
        )
        return claimed


@pytest.fixture
def make() -> Make:
    return Make()


_RELATIONS = """
SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE 'turtles%' OR relname = 'orders'),
    (SELECT version_num FROM alembic_version)
"""
_TABLES = ", ".join(table.name for table in tables.metadata.sorted_tables)
_EMPTY = f"TRUNCATE {_TABLES} RESTART IDENTITY"


class Postgres:
    """Databases for tests on one server: an empty one, or one with the engine's tables.

    A database with the tables is emptied and given out again: to make one and to write it to the
    disk costs more than most tests.
    """

    def __init__(self, running: PostgresServer) -> None:
        self.server = running
        self._free: list[str] = []
        self._relations: tuple[Any, ...] | None = None

    def empty(self) -> str:
        """The url of a new database without tables."""
        return self.server.create_database()

    def url(self) -> str:
        """The url of a database with the tables, and the made-up machine registered."""
        url = self._free.pop() if self._free else self.server.create_database()
        _registered(url).close()
        if self._relations is None:
            (self._relations,) = self.server.run(_RELATIONS, database=url.rpartition("/")[2])
        return url

    def give_back(self, url: str) -> None:
        """Empty it for another test; without its tables it is of no use any more."""
        name = url.rpartition("/")[2]
        self.server.terminate_backends(name)
        try:
            with self.server.connect(name) as sql:
                whole = sql.execute(_RELATIONS).fetchone() == self._relations
                sql.execute(_EMPTY)
        except psycopg.Error:  # a table is missing
            whole = False
        if not whole:
            self.server.drop_database(name)
        else:
            self._free.append(url)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A private PostgreSQL server, started for the first test that asks."""
    with server({"max_wal_size": "8GB", "checkpoint_timeout": "1h"}) as running:
        yield Postgres(running)


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database of this test with the tables."""
    url = postgres.url()
    yield url
    postgres.give_back(url)


def _url(request: pytest.FixtureRequest, name: str, folder: Path) -> str:
    make_url = BACKENDS[name].url
    if make_url is not None:
        return make_url(folder)
    postgres: Postgres = request.getfixturevalue("postgres")
    url = postgres.url()
    request.addfinalizer(lambda: postgres.give_back(url))
    return url


@pytest.fixture(params=sorted(BACKENDS))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens a new store of one backend; where it is a file, the same file each time."""
    url = _url(request, request.param, tmp_path)
    return lambda: _registered(url)


@pytest.fixture(params=sorted(BACKENDS))
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Opener, int]:
    """Opens a new, empty store each time; and for how many it is meant."""
    numbers = itertools.count()

    def make_one() -> SqlStore:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return _registered(_url(request, request.param, folder))

    return make_one, BACKENDS[request.param].examples


@pytest.fixture(params=SHARED)
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The url of a store that several processes can open at once."""
    url = _url(request, request.param, tmp_path)
    _registered(url).close()
    return url


@pytest.fixture
def store(opener: Opener) -> Iterator[SqlStore]:
    """A store; when the test ends, every storage rule must hold."""
    opened = opener()
    yield opened
    assert opened.inspector.findings() == []
    opened.close()


@pytest.fixture
def breakable(opener: Opener) -> Iterator[SqlStore]:
    """A store that the test may damage."""
    opened = opener()
    yield opened
    opened.close()


def _registered(url: str) -> SqlStore:
    store = open_store(url)
    store.machines.register(Make.machine, Make.version, SHAPE, 1)
    return store


@pytest.fixture
def damage() -> Callable[..., None]:
    """Runs statements on a store's database with its foreign keys switched off."""

    def run(store: SqlStore, *statements: str) -> None:
        off, on = {
            "sqlite": ("PRAGMA foreign_keys=OFF", "PRAGMA foreign_keys=ON"),
            "postgresql": (
                "SET session_replication_role = replica",
                "SET session_replication_role = origin",
            ),
        }[store.database.dialect]
        connection = store.database.sa.raw_connection()
        cursor = connection.cursor()
        for statement in (off, *statements, on):
            cursor.execute(statement)
        cursor.close()
        connection.close()

    return run


@pytest.fixture(scope="session")
def sqlite_memory() -> Opener:
    """Opens a new store in memory each time; for tests that need very many."""
    return lambda: _registered("sqlite://")
