"""Many at once want what there is one of: exactly one gets it, each time.

    python -m tests.acceptance.races --rounds 100

A child process serves a platform over real sockets (sandboxes are stand-ins).  In each round 64
connections send at once, for each of

- one slot: a key with one slot, 64 `POST /sessions`: one 200, the others 429;
- one balance: a gift card that holds one price, 64 redemptions: one key, the others 402;
- one secret: a paid invoice, 64 status requests: one has the secret, the others null;
- one snapshot: 64 restores of it at once: one 200, the others 409.  The one that restores waits
  inside the sandbox until the others were answered, so that they are really at the same time.

Exit codes: 0 exactly one every time, 1 not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance import platform_kills as platform
from tests.acceptance.platform_kills import Platform, new_platform, signed_headers

AT_ONCE = 64
HELD_SECONDS = 20.0


def hold_restores(backend: Any) -> Any:
    """Let a restore end only when all others that came meanwhile have been refused."""
    refused = threading.Semaphore(0)
    load = backend.load

    def held(*arguments: Any) -> None:
        for _ in range(AT_ONCE - 1):
            if not refused.acquire(timeout=HELD_SECONDS):
                break
        load(*arguments)

    backend.load = held
    return refused


class CountRefusals:
    """Tells the restore that is held of every 409 on its way out."""

    def __init__(self, app: Any, refused: threading.Semaphore) -> None:
        self._app = app
        self._refused = refused

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.start" and message["status"] == 409:
                self._refused.release()

        await self._app(scope, receive, told)


async def at_once(p: Platform, pair: tuple[str, str], *request: Any) -> list[httpx.Response]:
    """The same request on so many connections, which are open before any of them sends."""
    method, path, body = request
    content = json.dumps(body or {}).encode() if method != "GET" else b""
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    base = f"http://127.0.0.1:{p.port}"
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=60) as client:
        await asyncio.gather(*(client.get("/health") for _ in range(AT_ONCE)))
        headers = signed_headers(pair, method, path, content)
        sends = (
            client.request(method, path, content=content, headers=headers) for _ in range(AT_ONCE)
        )
        return list(await asyncio.gather(*sends))


def one_slot(p: Platform) -> list[str]:
    """A key of tier 4 has one slot."""
    answers = asyncio.run(at_once(p, p.small, "POST", "/sessions", {"ttl": 600}))
    for answer in answers:
        if answer.is_success:
            path = f"/sessions/{answer.json()['session_id']}"
            platform.request_as(p, p.small, ("DELETE", path, None))
    return _judged(answers, 200, 429)


def one_balance(p: Platform) -> list[str]:
    """A card of 700 cents buys one key of 700 cents."""
    code = platform.card(p, amount_cents=700)["code"]
    body = {"code": code, "tier_level": 1, "months": 1}
    return _judged(
        asyncio.run(at_once(p, p.pair, "POST", "/api/gift-cards/redeem", body)), 200, 402
    )


def one_secret(p: Platform) -> list[str]:
    """The first completed status carries the secret."""
    path = f"/payment/{platform.paid_invoice(p)['invoice_id']}/status"
    answers = asyncio.run(at_once(p, p.pair, "GET", path, None))
    secrets = [answer.json().get("secret_key") for answer in answers]
    shown = sum(secret is not None for secret in secrets)
    return [] if shown == 1 else [f"{shown} of {AT_ONCE} got the secret"]


def one_restore(p: Platform) -> list[str]:
    """A session is restored by one request at a time."""
    made = platform.session(p)
    taken = p.good("POST", f"/sessions/{made}/snapshot", {})["snapshot_id"]
    answers = asyncio.run(at_once(p, p.pair, "POST", f"/snapshots/{taken}/restore", {}))
    p.good("DELETE", f"/snapshots/{taken}")
    p.good("DELETE", f"/sessions/{made}")
    return _judged(answers, 200, 409)


def _judged(answers: list[httpx.Response], good: int, bad: int) -> list[str]:
    statuses = Counter(answer.status_code for answer in answers)
    wanted = Counter({good: 1, bad: len(answers) - 1})
    return [] if statuses == wanted else [f"answers {dict(statuses)}, wanted {dict(wanted)}"]


RACES = {
    "one slot": one_slot,
    "one balance": one_balance,
    "one secret": one_secret,
    "one restore": one_restore,
}


def main() -> int:
    """All rounds; 0 when exactly one won every time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="turtles-races-") as name:
        p = new_platform(Path(name) / "data")
        p.prepare = _prepare
        p.start()
        try:
            for race, run in RACES.items():
                began = time.monotonic()
                found = [each for _ in range(options.rounds) for each in run(p)]
                wrong += len(found)
                took = time.monotonic() - began
                verdict = "exactly one each time" if not found else f"FAILED {found[:3]}"
                print(f"{race:12} {options.rounds} rounds of {AT_ONCE}  {took:5.1f} s  {verdict}")
        finally:
            p.stop()
    return 1 if wrong else 0


def _prepare(app: Any, backend: Any) -> Any:
    return CountRefusals(app, hold_restores(backend))


if __name__ == "__main__":
    sys.exit(main())
