"""Hints between processes over one PostgreSQL: "look now" instead of at the next poll.

A hint carries nothing and promises nothing: a worker polls all the same, and a hint that is lost
costs a poll's time.  So hints are kept off the path of commits (NOTIFY within a transaction makes
all such commits wait for each other)::

    a call gives others work -> after its commit, `give` -> one NOTIFY for all of the last 10 ms
    a listener's own connection -> NOTIFY arrives -> `heard()`, in the listener's thread

A pooler in transaction mode drops LISTEN; `?hints=off` in the url does without.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import structlog

from engine.errors import StoreError

_log = structlog.get_logger("turtles.store")
CHANNEL = "turtles_work"
COALESCED_SECONDS = 0.01
_LOOK_SECONDS = 0.5
"""How soon a listener notices that it shall stop."""


class Hints:
    """Gives hints, and hears those of others.

    Args:
        connect: opens a connection of its own, outside of any pool.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._given = threading.Event()
        self._stop = threading.Event()
        self._giver: threading.Thread | None = None
        self._lock = threading.Lock()

    def give(self) -> None:
        """Tell the others, soon."""
        self._given.set()
        if self._giver is None:
            with self._lock:
                if self._giver is None and not self._stop.is_set():
                    self._giver = self._begin("turtles-hints", self._give_always)

    def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard`, from another thread, for each hint; until `close`."""
        self._begin("turtles-listen", lambda: self._listen_always(heard))

    def close(self) -> None:
        """End all threads; they are not waited for."""
        self._stop.set()
        self._given.set()

    def _begin(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def _give_always(self) -> None:
        self._connected(self._give_while)

    def _give_while(self, connection: Any) -> None:
        while not self._stop.is_set():
            self._given.wait()
            if self._stop.wait(COALESCED_SECONDS):
                return
            self._given.clear()
            connection.execute(f"NOTIFY {CHANNEL}")

    def _listen_always(self, heard: Callable[[], None]) -> None:
        def listen(connection: Any) -> None:
            connection.execute(f"LISTEN {CHANNEL}")
            heard()  # something may have happened before
            while not self._stop.is_set():
                for _ in connection.notifies(timeout=_LOOK_SECONDS, stop_after=1):
                    heard()

        self._connected(listen)

    def _connected(self, work: Callable[[Any], None]) -> None:
        """Work with a connection, and with another one when it is lost."""
        tries = 0
        while not self._stop.is_set():
            try:
                connection = self._connect()
            except StoreError as error:
                _log.info("hints.away", reason=str(error))
            else:
                tries = 0
                self._work(connection, work)
            wait = min(0.1 * 2**tries, 5.0) * (0.5 + random.random() / 2)  # noqa: S311 - jitter
            self._stop.wait(wait)
            tries += 1

    def _work(self, connection: Any, work: Callable[[Any], None]) -> None:
        try:
            work(connection)
        except Exception as error:  # noqa: BLE001 - the driver's; without hints there is polling
            if not self._stop.is_set():
                _log.info("hints.away", reason=str(error))
        finally:
            connection.close()
