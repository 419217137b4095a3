"""The schema of the engine's database: `turtles db upgrade | check | current`.

A file is brought up to date by the migrations; a database in memory is made from the tables at
once.  That the two are equal is a test.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, cast

import sqlalchemy as sa

from engine.errors import SchemaMismatch, StoreError, UsageError
from persistence import migrate, tables
from persistence.database import Database, Session, open_database
from persistence.moments import SCRATCH

SCRIPT_LOCATION = "migrations/engine"
# The platform keeps the tables of runs beside its own, under revisions of its own.
_OF_THE_PLATFORM = "api_request"


def upgrade(url: str) -> str:
    """Bring a database up to date, making it if it does not exist; the revision it has then.

    Raises:
        SchemaMismatch: it was written by newer code.
        StoreError: the file cannot be used, or a migration failed and nothing of it was kept.
    """
    with _opened(url) as database:
        upgrade_database(database)
    return migrate.head(SCRIPT_LOCATION)


def current(url: str) -> str | None:
    """The revision of a database; None when there is none yet."""
    with _opened(url) as database:
        return _revision(database)


def check(url: str) -> list[str]:
    """What is wrong with a database: damage, dangling references, a schema unlike the tables."""
    with _opened(url) as database:
        stored, newest = _revision(database), migrate.head(SCRIPT_LOCATION)
        if stored is not None:
            _refuse_foreign(database)
        if stored != newest:
            return [
                f"{database.name}: schema revision is {stored or 'none'}, expected {newest}. "
                "Run `turtles db upgrade`, or upgrade turtles if the revision is the newer one."
            ]
        with database.reading() as sql:
            return [*_damage(sql), *differences(sql)]


@contextmanager
def scratch(url: str) -> Iterator[str]:
    """The url of a new, empty database on the server of this one; dropped at the end.

    Raises:
        StoreError: the server cannot be reached, or the user may make no database.
    """
    with _opened(url) as server:
        if server.dialect != "postgresql":
            raise UsageError(f"scratch databases are made on a server, got {server.name}")
        name = f"{SCRATCH}{secrets.token_hex(6)}"
        _outside(server, f"CREATE DATABASE {name}")
        made = sa.make_url(url).set(database=name)
        try:
            yield made.render_as_string(hide_password=False)
        finally:
            _outside(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _outside(server: Database, statement: str) -> None:
    """Send what no transaction may hold."""
    try:
        with closing(server.sa.raw_connection()) as pooled:
            cast(Any, pooled.driver_connection).execute(statement)
    except Exception as error:
        if not isinstance(error, sa.exc.SQLAlchemyError | server.sa.dialect.loaded_dbapi.Error):
            raise
        raise StoreError(
            f"database {server.name}: {statement.split()[0]} failed: {error}"
        ) from error


def upgrade_database(database: Database) -> None:
    """Run the migrations that an open database lacks."""
    _refuse_foreign(database)
    migrate.upgrade(database, SCRIPT_LOCATION)


def create(database: Database) -> None:
    """Make the tables of an empty database at once, without migrations, at the newest revision."""
    with database.transaction() as sql:
        tables.metadata.create_all(sql.connection)
        sql.run(tables.EFFECT_VIEW)
        sql.run("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        sql.run("INSERT INTO alembic_version VALUES (:head)", head=migrate.head(SCRIPT_LOCATION))


def require_current(database: Database) -> None:
    """Refuse a database whose schema is not this code's.

    Raises:
        SchemaMismatch: names both revisions, and what to do.
    """
    _refuse_foreign(database)
    stored, newest = migrate.current(database, SCRIPT_LOCATION), migrate.head(SCRIPT_LOCATION)
    if stored == newest:
        return
    if stored is not None and stored not in migrate.revisions(SCRIPT_LOCATION):
        raise SchemaMismatch(
            f"database {database.name}: schema revision {stored} is unknown here (the newest "
            f"known is {newest}); it was written by a newer version. Upgrade turtles, or use "
            "another database; nothing was changed."
        )
    raise SchemaMismatch(
        f"database {database.name}: schema revision is {stored or 'none'}, this version of "
        f"turtles needs {newest}. Run `turtles db upgrade`; nothing was changed."
    )


def _refuse_foreign(database: Database) -> None:
    """Refuse a database that Alembic keeps for somebody else, such as the platform's."""
    with database.reading() as sql:
        present = set(sa.inspect(sql.connection).get_table_names())
    foreign = tables.run.name not in present or _OF_THE_PLATFORM in present
    if "alembic_version" in present and foreign:
        raise SchemaMismatch(
            f"database {database.name}: holds the tables of another program, not runs "
            f"({', '.join(sorted(present)[:5])}, ...). Give the url of another file; "
            "nothing was changed."
        )


def differences(sql: Session) -> list[str]:
    """How the schema differs from the tables, as Alembic would write a migration for it."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(
        sql.connection, opts={"compare_type": True, "include_name": _is_ours}
    )
    found = compare_metadata(context, tables.metadata)
    return [f"schema: {difference!r}" for difference in found]


def _is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """A program may keep tables of its own beside ours; those are none of our business."""
    return kind != "table" or (name or "").startswith("turtles_")


def _damage(sql: Session) -> list[str]:
    return _damage_of_file(sql) if sql.dialect == "sqlite" else _damage_of_server(sql)


def _damage_of_file(sql: Session) -> list[str]:
    pages = [str(row["integrity_check"]) for row in sql.all("PRAGMA integrity_check")]
    dangling = sql.all("PRAGMA foreign_key_check")
    return [
        *(f"integrity: {line}" for line in pages if line != "ok"),
        *(
            f"reference: row {row['rowid']} of {row['table']} names a missing {row['parent']}"
            for row in dangling
        ),
    ]


def _damage_of_server(sql: Session) -> list[str]:
    """What the server's own constraints would not have let in, had nobody switched them off."""
    unusable = sql.all(
        "SELECT c.relname AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE c.relname LIKE 'turtles_%' AND NOT (i.indisvalid AND i.indisready) ORDER BY 1"
    )
    unchecked = sql.all(
        "SELECT conname AS name FROM pg_constraint "
        "WHERE conname LIKE 'turtles_%' AND NOT convalidated ORDER BY 1"
    )
    return [
        *(f"integrity: index {row['name']} is not usable; REINDEX it" for row in unusable),
        *(f"integrity: constraint {row['name']} was never checked" for row in unchecked),
        *_dangling(sql),
    ]


def _dangling(sql: Session) -> Iterator[str]:
    for table in tables.metadata.sorted_tables:
        for key in table.foreign_key_constraints:
            pairs = [(one.parent.name, one.column.name) for one in key.elements]
            parent = key.referred_table.name
            names = ", ".join(f"c.{mine}" for mine, _ in pairs)
            same = " AND ".join(f"p.{theirs} = c.{mine}" for mine, theirs in pairs)
            rows = sql.all(
                f"SELECT DISTINCT {names} FROM {table.name} c "  # noqa: S608 - our own tables
                f"WHERE NOT EXISTS (SELECT 1 FROM {parent} p WHERE {same}) LIMIT 100"
            )
            for row in rows:
                shown = ", ".join(str(value) for value in row.values())
                yield f"reference: rows {shown} of {table.name} name a missing {parent}"


def _revision(database: Database) -> str | None:
    if database.path is not None and not database.path.exists():
        return None  # opening it would make the file
    return migrate.current(database, SCRIPT_LOCATION)


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    database = open_database(url)
    try:
        yield database
    finally:
        database.close()
