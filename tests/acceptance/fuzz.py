"""The OpenAPI document against the platform that publishes it: made-up requests, honest answers.

    python -m tests.acceptance.fuzz --seconds 120 --seed 7

A real server (uvicorn, in a thread) with a backend that runs nothing serves a fresh directory.
Schemathesis reads `/openapi.json` from it and makes requests for every operation in turn, valid
ones and wrong ones; they are signed like those of any client, and half of them name things that
really exist.  An answer is wrong when

- it is a 5xx that is not documented (503 and 501 may be),
- its status, its content type or its body is not what the document says,
- it takes longer than `ANSWER_SECONDS_MAX`.

Exit code 1 and the requests that did it, when anything was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup

from engine.secrets import SecretsCodec
from machines.platform import keys
from machines.platform.app import build_app
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.sandbox.fake import FakeBackend

ANSWER_SECONDS_MAX = 10.0
MAY_BE_SERVER_ERROR = frozenset({501, 503})
START_SECONDS = 20.0
_TAKES_SLOTS = (
    "POST /sessions",
    "POST /services",
    "POST /snapshots/{snapshot_id}/clone",
    "POST /images/{image_id}/spawn",
    "POST /execute",
    "POST /run",
)
_CHECKS = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")


class Signer(requests.auth.AuthBase):
    """Signs what is about to be sent, over the very bytes of it."""

    def __init__(self, pair: tuple[str, str]) -> None:
        self.pair = pair

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the three headers."""
        body = request.body or b""
        content = body.encode() if isinstance(body, str) else body
        target = urlsplit(request.url or "")
        path = target.path + (f"?{target.query}" if target.query else "")
        timestamp = str(int(time.time()))
        message = f"{timestamp}:{request.method}:{path}:".encode() + content
        request.headers["Authorization"] = f"Bearer {self.pair[0]}"
        request.headers["X-Timestamp"] = timestamp
        request.headers["X-Signature"] = hmac.new(
            self.pair[1].encode(), message, hashlib.sha256
        ).hexdigest()
        return request


@dataclass
class Target:
    """A running platform, a key for it, and ids of things that the key owns."""

    base_url: str
    signer: Signer
    ids: dict[str, list[str]] = field(default_factory=dict)
    stocked: int = 0

    def call(self, method: str, path: str, body: Any = None) -> requests.Response:
        """A signed request."""
        return requests.request(
            method,
            self.base_url + path,
            json=body,
            auth=self.signer,
            timeout=ANSWER_SECONDS_MAX,
            allow_redirects=False,
        )

    def stock(self) -> None:
        """Make one of everything that there is, for requests to name."""
        self.ids.clear()
        self.tidy()
        self.stocked += 1
        made = self.call("POST", "/sessions", {"ttl": 86_400})
        self._remember("session_id", made)
        code = {"language": "python", "code": "print(1)"}
        self._remember("job_id", self.call("POST", "/execute", code))
        service = {"name": f"fuzzed-{self.stocked}", "ports": [8080], "bootstrap": "echo up"}
        self._remember("service_id", self.call("POST", "/services", service))
        for session_id in self.ids.get("session_id", ()):
            taken = self.call("POST", f"/sessions/{session_id}/snapshot", {"name": "one"})
            self._remember("snapshot_id", taken)
        for snapshot_id in self.ids.get("snapshot_id", ()):
            source = {"source_type": "snapshot", "source_id": snapshot_id}
            self._remember("image_id", self.call("POST", "/images", source))
        order = {"tier_level": 1, "months": 1, "payment_method": "LTC"}
        self._remember("invoice_id", self.call("POST", "/api/invoices", order))
        self.ids["source"] = ["all", "api", "pool/local"]

    def tidy(self) -> None:
        """End what made-up requests have made, so that slots are left for the next ones."""
        for kind, name in (("sessions", "session_id"), ("services", "service_id")):
            for found in self.call("GET", f"/{kind}").json()[kind]:
                if found[name] not in self.ids.get(name, ()):
                    self.call("POST", f"/{kind}/{found[name]}/unlock")
                    self.call("DELETE", f"/{kind}/{found[name]}")

    def _remember(self, name: str, answer: requests.Response) -> None:
        if answer.ok:
            body = answer.json()
            self.ids.setdefault(name, []).append(body.get(name) or body["id"])


@contextmanager
def serving(data_dir: Path, *, operator: bool = True) -> Iterator[Target]:
    """A platform on a free port of the loopback, until the block ends."""
    data_dir.mkdir(mode=0o700, exist_ok=True)
    database = open_platform_database(data_dir)
    codec = SecretsCodec(os.urandom(32))
    keys.bind(database, codec)
    few = {"payer_outputs": 5, "shop_outputs": 2, "stranger_outputs": 2}
    now_ms = time.time_ns() // 1_000_000
    with database.transaction() as sql:
        public_key = keys.issue(sql, 32, 1, now_ms)
        pair = (public_key, keys.secret(sql, public_key))
    config = PlatformConfig(operators=frozenset({public_key} if operator else ()), **few)
    context = open_money(database, codec, lambda: time.time_ns() // 1_000_000, config)
    app = build_app(context, FakeBackend(), requests_per_minute_per_tier=1_000_000)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2)
        )
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            _wait_until_started(server)
            yield Target(base_url, Signer(pair))
        finally:
            app.state.api.stop()
            server.should_exit = True
            thread.join(20)
            database.close()


