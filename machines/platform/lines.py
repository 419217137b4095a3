"""The platform's own log lines, kept in memory for the operators who ask for them over HTTP.

::

    structlog ... -> redact -> RECENT.copy -> stderr
                                  |
                         the newest 10,000 lines

Lines are copied after `engine.log.redact` has hidden what is secret, and routes are logged without
ids that are as good as a password, so what is here is what stands in the log file.  A line belongs
to one source: `portal` and `api` by the route it is about, `pool/local` when it is about a sandbox.

One ring a process: log lines belong to the process, not to one application in it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from itertools import takewhile
from typing import Any

import msgspec

from engine.log import LEVELS

POOL = "pool/local"
SOURCES = ("api", "portal", POOL)
LINES_KEPT = 10_000
LINE_CHARACTERS_MAX = 2_000
_PORTAL_ROUTES = (
    "/pricing-for-agents",
    "/api/",
    "/payment/",
    "/pay/",
    "/gift-cards/",
    "/keys/extend",
    "/rpc/",
)
_PORTAL_EVENTS = (
    "block_skipped",
    "mining_failed",
    "refund_not_resent",
    "refund_waits",
    "wrong_gift_code",
)
_POOL_EVENTS = (
    "sandbox.",
    "sandbox_",
    "egress",
    "destroy_failed",
    "sweep_failed",
    "sessions_start",
)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One log line.  `number` only grows; `text` is a JSON object."""

    number: int
    at_ms: int
    source: str
    level: str
    text: str


class RecentLines:
    """The newest lines; may be written by any thread.

    Args:
        kept: how many lines stay.
        clock_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        kept: int = LINES_KEPT,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._lines: deque[Line] = deque(maxlen=kept)
        self._lock = threading.Lock()
        self._clock_ms = clock_ms
        self._number = 0

    def copy(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """structlog processor: keep a copy and pass the event on."""
        shown = {name: value for name, value in event.items() if name != "exc_info"}
        text = msgspec.json.encode(shown, enc_hook=str).decode()[:LINE_CHARACTERS_MAX]
        with self._lock:
            self._number += 1
            self._lines.append(
                Line(
                    number=self._number,
                    at_ms=self._clock_ms(),
                    source=source_of(event),
                    level=str(event.get("level", "info")),
                    text=text,
                )
            )
        return event

    @property
    def newest(self) -> int:
        """The number of the newest line; 0 before the first."""
        return self._number

    def now_ms(self) -> int:
        """The time by the clock of the lines."""
        return self._clock_ms()

    def find(
        self,
        *,
        source: str = "all",
        after: int = 0,
        since_ms: int = 0,
        grep: str = "",
        level: str = "debug",
        limit: int = LINES_KEPT,
    ) -> list[Line]:
        """The newest `limit` lines that fit, oldest first.

        Args:
            source: one of `SOURCES`, or `all`.
            after: only lines with a greater number.
            since_ms: only lines from this time on.
            grep: only lines with this text in them, whatever its case.
            level: only lines at least this serious.
        """
        with self._lock:
            # From the newest backwards: a stream asks often, and mostly nothing is new.
            newer = list(takewhile(lambda line: line.number > after, reversed(self._lines)))
        lines = reversed(newer)
        wanted = set(LEVELS[LEVELS.index(level) :]) if level in LEVELS else set(LEVELS)
        text = grep.casefold()
        found = [
            line
            for line in lines
            if line.at_ms >= since_ms
            and source in ("all", line.source)
            and line.level in wanted
            and text in line.text.casefold()
        ]
        return found[-limit:]


def source_of(event: MutableMapping[str, Any]) -> str:
    """Which source a log event belongs to."""
    name, route = str(event.get("event", "")), str(event.get("route", ""))
    if name.startswith(_POOL_EVENTS):
        return POOL
    if name in _PORTAL_EVENTS or (
        route.startswith(_PORTAL_ROUTES) and route != "/api/keys/validate"
    ):
        return "portal"
    return "api"


RECENT = RecentLines()
"""The lines of this process."""
