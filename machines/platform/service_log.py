"""What services print: rows, bounded to the last lines of each service.

At least `LINES_KEPT` lines of a service are kept, and at most a tenth more: old ones are removed
when so many new ones have come, not with every batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from machines.platform.context import PlatformContext

LINES_KEPT = 9_000
TRIM_EVERY = 900


class ServiceLog:
    """Writes and reads the lines of services."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context
        self._added: Counter[str] = Counter()

    def append(self, lines: Sequence[tuple[str, str]]) -> None:
        """Write (service id, line) pairs down; lines of deleted services are dropped."""
        now_ms = self._context.clock_ms()
        newest = lines[-LINES_KEPT * 2 :]
        added = Counter(service_id for service_id, _line in newest)
        with self._context.database.transaction() as sql:
            sql.run_many(
                "INSERT INTO service_log (service_id, at_ms, line) SELECT service_id, :now, :line "
                "FROM service WHERE service_id = :id AND state <> 'deleted'",
                [{"id": service_id, "now": now_ms, "line": line} for service_id, line in newest],
            )
            full = [one for one in added if self._added[one] + added[one] >= TRIM_EVERY]
            for service_id in full:
                sql.run(_TRIM, id=service_id, kept=LINES_KEPT)
        self._added.update(added)
        for service_id in full:
            del self._added[service_id]

    def read(self, service_id: str, limit: int | None) -> list[str]:
        """The newest lines, oldest first; every one that is kept without a limit."""
        with self._context.database.reading() as sql:
            rows = sql.all(
                "SELECT line FROM service_log WHERE service_id = :id "
                "ORDER BY number DESC LIMIT :limit",
                id=service_id,
                limit=-1 if limit is None else limit,
            )
        return [row["line"] for row in reversed(rows)]


_TRIM = """
    DELETE FROM service_log WHERE service_id = :id AND number <= (
        SELECT number FROM service_log WHERE service_id = :id
        ORDER BY number DESC LIMIT 1 OFFSET :kept)
"""