def _wait_until_started(server: uvicorn.Server) -> None:
    limit = time.monotonic() + START_SECONDS
    while not server.started:
        if time.monotonic() > limit:
            raise RuntimeError(f"the platform did not start within {START_SECONDS:.0f} s")
        time.sleep(0.01)


@dataclass
class Report:
    """What was tried, and what went wrong."""

    requests: int = 0
    operations: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    slowest_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def fuzz(
    target: Target,
    *,
    seconds: float,
    seed: int,
    examples: int,
    rounds: int | None = None,
    document: dict[str, Any] | None = None,
) -> Report:
    """Make up to `examples` requests for each operation, round after round, for so long.

    Args:
        rounds: how many at most.
        document: the one to hold the platform to, instead of the one that it publishes.
    """
    load_all_checks()
    if document is None:
        published = requests.get(f"{target.base_url}/openapi.json", timeout=ANSWER_SECONDS_MAX)
        document = published.json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    # Whatever ends things comes last, so that the others meet them alive.
    operations.sort(key=lambda each: (each.method.upper() == "DELETE", each.path))
    report, limit = Report(), time.monotonic() + seconds
    played = 0
    while time.monotonic() < limit and (rounds is None or played < rounds):
        if played:
            target.stock()
        for operation in operations:
            if time.monotonic() > limit:
                break
            if operation.label in _TAKES_SLOTS:
                target.tidy()
            _one_operation(target, operation, report, seed + played, examples, limit)
            if played == 0:
                report.operations += 1
        played += 1
    return report


def _one_operation(
    target: Target, operation: Any, report: Report, seed: int, examples: int, limit: float
) -> None:
    chosen = random.Random(f"{seed} {operation.label}")

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), real=st.booleans())
    def one(case: Any, real: bool) -> None:
        if time.monotonic() > limit:
            return
        if real:
            for name in list(case.path_parameters or {}):
                if target.ids.get(name):
                    case.path_parameters[name] = chosen.choice(target.ids[name])
        problem = _send(target, case, report)
        if problem is not None:
            report.wrong.append(problem)

    try:
        one()
    except Unsatisfiable:
        report.wrong.append(f"{operation.label}: no request can be made up for it")


def _send(target: Target, case: Any, report: Report) -> str | None:
    """Send one request; what is wrong with its answer, if anything."""
    # A stream of an operator goes on and on; anybody else is refused at once.
    streams = case.path.endswith("/stream") and not case.path.startswith("/services")
    signed = not streams or case.path.startswith("/sessions")
    began = time.monotonic()
    try:
        answer = case.call(
            base_url=target.base_url,
            auth=target.signer if signed else None,
            timeout=ANSWER_SECONDS_MAX,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        return f"{_shown(case)}: no answer ({type(error).__name__}: {error})"
    except UnicodeEncodeError:
        return None  # a made-up header that no client can send
    took = time.monotonic() - began
    report.requests += 1
    report.statuses[answer.status_code] = report.statuses.get(answer.status_code, 0) + 1
    report.slowest_seconds = max(report.slowest_seconds, took)
    if took > ANSWER_SECONDS_MAX:
        return f"{_shown(case)}: answered after {took:.1f} s"
    if answer.status_code >= 500 and answer.status_code not in MAY_BE_SERVER_ERROR:
        return f"{_shown(case)}: {answer.status_code} {answer.text[:300]}"
    try:
        case.validate_response(answer, checks=[CHECKS.get_one(name) for name in _CHECKS])
    except (FailureGroup, AssertionError) as failure:
        inner = getattr(failure, "exceptions", (failure,))
        what = "; ".join(f"{type(each).__name__}: {each}" for each in inner)
        return f"{_shown(case)}: {answer.status_code} {answer.text[:200]}: {what[:600]}"
    return None


def _shown(case: Any) -> str:
    body = repr(case.body)[:200]
    query = dict(case.query or {})
    return f"{case.method} {case.formatted_path[:200]} query={query} body={body}"


def main() -> int:
    """Fuzz for a while; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.fuzz")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--examples", type=int, default=20)
    given_arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="turtles-fuzz-") as directory,
        serving(Path(directory) / "platform") as target,
    ):
        target.stock()
        report = fuzz(
            target,
            seconds=given_arguments.seconds,
            seed=given_arguments.seed,
            examples=given_arguments.examples,
        )
    print(
        f"fuzz: {report.requests} requests, {report.operations} operations, slowest "
        f"{report.slowest_seconds:.2f} s, statuses {dict(sorted(report.statuses.items()))}, "
        f"ids {sorted(target.ids)}, seed {given_arguments.seed}"
    )
    for wrong in report.wrong[:50]:
        print(f"wrong: {wrong}")
    print(f"{len(report.wrong)} answers were wrong")
    return 1 if report.wrong or not report.requests else 0


if __name__ == "__main__":
    sys.exit(main())
