"""Services on the wire: visits by host name, bootstraps, and the vault's secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secret import Secret
from machines.clients import Transport
from machines.clients.ports import Credentials, Rejected, Unavailable
from machines.clients.ports.services import Answer, ServiceInfo
from machines.clients.services import TEXT_BYTES_MAX, HttpServices

Serve = Callable[..., Transport]
CREDENTIALS = Credentials(public_key="unsb-pk-1", secret_key=Secret("unsb-sk-1"))


def _client(served: Serve, answer: httpx.Response) -> tuple[HttpServices, list[httpx.Request]]:
    requests: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(answer.status_code, content=answer.content)

    return HttpServices("http://api.test", served(serve)), requests


async def test_a_visit_names_the_service_to_the_platform(served: Serve) -> None:
    client, requests = _client(served, httpx.Response(503, content=b"x" * (TEXT_BYTES_MAX + 1)))
    answer = await client.visit("http://web.on.localhost:81/", "/ready")
    assert answer == Answer(status=503, text="x" * TEXT_BYTES_MAX)
    assert (requests[0].headers["Host"], requests[0].url.path) == ("web.on.localhost:81", "/ready")
    assert "Authorization" not in requests[0].headers


async def test_a_visit_that_finds_no_slot(served: Serve) -> None:
    client, _ = _client(served, httpx.Response(429))
    with pytest.raises(Unavailable) as refused:
        await client.visit("http://web.on.localhost/", "/")
    assert refused.value.kind == "concurrency"


@pytest.mark.parametrize(("url", "path"), [("", "/"), ("web", "/"), ("http://web/", "ready")])
async def test_a_visit_to_nowhere_is_refused(served: Serve, url: str, path: str) -> None:
    client, requests = _client(served, httpx.Response(200))
    with pytest.raises(Rejected, match="expected a URL and /a/path"):
        await client.visit(url, path)
    assert requests == []


@pytest.mark.parametrize(
    ("bootstrap", "sent"),
    [
        ("", b"{}"),
        ("exec app", b'{"bootstrap_content":"exec app"}'),
        ("https://a/b", b'{"bootstrap":"https://a/b"}'),
    ],
)
async def test_a_bootstrap_is_a_script_or_a_url(served: Serve, bootstrap: str, sent: bytes) -> None:
    client, requests = _client(served, httpx.Response(200, json={}))
    await client.redeploy(CREDENTIALS, "s1", bootstrap)
    assert requests[0].content == sent
    assert "Idempotency-Key" not in requests[0].headers


async def test_the_least_that_a_platform_may_say(served: Serve) -> None:
    body: dict[str, Any] = {"id": "s1", "status": "running"}
    client, _ = _client(served, httpx.Response(200, json=body))
    assert await client.service(CREDENTIALS, "s1") == ServiceInfo(
        service_id="s1", name="", state="running", reason="", url="", locked=False, deployment=1
    )


async def test_the_vault_is_written_in_the_body_alone(served: Serve) -> None:
    client, requests = _client(served, httpx.Response(200, json={}))
    await client.set_env(CREDENTIALS, "s1", Secret("A=sesame"))
    assert requests[0].content == b'{"content":"A=sesame"}'
    assert "sesame" not in str(requests[0].url) + repr(requests[0].headers)
