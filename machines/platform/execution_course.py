"""The base of `Executions`: the way of one execution from its row to its result.

::

    announce -> [row, or the one of this idempotency key] -> perform -> [result] -> conclude
                                                                     -> [lost] the sandbox is gone

Every bracket is one transaction.  `perform` is called at most once for a row; what came of it is
written down with more than one try, for it cannot be done again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from engine.errors import StoreBusy
from machines.platform import execution_rows as rows
from machines.platform.context import PlatformContext
from machines.platform.execution_moves import forget_running, move
from machines.platform.execution_runs import Runs
from machines.platform.one_off import Outcome
from machines.platform.orders import Caller
from machines.platform.refusals import sandbox_refusals, terminated
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend
from machines.platform.sandbox.errors import SandboxFrozen, SandboxGone
from machines.platform.sessions import Sessions
from persistence.database import Row
from persistence.database import Session as Sql

_WRITES_MAX = 5

log = structlog.get_logger("turtles.platform.execution")

Perform = Callable[[str], Outcome]
"""Runs the execution of that job id."""
Claim = Callable[[Sql], None]
"""Called in the transaction that inserts the row; what it raises refuses it."""


class ExecutionCourse:
    """The executions of this process."""

    def __init__(self, context: PlatformContext, backend: Backend, sessions: Sessions) -> None:
        self._context = context
        self._backend = backend
        self._sessions = sessions
        self._runs = Runs()

    def find(self, public_key: str, job_id: str) -> Row:
        """An execution of this key.

        Raises:
            Problem: 404.
        """
        with self._context.database.reading() as sql:
            row = rows.select(sql, job_id)
        owned = row if row is not None and row["public_key"] == public_key else None
        return rows.require(owned, job_id)

    def _once(self, caller: Caller, columns: dict[str, Any], claim: Claim, perform: Perform) -> Row:
        """The row of this execution, run now or before; `perform` is called at most once."""
        while True:
            job_id = self._announce(columns)
            try:
                known = self._reserve(caller, job_id, columns, claim, "running")
                if known is None:
                    return self._perform(job_id, columns["session_id"], perform, self._forget)
            finally:
                self._runs.conclude(job_id)
            self._await(known, None)
            with self._context.database.reading() as sql:
                settled = rows.select(sql, known["job_id"])
            if settled is not None:
                return self._settled(settled)

    def _submit(
        self,
        caller: Caller,
        columns: dict[str, Any],
        claim: Claim | None,
        perform: Perform,
        state: str,
        sandbox_id: str | None = None,
    ) -> Row:
        """Insert the row and let a thread go on with it; or the row of this idempotency key."""
        job_id = self._announce(columns, sandbox_id)
        try:
            known = self._reserve(caller, job_id, columns, claim, state)
        except BaseException:
            self._runs.conclude(job_id)
            raise
        if known is not None:
            self._runs.conclude(job_id)
            return known
        threading.Thread(target=self._in_background, args=(job_id, perform), daemon=True).start()
        return self.find(caller.public_key, job_id)

    def _in_background(self, job_id: str, perform: Perform) -> None:
        try:
            if self._begun(job_id):
                self._perform(job_id, None, perform, self._fail)
        except Problem as problem:
            log.info("job_failed", job_id=job_id, error=problem.error)
        finally:
            self._runs.conclude(job_id)

    def _begun(self, job_id: str) -> bool:
        """Whether a submitted execution may start: it may have been cancelled already."""
        with self._context.database.transaction() as sql:
            row = rows.require(rows.select(sql, job_id), job_id)
            if row["state"] == "running":
                return True
            return self._move(sql, job_id, "running") is not None

    def _announce(self, columns: dict[str, Any], sandbox_id: str | None = None) -> str:
        own = columns["session_id"] is None and columns["service_id"] is None
        return self._runs.announce(sandbox_id, own=own)

    def _await(self, row: Row, timeout_seconds: float | None) -> Row:
        """An execution's row when it has ended here, or as it is after the time.

        Raises:
            Problem: 503, too many wait already.
        """
        if row["state"] in rows.LIVE_STATES:
            self._runs.wait(row["job_id"], timeout_seconds)
        with self._context.database.reading() as sql:
            return rows.select(sql, row["job_id"]) or row

    def _reserve(
        self,
        caller: Caller,
        job_id: str,
        columns: dict[str, Any],
        claim: Claim | None,
        state: str,
    ) -> Row | None:
        """Insert the row, or return the one this idempotency key has already."""
        counted = caller.admission or self._context.database
        with counted.transaction() as sql:
            known = rows.repeated(sql, caller)
            if known is None:
                if claim is not None:
                    claim(sql)
                rows.insert(sql, caller, job_id, state, columns, self._context.clock_ms())
            return known

    def _perform(
        self,
        job_id: str,
        session_id: str | None,
        perform: Perform,
        refused: Callable[[str, Problem], None],
    ) -> Row:
        """Run, and write down how it ended; `refused` is told when nothing was run."""
        try:
            with _refusals():
                outcome = perform(job_id)
        except Problem as problem:
            refused(job_id, problem)
            raise
        except SandboxGone as error:
            row = self._lose(job_id)
            if row["state"] == "cancelled":
                return row
            raise self._gone(session_id, error) from error
        except BaseException:
            self._lose(job_id)
            raise
        for _ in range(_WRITES_MAX):
            # What ran cannot be run again: its result is worth more than one try.
            with suppress(StoreBusy):
                return self._finish(job_id, session_id, outcome)
        raise Problem(
            500,
            "outcome_unknown",
            f"job {job_id} ran, and its result could not be stored: the database stayed busy.",
            fields={"job_id": job_id},
        )

    def _gone(self, session_id: str | None, error: SandboxGone) -> Problem:
        if session_id is None:
            return Problem(500, "sandbox_died", f"the sandbox ended before the code did: {error}")
        self._sessions.died(session_id)
        return terminated(session_id, error.reason)

    def _forget(self, job_id: str, _problem: Problem) -> None:
        with self._context.database.transaction() as sql:
            forget_running(sql, job_id)

    def _fail(self, job_id: str, problem: Problem) -> None:
        with self._context.database.transaction() as sql:
            self._move(sql, job_id, "failed", error=problem.message)

    def _lose(self, job_id: str) -> Row:
        with self._context.database.transaction() as sql:
            self._move(sql, job_id, "lost", error="the result was lost")
            return rows.require(rows.select(sql, job_id), job_id)

    def _finish(self, job_id: str, session_id: str | None, outcome: Outcome) -> Row:
        result = outcome.result
        output = {
            "stdout": result.stdout.decode("utf-8", "replace"),
            "stderr": result.stderr.decode("utf-8", "replace"),
            "duration_ms": result.duration_ms,
            "truncated": int(result.truncated),
            "artifacts": (artifacts := outcome.yielded.packed()),
            "kept_bytes": len(result.stdout) + len(result.stderr) + len(artifacts or ""),
        }
        state = "timeout" if result.timed_out else "completed"
        with self._context.database.transaction() as sql:
            row = self._move(
                sql, job_id, state, exit_code=result.exit_code, oom=int(result.oom), **output
            )
            if row is None:
                rows.add_output(sql, job_id, output)
                row = rows.select(sql, job_id)
            if session_id is not None:
                self._sessions.touch(sql, session_id)
            return rows.require(row, job_id)

    def _move(self, sql: Sql, job_id: str, state: str, **columns: Any) -> Row | None:
        return move(sql, job_id, state, self._context.clock_ms(), **columns)

    def _settled(self, row: Row) -> Row:
        """A known execution's result, or why there is none."""
        if row["state"] in ("completed", "timeout", "cancelled", "failed"):
            return row
        if row["session_id"] is not None:
            session = self._sessions.find(row["public_key"], row["session_id"])
            if session["state"] == "terminated":
                raise terminated(row["session_id"], session["reason"])
        raise Problem(
            409,
            "outcome_unknown",
            f"job {row['job_id']} was started and its result was lost; it may have run. "
            "Look at its effects, then use a new Idempotency-Key.",
            fields={"job_id": row["job_id"]},
        )


@contextmanager
def _refusals() -> Iterator[None]:
    """What a sandbox refuses before anything ran, and one that was frozen meanwhile."""
    try:
        with sandbox_refusals():
            yield
    except SandboxFrozen as error:
        raise Problem(409, "sandbox_frozen", f"{error}.") from error
