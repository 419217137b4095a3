"""Row 14 of docs/reliability.md, in process: a death at every statement of a schema migration."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from engine.testing import Crash, CrashPlan
from persistence import schema
from persistence.database import open_database
from persistence.store import open_store
from tests.acceptance.crash_points.old import OLD, check_upgraded, old_database
from tests.acceptance.crash_points.statements import report_statements


@pytest.fixture(params=[6, pytest.param(10_000, marks=pytest.mark.acceptance)], ids=["some", "all"])
def most(request: pytest.FixtureRequest) -> int:
    """At how many boundaries; `-m acceptance`: at all."""
    count: int = request.param
    return count


def upgrade(file: Path, plan: CrashPlan) -> None:
    """Bring the file up to date, as far as the plan lets it."""
    database = open_database(f"sqlite:///{file}", synchronous="NORMAL")
    report_statements(database.sa, plan)
    try:
        with contextlib.suppress(Crash):
            schema.upgrade_database(database)
    finally:
        database.close()


def test_row_14_a_migration_is_done_or_not_begun(tmp_path, most):
    old, file = tmp_path / "old.db", tmp_path / "runs.db"
    old_database(old)
    shutil.copy(old, file)
    counted = CrashPlan()
    upgrade(file, counted)
    count = len(counted.passed)
    assert count > 20
    newest = schema.current(f"sqlite:///{file}")
    for at in range(1, count + 1, max(1, round(count / most))):
        for left in tmp_path.glob("runs.db*"):
            left.unlink()
        shutil.copy(old, file)
        upgrade(file, CrashPlan(at=at))
        committed = at == count
        assert schema.current(f"sqlite:///{file}") == (newest if committed else OLD)
        store = open_store(f"sqlite:///{file}")
        check_upgraded(store)
        store.close()
        assert schema.check(f"sqlite:///{file}") == []
