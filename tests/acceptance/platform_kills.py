"""`kill -9` of the platform in the middle of every mutating endpoint, at every boundary of each.

    python -m tests.acceptance.platform_kills              every endpoint, every boundary
    python -m tests.acceptance.platform_kills --most 2     at most so many boundaries of each
    python -m tests.acceptance.platform_kills --only "POST /images"

A boundary is the moment before or after a transaction of the platform's database, or a call of the
sandbox backend.  For each endpoint a child process serves a platform whose sandboxes are stand-ins
(`FakeBackend`; those of the real backend are killed by `kill_storm`); what the endpoint needs is
made, then the request is sent and the process kills itself with SIGKILL at one boundary.  Another
child opens the same directory.  Then:

- it starts, and `turtles doctor` has nothing to say (money, gift cards, keys, life cycles);
- no row is in a state that only a running request leaves (starting, creating, pending, ...);
- every stored file belongs to a row that is ready, and the reverse;
- the same request with the same Idempotency-Key is answered below 500, and still at most one row
  has that key.

The list of endpoints is the platform's own (`Api.endpoints`): one without a case here is an error.
Exit codes: 0 nothing was wrong, 1 something was, 2 an endpoint has no case.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from engine.secrets import SecretsCodec
from machines.platform import keys
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.reports import platform_doctor
from machines.platform.sandbox.fake import FakeBackend

MASTER = b"k" * 32
START_SECONDS = 20.0
SETTLE_SECONDS = 5.0
FATAL_CALLS = (
    "create",
    "destroy",
    "execute",
    "cell",
    "collect",
    "freeze",
    "unfreeze",
    "resize",
    "save",
    "load",
    "start_program",
    "stop_program",
)
Request = tuple[str, str, Any]
Prepare = Callable[[Any, Any], Any]
"""Makes something else of (application, backend) before it is served: the application to serve."""


# -- the process that dies -----------------------------------------------------------------------


class Boundaries:
    """Counts the moments at which the process may die, and ends it at the chosen one."""

    def __init__(self) -> None:
        self.counting = False
        self.die_at = 0
        self.reached: list[str] = []

    def reach(self, name: str) -> None:
        """One such moment."""
        if not self.counting:
            return
        self.reached.append(name)
        if len(self.reached) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalBackend:
    """A backend before and after whose calls the process may die."""

    def __init__(self, backend: Any, boundaries: Boundaries) -> None:
        self._backend = backend
        self._boundaries = boundaries

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._backend, name)
        if name not in FATAL_CALLS:
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            self._boundaries.reach(f"before backend.{name}")
            result = value(*arguments, **named)
            self._boundaries.reach(f"after backend.{name}")
            return result

        return call


def mortal_database(database: Any, boundaries: Boundaries) -> None:
    """Let the process die before and after each write transaction."""
    transaction = database.transaction

    @contextmanager
    def fatal() -> Iterator[Any]:
        boundaries.reach("before a transaction")
        with transaction() as sql:
            yield sql
        boundaries.reach("after a transaction")

    database.transaction = fatal


def serve(data_dir: Path, listener: socket.socket, prepare: Prepare | None) -> None:
    """Serve a platform for ever; `/_kill` arms and reads its boundaries."""
    import uvicorn
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from machines.platform import app as platform_app

    platform_app.EXPIRY_SECONDS = 3600.0
    boundaries = Boundaries()
    database = open_platform_database(data_dir)
    context = open_money(database, SecretsCodec(MASTER), _now_ms, CONFIG)
    mortal_database(database, boundaries)
    fake = FakeBackend()
    backend = MortalBackend(fake, boundaries)
    app = platform_app.build_app(
        context, backend, allow_faults=True, requests_per_minute_per_tier=100_000
    )

    async def arm(request: Any) -> Any:
        told = await request.json()
        reached = list(boundaries.reached)
        boundaries.reached.clear()
        boundaries.die_at = told["die_at"]
        boundaries.counting = told["counting"]
        return JSONResponse(reached)

    async def mine(_request: Any) -> Any:
        context.blocks.mine("LTC", 8)
        return JSONResponse({})

    app.router.routes.insert(0, Route("/_kill", arm, methods=["POST"]))
    app.router.routes.insert(0, Route("/_mine", mine, methods=["POST"]))
    served = prepare(app, fake) if prepare is not None else app
    config = uvicorn.Config(served, log_config=None, lifespan="on", ws="none")
    uvicorn.Server(config).run(sockets=[listener])


CONFIG = PlatformConfig(
    payer_outputs=4, shop_outputs=4, stranger_outputs=2, output_cents=1_000_000, allow_faults=True
)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# -- the one that watches ------------------------------------------------------------------------


@dataclass
class Platform:
    """A served data directory, by its child process."""

    data_dir: Path
    pair: tuple[str, str] = ("", "")
    other: str = ""
    small: tuple[str, str] = ("", "")
    prepare: Prepare | None = None
    pid: int = 0
    port: int = 0
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def start(self) -> None:
        """Fork a child that serves, and wait until it answers."""
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.pid = os.fork()
        if self.pid == 0:
            _become_server(self.data_dir, listener, self.prepare)
        listener.close()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                raise AssertionError("the platform did not start; see platform.log")
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.02)
        raise AssertionError("the platform did not answer in time")

    def stop(self) -> None:
        """Kill the child."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def died(self) -> bool:
        """Whether the child is dead."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0
        return self.pid == 0

    def arm(self, *, counting: bool, die_at: int = 0) -> list[str]:
        """Begin to count (and to die); what was counted before."""
        answer = httpx.post(
            f"http://127.0.0.1:{self.port}/_kill", json={"counting": counting, "die_at": die_at}
        )
        found: list[str] = answer.json()
        return found

    def call(self, request: Request, *, once: str | None = None) -> httpx.Response:
        """A signed request."""
        return request_as(self, self.pair, request, once=once)

    def good(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """A signed request that has to succeed; its JSON."""
        answer = self.call((method, path, body))
        assert answer.is_success, f"preparing {method} {path}: {answer.status_code} {answer.text}"
        found: dict[str, Any] = answer.json()
        return found


def request_as(
    p: Platform, pair: tuple[str, str], request: Request, *, once: str | None = None
) -> httpx.Response:
    """A request that some key signs."""
    method, path, body = request
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    headers = signed_headers(pair, method, path, content)
    headers["Content-Type"] = "text/plain" if isinstance(body, bytes) else "application/json"
    if once is not None:
        headers["Idempotency-Key"] = once
    url = f"http://127.0.0.1:{p.port}{path}"
    return httpx.request(method, url, content=content, headers=headers, timeout=30)


def signed_headers(pair: tuple[str, str], method: str, path: str, content: bytes) -> dict[str, str]:
    """What proves who asks, now."""
    timestamp = str(int(time.time()))
    message = f"{timestamp}:{method}:{path}:".encode() + content
    return {
        "Authorization": f"Bearer {pair[0]}",
        "X-Timestamp": timestamp,
        "X-Signature": hmac.new(pair[1].encode(), message, hashlib.sha256).hexdigest(),
    }


def _become_server(data_dir: Path, listener: socket.socket, prepare: Prepare | None) -> None:
    log = os.open(data_dir / "platform.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        serve(data_dir, listener, prepare)
    finally:
        os._exit(3)


def new_platform(data_dir: Path) -> Platform:
    """A platform with three keys, not started; the last has one slot."""
    data_dir.mkdir(mode=0o700)
    key_file = data_dir / "master.key"
    key_file.write_bytes(base64.urlsafe_b64encode(MASTER))
    key_file.chmod(0o600)
    database = open_platform_database(data_dir)
    open_money(database, SecretsCodec(MASTER), _now_ms, CONFIG)
    with database.transaction() as sql:
        first, second = (keys.issue(sql, 32, 12, _now_ms()) for _ in range(2))
        third = keys.issue(sql, 4, 12, _now_ms())
        pair, small = ((key, keys.secret(sql, key)) for key in (first, third))
    database.close()
    return Platform(data_dir, pair, second, small)


# -- what is asked of it -------------------------------------------------------------------------


def session(p: Platform) -> str:
    """A running session."""
    return str(p.good("POST", "/sessions", {"network_mode": "zerotrust"})["session_id"])


def frozen_session(p: Platform) -> str:
    """A frozen one."""
    made = session(p)
    p.good("POST", f"/sessions/{made}/freeze")
    return made


def service(p: Platform, **fields: Any) -> str:
    """A running service without a program."""
    order = {"name": f"svc-{next(p.numbers)}", "network_mode": "zerotrust", **fields}
    return str(p.good("POST", "/services", order)["service_id"])


def snapshot(p: Platform) -> str:
    """A snapshot of a live session."""
    return str(p.good("POST", f"/sessions/{session(p)}/snapshot", {})["snapshot_id"])


def image(p: Platform) -> str:
    """An image of a snapshot."""
    order = {"source_type": "snapshot", "source_id": snapshot(p)}
    return str(p.good("POST", "/images", order)["image_id"])


def after(p: Platform, thing: str, method: str, path: str, body: Any = None) -> str:
    """The same thing after a request about it."""
    p.good(method, path.format(thing), body)
    return thing


def invoice(p: Platform, body: Any = None) -> dict[str, Any]:
    """An open invoice."""
    order = body or {"tier_level": 1, "months": 1, "payment_method": "LTC"}
    found: dict[str, Any] = httpx.post(f"{_base(p)}/api/invoices", json=order).json()
    return found


def _base(p: Platform) -> str:
    return f"http://127.0.0.1:{p.port}"


_VAULT = {"env": {"A": "1"}}
_CODE = {"language": "bash", "code": "echo hi"}
CASES: dict[str, Callable[[Platform], Request]] = {
    "POST /execute": lambda p: ("POST", "/execute", _CODE),
    "POST /execute/async": lambda p: ("POST", "/execute/async", _CODE),
    "POST /run": lambda p: ("POST", "/run", b"#!/bin/bash\necho hi\n"),
    "POST /run/async": lambda p: ("POST", "/run/async", b"#!/bin/bash\necho hi\n"),
    "DELETE /jobs/{job_id}": lambda p: (
        "DELETE", f"/jobs/{p.good('POST', '/execute', _CODE)['job_id']}", None
    ),
    "POST /sessions": lambda p: ("POST", "/sessions", {"network_mode": "zerotrust"}),
    "DELETE /sessions/{session_id}": lambda p: ("DELETE", f"/sessions/{session(p)}", None),
    "POST /sessions/{session_id}/execute": lambda p: (
        "POST", f"/sessions/{session(p)}/execute", {"command": "echo hi"}
    ),
    "POST /sessions/{session_id}/freeze": lambda p: ("POST", f"/sessions/{session(p)}/freeze", {}),
    "POST /sessions/{session_id}/unfreeze": lambda p: (
        "POST", f"/sessions/{frozen_session(p)}/unfreeze", {}
    ),
    "POST /sessions/{session_id}/boost": lambda p: (
        "POST", f"/sessions/{session(p)}/boost", {"vcpu": 2}
    ),
    "POST /sessions/{session_id}/unboost": lambda p: (
        "POST",
        f"/sessions/{after(p, session(p), 'POST', '/sessions/{}/boost', {'vcpu': 2})}/unboost",
        {},
    ),
    "POST /sessions/{session_id}/lock": lambda p: ("POST", f"/sessions/{session(p)}/lock", {}),
    "POST /sessions/{session_id}/unlock": lambda p: (
        "POST", f"/sessions/{after(p, session(p), 'POST', '/sessions/{}/lock')}/unlock", {}
    ),
    "POST /sessions/{session_id}/extend": lambda p: (
        "POST", f"/sessions/{session(p)}/extend", {"ttl": 7200}
    ),
    "POST /sessions/{session_id}/snapshot": lambda p: (
        "POST", f"/sessions/{session(p)}/snapshot", {}
    ),
    "POST /sessions/{session_id}/restore": lambda p: _restore_session(p),
    "POST /services": lambda p: (
        "POST", "/services", {"name": f"svc-{next(p.numbers)}", "network_mode": "zerotrust"}
    ),
    "PATCH /services/{service_id}": lambda p: ("PATCH", f"/services/{service(p)}", {"vcpu": 2}),
    "DELETE /services/{service_id}": lambda p: ("DELETE", f"/services/{service(p)}", None),
    "POST /services/{service_id}/freeze": lambda p: ("POST", f"/services/{service(p)}/freeze", {}),
    "POST /services/{service_id}/unfreeze": lambda p: (
        "POST", f"/services/{after(p, service(p), 'POST', '/services/{}/freeze')}/unfreeze", {}
    ),
    "POST /services/{service_id}/lock": lambda p: ("POST", f"/services/{service(p)}/lock", {}),
    "POST /services/{service_id}/unlock": lambda p: (
        "POST", f"/services/{after(p, service(p), 'POST', '/services/{}/lock')}/unlock", {}
    ),
    "POST /services/{service_id}/resize": lambda p: (
        "POST", f"/services/{service(p)}/resize", {"vcpu": 2}
    ),
    "POST /services/{service_id}/redeploy": lambda p: (
        "POST", f"/services/{service(p)}/redeploy", {"bootstrap_content": "echo hi"}
    ),
    "POST /services/{service_id}/execute": lambda p: (
        "POST", f"/services/{service(p)}/execute", {"command": "echo hi"}
    ),
    "POST /services/{service_id}/snapshot": lambda p: (
        "POST", f"/services/{service(p)}/snapshot", {}
    ),
    "POST /services/{service_id}/restore": lambda p: _restore_service(p),
    "PUT /services/{service_id}/domains": lambda p: (
        "PUT", f"/services/{service(p)}/domains", {"custom_domains": ["d.example"]}
    ),
    "PUT /services/{service_id}/env": lambda p: ("PUT", f"/services/{service(p)}/env", _VAULT),
    "POST /services/{service_id}/env": lambda p: ("POST", f"/services/{service(p)}/env", _VAULT),
    "DELETE /services/{service_id}/env": lambda p: (
        "DELETE", f"/services/{after(p, service(p), 'PUT', '/services/{}/env', _VAULT)}/env", None
    ),
    "POST /snapshots": lambda p: ("POST", "/snapshots", {"session_id": session(p)}),
    "DELETE /snapshots/{snapshot_id}": lambda p: ("DELETE", f"/snapshots/{snapshot(p)}", None),
    "POST /snapshots/{snapshot_id}/lock": lambda p: ("POST", f"/snapshots/{snapshot(p)}/lock", {}),
    "POST /snapshots/{snapshot_id}/unlock": lambda p: (
        "POST", f"/snapshots/{after(p, snapshot(p), 'POST', '/snapshots/{}/lock')}/unlock", {}
    ),
    "POST /snapshots/{snapshot_id}/restore": lambda p: (
        "POST", f"/snapshots/{snapshot(p)}/restore", {}
    ),
    "POST /snapshots/{snapshot_id}/clone": lambda p: (
        "POST", f"/snapshots/{snapshot(p)}/clone", {"type": "session"}
    ),
    "POST /images": lambda p: (
        "POST", "/images", {"source_type": "snapshot", "source_id": snapshot(p)}
    ),
    "DELETE /images/{image_id}": lambda p: ("DELETE", f"/images/{image(p)}", None),
    "POST /images/{image_id}/lock": lambda p: ("POST", f"/images/{image(p)}/lock", {}),
    "POST /images/{image_id}/unlock": lambda p: (
        "POST", f"/images/{after(p, image(p), 'POST', '/images/{}/lock')}/unlock", {}
    ),
    "POST /images/{image_id}/visibility": lambda p: (
        "POST", f"/images/{image(p)}/visibility", {"visibility": "public"}
    ),
    "POST /images/{image_id}/grant": lambda p: (
        "POST", f"/images/{image(p)}/grant", {"trusted_api_key": p.other}
    ),
    "POST /images/{image_id}/revoke": lambda p: (
        "POST", f"/images/{image(p)}/revoke", {"trusted_api_key": p.other}
    ),
    "DELETE /images/{image_id}/access/{key}": lambda p: (
        "DELETE",
        f"/images/{after(p, image(p), 'POST', '/images/{}/grant', {'api_key': p.other})}"
        f"/access/{p.other}",
        None,
    ),
    "POST /images/{image_id}/transfer": lambda p: (
        "POST", f"/images/{image(p)}/transfer", {"to_api_key": p.other}
    ),
    "POST /images/{image_id}/spawn": lambda p: (
        "POST", f"/images/{image(p)}/spawn", {"name": f"svc-{next(p.numbers)}"}
    ),
    "POST /images/{image_id}/clone": lambda p: ("POST", f"/images/{image(p)}/clone", {}),
}  # fmt: skip
ASKS_ONLY = {
    "POST /keys/validate",
    "POST /paas/logs",
    "POST /services/{service_id}/env/export",
    "POST /image",
}
"""POST requests that change nothing."""


def _restore_session(p: Platform) -> Request:
    made = session(p)
    taken = p.good("POST", f"/sessions/{made}/snapshot", {})["snapshot_id"]
    return ("POST", f"/sessions/{made}/restore", {"snapshot_id": taken})


def _restore_service(p: Platform) -> Request:
    made = service(p)
    taken = p.good("POST", f"/services/{made}/snapshot", {})["snapshot_id"]
    return ("POST", f"/services/{made}/restore", {"snapshot_id": taken})


def paid_invoice(p: Platform, order: Any = None) -> dict[str, Any]:
    """An invoice that was paid, deep enough, and not asked about since."""
    made = invoice(p, order)
    _pay(p, made)
    return made


def _pay(p: Platform, made: dict[str, Any]) -> None:
    """Pay through the simulated node, and bury it."""
    body = {"id": 1, "method": "sendtoaddress", "params": [made["address"], made["amount"]]}
    auth = (CONFIG.rpc_user, CONFIG.rpc_password)
    answer = httpx.post(f"{_base(p)}/rpc/ltc/wallet/payer", json=body, auth=auth)
    assert answer.is_success, answer.text
    assert httpx.post(f"{_base(p)}/_mine").is_success


def card(p: Platform, **fields: Any) -> dict[str, Any]:
    """A gift card that was paid."""
    order = {"amount_cents": 5000, "payment_method": "LTC", **fields}
    made: dict[str, Any] = httpx.post(f"{_base(p)}/api/gift-cards/create", json=order).json()
    _pay(p, made)
    return made


def _redeem(p: Platform, **fields: Any) -> Request:
    order = {"code": card(p, **fields)["code"], "tier_level": 1, "months": 3}
    return ("POST", "/api/gift-cards/redeem", order)


def _deciding(p: Platform, word: str) -> Request:
    """The link in a letter to a buyer."""
    request = _redeem(p, require_approval=True, email="buyer@mail.example")
    assert p.call(request).is_success
    text = httpx.get(f"{_base(p)}/_test/letters").text
    token = text.split(f"/gift-cards/{word}/")[1].split("\\n")[0].split('"')[0]
    return ("POST", f"/gift-cards/{word}/{token}", None)


def _order_of_key(**fields: Any) -> dict[str, Any]:
    return {"tier_level": 1, "months": 1, "payment_method": "LTC", **fields}


PORTAL_CASES: dict[str, Callable[[Platform], Request]] = {
    "POST /api/invoices": lambda _: ("POST", "/api/invoices", _order_of_key()),
    "GET /payment/{invoice_id}/status": lambda p: (
        "GET",
        f"/payment/{paid_invoice(p)['invoice_id']}/status",
        None,
    ),
    "POST /payment/{invoice_id}/regenerate": lambda p: (
        "POST",
        f"/payment/{paid_invoice(p)['invoice_id']}/regenerate",
        None,
    ),
    "POST /api/gift-cards/create": lambda _: (
        "POST",
        "/api/gift-cards/create",
        {"amount_cents": 5000, "payment_method": "LTC"},
    ),
    "POST /api/gift-cards/redeem": _redeem,
    "POST /gift-cards/approve/{token}": lambda p: _deciding(p, "approve"),
    "POST /gift-cards/deny/{token}": lambda p: _deciding(p, "deny"),
}
CASES |= PORTAL_CASES


# -- judging -------------------------------------------------------------------------------------

TRANSIENT = {
    "session": ("state", ("starting", "running", "frozen")),
    "service": ("state", ("starting", "running", "redeploying", "frozen")),
    "execution": ("state", ("pending", "running")),
    "snapshot": ("status", ("creating",)),
    "image": ("status", ("creating",)),
}
KEYED = ("session", "service", "execution", "snapshot", "image")


def problems_after(p: Platform, once: str) -> list[str]:
    """What is wrong with a directory whose platform died and was started again."""
    found = [f"{one.check}: {one.message}" for one in platform_doctor(p.data_dir)]
    database = open_platform_database(p.data_dir)
    with database.reading() as sql:
        for table, (column, states) in TRANSIENT.items():
            listed = ", ".join(f"'{state}'" for state in states)
            many = sql.scalar(f"SELECT count(*) FROM {table} WHERE {column} IN ({listed})")  # noqa: S608
            if many:
                found.append(f"{many} rows of {table} are still {listed}")
        for table in KEYED:
            many = sql.scalar(
                f"SELECT count(*) FROM {table} WHERE idempotency_key = :once",  # noqa: S608
                once=once,
            )
            if many > 1:
                found.append(f"{many} rows of {table} have one idempotency key")
        for table, identity in (("snapshot", "snapshot_id"), ("image", "image_id")):
            ready = {
                row[identity]
                for row in sql.all(f"SELECT {identity} FROM {table} WHERE status = 'ready'")  # noqa: S608
            }
            files = {file.stem for file in (p.data_dir / f"{table}s").glob("*")}
            if files != ready:
                found.append(f"{table}s: files {files ^ ready} have no row, or rows no file")
    database.close()
    return found


def check(template: Path, name: str, most: int | None) -> tuple[int, list[str]]:
    """Kill one endpoint at every boundary; how many deaths, and what was wrong."""
    with _copy(template) as p:
        p.start()
        try:
            request = CASES[name](p)
            p.arm(counting=True)
            answer = p.call(request, once="once")
            if not answer.is_success:
                return 0, [f"{name}: {answer.status_code} {answer.text[:200]}"]
            boundaries = _settled(p)
        finally:
            p.stop()
    step = 1 if most is None or most >= len(boundaries) else len(boundaries) / most
    wanted = sorted({int(1 + step * turn) for turn in range(len(boundaries))})
    deaths, wrong = 0, []
    for number in (each for each in wanted if each <= len(boundaries)):
        died, found = kill_once(template, name, number)
        deaths += died
        wrong += [f"{name} at {number} ({boundaries[number - 1]}): {each}" for each in found]
    return deaths, wrong


def _settled(p: Platform) -> list[str]:
    """Every boundary reached, once nothing more comes."""
    reached: list[str] = []
    quiet = 0
    deadline = time.monotonic() + SETTLE_SECONDS
    while quiet < 3 and time.monotonic() < deadline:
        more = p.arm(counting=True)
        quiet = 0 if more else quiet + 1
        reached += more
        time.sleep(0.05)
    return reached


def kill_once(template: Path, name: str, number: int) -> tuple[bool, list[str]]:
    """One death at one boundary, and what is wrong afterwards."""
    with _copy(template) as p:
        p.start()
        try:
            request = CASES[name](p)
            p.arm(counting=True, die_at=number)
            with suppress(httpx.TransportError):
                p.call(request, once="once")
            deadline = time.monotonic() + SETTLE_SECONDS
            while not (died := p.died()) and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            p.stop()
        if not died:
            return False, []
        p.start()
        try:
            wrong = problems_after(p, "once")
            again = p.call(request, once="once")
            if again.status_code >= 500:
                wrong.append(f"repeated: {again.status_code} {again.text[:200]}")
            wrong += [
                f"repeated, then {one.check}: {one.message}"
                for one in platform_doctor(p.data_dir)
                if one.check not in ("sessions", "sandboxes")
            ]
        finally:
            p.stop()
    return True, wrong


@contextmanager
def _copy(template: Path) -> Iterator[Platform]:
    with tempfile.TemporaryDirectory(prefix="turtles-kill-") as name:
        data_dir = Path(name) / "data"
        shutil.copytree(template, data_dir)
        data_dir.chmod(0o700)
        told = json.loads((template.parent / "keys.json").read_text())
        yield Platform(data_dir, tuple(told["pair"]), told["other"])


def missing_cases(data_dir: Path) -> list[str]:
    """Mutating endpoints of the platform without a case."""
    from machines.platform.api import Api

    database = open_platform_database(data_dir)
    api = Api(open_money(database, SecretsCodec(MASTER), _now_ms, CONFIG), FakeBackend())
    offered = {f"{one.method} {one.path}" for one in api.endpoints() if one.method != "GET"}
    database.close()
    return sorted(offered - set(CASES) - ASKS_ONLY)


def main() -> int:
    """Every endpoint; 0 when nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, help="boundaries of each endpoint, spread evenly")
    parser.add_argument("--only", action="append", help="an endpoint, such as 'POST /images'")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turtles-kills-") as name:
        template = Path(name) / "template"
        made = new_platform(template)
        (Path(name) / "keys.json").write_text(json.dumps({"pair": made.pair, "other": made.other}))
        if missing := missing_cases(template):
            print("endpoints without a case:", ", ".join(missing))
            return 2
        began, total, wrong = time.monotonic(), 0, []
        for case in options.only or CASES:
            deaths, found = check(template, case, options.most)
            total += deaths
            wrong += found
            print(f"{case:45} {deaths:3} deaths  {'ok' if not found else 'FAILED'}", flush=True)
            for each in found:
                print(f"    {each}", flush=True)
        took = time.monotonic() - began
    print(f"platform kills: {total} deaths, {len(wrong)} problems, {took:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
