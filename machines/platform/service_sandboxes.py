"""The base of `Services`: one service's state and sandbox, and what moves them.

`_move` is the only place where a stored state changes.  What a deployment tells (ready, failed) is
written down here, and so is how a sandbox is filled, started and ended.  A gate per service keeps
two requests from touching its sandbox together; it is taken before the row is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import structlog

from engine.errors import StoreError
from engine.events import Event
from machines.platform import lives, service_rows, transfers, vault
from machines.platform.context import PlatformContext
from machines.platform.deployments import (
    DATAGRAM_TYPES,
    GRACE_SECONDS,
    READY_SECONDS,
    Deployments,
    bootstrap_command,
)
from machines.platform.lives.service import (
    Delete,
    Down,
    FreezeService,
    Redeploy,
    ServiceLife,
    Stop,
    ThawService,
    Up,
)
from machines.platform.program_watch import ProgramWatch
from machines.platform.refusals import sandbox_refusals, stopping
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Command, Handle
from machines.platform.sandbox.errors import SandboxError, SandboxGone
from machines.platform.service_log import ServiceLog
from machines.platform.sessions import Sessions, spec_for
from persistence.database import Row
from persistence.database import Session as Sql

HOLDING_SLOTS = ("starting", "running", "redeploying")
LIVE = (*HOLDING_SLOTS, "frozen")

log = structlog.get_logger("turtles.platform.services")


class ServiceSandboxes:
    """The sandboxes of services, and the states that say what they do.

    Args:
        grace_seconds: a program without ports that lives so long is running.
        ready_seconds: a program with ports that opens none in that time has failed.
    """

    def __init__(
        self,
        context: PlatformContext,
        backend: Backend,
        sessions: Sessions,
        *,
        grace_seconds: float = GRACE_SECONDS,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self._context = context
        self._backend = backend
        self._sessions = sessions
        self.log = ServiceLog(context)
        self._watch = ProgramWatch(self.log.append, self._program_ended)
        self._deployments = Deployments(
            backend,
            self._watch,
            self._ready,
            self._failed,
            grace_seconds=grace_seconds,
            ready_seconds=ready_seconds,
        )
        self.refill: Callable[[Row, Handle], None] | None = None
        """Run in a fresh sandbox for a service with a `source_image`, before its bootstrap."""
        self._gates: dict[str, threading.RLock] = {}
        self._starting: dict[str, threading.Event] = {}
        self._stopping = threading.Event()
        self._touched_ms: dict[str, int] = {}

    def _fill(self, row: Row, prepare: Callable[[Handle], None] | None) -> None:
        """A new sandbox for a service, with what must be in it before the bootstrap."""
        service_id = row["service_id"]
        with told(service_id):
            handle = self._backend.create(
                spec_for(
                    service_id,
                    row["vcpu"],
                    {"SERVICE_ID": service_id, "SERVICE_NAME": row["name"]},
                    row["network_mode"],
                )
            )
            if prepare is not None:
                prepare(handle)
            files = self._files(service_id)
            transfers.link_inputs(self._backend, handle, files)
            if files and row["bootstrap"] is None:
                self._backend.execute(handle, Command(argv=("true",), files=files))

    def _launch(self, row: Row) -> None:
        """Start a row's bootstrap in its sandbox; without one the service runs."""
        service_id, deployment = row["service_id"], row["deployment"]
        bootstrap = service_rows.bootstrap_of(row)
        if bootstrap is None:
            self._ready(service_id, deployment)
            return
        ports = service_rows.ports_of(row)
        if row["service_type"] in DATAGRAM_TYPES:
            ports = ()
        with told(service_id):
            command = bootstrap_command(
                bootstrap, self._files(service_id), self.environment(service_id)
            )
            self._deployments.launch(Handle(service_id), deployment, command, ports)

    def _files(self, service_id: str) -> dict[str, bytes]:
        with self._context.database.reading() as sql:
            return service_rows.files_of(sql, service_id)

    def environment(self, service_id: str) -> dict[str, str]:
        """What programs that are started in a service from now on get of its vault."""
        with self._context.database.reading() as sql:
            return vault.read(sql, self._context.codec, service_id) or {}

    # -- what the deployments tell

    def _program_ended(self, service_id: str, deployment: int, exit_code: int | None) -> None:
        ending = "with its sandbox" if exit_code is None else f"with exit code {exit_code}"
        self._say(service_id, f"the program of deployment {deployment} ended {ending}")
        self._deployments.ended(service_id, deployment, exit_code)

    def _ready(self, service_id: str, deployment: int) -> None:
        with self._context.database.transaction() as sql:
            self._move(
                sql, service_id, ("starting", "redeploying"), "running", deployment=deployment
            )

    def _failed(self, service_id: str, deployment: int, reason: str) -> None:
        with self._context.database.transaction() as sql:
            # A frozen one has done nothing that could fail: its sandbox was taken from it.
            row = self._move(
                sql, service_id, HOLDING_SLOTS, "failed", reason, deployment
            ) or self._move(sql, service_id, ("frozen",), "stopped", reason, deployment)
        if row is not None:
            self._say(service_id, f"{row['state']}: {reason}; redeploy it to begin again")
        # Also when it had failed before: that attempt may not have come so far.
        with self._gate(service_id):
            now = self._row(service_id)
            if now is not None and now["deployment"] == deployment and now["state"] not in LIVE:
                self._end_sandbox(Handle(service_id))

    def died(self, service_id: str) -> None:
        """Record that a service's sandbox is gone."""
        if row := self._row(service_id):
            self._failed(service_id, row["deployment"], "sandbox_died")

    def fail_forgotten(self, service_id: str) -> bool:
        """Fail a service that is being deployed by nobody: a busy store lost its ending."""
        gate = self._gate(service_id)
        if service_id in self._starting or not gate.acquire(blocking=False):
            return False
        try:
            row = self._row(service_id)
            if row is None or row["state"] not in ("starting", "redeploying"):
                return False
            if self._deployments.has(Handle(service_id)):
                return False
            self._failed(service_id, row["deployment"], "internal_error")
            return True
        finally:
            gate.release()

    def _say(self, service_id: str, words: str) -> None:
        try:
            self.log.append([(service_id, f"[platform] {words}")])
        except StoreError as error:
            log.warning("service_lines_wait", lines=1, error=str(error))

    # -- below

    def _move(
        self,
        sql: Sql,
        service_id: str,
        sources: Iterable[str],
        target: str,
        reason: str | None = None,
        deployment: int | None = None,
    ) -> Row | None:
        """The one place where a stored state changes; None when it is not in one of `sources`.

        With a deployment: when that is still the one.
        """
        row = service_rows.select(sql, service_id)
        if row is None or row["state"] not in sources:
            return None
        if deployment is not None and row["deployment"] != deployment:
            return None
        sql.run(
            "UPDATE service SET state = :target, reason = :reason, ended_ms = :ended "
            "WHERE service_id = :id",
            id=service_id,
            target=target,
            reason=reason,
            ended=self._context.clock_ms() if target == "deleted" else None,
        )
        self._live(sql, service_id, _event(row["state"], target, reason))
        return service_rows.select(sql, service_id)

    def _live(self, sql: Sql, service_id: str, event: Event) -> None:
        """The life cycle moves with the row, and may refuse."""
        lives.move(sql, ServiceLife, service_id, event, self._context.clock_ms())

    def _move_all(self, sources: tuple[str, ...], target: str, reason: str) -> list[str]:
        with self._context.database.transaction() as sql:
            rows = sql.all("SELECT service_id, state FROM service WHERE state <> 'deleted'")
            moved = [row["service_id"] for row in rows if row["state"] in sources]
            for service_id in moved:
                self._move(sql, service_id, sources, target, reason)
        return moved

    @contextmanager
    def _or_back(self, before: Row) -> Iterator[None]:
        """Undo a move that the sandbox refused; one that is gone has failed."""
        service_id = before["service_id"]
        try:
            with sandbox_refusals():
                yield
        except SandboxGone as error:
            self.died(service_id)
            now = require(self._row(service_id), service_id)
            raise wrong_state(now, "redeploy it") from error
        except (Problem, SandboxError):
            with self._context.database.transaction() as sql:
                self._move(
                    sql, service_id, ("running", "frozen"), before["state"], before["reason"]
                )
            raise

    def _end_sandbox(self, handle: Handle) -> None:
        self._deployments.forget(handle)
        try:
            self._backend.destroy(handle)
        except SandboxError as error:
            log.warning("destroy_failed", sandbox_id=handle.sandbox_id, error=str(error))

    def _gate(self, service_id: str) -> threading.RLock:
        return self._gates.setdefault(service_id, threading.RLock())

    def _require_open(self) -> None:
        if self._stopping.is_set():
            raise stopping()

    def _row(self, service_id: str) -> Row | None:
        with self._context.database.reading() as sql:
            return service_rows.select(sql, service_id)


def _event(before: str, target: str, reason: str | None) -> Event:
    match target:
        case "running":
            return ThawService() if before == "frozen" else Up()
        case "frozen":
            return FreezeService()
        case "redeploying":
            return Redeploy()
        case "failed":
            return Down(reason=reason or target)
        case "stopped":
            return Stop(reason=reason or target)
        case _:
            return Delete()


@contextmanager
def told(service_id: str) -> Iterator[None]:
    """Say what the sandbox refuses, and that it died, as an answer."""
    try:
        with sandbox_refusals():
            yield
    except SandboxGone as error:
        raise Problem(
            503,
            "sandbox_died",
            f"the sandbox of service {service_id} ended: {error}. Try again.",
        ) from error


def wrong_state(row: Row, remedy: str) -> Problem:
    """409 that names the state and what to do."""
    return Problem(
        409,
        "service_not_running" if row["state"] != "frozen" else "service_frozen",
        f"service {row['service_id']} is {row['state']}: {remedy}.",
        fields={"service_id": row["service_id"], "state": row["state"]},
    )


def require(row: Row | None, service_id: str) -> Row:
    """The row.

    Raises:
        Problem: 404, there is none.
    """
    if row is None:
        raise service_rows.not_found(service_id)
    return row
