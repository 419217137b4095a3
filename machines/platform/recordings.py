"""What the terminals of audited sessions showed (`POST /sessions?audit=1`).

Output is kept in memory for at most about a second (`flush` is called on every tick) and then in
the database, so that a recording outlives its terminal, its session, and but for that second a
killed platform.  4 MiB of a session are kept, from its start; for seven days after they were
written.
"""

from __future__ import annotations

import threading
from collections import defaultdict

import msgspec

from machines.platform.context import PlatformContext

RECORDED_BYTES_MAX = 4 * 1024 * 1024
KEPT_MS = 7 * 86_400_000


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """Raw terminal output; `truncated` when there was more than is kept."""

    output: bytes
    truncated: bool


class Recordings:
    """Takes and gives recordings, from any thread."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._pending: defaultdict[str, bytearray] = defaultdict(bytearray)
        # One writer at a time: else two could both find room for the last bytes.
        self._writing = threading.Lock()

    def note(self, session_id: str, output: bytes) -> None:
        """Take some output.  Costs no I/O."""
        with self._lock:
            pending = self._pending[session_id]
            # One byte too many is how it is known later that there was more.
            pending += output[: RECORDED_BYTES_MAX + 1 - len(pending)]

    def flush(self) -> None:
        """Write down what was taken; nothing is lost when the database refuses."""
        with self._writing:
            with self._lock:
                pending = {name: bytes(output) for name, output in self._pending.items()}
            for session_id, output in pending.items():
                self._write(session_id, output)
                with self._lock:
                    del self._pending[session_id][: len(output)]
                    if not self._pending[session_id]:
                        del self._pending[session_id]

    def _write(self, session_id: str, output: bytes) -> None:
        with self._context.database.transaction() as sql:
            size = sql.scalar(
                "SELECT coalesce(sum(length(output)), 0) FROM session_recording "
                "WHERE session_id = :id",
                id=session_id,
            )
            kept = output[: max(0, RECORDED_BYTES_MAX + 1 - size)]
            if kept:
                sql.run(
                    "INSERT INTO session_recording (session_id, at_ms, output) "
                    "VALUES (:id, :now, :output)",
                    id=session_id,
                    now=self._context.clock_ms(),
                    output=kept,
                )

    def read(self, session_id: str) -> Recording:
        """All that a session's terminals showed."""
        self.flush()
        with self._context.database.reading() as sql:
            rows = sql.all(
                "SELECT output FROM session_recording WHERE session_id = :id ORDER BY number",
                id=session_id,
            )
        output = b"".join(row["output"] for row in rows)
        return Recording(
            output=output[:RECORDED_BYTES_MAX], truncated=len(output) > RECORDED_BYTES_MAX
        )

    def forget_old(self) -> None:
        """Remove what was written more than seven days ago."""
        with self._context.database.transaction() as sql:
            sql.run(
                "DELETE FROM session_recording WHERE at_ms < :old",
                old=self._context.clock_ms() - KEPT_MS,
            )
