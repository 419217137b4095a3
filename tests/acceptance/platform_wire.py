"""The way to a platform that dies now and then: requests, who may ask now, and what was answered.

Refusals are judged here: a status of 500 and above has to be one of `REFUSALS` (of
`DOOR_REFUSALS`, for a visitor of a service), and a well-formed request is never 400.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from tests.acceptance.platform_kills import signed_headers

REFUSALS = {
    (500, "sandbox_died"): "a one-off execution's sandbox ended before its code did",
    (500, "outcome_unknown"): "the result of a run could not be stored",
    (503, "sandbox_died"): "a new session's sandbox ended while it was made",
    (503, "stopping"): "the platform was told to stop",
    (503, "server_stopping"): "the platform was told to stop",
    (503, "platform_stopping"): "the platform was told to stop",
    (503, "sandbox_unavailable"): "no sandbox could be made",
    (503, "store_busy"): "the database was busy for too long",
    (503, "freeze_failed"): "a sandbox would not stand still",
}
"""Every answer of 500 and above that a request may get, and what it says."""
DOOR_REFUSALS = {
    (502, "service_unreachable"): "nothing listens on the service's port",
    (502, "service_failed"): "the service's program failed",
    (503, "service_unavailable"): "the service's sandbox is just ending",
    (503, "service_starting"): "the service is being made",
    (503, "service_redeploying"): "the service is being made anew",
    (503, "service_stopped"): "the service ended with the platform, and was not redeployed",
    (503, "service_frozen"): "the service stands still",
    (503, "service_busy"): "the service has too many visitors",
}
"""The same for what a visitor of a service may get."""
ANSWER_SECONDS = 90.0
Pair = tuple[str, str]


class Cut(Exception):
    """The server went away before it answered."""


@dataclass
class Answer:
    """What came back."""

    status: int
    body: Any
    text: str

    @property
    def good(self) -> bool:
        """Whether it is a success."""
        return 200 <= self.status < 300

    @property
    def error(self) -> str:
        """The word for what was refused."""
        if not isinstance(self.body, dict):
            return "service_frozen" if "is frozen</title>" in self.text else ""
        return str(self.body.get("error") or "")


class Gate:
    """Where clients wait while the platform is down, or is being looked at."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = False
        self._busy = 0
        self.life = 0
        self.over = False

    def enter(self, not_life: int) -> int:
        """Wait until it is open in another life than that; the life."""
        with self._changed:
            self._changed.wait_for(lambda: self.over or (self._open and self.life != not_life))
            self._busy += 1
            return self.life

    def leave(self) -> None:
        """An action is done, or was cut."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let no further action begin."""
        with self._changed:
            self._open = False

    def begin_life(self) -> None:
        """Another server serves; who was cut may enter once it is open."""
        with self._changed:
            self.life += 1

    def open(self) -> None:
        """Let everybody go on."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def finish(self) -> None:
        """Send everybody home."""
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def quiet(self, within_seconds: float) -> bool:
        """Wait until nobody is inside; whether that came about."""
        with self._changed:
            return self._changed.wait_for(lambda: self._busy == 0, within_seconds)


class Wire:
    """The way to the platform that serves now, and everything that was said on it."""

    def __init__(self) -> None:
        self.base = ""
        self.gate = Gate()
        self.counts: Counter[str] = Counter()
        self.refused: Counter[tuple[int, str]] = Counter()
        self.secrets: set[str] = set()
        self._wrong: list[str] = []
        self._lock = threading.Lock()
        self._moved = threading.Condition()
        self._flying: Counter[str] = Counter()
        self._http = httpx.Client(
            timeout=ANSWER_SECONDS, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def wrong(self, what: str) -> None:
        """Something that must never be."""
        with self._lock:
            if what not in self._wrong:
                self._wrong.append(what)

    def problems(self) -> list[str]:
        """Everything that was wrong so far, without a secret in it."""
        with self._lock:
            found = list(self._wrong)
        for secret in self.secrets:
            found = [each.replace(secret, "<a secret>") for each in found]
        return found

    def keep_secret(self, *secrets: str | None) -> None:
        """Texts that may appear in no log."""
        with self._lock:
            self.secrets.update(each for each in secrets if each)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        pair: Pair | None = None,
        once: str | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        door: bool = False,
        may_be: int = 200,
    ) -> Answer:
        """One request.  `door`: of a visitor; `may_be`: a refusal that is right here.

        Raises:
            Cut: the server went away.
        """
        content = b"" if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        if pair is not None:
            sent |= signed_headers(pair, method, path, content)
        if once is not None:
            sent["Idempotency-Key"] = once
        where = f"{method} {_shape(path)}"
        try:
            with self._in_flight(where):
                got = self._http.request(
                    method, self.base + path, content=content, headers=sent, auth=auth
                )
        except httpx.TimeoutException as error:
            self.wrong(f"{where}: no answer within {ANSWER_SECONDS:.0f} s")
            raise Cut from error
        except httpx.TransportError as error:
            raise Cut from error
        answer = Answer(got.status_code, None, got.text)
        with suppress(ValueError):
            answer.body = got.json()
        self._count("HTTP to a service" if door else where, answer, door, may_be)
        return answer

    def wait_for(self, where: str, within_seconds: float) -> bool:
        """Wait until such a request is on its way; whether one was."""
        with self._moved:
            return self._moved.wait_for(lambda: self._flying[where] > 0, within_seconds)

    @contextmanager
    def _in_flight(self, where: str) -> Iterator[None]:
        with self._moved:
            self._flying[where] += 1
            self._moved.notify_all()
        try:
            yield
        finally:
            with self._moved:
                self._flying[where] -= 1

    def _count(self, where: str, answer: Answer, door: bool, may_be: int) -> None:
        with self._lock:
            self.counts[where] += 1
            if not answer.good:
                self.refused[(answer.status, answer.error)] += 1
        allowed = REFUSALS | DOOR_REFUSALS if door else REFUSALS
        if answer.status >= 500 and (answer.status, answer.error) not in allowed:
            self.wrong(f"{where}: {answer.status} {answer.text[:300]}")
        asked_wrongly = answer.status in (400, 401, 403, 405, 413, 422) and not door
        may = answer.status == may_be or answer.error == "session_not_running"
        if asked_wrongly and not may:
            self.wrong(f"{where}: {answer.status} {answer.text[:300]}")


def _shape(path: str) -> str:
    """A path without what is different in each."""
    words = path.partition("?")[0].split("/")
    return "/".join(
        "{id}" if word.startswith("unsb-") or len(word) > 24 else word for word in words
    )
