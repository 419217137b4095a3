"""The script that tries to make a sandbox from inside one: run for real, against a small server."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from machines.flows import recursion


class Platform(http.server.BaseHTTPRequestHandler):
    """Checks signatures; `plan` holds what the next calls are answered instead."""

    seen: list[tuple[str, str, dict[str, Any]]] = []  # noqa: RUF012 - replaced for each test
    plan: list[tuple[int, dict[str, str], bytes]] = []  # noqa: RUF012
    known = ("pk", "sk")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, self.path, json.loads(body or b"{}")))
        if self.plan:
            self._say(*self.plan.pop(0))
        elif not self._is_signed(body):
            self._say(401, {}, b'{"error":"invalid_signature"}')
        else:
            self._say(200, {}, b'{"session_id":"unsb-session-7","extra":1}')

    do_DELETE = do_POST  # noqa: N815 - a name of the library

    def _is_signed(self, body: bytes) -> bool:
        message = f"{self.headers['X-Timestamp']}:{self.command}:{self.path}:".encode() + body
        wanted = hmac.new(self.known[1].encode(), message, hashlib.sha256).hexdigest()
        bearer = self.headers["Authorization"] == f"Bearer {self.known[0]}"
        return bearer and hmac.compare_digest(self.headers["X-Signature"] or "", wanted)

    def _say(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Platform.seen, Platform.plan = [], []
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Platform)
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


def run(ask: dict[str, str]) -> dict[str, str]:
    """What the command says where it is run."""
    done = subprocess.run(
        ["bash", "-c", recursion.command(ask)],
        capture_output=True, text=True, timeout=30, check=True, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.count("\n") == 1
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_with_a_key_a_sibling_is_made_and_ended(url: str) -> None:
    told = run({"url": url, "public_key": "pk", "secret_key": "sk"})
    assert told == {"sibling": "unsb-session-7", "reason": ""}
    (_, _, order), (method, path, _) = Platform.seen
    assert order == {"shell": "bash", "network_mode": "zerotrust", "ttl": 60}
    assert (method, path) == ("DELETE", "/sessions/unsb-session-7")


def test_without_a_key_it_says_what_it_was_told(url: str) -> None:
    told = run({"url": url})
    assert told["sibling"] == ""
    assert told["reason"].startswith("Refused: POST /sessions: 401 ")


def test_without_a_network_it_says_so() -> None:
    told = run({"url": "http://127.0.0.1:9"})
    assert told == {"sibling": "", "reason": "URLError: [Errno 111] Connection refused"}


def test_a_busy_platform_is_asked_again(url: str) -> None:
    Platform.plan = [(429, {"Retry-After": "0"}, b"{}"), (503, {"Retry-After": "0"}, b"{}")]
    assert run({"url": url, "public_key": "pk", "secret_key": "sk"})["reason"] == ""
    assert [method for method, _, _ in Platform.seen] == ["POST", "POST", "POST", "DELETE"]


def test_one_that_stays_busy_is_given_up(url: str) -> None:
    Platform.plan = [(429, {"Retry-After": "0"}, b'{"error":"no_slot"}')] * 4
    told = run({"url": url, "public_key": "pk", "secret_key": "sk"})
    assert told["reason"] == 'Refused: POST /sessions: 429 {"error":"no_slot"}'


@pytest.mark.parametrize("body", [b"nonsense", b"{}", b'{"session":', b""])
def test_an_answer_that_is_none(url: str, body: bytes) -> None:
    Platform.plan = [(200, {}, body)]
    told = run({"url": url, "public_key": "pk", "secret_key": "sk"})
    assert told["sibling"] == "" and told["reason"]


def test_a_sibling_that_cannot_be_ended_is_named(url: str) -> None:
    Platform.plan = [(200, {}, b'{"session_id":"s"}'), (500, {}, b"x" * 5000)]
    told = run({"url": url, "public_key": "pk", "secret_key": "sk"})
    assert told["sibling"] == "s"
    assert told["reason"].startswith("Refused: DELETE /sessions/s: 500 xxx")
    assert len(told["reason"]) <= 200


def test_the_secret_is_in_no_argument() -> None:
    command = recursion.command({"url": "u", "public_key": "p", "secret_key": "the-secret"})
    program, _, given = command.rpartition(" <<'TURTLES'\n")
    assert "the-secret" not in program
    assert "the-secret" in given
