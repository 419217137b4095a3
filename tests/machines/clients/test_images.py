"""Images on the wire: what a platform of another mind may answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secret import Secret
from machines.clients import Transport
from machines.clients.images import HttpImages
from machines.clients.ports import Credentials, NotFound, Rejected
from machines.clients.ports.images import ImageInfo
from machines.clients.ports.refusals import Refusal, code_of

Serve = Callable[..., Transport]
CREDENTIALS = Credentials(public_key="unsb-pk-1", secret_key=Secret("unsb-sk-1"))
LEAST = {"id": "i1", "owner_key": "unsb-pk-1", "access": "owned", "visibility": "private"}


def _client(served: Serve, body: Any, status: int = 200) -> tuple[HttpImages, list[httpx.Request]]:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(status, json=body)

    return HttpImages("http://api.test", served(answer)), requests


async def test_the_least_that_a_platform_may_say(served: Serve) -> None:
    client, requests = _client(served, LEAST | {"trusted": ["unsb-pk-2"]})
    seen = await client.set_visibility(CREDENTIALS, "i1", "private")
    assert seen == ImageInfo(
        image_id="i1", owner_key="unsb-pk-1", access="owned", visibility="private", level="",
        locked=False, trusted=("unsb-pk-2",),
    )  # fmt: skip
    assert requests[0].content == b'{"visibility":"private"}'


@pytest.mark.parametrize("name", ["access", "visibility"])
async def test_a_word_that_nobody_knows_is_refused(served: Serve, name: str) -> None:
    client, _ = _client(served, LEAST | {name: "secret"})
    with pytest.raises(Rejected, match=f"field {name} 'secret': expected one of"):
        await client.image(CREDENTIALS, "i1")


@pytest.mark.parametrize(("trusted", "verb"), [(True, "grant"), (False, "revoke")])
async def test_grants_name_the_key(served: Serve, trusted: bool, verb: str) -> None:
    client, requests = _client(served, LEAST)
    await client.set_trusted(CREDENTIALS, "i1", "unsb-pk-2", trusted=trusted)
    assert requests[0].url.path == f"/images/i1/{verb}"
    assert requests[0].content == b'{"trusted_api_key":"unsb-pk-2"}'


async def test_a_refusal_has_a_status_and_a_code(served: Serve) -> None:
    client, _ = _client(served, {"error": "not_owner", "message": "no"}, 403)
    with pytest.raises(Refusal) as refused:
        await client.transfer(CREDENTIALS, "i1", "unsb-pk-2")
    assert (refused.value.status, refused.value.code) == (403, "not_owner")
    client, _ = _client(served, {}, 404)
    with pytest.raises(NotFound) as missing:
        await client.spawn(CREDENTIALS, "i1", kind="session", name="", key="k")
    assert code_of(missing.value) == code_of(Rejected("without")) == ""
