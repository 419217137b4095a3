"""Sessions and services as sources: over real sandboxes, from a signed call to what runs inside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machines.platform.sandbox.backend import Handle
from machines.platform.sandbox.bubblewrap import BubblewrapBackend

Pair = tuple[str, str]
SERVER = """
python3 - <<'END'
import http.server, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = pathlib.Path("/root/page").read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words): pass
if not pathlib.Path("/root/page").exists():
    pathlib.Path("/root/page").write_text("first")
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
END
"""


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[BubblewrapBackend]:
    real = BubblewrapBackend(tmp_path / "sandboxes")
    yield real
    real.close()


@pytest.fixture
def pair(api: Any) -> Pair:
    made: Pair = api.key(tier=32)
    return made


async def ask(api: Any, pair: Pair, method: str, path: str, body: Any = None) -> Any:
    api.now_ms += 500
    answer = await api.call(pair, method, path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def run(api: Any, pair: Pair, session_id: str, code: str) -> str:
    shown = await ask(api, pair, "POST", f"/sessions/{session_id}/execute", {"command": code})
    assert shown["exit_code"] == 0, shown["stderr"]
    return str(shown["stdout"])


async def page(api: Any, pair: Pair, service_id: str) -> str:
    """What the service answers on its port, once it runs."""
    for _ in range(1000):
        row = api.app.state.api.services.find(pair[0], service_id)
        assert row["state"] != "failed", row["reason"]
        if row["state"] == "running":
            break
        await asyncio.sleep(0.02)
    connection = await asyncio.to_thread(api.backend.connect, Handle(service_id), 8000)
    reader, writer = await asyncio.open_connection(sock=connection)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.rpartition(b"\r\n\r\n")[2].decode()


async def test_a_session_is_saved_restored_and_cloned(api: Any, pair: Pair) -> None:
    made = await ask(api, pair, "POST", "/sessions", {"shell": "python3"})
    session_id = made["id"]
    await run(api, pair, session_id, "x = 42\nimport threading\nlock = threading.Lock()")
    await run(
        api, pair, session_id, "file = open('/root/note', 'w'); file.write('kept'); file.close()"
    )
    snapshot = await ask(api, pair, "POST", f"/sessions/{session_id}/snapshot", {})
    assert (snapshot["level"], snapshot["lost"]) == (
        "files+vars",
        ["python3: file", "python3: lock"],
    )
    await run(api, pair, session_id, "x = 1\nimport os; os.remove('/root/note')")
    path = f"/snapshots/{snapshot['id']}"
    restored = await ask(api, pair, "POST", f"{path}/restore", {})
    assert (restored["id"], restored["lost"]) == (session_id, snapshot["lost"])
    assert await run(api, pair, session_id, "print(x, open('/root/note').read())") == "42 kept\n"
    clone = await ask(api, pair, "POST", f"{path}/clone", {})
    assert clone["lost"] == snapshot["lost"]
    await run(api, pair, clone["session_id"], "x += 1")
    await ask(api, pair, "DELETE", path)
    assert await run(api, pair, clone["session_id"], "print(x)") == "43\n"
    assert await run(api, pair, session_id, "print(x)") == "42\n"


async def test_a_service_is_saved_restored_and_spawned(api: Any, pair: Pair) -> None:
    body = {"name": "shop", "ports": [8000], "bootstrap_content": SERVER}
    service_id = (await ask(api, pair, "POST", "/services", body))["id"]
    assert await page(api, pair, service_id) == "first"
    snapshot = await ask(api, pair, "POST", f"/services/{service_id}/snapshot", {"hot": True})
    assert (snapshot["hot"], snapshot["source_type"]) == (True, "service")
    backend: BubblewrapBackend = api.backend
    code = "open('/root/page', 'w').write('second')"
    await asyncio.to_thread(backend.cell, Handle(service_id), "python3", code)
    assert await page(api, pair, service_id) == "second"
    image = {"source_type": "service", "source_id": service_id, "name": "shop"}
    image_id = (await ask(api, pair, "POST", "/images", image))["id"]
    restored = await ask(api, pair, "POST", f"/snapshots/{snapshot['id']}/restore")
    assert restored["service_id"] == service_id
    assert await page(api, pair, service_id) == "first"
    await ask(api, pair, "DELETE", f"/services/{service_id}")
    # The image outlives its source; a spawn runs the source's bootstrap over the image's files.
    spawned = await ask(api, pair, "POST", f"/images/{image_id}/spawn", {"name": "again"})
    assert (spawned["source_image"], spawned["ports"]) == (image_id, [8000])
    assert await page(api, pair, spawned["service_id"]) == "second"
    clone = {"type": "service", "name": "clone"}
    cloned = await ask(api, pair, "POST", f"/snapshots/{snapshot['id']}/clone", clone)
    assert await page(api, pair, cloned["service_id"]) == "first"


async def test_an_image_becomes_a_session_of_another_key(api: Any, pair: Pair) -> None:
    session_id = (await ask(api, pair, "POST", "/sessions", {"shell": "bash"}))["id"]
    await run(api, pair, session_id, "A=kept; say() { echo said $A; }; cd /tmp")
    body = {"source_type": "session", "source_id": session_id}
    image_id = (await ask(api, pair, "POST", "/images", body))["id"]
    await ask(api, pair, "POST", f"/images/{image_id}/visibility", {"visibility": "public"})
    other = api.key(tier=8)
    spawned = await ask(api, other, "POST", f"/images/{image_id}/spawn", {"type": "session"})
    assert (spawned["shell"], spawned["image"]) == ("bash", image_id)
    assert await run(api, other, spawned["session_id"], "say; pwd") == "said kept\n/tmp\n"


async def test_a_service_that_is_being_deployed_is_not_restored(api: Any, pair: Pair) -> None:
    body = {"name": "slow", "ports": [8000], "bootstrap_content": SERVER}
    service_id = (await ask(api, pair, "POST", "/services", body))["id"]
    assert await page(api, pair, service_id) == "first"
    snapshot = await ask(api, pair, "POST", f"/services/{service_id}/snapshot")
    await ask(api, pair, "POST", f"/services/{service_id}/redeploy", {"bootstrap": "sleep 1000"})
    refused = await api.call(pair, "POST", f"/snapshots/{snapshot['id']}/restore")
    assert (refused.status_code, refused.json()["error"]) == (409, "service_not_running")
