"""Running code once: every execution is a row before it starts and has a result after it ends.

::

    background: [row pending] -> [row running] -> sandbox -> [row completed | timeout, result]
    blocking:                    [row running] -> sandbox -> the same
                                                          -> [row lost]    sandbox or platform died
          DELETE /jobs/{id}   -> [row cancelled]   its program is killed, its output is added
          background, refused by the sandbox -> [row failed]

Code runs in a sandbox of its own (`one_off`), a command in that of a session or of a service.
A blocking execution costs two commits beside the one that admits the request.

An `Idempotency-Key` names an execution for its key's owner.  A second request with it never runs
anything: it gets the stored result, waits for the first request when that is still running, or,
when the platform died in between, learns that nobody knows (`409 outcome_unknown`); in a session
that died with the platform it is `410 session_terminated`.  An execution that the sandbox refused
before it began leaves no row, so its key may be used again.

What has a row `pending` or `running` is in `_running` of the process that runs it.  Rows that are
not there belong to a process that died, or to a thread that could not write its result: `start`
and `tick` make them `lost`.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from engine.errors import StoreBusy
from engine.events import Event
from machines.platform import execution_rows as rows
from machines.platform import lives
from machines.platform.context import PlatformContext
from machines.platform.languages import Probing, evaluation
from machines.platform.lives.job import Begin, Fail, Finish, JobLife, Lose, Withdraw
from machines.platform.one_off import JOB_MARK, Outcome, interrupt, run_alone
from machines.platform.orders import Caller, CodeOrder, CommandOrder
from machines.platform.refusals import sandbox_refusals, terminated
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Command, Handle
from machines.platform.sandbox.errors import SandboxFrozen, SandboxGone
from machines.platform.sessions import Sessions
from persistence.database import Row
from persistence.database import Session as Sql

# Session shells whose variables last from one command to the next.
_CELLS = {"bash": "bash", "python": "python3", "python3": "python3"}
CANCEL_SECONDS = 3.0
"""How long a killed program's output is waited for."""
WAITERS_MAX = 256
_HOUSEKEEPING_MS = 60_000
_WAIT_SECONDS_MAX = 960.0
_WRITES_MAX = 5

log = structlog.get_logger("turtles.platform.execution")

Perform = Callable[[str], Outcome]
Claim = Callable[[Sql], None]


class _Running:
    """An execution of this process: where it runs, and what other threads may ask of it."""

    def __init__(self, sandbox_id: str | None, own: bool) -> None:
        self.ended = threading.Event()
        self.cancelled = threading.Event()
        self.sandbox_id = sandbox_id
        self.own = own


