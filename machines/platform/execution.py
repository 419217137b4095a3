"""Running code once: every execution is a row before it starts and has a result after it ends.

::

    background: [row pending] -> [row running] -> sandbox -> [row completed | timeout, result]
    blocking:                    [row running] -> sandbox -> the same
                                                          -> [row lost]    sandbox or platform died
          DELETE /jobs/{id}   -> [row cancelled]   its program is killed, its output is added
          background, refused by the sandbox -> [row failed]

Code runs in a sandbox of its own (`one_off`), a command in that of a session or of a service.  The
way of one execution from its row to its result is in execution_course.py.
A blocking execution costs two commits: one counts the request (limits.py) and inserts the row, one
holds the result.

An `Idempotency-Key` names an execution for its key's owner.  A second request with it never runs
anything: it gets the stored result, waits for the first request when that is still running, or,
when the platform died in between, learns that nobody knows (`409 outcome_unknown`); in a session
that died with the platform it is `410 session_terminated`.  An execution that the sandbox refused
before it began leaves no row, so its key may be used again.

What has a row `pending` or `running` is in `_runs` of the process that runs it.  Rows that are not
there belong to a process that died, or to a thread that could not write its result: `start` and
`tick` make them `lost`.
"""

from __future__ import annotations

from collections.abc import Callable

from machines.platform import execution_rows as rows
from machines.platform.context import PlatformContext
from machines.platform.execution_course import Claim, ExecutionCourse, Perform
from machines.platform.execution_runs import own_sandbox
from machines.platform.languages import Probing, evaluation
from machines.platform.one_off import JOB_MARK, Outcome, interrupt, run_alone
from machines.platform.orders import Caller, CodeOrder, CommandOrder
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Command, Handle
from machines.platform.sandbox.errors import SandboxGone
from machines.platform.sessions import Sessions
from persistence.database import Row
from persistence.database import Session as Sql

# Session shells whose variables last from one command to the next.
_CELLS = {"bash": "bash", "python": "python3", "python3": "python3"}
CANCEL_SECONDS = 3.0
"""How long a killed program's output is waited for."""
_HOUSEKEEPING_MS = 60_000
_WAIT_SECONDS_MAX = 960.0


class Executions(ExecutionCourse):
    """One-off executions, and commands in sessions and services."""

    def __init__(self, context: PlatformContext, backend: Backend, sessions: Sessions) -> None:
        super().__init__(context, backend, sessions)
        self._probing = Probing(backend)
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
            # The rows first: whoever is among them and then not in `_runs` has ended, or died.
            live = [row["job_id"] for row in rows.live(sql)]
        left = [job_id for job_id in live if self._runs.find(job_id) is None]
        with self._context.database.transaction() as sql:
            for job_id in left:
                self._move(sql, job_id, "lost", error="the result was lost")
            rows.forget_old(sql, now_ms)
            rows.trim(sql)

    def stop(self) -> None:
        """End the sandboxes of running one-off executions.  Call after `Sessions.stop`."""
        for sandbox_id in self._runs.own_sandboxes():
            self._backend.destroy(Handle(sandbox_id))

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
            sandbox_id = own_sandbox(job_id)
            running = self._runs.find(job_id)

            def require_wanted() -> None:
                self._sessions.require_open()
                if running is not None and running.cancelled.is_set():
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

        columns = rows.draft(language="bash", network_mode=network_mode, service_id=service_id)
        row = self._submit(caller, columns, claim, perform, "running", sandbox_id)
        return self._await(row, wait_ms / 1000) if wait_ms > 0 else row

    # -- what is asked about jobs --------------------------------------------------------------

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
        running = self._runs.find(job_id)
        if running is None or running.sandbox_id is None:
            return
        running.cancelled.set()
        handle = Handle(running.sandbox_id)
        if interrupt(self._backend, handle, job_id):
            running.ended.wait(CANCEL_SECONDS)
        if running.own:
            self._backend.destroy(handle)
