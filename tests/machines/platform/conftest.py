"""A whole platform in one process: own clock, own data directory, signed calls over ASGI."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.secrets import SecretsCodec
from machines.platform import keys
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
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
