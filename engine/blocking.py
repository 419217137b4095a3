"""The front door for programs without an event loop: the same App, in a thread of its own.

::

    with BlockingApp(App([Payment], store=open_store("sqlite:///runs.db"))) as app:
        run = app.start(Payment, Invoice(...), key="order-42")
        app.send(run.run_id, Paid(amount_atomic=100), key="tx-1")
        outcome = app.wait(run.run_id)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from engine.app import App, Outcome, Permission, RunRef
from engine.definition import Machine
from engine.events import Event
from engine.ports import Receipt
from engine.run import Run

T = TypeVar("T")


class BlockingApp:
    """Runs an `App` in a background thread; its methods block until they are done."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="turtles", daemon=True)

    def __enter__(self) -> BlockingApp:
        self._thread.start()
        try:
            self._call(self._app.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._call(self._app.stop())
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def start(
        self,
        machine: type[Machine[Any]] | str,
        context: Any,
        *,
        key: str | None = None,
        tenant: str = "",
        priority: int = 0,
        connection: Any = None,
    ) -> RunRef:
        """See `App.start`.  A connection of the caller is used in the caller's thread."""
        if connection is not None:
            return self._app.start_within(
                connection, machine, context, key=key, tenant=tenant, priority=priority
            )
        return self._call(
            self._app.start(machine, context, key=key, tenant=tenant, priority=priority)
        )

    def send(
        self, run_id: str, event: Event | str, *, key: str | None = None, connection: Any = None
    ) -> Receipt:
        """See `App.send`.  A connection of the caller is used in the caller's thread."""
        if connection is not None:
            return self._app.send_within(connection, run_id, event, key=key)
        return self._call(self._app.send(run_id, event, key=key))

    def wait(self, run_id: str, *, timeout_seconds: float | None = None) -> Outcome:
        """See `App.wait`."""
        return self._call(self._app.wait(run_id, timeout_seconds=timeout_seconds))

    def get(self, run_id: str) -> Run:
        """See `App.get`."""
        return self._call(self._app.get(run_id))

    def can(self, run_id: str, event: Event | str) -> Permission:
        """See `App.can`."""
        return self._call(self._app.can(run_id, event))

    def pause(self, run_id: str) -> Receipt:
        """See `App.pause`."""
        return self._call(self._app.pause(run_id))

    def resume(self, run_id: str) -> Receipt:
        """See `App.resume`."""
        return self._call(self._app.resume(run_id))

    def cancel(self, run_id: str) -> Receipt:
        """See `App.cancel`."""
        return self._call(self._app.cancel(run_id))
