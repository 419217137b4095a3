"""Services: programs that answer on ports, and go on until they are deleted.

::

    create   -> starting -> running | failed          a bootstrap that goes on is watched, see
    redeploy -> redeploying -> running | failed       deployments.py; without one: running at once
    freeze   running -> frozen       unfreeze, wake: frozen -> running (takes slots again)
    start()  what ran when the platform died -> stopped (platform_restarted)
    delete   any unlocked -> deleted: the row stays for its idempotency key, nobody finds it

Rows come first: a state is decided and committed, then the sandbox is touched.  One gate per
service keeps two requests from touching its sandbox together; a death in between is put right by
`start()`, for no sandbox outlives the platform.  The sandbox has the service's id.  It ends when
the service fails; a redeploy then makes a fresh one, without the files of the old, and counts a
deployment, so that what is told late of an earlier one is not heard.

`create` answers when the sandbox stands and the bootstrap was started: `starting`, or `running`
when there is none.  Slots are taken by what is starting, running or redeploying: one each vCPU.

A service has no time to live.  When its key is no longer good it is frozen (`key_expired`,
`key_suspended`) and goes on by itself when the key is good again and has slots.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

import structlog

from machines.platform import keys, service_rows, transfers
from machines.platform.limits import require_slot
from machines.platform.lives.service import LockService, ResizeService, UnlockService
from machines.platform.orders import Caller
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Handle
from machines.platform.service_orders import Change, DomainChange, Redeploy, ServiceOrder
from machines.platform.service_sandboxes import (
    HOLDING_SLOTS,
    LIVE,
    ServiceSandboxes,
    require,
    told,
    wrong_state,
)
from machines.platform.session_changes import memory_bytes
from persistence.database import Row
from persistence.database import Session as Sql

TOUCH_EVERY_MS = 10_000

log = structlog.get_logger("turtles.platform.services")


class Services(ServiceSandboxes):
    """The services of every key, and the sandboxes behind them."""

    def start(self) -> int:
        """Mark what an earlier process left as stopped; how many."""
        lost = self._move_all(LIVE, "stopped", "platform_restarted")
        if lost:
            log.info("services_lost", services=len(lost))
        return len(lost)

    def stop(self) -> None:
        """End every sandbox of a service; later creates are refused with 503."""
        self._stopping.set()
        for service_id in self._move_all(LIVE, "stopped", "platform_stopped"):
            with self._gate(service_id):
                self._end_sandbox(Handle(service_id))
        self._watch.stop()

    # -- making

    def create(self, caller: Caller, order: ServiceOrder) -> Row:
        """A new service, or the one this idempotency key made before.

        Raises:
            Problem: 409 name, domain or idempotency key taken, 429 no slot, 503, 400.
        """
        while True:
            row, is_new = self._reserve(caller, order)
            service_id = row["service_id"]
            if is_new:
                return self._build(service_id, order)
            # Another request with the same key may be creating it: answer when it is there.
            if event := self._starting.get(service_id):
                event.wait()
            if settled := self._row(service_id):
                return settled

    def _reserve(self, caller: Caller, order: ServiceOrder) -> tuple[Row, bool]:
        self._sessions.expire_due()
        service_id = f"unsb-service-{secrets.token_hex(8)}"
        with self._context.database.transaction() as sql:
            known = service_rows.repeated(sql, caller)
            if known is not None:
                return known, False
            # Inside the transaction: what commits before `stop` is ended by it.
            self._require_open()
            require_slot(sql, caller.public_key, caller.tier, order.vcpu)
            service_rows.insert(sql, service_id, caller, order, self._context.clock_ms())
            # Known to waiters before its row can be seen.
            self._starting[service_id] = threading.Event()
            return require(service_rows.select(sql, service_id), service_id), True

    def _build(self, service_id: str, order: ServiceOrder) -> Row:
        try:
            with self._gate(service_id):
                row = require(self._row(service_id), service_id)
                self._fill(row, order.prepare)
                self._launch(row)
            return require(self._row(service_id), service_id)
        except BaseException:
            # Nothing of it may be seen again: the same key may then create it afresh.
            with self._context.database.transaction() as sql:
                service_rows.remove(sql, service_id)
            self._end_sandbox(Handle(service_id))
            raise
        finally:
            self._starting.pop(service_id).set()

    def redeploy(self, caller: Caller, service_id: str, order: Redeploy) -> Row:
        """Run the bootstrap again, stored or given; in a fresh sandbox where there is none.

        Raises:
            Problem: 404, 409 frozen, 400 no bootstrap is known, 429, 503.
        """
        self._sessions.expire_due()
        with self._gate(service_id):
            with self._context.database.transaction() as sql:
                row = service_rows.select_live(sql, caller.public_key, service_id)
                if row["state"] not in ("running", "failed", "stopped"):
                    raise wrong_state(row, "wait until it runs, or unfreeze it, first")
                if order.bootstrap is None and row["bootstrap"] is None:
                    raise Problem(
                        400,
                        "no_bootstrap",
                        f"service {service_id} has no bootstrap to run again. "
                        "Give bootstrap or bootstrap_content.",
                    )
                self._require_open()
                fresh = row["state"] not in HOLDING_SLOTS
                if fresh:
                    require_slot(sql, caller.public_key, caller.tier, row["vcpu"])
                service_rows.remember(sql, service_id, order.bootstrap, order.input_files)
                row = self._move(sql, service_id, (row["state"],), "redeploying") or row
            self._deploy(row, fresh, tuple(order.input_files or ()))
        return require(self._row(service_id), service_id)

    def _deploy(self, row: Row, fresh: bool, new_files: tuple[str, ...]) -> None:
        handle = service_rows.handle_of(row)
        self._say(
            row["service_id"],
            f"deployment {row['deployment']}"
            + (": a fresh sandbox, the files of the old one are lost" if fresh else ""),
        )
        try:
            if fresh:
                self._end_sandbox(handle)
                self._fill(row, self._refilling(row))
            else:
                with told(handle.sandbox_id):
                    self._deployments.end(handle)
                    transfers.link_inputs(self._backend, handle, new_files)
            self._launch(row)
        except BaseException as error:
            reason = error.error if isinstance(error, Problem) else "internal_error"
            self._failed(row["service_id"], row["deployment"], reason)
            raise

    def _refilling(self, row: Row) -> Callable[[Handle], None] | None:
        refill = self.refill
        if refill is None or not row["source_image"]:
            return None
        return lambda handle: refill(row, handle)

    # -- finding

    def live(self, public_key: str) -> list[Row]:
        """The key's services that are not deleted, oldest first."""
        with self._context.database.reading() as sql:
            return service_rows.select_all_live(sql, public_key)

    def find(self, public_key: str, id_or_name: str) -> Row:
        """A service of this key, by its id or its name.

        Raises:
            Problem: 404, unknown, deleted or another key's.
        """
        with self._context.database.reading() as sql:
            return service_rows.select_live(sql, public_key, id_or_name)

    def by_host(self, host: str) -> Row | None:
        """The service, of any key, that a request with this `Host` header is for.

        `NAME.on.<anything>`, or a custom domain.
        """
        with self._context.database.reading() as sql:
            return service_rows.select_by_host(sql, host)

    def sandbox(self, row: Row) -> Handle:
        """The sandbox of a service that runs.

        Raises:
            Problem: 409, it does not run.
        """
        if row["state"] != "running":
            raise wrong_state(row, "wait until it runs, unfreeze or redeploy it")
        return service_rows.handle_of(row)

    def claim(self, sql: Sql, public_key: str, service_id: str) -> None:
        """Let a command begin in it, inside the transaction that notes the command down.

        Raises:
            Problem: 404, 409 it does not run, 429 too many commands run in it.
        """
        row = service_rows.select_live(sql, public_key, service_id)
        self.sandbox(row)
        service_rows.require_calm(sql, public_key, row["service_id"])

    def logs(self, row: Row, limit: int | None) -> list[str]:
        """The newest lines of a service, oldest first."""
        return self.log.read(row["service_id"], limit)

    # -- freezing

    def freeze(self, public_key: str, service_id: str) -> Row:
        """Stop its processes and give its slots back; one that is frozen stays so.

        Raises:
            Problem: 404, 409 not running.
        """
        self.find(public_key, service_id)
        return self.freeze_for(service_id, None)

    def unfreeze(self, public_key: str, service_id: str) -> tuple[Row, int]:
        """Let it go on; one that runs goes on.  With the milliseconds that it took.

        Raises:
            Problem: 404, 409 not running, 429 no slot.
        """
        self.find(public_key, service_id)
        self._sessions.expire_due()
        began = time.monotonic()
        row = self.thaw(service_id)
        return row, int((time.monotonic() - began) * 1000)

    def wake(self, service_id: str) -> Row:
        """The service, running, for a visitor's request; thawed when it wants that.

        Raises:
            Problem: 404; 503 it does not run, is being started, or stays frozen; 429 no slot.
        """
        with self._context.database.reading() as sql:
            row = service_rows.select_small(sql, service_id)
        if row is None or row["state"] == "deleted":
            raise service_rows.not_found(service_id)
        if row["state"] == "frozen" and row["unfreeze_on_demand"] and row["reason"] is None:
            self._sessions.expire_due()
            row = self.thaw(service_id)
        if row["state"] != "running":
            raise Problem(
                503,
                f"service_{row['state']}",
                f"service {row['name']} is {row['state']} and answers nothing now.",
                headers={"Retry-After": "5"},
                fields={"state": row["state"], "reason": row["reason"]},
            )
        return row

    def freeze_for(self, service_id: str, reason: str | None) -> Row:
        """Freeze it, whoever's it is; with a reason it is not the owner's wish."""
        with self._gate(service_id):
            with self._context.database.transaction() as sql:
                row = require(service_rows.select(sql, service_id), service_id)
                if row["state"] == "frozen":
                    return row
                if row["state"] != "running":
                    raise wrong_state(row, "only a running service can be frozen")
                before = row
                row = self._move(sql, service_id, ("running",), "frozen", reason) or row
            with self._or_back(before):
                self._backend.freeze(Handle(service_id))
        return row

    def thaw(self, service_id: str) -> Row:
        """Unfreeze it, whoever's it is.

        Raises:
            Problem: 409, 429, 503 its key is not good.
        """
        with self._gate(service_id):
            with self._context.database.transaction() as sql:
                row = require(service_rows.select(sql, service_id), service_id)
                if row["state"] == "running":
                    return row
                if row["state"] != "frozen":
                    raise wrong_state(row, "only a frozen service can be unfrozen")
                key = keys.find(sql, row["public_key"])
                if key is None or key.standing(self._context.clock_ms()) != "active":
                    raise Problem(503, "key_expired", "the key of this service is not good now.")
                require_slot(sql, row["public_key"], key.tier, row["vcpu"])
                before = row
                row = self._move(sql, service_id, ("frozen",), "running") or row
            with self._or_back(before):
                self._backend.unfreeze(Handle(service_id))
        self.touch(service_id)
        return row

    # -- changing

    def set_locked(self, public_key: str, service_id: str, locked: bool) -> Row:
        """Refuse, or allow, its deletion.

        Raises:
            Problem: 404.
        """
        with self._context.database.transaction() as sql:
            row = service_rows.select_live(sql, public_key, service_id)
            sql.run(
                "UPDATE service SET locked = :locked WHERE service_id = :id",
                id=row["service_id"],
                locked=int(locked),
            )
            self._live(sql, row["service_id"], LockService() if locked else UnlockService())
            return require(service_rows.select(sql, row["service_id"]), row["service_id"])

    def change(self, caller: Caller, service_id: str, wanted: Change) -> Row:
        """Change some of it: all that is asked for, or nothing.

        Raises:
            Problem: 404, 409 name or domain taken, 429 no slots for more vCPUs.
        """
        self._sessions.expire_due()
        with self._gate(service_id):
            with self._context.database.transaction() as sql:
                before = service_rows.select_live(sql, caller.public_key, service_id)
                more = (wanted.vcpu or before["vcpu"]) - before["vcpu"]
                if more and before["state"] in ("starting", "redeploying"):
                    raise wrong_state(before, "wait until it runs before you resize it")
                if more > 0 and before["state"] == "running":
                    require_slot(sql, caller.public_key, caller.tier, more)
                service_rows.change(sql, service_id, wanted)
                if more:
                    self._live(sql, service_id, ResizeService(vcpu=before["vcpu"] + more))
                row = require(service_rows.select(sql, service_id), service_id)
            if more and row["state"] in ("running", "frozen"):
                self._resize(row, before["vcpu"])
        return row

    def _resize(self, row: Row, before_vcpu: int) -> None:
        handle, vcpu = service_rows.handle_of(row), row["vcpu"]
        try:
            with told(row["service_id"]):
                self._backend.resize(handle, vcpus=vcpu, memory_bytes=memory_bytes(vcpu))
        except Problem:
            with self._context.database.transaction() as sql:
                service_rows.change(sql, row["service_id"], Change(vcpu=before_vcpu))
                self._live(sql, row["service_id"], ResizeService(vcpu=before_vcpu))
            raise

    def change_domains(self, public_key: str, service_id: str, wanted: DomainChange) -> Row:
        """Replace, add or remove custom domains.

        Raises:
            Problem: 404, 409 another service has one, 400 too many.
        """
        with self._context.database.transaction() as sql:
            row = service_rows.select_live(sql, public_key, service_id)
            after = wanted.applied(service_rows.domains_of(row))
            service_rows.set_domains(sql, row["service_id"], after)
            return require(service_rows.select(sql, row["service_id"]), service_id)

    def touch(self, service_id: str) -> None:
        """Note activity.  Written down every few seconds at the most: visitors are many."""
        now_ms = self._context.clock_ms()
        if 0 <= now_ms - self._touched_ms.get(service_id, -TOUCH_EVERY_MS) < TOUCH_EVERY_MS:
            return
        self._touched_ms[service_id] = now_ms
        with self._context.database.transaction() as sql:
            sql.run(
                "UPDATE service SET last_active_ms = :now WHERE service_id = :id",
                id=service_id,
                now=now_ms,
            )

    def delete(self, public_key: str, service_id: str) -> Row:
        """End it for ever; its name is free.

        Raises:
            Problem: 404, 409 it is locked.
        """
        with self._context.database.transaction() as sql:
            row = service_rows.select_live(sql, public_key, service_id)
            service_id = row["service_id"]
            if row["locked"]:
                raise Problem(
                    409,
                    "locked",
                    f"service {service_id} is locked. POST /services/{service_id}/unlock first.",
                )
            row = self._move(sql, service_id, (row["state"],), "deleted", "deleted") or row
            service_rows.clear(sql, service_id)
        with self._gate(service_id):
            self._end_sandbox(Handle(service_id))
        self._touched_ms.pop(service_id, None)
        self._gates.pop(service_id, None)
        return row
