"""Sessions: rows that outlive the platform process, sandboxes that do not.

::

    create:  [row starting] -> backend.create, image, files -> [row running]
    end:     [row terminated, reason] -> backend.destroy

Every bracket is one transaction; the sandbox is touched outside, after the decision is on disk.
A row names its sandbox (same id).  What happens to it in between is in session_changes.py, how it
ends in session_rows.py.  What a death in between leaves:

- before the first bracket: nothing;
- with a row `starting`, `running` or `frozen`: the sandbox died with the process, and `start()`
  marks the row `terminated` with reason `platform_restarted`;
- with a row `terminated` and a sandbox still there: `sweep()` at the next start removes it.

A repeated `Idempotency-Key` gives the session that it made, as it is now: also when it has ended
since, which its `status` and `reason` tell.  Nothing is ever made twice for one key.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

import structlog

from machines.platform import lives
from machines.platform.context import PlatformContext
from machines.platform.limits import require_slot
from machines.platform.lives.session import SessionLife, SessionTerms
from machines.platform.orders import Caller
from machines.platform.refusals import repeated, sandbox_refusals
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Command, Handle, Network, Spec
from machines.platform.sandbox.errors import SandboxError, SandboxGone, SandboxLimit
from machines.platform.session_changes import SessionChanges, memory_bytes
from machines.platform.session_orders import SessionOrder
from machines.platform.session_rows import require, select
from machines.platform.transfers import link_inputs
from persistence.database import Row

log = structlog.get_logger("turtles.platform.sessions")


def spec_for(
    sandbox_id: str,
    vcpu: int,
    environment: dict[str, str] | None = None,
    network: Network = "zerotrust",
    *,
    toolbox: bool = False,
) -> Spec:
    """What to build for a session or a one-off execution: 2 GiB per vCPU."""
    return Spec(
        sandbox_id=sandbox_id,
        vcpus=vcpu,
        memory_bytes=memory_bytes(vcpu),
        environment=environment or {},
        network=network,
        toolbox=toolbox,
    )


class Sessions(SessionChanges):
    """The sessions of every key, and the sandboxes behind them."""

    def __init__(self, context: PlatformContext, backend: Backend) -> None:
        super().__init__(context, backend)
        self._starting: dict[str, threading.Event] = {}

    def start(self) -> int:
        """Clear what an earlier process left; the number of sandboxes swept.

        Sandboxes die with their platform process, so no stored session can still be live.
        """
        try:
            swept = self._backend.sweep()
        except SandboxError as error:
            # Without isolation there is nothing new to run; prices and keys must still work.
            swept = 0
            log.error("sweep_failed", error=str(error))
        with self._context.database.transaction() as sql:
            lost = self._terminate(sql, "1 = 1", "platform_restarted")
        log.info("sessions_start", swept_sandboxes=swept, lost_sessions=len(lost))
        return swept

    def stop(self) -> None:
        """End every live session; later creates are refused with 503."""
        self._stopping.set()
        self._end_where("1 = 1", "platform_stopped")

    # -- create --------------------------------------------------------------------------------

    def create(
        self,
        caller: Caller,
        order: SessionOrder,
        prepare: Callable[[Handle], None] | None = None,
    ) -> Row:
        """A new session, or the one this idempotency key made before.

        Args:
            prepare: fills the new sandbox (from a snapshot or an image) before anybody sees it
                running.  What it raises undoes the session.

        Raises:
            Problem: 429 no slot, 409 key reused for another request, 503, 400.
        """
        while True:
            row, is_new = self._reserve(caller, order)
            session_id = row["session_id"]
            if is_new:
                return self._build(session_id, order, prepare)
            # Another request with the same key may be creating it: answer when it is there.
            if event := self._starting.get(session_id):
                event.wait()
            settled = self._row(session_id)
            if settled is not None:
                return settled

    def _reserve(self, caller: Caller, order: SessionOrder) -> tuple[Row, bool]:
        self.expire_due()
        now_ms = self._context.clock_ms()
        session_id = f"unsb-session-{secrets.token_hex(8)}"
        with self._context.database.transaction() as sql:
            known = repeated(sql, caller, "session")
            if known is not None:
                return known, False
            # Inside the transaction: what commits before `stop` is ended by it.
            self.require_open()
            require_slot(sql, caller.public_key, caller.tier, order.vcpu)
            # Known to waiters before its row can be seen.
            self._starting[session_id] = threading.Event()
            sql.run(
                "INSERT INTO session (session_id, public_key, shell, network_mode, vcpu, state, "
                "created_ms, expires_ms, last_active_ms, idempotency_key, digest, base_vcpu, "
                "multiplexer, audited, image_id, toolbox) VALUES "
                "(:id, :key, :shell, :mode, :vcpu, 'starting', :now, :expires, :now, :once, "
                ":digest, :vcpu, :multiplexer, :audited, :image, :toolbox)",
                id=session_id,
                key=caller.public_key,
                shell=order.shell,
                mode=order.network_mode,
                vcpu=order.vcpu,
                now=now_ms,
                expires=now_ms + order.ttl_seconds * 1000,
                once=caller.idempotency_key,
                digest=caller.digest,
                multiplexer=order.multiplexer,
                audited=int(order.audited),
                image=order.image,
                toolbox=int(order.toolbox),
            )
            terms = SessionTerms(vcpu=order.vcpu, base_vcpu=order.vcpu)
            lives.begin(sql, SessionLife, session_id, terms, now_ms)
            return require(select(sql, session_id)), True

    def _build(
        self, session_id: str, order: SessionOrder, prepare: Callable[[Handle], None] | None
    ) -> Row:
        try:
            with sandbox_refusals():
                handle = self._backend.create(
                    spec_for(
                        session_id,
                        order.vcpu,
                        network=order.network_mode,
                        toolbox=order.toolbox,
                    )
                )
                if prepare is not None:
                    prepare(handle)
                self._put_files(handle, order.files)
            with self._context.database.transaction() as sql:
                kept = self._move(sql, session_id, "running")
            if not kept:
                self._destroy(handle)
            return require(self._row(session_id))
        except SandboxGone as error:
            return self._died_young(session_id, error)
        except BaseException:
            # Nothing of it may be seen again: the same key may then create it afresh.
            self._forget(session_id)
            raise
        finally:
            self._starting.pop(session_id).set()

    def _died_young(self, session_id: str, error: SandboxGone) -> Row:
        """A sandbox that ended while it was made: because somebody deleted it, or by itself."""
        row = self._row(session_id)
        if row is not None and row["state"] == "terminated":
            self._destroy(Handle(session_id))
            return row
        self._forget(session_id)
        raise Problem(
            503, "sandbox_died", f"the new sandbox ended at once: {error}. Try again."
        ) from error

    def _put_files(self, handle: Handle, files: dict[str, bytes]) -> None:
        if not files:
            return
        result = self._backend.execute(handle, Command(argv=("true",), files=files))
        if result.exit_code:
            said = result.stderr.decode("utf-8", "replace")[:200]
            raise SandboxLimit(f"input_files could not be written into the sandbox: {said}")
        link_inputs(self._backend, handle, files)

    def _forget(self, session_id: str) -> None:
        with self._context.database.transaction() as sql:
            sql.run("DELETE FROM session WHERE session_id = :id", id=session_id)
            lives.forget(sql, SessionLife, session_id)
        self._destroy(Handle(session_id))

    # -- end -----------------------------------------------------------------------------------

    def reap(self) -> int:
        """End the sessions whose sandbox died unasked; how many."""
        with self._context.database.reading() as sql:
            rows = sql.all("SELECT session_id FROM session WHERE state IN ('running', 'frozen')")
        dead = [row["session_id"] for row in rows if not self._lives(row["session_id"])]
        return sum(self.died(session_id) for session_id in dead)

    def _lives(self, session_id: str) -> bool:
        try:
            stats = self._backend.stats(Handle(session_id))
        except SandboxGone:
            return False
        # Enforcement "none" is a backend that runs nothing and has no processes to count.
        return stats.enforcement == "none" or stats.processes > 0
