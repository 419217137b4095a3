"""Compiled statements do what Core does."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from persistence.compiled import bound, plan_for
from persistence.sqlite import SqliteDatabase

METADATA = sa.MetaData()
TABLE = sa.Table(
    "thing",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("size", sa.Integer),
    sa.Column("ready", sa.Boolean),
    sa.Column("body", sa.LargeBinary),
)
_c = TABLE.c
ROWS = [
    {"name": "a", "size": 1, "ready": True, "body": b"x"},
    {"name": "b", "size": 2, "ready": False, "body": b"y"},
    {"name": "c", "size": None, "ready": None, "body": None},
]


@pytest.fixture
def database():
    made = SqliteDatabase(None)
    with made.transaction() as sql:
        METADATA.create_all(sql.connection)
        sql.execute_many(sa.insert(TABLE), ROWS)
    yield made
    made.close()


LISTED = sa.select(TABLE).where(_c.name.in_(sa.bindparam("some", expanding=True)))
STATEMENTS = {
    "plain": (sa.select(TABLE).order_by(_c.name), {}),
    "bound": (sa.select(_c.size).where(_c.name == sa.bindparam("of")), {"of": "b"}),
    "constant": (sa.select(_c.name).where(_c.size > 1, _c.name.not_in(["z", "y"])), {}),
    "none": (LISTED, {"some": []}),
    "one": (LISTED, {"some": ["a"]}),
    "three": (LISTED.order_by(_c.name), {"some": ["a", "b", "zz"]}),
    "pairs": (
        sa.select(_c.name).where(
            sa.tuple_(_c.name, _c.size).in_(sa.bindparam("pairs", expanding=True))
        ),
        {"pairs": [("a", 1), ("b", 9)]},
    ),
    "no pairs": (
        sa.select(_c.name).where(
            sa.tuple_(_c.name, _c.size).in_(sa.bindparam("pairs", expanding=True))
        ),
        {"pairs": []},
    ),
    "returning": (
        sa.update(TABLE).where(_c.name == sa.bindparam("of")).values(size=None).returning(TABLE),
        {"of": "a"},
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_same_rows_as_core(database, name):
    statement, parameters = STATEMENTS[name]
    with database.transaction() as sql:
        theirs = [tuple(row) for row in sql.connection.execute(statement, parameters)]
    with database.transaction() as sql:
        ours = sql.fetch(statement, **parameters)
    assert [tuple(row) for row in ours] == theirs
    assert [tuple(map(type, row)) for row in ours] == [tuple(map(type, row)) for row in theirs]


def test_rows_have_names(database):
    with database.reading() as sql:
        (row,) = sql.fetch(LISTED, some=["b"])
    assert (row.name, row.size, row.ready, row.body) == ("b", 2, False, b"y")


def test_a_constant_none_is_kept_and_a_missing_value_is_an_error(database):
    clear = sa.update(TABLE).where(_c.name == sa.bindparam("of")).values(size=None)
    with database.transaction() as sql:
        assert sql.execute(clear, of="b") == 1
        assert sql.scalar("SELECT size FROM thing WHERE name = 'b'") is None
    with pytest.raises(KeyError, match="of"), database.transaction() as sql:
        sql.execute(clear)


def test_a_list_of_another_length_is_another_text():
    plan = plan_for(LISTED)
    texts = {bound(plan, {"some": list("abcd")[:n]})[0] for n in range(4)}
    assert len(texts) == 4
    assert bound(plan, {"some": ["a"]})[0] == bound(plan, {"some": ["b"]})[0]


def test_executemany_counts(database):
    grow = sa.update(TABLE).where(_c.name == sa.bindparam("of")).values(size=7)
    with database.transaction() as sql:
        assert sql.execute_many(grow, [{"of": "a"}, {"of": "b"}, {"of": "nobody"}]) == 2
        assert sql.execute_many(grow, []) == 0
