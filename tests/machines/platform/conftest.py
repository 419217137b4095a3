"""A whole platform in one process: own clock, own data directory, signed calls over ASGI."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from starlette.routing import compile_path

from engine.secrets import SecretsCodec
from machines.platform import keys
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.replies import Problem
from machines.platform.sandbox.fake import FakeBackend

START_MS = 1_700_000_000_000


class Api:
    """Signed calls to one platform application.  `now_ms` is the platform's clock."""

    def __init__(self, data_dir: Path, backend: Any) -> None:
        from machines.platform.app import build_app

        self.now_ms = START_MS
        self.data_dir = data_dir
        self.backend = backend
        self.database = open_platform_database(data_dir)
        self.codec = SecretsCodec(b"k" * 32)
        few = PlatformConfig(payer_outputs=5, shop_outputs=2, stranger_outputs=2)
        self.context = open_money(self.database, self.codec, lambda: self.now_ms, few)
        self.app = build_app(self.context, backend)
        transport = httpx.ASGITransport(app=self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://platform")

    def key(self, tier: int = 4, months: int = 1) -> tuple[str, str]:
        """A bought key pair."""
        with self.database.transaction() as sql:
            public_key = keys.issue(sql, tier, months, self.now_ms)
            return public_key, keys.secret(sql, public_key)

    async def call(
        self,
        pair: tuple[str, str],
        method: str,
        path: str,
        body: Any = None,
        *,
        once: str | None = None,
        at_ms: int | None = None,
    ) -> httpx.Response:
        """A signed request; `body` is JSON-encoded unless it is bytes."""
        if isinstance(body, bytes):
            content = body
        else:
            content = b"" if body is None else json.dumps(body).encode()
        timestamp = str((self.now_ms if at_ms is None else at_ms) // 1000)
        message = f"{timestamp}:{method}:{path}:".encode() + content
        headers = {
            "Authorization": f"Bearer {pair[0]}",
            "X-Timestamp": timestamp,
            "X-Signature": hmac.new(pair[1].encode(), message, hashlib.sha256).hexdigest(),
        }
        if once is not None:
            headers["Idempotency-Key"] = once
        return await self.http.request(method, path, content=content, headers=headers)

    async def described_call(
        self,
        pair: tuple[str, str],
        method: str,
        path: str,
        body: Any = None,
        *,
        once: str | None = None,
    ) -> httpx.Response:
        """`call`, a second later; the answer must be one that its endpoint describes."""
        self.now_ms += 1_000  # stay within the rate
        answer = await self.call(pair, method, path, body, once=once)
        endpoint = next(
            each
            for each in self.app.state.api.endpoints()
            for each_method, each_path in each.routes
            if each_method == method and compile_path(each_path)[0].match(path.partition("?")[0])
        )
        assert answer.status_code in endpoint.statuses, (path, answer.text)
        if answer.status_code in endpoint.answers:
            jsonschema_rs.validate(endpoint.answers[answer.status_code], answer.json())
        return answer

    @staticmethod
    def together(calls: list[Callable[[], Any]]) -> list[Any]:
        """The calls' results, from as many threads that begin at the same moment."""
        barrier = threading.Barrier(len(calls))
        results: list[Any] = [None] * len(calls)

        def one(number: int) -> None:
            barrier.wait()
            try:
                results[number] = calls[number]()
            except Problem as problem:
                results[number] = problem

        threads = [threading.Thread(target=one, args=(number,)) for number in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def backend() -> FakeBackend:
    """The sandbox of the `api` fixture; override it in a test file for another."""
    return FakeBackend()


@pytest.fixture
async def api(tmp_path: Path, backend: Any) -> AsyncIterator[Api]:
    """A started platform, stopped after the test."""
    data_dir = tmp_path / "platform"
    data_dir.mkdir(exist_ok=True)
    data_dir.chmod(0o700)
    started = Api(data_dir, backend)
    async with started.app.router.lifespan_context(started.app), started.http:
        yield started
    started.database.close()
