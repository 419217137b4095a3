"""Who is measured: a program each, what it can do, and what is missing if it cannot run here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
_PEERS = Path(__file__).parent / "peers"
Database = Literal["sqlite", "postgresql", "own"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One system on one database with one setting.

    Args:
        key: short and unique.
        label: as the tables say it.
        command: of a program as `peers.common` describes; empty if it is not installed.
        at_once: how many runs it is given together, where it is fastest.
        settings: what was set, in words.
        requires: packages of the peers' environment whose versions are told.
    """

    key: str
    label: str
    database: Database
    command: tuple[str, ...]
    at_once: int
    synchronous: str = "FULL"
    extra: str = ""
    settings: str = ""
    requires: tuple[str, ...] = ()
    missing: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is turtles."""
        return self.key.startswith("turtles")

    @property
    def raw(self) -> bool:
        """Whether it is a floor and no engine."""
        return self.key.startswith("raw")


def ours(at_once: int) -> list[Contender]:
    """Turtles, and the raw limits below it."""
    module = (sys.executable, "-m", "tests.benchmarks.ours")
    raw = (sys.executable, "-m", "tests.benchmarks.raw")
    return [
        Contender(
            key="turtles-sqlite", label="**turtles**, SQLite", database="sqlite", command=module,
            at_once=at_once, settings="WAL, synchronous FULL (its default)",
        ),
        Contender(
            key="turtles-postgresql", label="**turtles**, PostgreSQL", database="postgresql",
            command=module, at_once=at_once, settings="defaults",
        ),
        Contender(
            key="raw-sqlite", label="*raw: sqlite3, WAL, FULL*", database="sqlite", command=raw,
            at_once=at_once, settings="one INSERT and one UPDATE a step, executemany",
        ),
        Contender(
            key="raw-postgresql", label="*raw: psycopg*", database="postgresql", command=raw,
            at_once=at_once,
            settings="one set-based statement with binary arrays (W1), one fenced statement (W2)",
        ),
    ]  # fmt: skip


def peers(directory: Path) -> list[Contender]:
    """The others, as far as they are installed in that environment."""
    python = directory / "bin" / "python"
    servers = sorted(directory.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    server = str(servers[0]) if servers else ""

    def peer(
        key: str, label: str, database: Database, at_once: int, settings: str,
        *requires: str, synchronous: str = "FULL", extra: str = "",
    ) -> Contender:  # fmt: skip
        script = _PEERS / f"{key.split('-', 1)[0]}_peer.py"
        absent = [name for name in requires if not _installed(directory, name)]
        if key == "restate" and not server:
            absent.append("@restatedev/restate-server")
        return Contender(
            key=key, label=label, database=database, command=(str(python), str(script)),
            at_once=at_once, settings=settings, requires=requires, synchronous=synchronous,
            extra=extra, missing=", ".join(absent),
        )  # fmt: skip

    return [
        peer(
            "dbos-sqlite", "DBOS, SQLite, WAL", "sqlite", 4,
            "WAL set on its file by hand, FULL; 4 threads; async workflows where they wait", "dbos",
        ),
        peer(
            "dbos-shipped", "DBOS, SQLite as shipped", "sqlite", 4,
            "journal DELETE, FULL: what it leaves SQLite with", "dbos", synchronous="shipped",
        ),
        peer(
            "dbos-postgresql", "DBOS, PostgreSQL", "postgresql", 4,
            "defaults; 4 threads; async workflows where they wait", "dbos",
        ),
        peer(
            "langgraph", "LangGraph, SQLite saver", "sqlite", 1,
            'durability="sync"; the saver sets WAL, FULL stays; one thread',
            "langgraph", "langgraph-checkpoint-sqlite",
        ),
        peer(
            "statemachine", "python-statemachine + ORM by hand, WAL", "sqlite", 1,
            "an UPDATE, an INSERT and a commit for each transition; WAL, FULL",
            "python-statemachine", "sqlalchemy",
        ),
        peer(
            "statemachine-shipped", "the same, SQLite as shipped", "sqlite", 1,
            "journal DELETE, FULL", "python-statemachine", "sqlalchemy", synchronous="shipped",
        ),
        peer(
            "absurd", "Absurd, PostgreSQL", "postgresql", 8,
            "8 workers with a connection each, claim one, poll 0.25 s (default)",
            "absurd-sdk", "absurdctl",
        ),
        peer(
            "restate", "Restate", "own", 64,
            "server defaults, 64 clients; a workflow with run steps",
            "restate-sdk", "hypercorn", extra=server,
        ),
    ]  # fmt: skip


def _installed(directory: Path, name: str) -> bool:
    folder = name.replace("-", "_").lower()
    pattern = "lib/python*/site-packages/*.dist-info"
    found = {each.name.rsplit("-", 1)[0] for each in directory.glob(pattern)}
    return folder in {each.split("-", 1)[0].lower().replace("-", "_") for each in found}
