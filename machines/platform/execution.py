"""Running code once: every execution is a row before it starts and has a result after it ends.

::

    [row running] -> sandbox -> [row completed | timeout, result]
                             -> [row lost]       the sandbox or the platform died
          DELETE /jobs/{id}  -> [row cancelled]  then its sandbox is ended
          background, refused by the sandbox -> [row failed]

An `Idempotency-Key` names an execution for its key's owner.  A second request with it never runs
anything: it gets the stored result, waits for the first request when that is still running, or,
when the platform died in between, learns that nobody knows (`409 outcome_unknown`); in a session
that died with the platform it is `410 session_terminated`.  An execution that the sandbox refused
before it began leaves no row, so its key may be used again.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import structlog

from machines.platform.context import PlatformContext
from machines.platform.languages import SOURCE_DIRECTORY
from machines.platform.limits import require_slot
from machines.platform.orders import Caller, CodeOrder, CommandOrder
from machines.platform.refusals import require_same_request, sandbox_refusals, terminated
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Command, Handle, Result
from machines.platform.sandbox.errors import SandboxGone
from machines.platform.sessions import Sessions, spec_for
from persistence.database import Row
from persistence.database import Session as Sql

KEPT_MS = 7 * 86_400_000
# Session shells whose variables last from one command to the next.
_CELLS = {"bash": "bash", "python": "python3", "python3": "python3"}
# How other session programs take a command.
_EVAL_FLAGS = {"node": "-e", "perl": "-e", "ruby": "-e", "php": "-r", "lua": "-e", "julia": "-e"}


log = structlog.get_logger("turtles.platform.execution")


class Executions:
    """One-off executions and commands in sessions."""

    def __init__(self, context: PlatformContext, backend: Backend, sessions: Sessions) -> None:
        self._context = context
        self._backend = backend
        self._sessions = sessions
        self._running: dict[str, threading.Event] = {}

    def start(self) -> None:
        """Forget the results of executions older than seven days."""
        with self._context.database.transaction() as sql:
            sql.run(
                "DELETE FROM execution WHERE state <> 'running' AND started_ms < :old",
                old=self._context.clock_ms() - KEPT_MS,
            )

    def stop(self) -> None:
        """End the sandboxes of running one-off executions.  Call after `Sessions.stop`."""
        with self._context.database.reading() as sql:
            rows = sql.all(
                "SELECT job_id FROM execution WHERE state = 'running' AND session_id IS NULL"
            )
        for row in rows:
            self._backend.destroy(Handle(_own_sandbox(row["job_id"])))

    def run_code(self, caller: Caller, order: CodeOrder) -> Row:
        """Run code in a sandbox of its own, which ends with it.

        Raises:
            Problem: 429 no slot, 409, 503, 400.
        """
        self._sessions.expire_due()

        def perform(job_id: str) -> Result:
            return self._in_own_sandbox(_own_sandbox(job_id), order)

        return self._once(caller, _draft(order), self._claim_slot(caller), perform)

    def submit_code(self, caller: Caller, order: CodeOrder) -> Row:
        """Run code in the background; its row now, or the one of this idempotency key.

        Raises:
            Problem: 429 no slot, 409 key reused.  Later refusals are told by the job.
        """
        self._sessions.expire_due()
        job_id = self._announce()
        try:
            known = self._reserve(caller, job_id, _draft(order), self._claim_slot(caller))
        except BaseException:
            self._conclude(job_id)
            raise
        if known is not None:
            self._conclude(job_id)
            return known
        threading.Thread(target=self._in_background, args=(job_id, order), daemon=True).start()
        return self.find(caller.public_key, job_id)

    def _in_background(self, job_id: str, order: CodeOrder) -> None:
        def perform(_job_id: str) -> Result:
            return self._in_own_sandbox(_own_sandbox(job_id), order)

        try:
            self._perform(job_id, None, perform, self._fail)
        except Problem as problem:
            log.info("job_failed", job_id=job_id, error=problem.error)
        finally:
            self._conclude(job_id)

    def _claim_slot(self, caller: Caller) -> Callable[[Sql], None]:
        def claim(sql: Sql) -> None:
            self._sessions.require_open()
            require_slot(sql, caller.public_key, caller.tier)

        return claim

    def cancel(self, public_key: str, job_id: str) -> Row:
        """End a one-off execution; one that has ended keeps its result.

        Raises:
            Problem: 404, or 409 for a command in a session.
        """
        row = self.find(public_key, job_id)
        if row["session_id"] is not None and row["state"] == "running":
            raise Problem(
                409,
                "job_in_session",
                f"job {job_id} runs in session {row['session_id']}; delete the session to end it.",
            )
        with self._context.database.transaction() as sql:
            cancelled = self._end(sql, job_id, "cancelled", "cancelled on request")
        if cancelled:
            self._backend.destroy(Handle(_own_sandbox(job_id)))
        return self.find(public_key, job_id)

    def _in_own_sandbox(self, sandbox_id: str, order: CodeOrder) -> Result:
        recipe = order.language
        source = f"{SOURCE_DIRECTORY}/{recipe.file}"
        spec = spec_for(sandbox_id, order.vcpu, order.environment)
        command = Command(
            argv=(*recipe.command, *order.arguments),
            files={source: order.code.encode(), **order.files},
        )
        try:
            handle = self._backend.create(spec)
            # `stop` may have looked for sandboxes to end before this one was there.
            self._sessions.require_open()
            return self._backend.execute(
                handle,
                command,
                timeout_seconds=float(order.ttl_seconds),
                stdin=order.stdin.encode(),
            )
        finally:
            self._backend.destroy(Handle(sandbox_id))

    def run_command(self, caller: Caller, session_id: str, order: CommandOrder) -> Row:
        """Run a command in a session; its variables last in bash and python3 sessions.

        Raises:
            Problem: 404, 410, 409, 503, 400.
        """
        session = self._sessions.find(caller.public_key, session_id)

        def claim(sql: Sql) -> None:
            now = sql.one("SELECT state, reason FROM session WHERE session_id = :id", id=session_id)
            if now is not None and now["state"] == "starting":
                raise _starting(session_id)
            if now is None or now["state"] != "running":
                raise terminated(session_id, now["reason"] if now else None)
            self._sessions.touch(sql, session_id)

        def perform(_job_id: str) -> Result:
            return self._in_session(session, order)

        draft = {
            "session_id": session_id,
            "language": session["shell"],
            "network_mode": session["network_mode"],
        }
        return self._once(caller, draft, claim, perform)

    def _in_session(self, session: Row, order: CommandOrder) -> Result:
        handle = Handle(session["session_id"])
        shell = session["shell"]
        timeout_seconds = order.timeout_ms / 1000
        if shell in _CELLS:
            return self._backend.cell(
                handle, _CELLS[shell], order.command, timeout_seconds=timeout_seconds
            )
        argv = (shell, _EVAL_FLAGS.get(shell, "-c"), order.command)
        return self._backend.execute(handle, Command(argv=argv), timeout_seconds=timeout_seconds)

    def find(self, public_key: str, job_id: str) -> Row:
        """An execution of this key.

        Raises:
            Problem: 404.
        """
        with self._context.database.reading() as sql:
            row = _select(sql, job_id)
        if row is None or row["public_key"] != public_key:
            raise Problem(404, "not_found", f"job {job_id!r}: this key has none of that id.")
        return row

    def active(self, public_key: str) -> list[Row]:
        """The key's running executions."""
        with self._context.database.reading() as sql:
            return sql.all(
                "SELECT * FROM execution WHERE public_key = :key AND state = 'running' "
                "ORDER BY started_ms",
                key=public_key,
            )

    def _once(
        self,
        caller: Caller,
        draft: dict[str, Any],
        claim: Callable[[Sql], None],
        perform: Callable[[str], Result],
    ) -> Row:
        """The row of this execution, run now or before; `perform` is called at most once."""
        while True:
            job_id = self._announce()
            try:
                known = self._reserve(caller, job_id, draft, claim)
                if known is None:
                    return self._perform(job_id, draft["session_id"], perform, self._forget)
            finally:
                self._conclude(job_id)
            if event := self._running.get(known["job_id"]):
                event.wait()
            with self._context.database.reading() as sql:
                settled = _select(sql, known["job_id"])
            if settled is not None:
                return self._settled(settled)

    def _announce(self) -> str:
        """A new job id, known to waiters before its row can be seen."""
        job_id = str(uuid.uuid4())
        self._running[job_id] = threading.Event()
        return job_id

    def _conclude(self, job_id: str) -> None:
        self._running.pop(job_id).set()

    def _reserve(
        self, caller: Caller, job_id: str, draft: dict[str, Any], claim: Callable[[Sql], None]
    ) -> Row | None:
        """Insert the row, or return the one this idempotency key has already."""
        with self._context.database.transaction() as sql:
            if caller.idempotency_key is not None:
                known = sql.one(
                    "SELECT * FROM execution WHERE public_key = :key AND idempotency_key = :once",
                    key=caller.public_key,
                    once=caller.idempotency_key,
                )
                if known is not None:
                    require_same_request(known["digest"], caller.digest)
                    return known
            claim(sql)
            sql.run(
                "INSERT INTO execution (job_id, public_key, session_id, language, network_mode, "
                "state, started_ms, idempotency_key, digest) VALUES "
                "(:job, :key, :session_id, :language, :network_mode, 'running', :now, :once, "
                ":digest)",
                job=job_id,
                key=caller.public_key,
                now=self._context.clock_ms(),
                once=caller.idempotency_key,
                digest=caller.digest,
                **draft,
            )
        return None

    def _perform(
        self,
        job_id: str,
        session_id: str | None,
        perform: Callable[[str], Result],
        refused: Callable[[str, Problem], None],
    ) -> Row:
        """Run, and write down how it ended; `refused` is told when nothing was run."""
        try:
            with sandbox_refusals():
                result = perform(job_id)
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
        return self._finish(job_id, session_id, result)

    def _gone(self, session_id: str | None, error: SandboxGone) -> Problem:
        if session_id is None:
            return Problem(500, "sandbox_died", f"the sandbox ended before the code did: {error}")
        self._sessions.died(session_id)
        return terminated(session_id, error.reason)

    def _forget(self, job_id: str, _problem: Problem) -> None:
        with self._context.database.transaction() as sql:
            sql.run("DELETE FROM execution WHERE job_id = :job AND state = 'running'", job=job_id)

    def _fail(self, job_id: str, problem: Problem) -> None:
        with self._context.database.transaction() as sql:
            self._end(sql, job_id, "failed", problem.message)

    def _lose(self, job_id: str) -> Row:
        with self._context.database.transaction() as sql:
            self._end(sql, job_id, "lost", "the result was lost")
            return _require(_select(sql, job_id), job_id)

    def _end(self, sql: Sql, job_id: str, state: str, error: str) -> bool:
        """End a running execution without a result; False when it had ended already."""
        ended = sql.run(
            "UPDATE execution SET state = :state, ended_ms = :now, error = :error "
            "WHERE job_id = :job AND state = 'running'",
            job=job_id,
            state=state,
            error=error,
            now=self._context.clock_ms(),
        )
        return ended == 1

    def _finish(self, job_id: str, session_id: str | None, result: Result) -> Row:
        with self._context.database.transaction() as sql:
            sql.run(
                "UPDATE execution SET state = :state, ended_ms = :now, exit_code = :code, "
                "stdout = :stdout, stderr = :stderr, duration_ms = :duration, "
                "truncated = :truncated, oom = :oom WHERE job_id = :job AND state = 'running'",
                state="timeout" if result.timed_out else "completed",
                now=self._context.clock_ms(),
                code=result.exit_code,
                stdout=result.stdout.decode("utf-8", "replace"),
                stderr=result.stderr.decode("utf-8", "replace"),
                duration=result.duration_ms,
                truncated=int(result.truncated),
                oom=int(result.oom),
                job=job_id,
            )
            if session_id is not None:
                self._sessions.touch(sql, session_id)
            return _require(_select(sql, job_id), job_id)

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


def _draft(order: CodeOrder) -> dict[str, Any]:
    return {
        "session_id": None,
        "language": order.language.name,
        "network_mode": order.network_mode,
    }


def _starting(session_id: str) -> Problem:
    return Problem(
        409,
        "session_starting",
        f"session {session_id} is still being created. Try again.",
        headers={"Retry-After": "1"},
    )


def _require(row: Row | None, job_id: str) -> Row:
    if row is None:
        raise Problem(500, "internal_error", f"job {job_id}: its row vanished.")
    return row


def _own_sandbox(job_id: str) -> str:
    return f"exec-{job_id}"


def _select(sql: Sql, job_id: str) -> Row | None:
    return sql.one("SELECT * FROM execution WHERE job_id = :job", job=job_id)
