"""A database as revision 0001 of the schema had it, with runs in the middle of things.

Plain SQL on purpose: it must stay as it is when the tables change.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from persistence import migrate, schema
from persistence.database import open_database
from persistence.store import SqlStore

OLD = "0001"
RUNS = 5
_STATEMENTS = (
    "INSERT INTO turtles_run (run_id, machine, version, key, state, status, seq, entered_seq,"
    " fence, owner, due_ms, stalls, created_ms, updated_ms, undo, cancel_requested, depth,"
    " context) VALUES ('r{n}', 'M', 'v1', 'k{n}', 'busy', 'running', 2, 2, 3, 'w1', 500, 1, 100,"
    " 200, '[]', 0, 0, x'7b7d')",
    "INSERT INTO turtles_transition (run_id, seq, event, source, target, status, at_ms,"
    " worker, fence, payload, verdicts, context) VALUES"
    " ('r{n}', 1, '$start', '', 'idle', 'waiting', 100, '', 0, NULL, x'5b5d', x'7b7d'),"
    " ('r{n}', 2, 'go', 'idle', 'busy', 'running', 200, 'w1', 3, x'7b7d', x'5b5d', x'7b7d')",
    "INSERT INTO turtles_effect (run_id, seq, name, key, status, attempts, calls, open,"
    " next_ms) VALUES ('r{n}', 2, 'call', 'ek{n}', 'pending', 1, 1, 1, 500)",
    "INSERT INTO turtles_inbox (run_id, key, event, at_ms, status, consumed_seq)"
    " VALUES ('r{n}', 'd1', 'go', 150, 'applied', 2), ('r{n}', 'd2', 'go', 160, 'accepted', NULL)",
)
_ONCE = (
    "INSERT INTO turtles_worker VALUES ('w1', 'here', 7, '0', 100, 900)",
    "INSERT INTO turtles_machine_version VALUES ('v1', 'M', x'7b7d', 50)",
)


def old_database(file: Path) -> None:
    """Make the file, as the version of that time would have."""
    database = open_database(f"sqlite:///{file}")
    config = Config()
    config.set_main_option("script_location", str(migrate.directory(schema.SCRIPT_LOCATION)))
    with database.transaction() as sql:
        config.attributes["connection"] = sql.connection
        command.upgrade(config, OLD)
    with database.transaction() as sql:
        for statement in _ONCE:
            sql.run(statement)
        for number in range(RUNS):
            for statement in _STATEMENTS:
                sql.run(statement.format(n=number))
    database.close()


def check_upgraded(store: SqlStore) -> None:
    """Every run is wholly as the newest schema keeps it, with all that belongs to it.

    Raises:
        AssertionError: something was lost, or is there twice.
    """
    for number in range(RUNS):
        stored = store.runs.get(f"r{number}")
        assert stored is not None and stored.run.effect is not None
        found = (stored.run.state, stored.run.seq, stored.fence, stored.owner, stored.due_ms)
        assert found == ("busy", 2, 3, "w1", 500)
        assert (stored.run.effect.attempts, stored.run.effect.open) == (1, True)
        journal = store.journal.read(stored.run.run_id)
        assert [entry.event for entry in journal] == ["$start", "go"]
        assert [event.key for event in store.inbox.waiting(stored.run.run_id)] == ["d2"]
        assert len(store.effects.read(stored.run.run_id)) == 1
    assert store.inspector.findings() == []