class Executions:
    """One-off executions, and commands in sessions and services."""

    def __init__(self, context: PlatformContext, backend: Backend, sessions: Sessions) -> None:
        self._context = context
        self._backend = backend
        self._sessions = sessions
        self._probing = Probing(backend)
        self._running: dict[str, _Running] = {}
        self._waiters = threading.BoundedSemaphore(WAITERS_MAX)
        self._kept_house_ms = 0

    # -- the platform's life -------------------------------------------------------------------

    def start(self) -> None:
        """Write off what an earlier process left unfinished; forget what is old."""
        self._keep_house()

    def tick(self) -> None:
        """Once a minute of the platform's clock, the same again."""
        if abs(self._context.clock_ms() - self._kept_house_ms) >= _HOUSEKEEPING_MS:
            self._keep_house()

    def _keep_house(self) -> None:
        now_ms = self._kept_house_ms = self._context.clock_ms()
        with self._context.database.reading() as sql:
            # The rows first: whoever is among them and then not in `_running` has ended, or died.
            live = [row["job_id"] for row in rows.live(sql)]
        left = [job_id for job_id in live if job_id not in self._running]
        with self._context.database.transaction() as sql:
            for job_id in left:
                self._move(sql, job_id, "lost", error="the result was lost")
            rows.forget_old(sql, now_ms)

    def stop(self) -> None:
        """End the sandboxes of running one-off executions.  Call after `Sessions.stop`."""
        for running in list(self._running.values()):
            if running.own and running.sandbox_id is not None:
                self._backend.destroy(Handle(running.sandbox_id))

    # -- one-off executions --------------------------------------------------------------------

    def run_code(self, caller: Caller, order: CodeOrder) -> Row:
        """Run code in a sandbox of its own, which ends with it.

        Raises:
            Problem: 429 no slot, 409, 503, 400.
        """
        self._sessions.expire_due()
        return self._once(
            caller, rows.one_off(order), self._claim_slots(caller, order), self._alone(order)
        )

    def submit_code(self, caller: Caller, order: CodeOrder) -> Row:
        """Run code in the background; its row now, or the one of this idempotency key.

        Raises:
            Problem: 429 no slot, 409 key reused.  Later refusals are told by the job.
        """
        self._sessions.expire_due()
        claim = self._claim_slots(caller, order)
        return self._submit(caller, rows.one_off(order), claim, self._alone(order), "pending")

    def _claim_slots(self, caller: Caller, order: CodeOrder) -> Claim:
        def claim(sql: Sql) -> None:
            self._sessions.require_open()
            rows.claim_slots(sql, caller, order)

        return claim

    def _alone(self, order: CodeOrder) -> Perform:
        def perform(job_id: str) -> Outcome:
            sandbox_id = _own_sandbox(job_id)
            running = self._running[job_id]

            def require_wanted() -> None:
                self._sessions.require_open()
                if running.cancelled.is_set():
                    raise SandboxGone(sandbox_id, "its job was cancelled")

            return run_alone(self._backend, sandbox_id, job_id, order, require_wanted)

        return perform

    # -- commands ------------------------------------------------------------------------------

    def run_command(self, caller: Caller, session_id: str, order: CommandOrder) -> Row:
        """Run a command in a session; its variables last in bash and python3 sessions.

        Raises:
            Problem: 404, 410, 409, 503, 400.
        """
        session = self._sessions.find(caller.public_key, session_id)

        def claim(sql: Sql) -> None:
            self._sessions.claim(sql, session["session_id"])

        def perform(job_id: str) -> Outcome:
            return self._in_session(job_id, session, order)

        columns = rows.draft(
            language=session["shell"],
            network_mode=session["network_mode"],
            session_id=session["session_id"],
        )
        return self._once(caller, columns, claim, perform)

    def _in_session(self, job_id: str, session: Row, order: CommandOrder) -> Outcome:
        handle = Handle(session["session_id"])
        shell = session["shell"]
        timeout_seconds = order.timeout_ms / 1000
        if shell in _CELLS:
            return Outcome(
                self._backend.cell(
                    handle, _CELLS[shell], order.command, timeout_seconds=timeout_seconds
                )
            )
        argv = evaluation(shell, self._probing.shell_program(shell), order.command)
        command = Command(argv=argv, environment={JOB_MARK: job_id})
        return Outcome(self._backend.execute(handle, command, timeout_seconds=timeout_seconds))

    def submit_in(
        self,
        caller: Caller,
        command: Command,
        *,
        service_id: str,
        sandbox_id: str,
        network_mode: str,
        timeout_seconds: float,
        wait_ms: int = 0,
        language: str = "bash",
        claim: Claim | None = None,
        gone: Callable[[SandboxGone], None] | None = None,
    ) -> Row:
        """Run a command in a service's sandbox, in the background; its row as it is then.

        Holds no slot of its own.  `DELETE /jobs/{id}` kills it with all that it started.

        Args:
            sandbox_id: the sandbox that the service has now.
            timeout_seconds: after which it is killed, and its row is `timeout`.
            wait_ms: how long its end is waited for before the row is returned; 0: not at all.
            claim: called in the transaction that inserts the row; what it raises refuses it.
            gone: told when the sandbox turns out to be gone; the row is `lost` then.

        Raises:
            Problem: 409 key reused, what `claim` raises.  Later refusals are told by the job.
        """

        def perform(job_id: str) -> Outcome:
            marked = {**command.environment, JOB_MARK: job_id}
            own = Command(
                argv=command.argv, cwd=command.cwd, environment=marked, files=command.files
            )
            try:
                return Outcome(
                    self._backend.execute(Handle(sandbox_id), own, timeout_seconds=timeout_seconds)
                )
            except SandboxGone as error:
                if gone is not None:
                    gone(error)
                raise

        columns = rows.draft(language=language, network_mode=network_mode, service_id=service_id)
        row = self._submit(caller, columns, claim, perform, "running", sandbox_id)
        return self._await(row, wait_ms / 1000) if wait_ms > 0 else row

    # -- what is asked about jobs --------------------------------------------------------------

    def find(self, public_key: str, job_id: str) -> Row:
        """An execution of this key.

        Raises:
            Problem: 404.
        """
        with self._context.database.reading() as sql:
            row = rows.select(sql, job_id)
        owned = row if row is not None and row["public_key"] == public_key else None
        return rows.require(owned, job_id)

    def active(self, public_key: str) -> list[Row]:
        """The key's executions that have not ended."""
        with self._context.database.reading() as sql:
            return rows.live_of(sql, public_key)

    def wait(self, public_key: str, job_id: str, timeout_seconds: float = _WAIT_SECONDS_MAX) -> Row:
        """The execution when it has ended, or as it is after the time.

        Raises:
            Problem: 404, 503 too many wait.
        """
        return self._await(self.find(public_key, job_id), timeout_seconds)

    def cancel(self, public_key: str, job_id: str) -> Row:
        """End an execution; one that has ended keeps its result.

        What it printed until then is in the row when it could be fetched.

        Raises:
            Problem: 404, 409 it runs in a session.
        """
        row = self.find(public_key, job_id)
        if row["session_id"] is not None and row["state"] in rows.LIVE_STATES:
            raise Problem(
                409,
                "job_in_session",
                f"job {job_id} runs in session {row['session_id']}; delete the session to end it.",
            )
        with self._context.database.transaction() as sql:
            cancelled = self._move(sql, job_id, "cancelled", error="cancelled on request")
        if cancelled:
            self._interrupt(job_id)
        return self.find(public_key, job_id)

    def _interrupt(self, job_id: str) -> None:
        """Kill a cancelled execution's program, and see that its output is written down."""
        running = self._running.get(job_id)
        if running is None or running.sandbox_id is None:
            return
        running.cancelled.set()
        handle = Handle(running.sandbox_id)
        if interrupt(self._backend, handle, job_id):
            running.ended.wait(CANCEL_SECONDS)
        if running.own:
            self._backend.destroy(handle)

    # -- one execution, from its row to its result ---------------------------------------------

    def _once(self, caller: Caller, columns: dict[str, Any], claim: Claim, perform: Perform) -> Row:
        """The row of this execution, run now or before; `perform` is called at most once."""
        while True:
            job_id = self._announce(columns)
            try:
                known = self._reserve(caller, job_id, columns, claim, "running")
                if known is None:
                    return self._perform(job_id, columns["session_id"], perform, self._forget)
            finally:
                self._conclude(job_id)
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
            self._conclude(job_id)
            raise
        if known is not None:
            self._conclude(job_id)
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
            self._conclude(job_id)

    def _begun(self, job_id: str) -> bool:
        """Whether a submitted execution may start: it may have been cancelled already."""
        with self._context.database.transaction() as sql:
            row = rows.require(rows.select(sql, job_id), job_id)
            return row["state"] == "running" or self._move(sql, job_id, "running")

    def _announce(self, columns: dict[str, Any], sandbox_id: str | None = None) -> str:
        """A new job id, known to waiters before its row can be seen."""
        job_id = str(uuid.uuid4())
        own = columns["session_id"] is None and columns["service_id"] is None
        self._running[job_id] = _Running(_own_sandbox(job_id) if own else sandbox_id, own)
        return job_id

    def _conclude(self, job_id: str) -> None:
        self._running.pop(job_id).ended.set()

    def _await(self, row: Row, timeout_seconds: float | None) -> Row:
        """An execution's row when it has ended here, or as it is after the time.

        Raises:
            Problem: 503, too many wait already.
        """
        running = self._running.get(row["job_id"])
        if running is not None and row["state"] in rows.LIVE_STATES:
            if not self._waiters.acquire(blocking=False):
                raise Problem(
                    503,
                    "busy",
                    f"{WAITERS_MAX} requests wait for jobs already. "
                    f"Poll GET /jobs/{row['job_id']} instead.",
                    headers={"Retry-After": "2"},
                )
            try:
                running.ended.wait(timeout_seconds)
            finally:
                self._waiters.release()
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
        with self._context.database.transaction() as sql:
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
            sql.run("DELETE FROM execution WHERE job_id = :job AND state = 'running'", job=job_id)
            lives.forget(sql, JobLife, job_id)

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
            "artifacts": outcome.yielded.packed(),
        }
        state = "timeout" if result.timed_out else "completed"
        with self._context.database.transaction() as sql:
            if not self._move(
                sql, job_id, state, exit_code=result.exit_code, oom=int(result.oom), **output
            ):
                rows.add_output(sql, job_id, output)
            if session_id is not None:
                self._sessions.touch(sql, session_id)
            return rows.require(rows.select(sql, job_id), job_id)

    def _move(self, sql: Sql, job_id: str, state: str, **columns: Any) -> bool:
        """The one place where a state changes; False when the execution had ended already."""
        sources = "('pending')" if state == "running" else "('pending', 'running')"
        if state != "running":
            columns["ended_ms"] = self._context.clock_ms()
        changes = ", ".join(f"{name} = :{name}" for name in ("state", *columns))
        moved = sql.run(
            f"UPDATE execution SET {changes} WHERE job_id = :job AND state IN {sources}",  # noqa: S608 - our columns
            job=job_id,
            state=state,
            **columns,
        )
        if moved:
            self._live(sql, job_id, state, columns)
        return moved == 1

    def _live(self, sql: Sql, job_id: str, state: str, columns: dict[str, Any]) -> None:
        """The life cycle moves with the row.  Commands in sessions and services have none."""
        if lives.find(sql, JobLife, job_id) is None:
            return
        event: Event
        match state:
            case "running":
                event = Begin()
            case "completed" | "timeout":
                event = Finish(exit_code=columns["exit_code"], timed_out=state == "timeout")
            case "failed":
                event = Fail(reason=columns["error"])
            case "cancelled":
                event = Withdraw()
            case _:
                event = Lose()
        lives.move(sql, JobLife, job_id, event, self._context.clock_ms())

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


def _own_sandbox(job_id: str) -> str:
    return f"exec-{job_id}"
