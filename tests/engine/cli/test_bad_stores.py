"""Stores that cannot be used: the command says which, what was seen and what to do, and its exit
code is the documented one; no password is shown, nothing is lost and nothing half-written.
"""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing

import pytest

PASSWORD = "hunter2-%73ecret"
COMMANDS = (
    ("list",),
    ("run", "Shipment", "--input", '{"amount_cents": 100}', "--key", "o1", "--timeout", "9"),
    ("work",),
    ("doctor",),
)


@pytest.fixture
def at(demo, monkeypatch):
    """Calls a command on the store of a url."""

    def call(url, *arguments):
        monkeypatch.setenv("TURTLES_STORE", url)
        return demo(*arguments)

    return call


def refused(answer, code, *words):
    """The answer is one error with these words and no stack of calls; the message."""
    assert answer.code == code, answer
    assert "Traceback" not in answer.err and "hunter2" not in answer.out + answer.err
    message = answer.err.strip().splitlines()[-1]
    assert message.startswith("error: "), answer.err
    for word in words:
        assert re.search(word, message), f"{word!r} is not in: {message}"
    return message


def complete(at, url):
    """The run o1 goes to its end, once, and nothing is wrong with the store."""
    given = ("--input", '{"amount_cents": 100}', "--key", "o1", "--timeout", "9", "--json")
    answer = at(url, "run", "Shipment", *given)
    assert answer.code == 0, answer
    assert answer.json["status"] == "completed"
    assert at(url, "doctor").code == 0
    assert len(at(url, "list", "--json").out.splitlines()) == 1


# -- urls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one[0])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"mysql://root:{PASSWORD}@127.0.0.1/runs", "expected sqlite:///.*got mysql"),
        (f"postgresql://root:{PASSWORD}@127.0.0.1:port/runs", r"expected postgresql://user"),
        (f"postgresql://root:{PASSWORD}@127.0.0.1/runs?pool=none", r"\?pool=1 or more"),
        ("runs.db", "expected sqlite:///"),
    ],
)
def test_a_url_that_cannot_be_read_is_wrong_use(at, command, url, said):
    refused(at(url, *command), 2, said)


# -- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one[0])
def test_a_folder_that_is_not_there(at, tmp_path, command):
    path = tmp_path / "gone" / "runs.db"
    answer = at(f"sqlite:///{path}", *command)
    assert str(path) in refused(answer, 2 if command[0] in ("list", "doctor") else 3)
    assert not path.parent.exists()


@pytest.mark.parametrize("command", [COMMANDS[0], COMMANDS[3]], ids=lambda one: one[0])
def test_looking_makes_no_store(at, tmp_path, command):
    path = tmp_path / "runs.db"
    refused(at(f"sqlite:///{path}", *command), 2, str(path), "TURTLES_STORE")
    assert not path.exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one[0])
def test_a_file_that_is_no_database(at, tmp_path, command):
    path = tmp_path / "runs.db"
    path.write_bytes(b"not a database, but somebody's letters\n" * 100)
    refused(at(f"sqlite:///{path}", *command), 3, str(path), "not a readable SQLite", "backup")
    assert path.read_bytes() == b"not a database, but somebody's letters\n" * 100


def test_a_store_of_a_newer_version_is_left_alone(at, tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    complete(at, url)
    with closing(sqlite3.connect(tmp_path / "runs.db", isolation_level=None)) as raw:
        ((known,),) = raw.execute("SELECT version_num FROM alembic_version")
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        for command in COMMANDS:
            refused(at(url, *command), 3, "9999", known, "Upgrade turtles", "nothing was changed")
        raw.execute("UPDATE alembic_version SET version_num = ?", (known,))
    complete(at, url)


def test_a_context_over_the_limit_is_refused_before_anything_is_stored(at, tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    complete(at, url)
    huge = tmp_path / "huge.json"
    huge.write_text(json.dumps({"amount_cents": 1, "token": "n" * 300_000}))
    answer = at(url, "run", "Shipment", "--input", f"@{huge}", "--key", "o2")
    refused(answer, 2, r"context of run \w+: \d{6} bytes encoded, the limit is 262144")
    complete(at, url)


# -- servers ----------------------------------------------------------------------------------


@pytest.fixture
def base(postgres):
    """An empty database on the server: its url, and its name."""
    url = postgres.create_database()
    name = url.rpartition("/")[2]
    yield url, name
    postgres.drop_database(name)


def as_role(postgres, url, name, *rights):
    """The url for a role of its own with these attributes."""
    role = f"role_{name}"
    postgres.run(f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2' {' '.join(rights)}")
    return re.sub(r"//[^@]*@", f"//{role}:hunter2@", url), role


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one[0])
def test_nobody_listens(at, command):
    url = "postgresql://worker:hunter2@127.0.0.1:1/runs"
    refused(at(url, *command), 3, r"worker@127\.0\.0\.1:1/runs", "refused|cannot be reached")


def test_a_wrong_password(at, postgres, base):
    url, name = base
    wrong, _ = as_role(postgres, url, name)
    wrong = wrong.replace(":hunter2@", ":hunter22@")
    for command in COMMANDS:
        refused(at(wrong, *command), 3, "does not let us in", "password", "pg_hba.conf")


def test_no_such_database(at, postgres):
    url = postgres.url("nowhere")
    for command in COMMANDS:
        message = refused(at(url, *command), 3, "nowhere", "createdb")
        assert postgres.password not in message


def test_the_server_went_away_and_came_back(at, postgres, base):
    url, _ = base
    run = at(url, "run", "Shipment", "--input", '{"amount_cents": 100}', "--key", "o1", "--no-wait")
    assert run.code == 0, run
    postgres.stop("immediate")
    try:
        for command in COMMANDS:
            refused(at(url, *command), 3, r"127\.0\.0\.1")
    finally:
        postgres.start()
    complete(at, url)


def test_a_newer_schema_on_a_server(at, postgres, base):
    url, name = base
    complete(at, url)
    ((known,),) = postgres.run("SELECT version_num FROM alembic_version", database=name)
    postgres.run("UPDATE alembic_version SET version_num = '9999'", database=name)
    for command in COMMANDS:
        refused(at(url, *command), 3, "9999", known, "Upgrade turtles")
    postgres.run("UPDATE alembic_version SET version_num = %s", known, database=name)
    complete(at, url)


def test_no_connection_is_left(at, postgres, base):
    url, name = base
    complete(at, url)
    limited, role = as_role(postgres, url, name, "SUPERUSER", "CONNECTION LIMIT 0")
    postgres.run(f"ALTER ROLE {role} NOSUPERUSER")
    for command in COMMANDS:
        refused(at(limited, *command), 3, "no connection left", "max_connections")


def test_a_role_that_may_not_write(at, postgres, base):
    url, name = base
    complete(at, url)
    reader, role = as_role(postgres, url, name)
    postgres.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", database=name)
    for command in COMMANDS[1:3]:
        refused(at(reader, *command), 3, "does not take writes", "role that may write")
    complete(at, url)


def test_a_statement_over_its_time(at, postgres, base):
    url, name = base
    complete(at, url)
    hasty, role = as_role(postgres, url, name, "SUPERUSER")
    postgres.run(f"ALTER ROLE {role} SET statement_timeout = '1s'")
    with postgres.connect(name) as held:
        held.execute("BEGIN")
        held.execute("LOCK TABLE turtles_run IN ACCESS EXCLUSIVE MODE")
        refused(at(hasty, "list"), 3, "statement that took too long", "statement_timeout")
        held.execute("ROLLBACK")
    complete(at, hasty)
