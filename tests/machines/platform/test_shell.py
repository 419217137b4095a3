"""The terminal over a WebSocket: a real server, a real client, real and fake sandboxes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from engine.errors import StoreBusy
from machines.platform.limits import requests_per_minute
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.terminal import AHEAD_BYTES_MAX, SCREEN_BYTES

pytestmark = pytest.mark.timeout(30)
RESIZE = '{"type":"resize","cols":%d,"rows":%d}'
WAIT_SECONDS = 10.0
Dial = Callable[..., Awaitable[ClientConnection]]


@pytest.fixture(params=["fake", "bubblewrap"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every implementation: what a socket sees is the same."""
    if request.param == "fake":
        return FakeBackend()
    return BubblewrapBackend(tmp_path_factory.mktemp("sandboxes"))


@pytest.fixture
async def dial(api: Any) -> AsyncIterator[Dial]:
    """Connects clients to the platform of `api`, served by uvicorn on a free port."""
    config = uvicorn.Config(
        api.app, lifespan="off", http="h11", ws="wsproto", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    open_clients: list[ClientConnection] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server._serve([listener]))
        base = f"ws://127.0.0.1:{listener.getsockname()[1]}"

        async def dial(path: str, **options: Any) -> ClientConnection:
            address = path if path.startswith("ws") else base + path
            client = await connect(
                address,
                subprotocols=[Subprotocol("unsandbox-shell")],
                ping_interval=None,
                **options,
            )
            open_clients.append(client)
            return client

        yield dial
        for client in open_clients:
            await client.close()
        server.should_exit = True
        await serving


async def create(api: Any, pair: tuple[str, str], **body: Any) -> str:
    answer = await api.call(pair, "POST", "/sessions", body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def show(api: Any, pair: tuple[str, str], session_id: str) -> Any:
    return (await api.call(pair, "GET", f"/sessions/{session_id}")).json()


async def post(api: Any, pair: tuple[str, str], path: str, body: Any = None) -> Any:
    answer = await api.call(pair, "POST", path, {} if body is None else body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def until(client: ClientConnection, pattern: bytes) -> bytes:
    """Everything shown up to a pattern."""
    shown = b""
    async with asyncio.timeout(WAIT_SECONDS):
        while not re.search(pattern, shown):
            piece = await client.recv()
            assert isinstance(piece, bytes), piece
            shown += piece
    return shown


async def text(client: ClientConnection) -> Any:
    """The next text message."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not isinstance(message := await client.recv(), str):
            pass
    return json.loads(message)


async def ending(client: ClientConnection) -> tuple[Any, int | None]:
    """The last text message, and the code the socket was closed with."""
    last: Any = None
    async with asyncio.timeout(WAIT_SECONDS):
        try:
            while True:
                piece = await client.recv()
                if isinstance(piece, str):
                    last = piece
        except ConnectionClosed:
            pass
    assert last is not None
    assert '":"' in last and ": " not in last.split('"message"')[0]
    return json.loads(last), client.close_code


async def eventually(condition: Callable[[], bool]) -> None:
    """Go on when the platform, in its own threads and tasks, has come that far."""
    for _ in range(int(WAIT_SECONDS * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come that far")


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def ends(api: Any, pair: tuple[str, str], session_id: str) -> str:
    """Why a session ended; waits for that."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (row := await show(api, pair, session_id))["status"] != "terminated":
            api.now_ms += 60_000 // 7  # stay within the rate of one key
            await asyncio.sleep(0.02)
    return str(row["reason"])


def path_of(session_id: str) -> str:
    return f"/sessions/{session_id}/shell"


async def test_keys_go_in_output_comes_out_and_the_program_sees_its_size(
    api: Any, dial: Dial
) -> None:
    session_id = await create(api, api.key())
    client = await dial(path_of(session_id))
    assert client.subprotocol == "unsandbox-shell"
    await client.send(RESIZE % (101, 37))
    await client.send(b"stty size\n")
    await until(client, rb"37 101\r\n")
    await client.send(RESIZE % (90, 20))
    await client.send(b"stty size\n")
    await until(client, rb"20 90\r\n")
    await client.send(b"a=one\necho $a\n")
    await until(client, rb"[\r\n]one\r\n")


async def test_without_a_multiplexer_a_session_ends_with_its_client(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    session_id = await create(api, pair)
    client = await dial(path_of(session_id))
    await client.send(b"echo here\n")
    await until(client, rb"[\r\n]here\r\n")
    await client.close()
    assert await ends(api, pair, session_id) == "disconnected"


async def test_a_client_that_vanishes_ends_its_session_too(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    session_id = await create(api, pair)
    client = await dial(path_of(session_id))
    await client.send(b"echo here\n")
    await until(client, rb"[\r\n]here\r\n")
    client.transport.abort()
    assert await ends(api, pair, session_id) == "disconnected"


async def test_the_end_of_the_program_ends_socket_and_session(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    session_id = await create(api, pair)
    client = await dial(path_of(session_id))
    await client.send(b"exit\n")
    assert await ending(client) == ({"type": "exit"}, 1000)
    assert await ends(api, pair, session_id) == "exited"


async def test_with_a_multiplexer_the_terminal_stays_and_is_painted_again(
    api: Any, dial: Dial
) -> None:
    pair = api.key(tier=8)
    session_id = await create(api, pair, multiplexer="tmux")
    first = await dial(path_of(session_id))
    await first.send(b"kept=42\necho painted\n")
    await until(first, rb"[\r\n]painted\r\n")
    await first.close()
    container = (await show(api, pair, session_id))["container_name"]
    again = await dial(path_of(container))
    await until(again, rb"[\r\n]painted\r\n")
    await again.send(b"\necho $kept\n")
    await until(again, rb"[\r\n]42\r\n")
    assert (await show(api, pair, session_id))["status"] == "running"


async def test_a_second_client_detaches_the_first(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    for body in ({"screen": True}, {}):
        session_id = await create(api, pair, **body)
        first = await dial(path_of(session_id))
        await first.send(b"who=first\necho ready\n")
        await until(first, rb"[\r\n]ready\r\n")
        second = await dial(path_of(session_id))
        assert await ending(first) == ({"type": "detached"}, 1000)
        await second.send(b"echo $who\n")
        await until(second, rb"[\r\n]first\r\n")
        assert (await show(api, pair, session_id))["status"] == "running"


async def test_with_a_multiplexer_the_next_client_gets_a_new_program(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    session_id = await create(api, pair, tmux=True)
    first = await dial(path_of(session_id))
    await first.send(b"exit\n")
    assert await ending(first) == ({"type": "exit"}, 1000)
    second = await dial(path_of(session_id))
    await second.send(b"echo fresh\n")
    await until(second, rb"[\r\n]fresh\r\n")


async def test_deleting_a_session_tells_its_client(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    session_id = await create(api, pair)
    client = await dial(path_of(session_id))
    await api.call(pair, "DELETE", f"/sessions/{session_id}")
    assert await ending(client) == ({"type": "exit"}, 1000)
    assert (await show(api, pair, session_id))["reason"] == "deleted"
    late = await dial(path_of(session_id))
    said, code = await ending(late)
    assert (said["type"], said["error"], code) == ("error", "session_terminated", 1008)


async def test_freezing_shows_the_client_out_and_keeps_the_terminal(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    for body in ({}, {"multiplexer": "screen"}):
        session_id = await create(api, pair, **body)
        client = await dial(path_of(session_id))
        await client.send(b"kept=ice\necho ready\n")
        await until(client, rb"[\r\n]ready\r\n")
        await post(api, pair, f"/sessions/{session_id}/freeze")
        said, code = await ending(client)
        assert (said["type"], said["error"], code) == ("error", "session_frozen", 1008)
        early = await dial(path_of(session_id))
        said, code = await ending(early)
        assert (said["type"], said["error"], code) == ("error", "session_frozen", 1008)
        assert (await show(api, pair, session_id))["status"] == "frozen"
        await post(api, pair, f"/sessions/{session_id}/unfreeze")
        thawed = await dial(path_of(session_id))
        await thawed.send(b"echo $kept\n")
        await until(thawed, rb"[\r\n]ice\r\n")


async def test_a_message_that_cannot_be_understood_is_told_and_the_socket_goes_on(
    api: Any, dial: Dial
) -> None:
    session_id = await create(api, api.key())
    client = await dial(path_of(session_id))
    await client.send(b"echo ready\n")
    await until(client, rb"[\r\n]ready\r\n")
    bad = (
        "resize",
        "[]",
        "5",
        "[" * 60_000,
        '{"type":"other"}',
        '{"type":"resize","cols":0,"rows":1}',
        '{"type":"resize","cols":1,"rows":10001}',
        '{"type":"resize","cols":1.5,"rows":1}',
        '{"type":"resize","cols":123456789012345678901234567890,"rows":1}',
        '{"type":"resize","cols":80}',
    )
    for message in bad:
        await client.send(message)
        said = await text(client)
        assert (said["type"], said["error"]) == ("error", "invalid_message"), message
    for large in (b"x" * 65_537, "x" * 65_537):
        await client.send(large)
        said = await text(client)
        assert (said["type"], said["error"]) == ("error", "message_too_large")
    await client.send(b"echo still\n")
    await until(client, rb"[\r\n]still\r\n")


def signed(pair: tuple[str, str], path: str, at_ms: int, **changes: str) -> dict[str, str]:
    timestamp = str(at_ms // 1000)
    signature = hmac.new(pair[1].encode(), f"{timestamp}:GET:{path}:".encode(), hashlib.sha256)
    headers = {
        "Authorization": f"Bearer {pair[0]}",
        "X-Timestamp": timestamp,
        "X-Signature": signature.hexdigest(),
    }
    return headers | changes


async def refusal(dial: Dial, path: str, **options: Any) -> tuple[int, str]:
    """Status and code of an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        await dial(path, **options)
    response = caught.value.response
    return response.status_code, json.loads(response.body or b"")["error"]


async def test_a_signed_client_is_verified_and_an_unsigned_one_needs_the_id(
    api: Any, dial: Dial
) -> None:
    owner, other = api.key(tier=8), api.key(tier=8)
    session_id = await create(api, owner, multiplexer="tmux")
    path = path_of(session_id)
    client = await dial(path, additional_headers=signed(owner, path, api.now_ms))
    await client.send(b"echo signed\n")
    await until(client, rb"[\r\n]signed\r\n")
    headers = signed(other, path, api.now_ms)
    assert await refusal(dial, path, additional_headers=headers) == (404, "not_found")
    forged = signed(owner, path, api.now_ms, **{"X-Signature": "0" * 64})
    assert await refusal(dial, path, additional_headers=forged) == (401, "invalid_signature")
    stale = signed(owner, path, api.now_ms - 400_000)
    assert await refusal(dial, path, additional_headers=stale) == (401, "invalid_timestamp")
    half = {"X-Signature": "0" * 64}
    assert await refusal(dial, path, additional_headers=half) == (401, "invalid_key")
    assert await refusal(dial, path_of("unsb-session-none")) == (404, "not_found")
    await client.send(b"echo undisturbed\n")
    await until(client, rb"[\r\n]undisturbed\r\n")


async def test_attaching_counts_against_the_rate_of_the_sessions_key(api: Any, dial: Dial) -> None:
    pair = api.key(tier=1)
    session_id = await create(api, pair, multiplexer="tmux")
    for _ in range(requests_per_minute(1) - 1):
        await dial(path_of(session_id))
    assert await refusal(dial, path_of(session_id)) == (429, "rate_limit_exceeded")


async def test_an_expired_key_may_not_attach(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    session_id = await create(api, pair)
    with api.database.transaction() as sql:
        sql.run("UPDATE api_key SET expires_ms = :now", now=api.now_ms)
    assert await refusal(dial, path_of(session_id)) == (401, "expired")


async def test_keys_and_output_are_activity(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    session_id = await create(api, pair)
    client = await dial(path_of(session_id))
    shells = next(each.shells for each in api.app.state.api.features if hasattr(each, "shells"))
    for _ in range(3):
        api.now_ms += 800_000
        await client.send(b"echo awake\n")
        await until(client, rb"[\r\n]awake\r\n")
        await asyncio.to_thread(shells.note_activity)
    assert (await show(api, pair, session_id))["remaining_ttl"] == 900
    api.now_ms += 900_000
    await asyncio.to_thread(api.app.state.api.tick)
    assert await ending(client) == ({"type": "exit"}, 1000)
    assert (await show(api, pair, session_id))["reason"] == "expired"


async def test_an_audited_terminal_is_recorded_and_told_at_the_end(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    made = await api.call(pair, "POST", "/sessions?audit=1", {"multiplexer": "tmux"})
    session_id = made.json()["id"]
    assert made.json()["audit"] is True
    for word in (b"first", b"second"):
        client = await dial(path_of(session_id))
        await client.send(b"echo " + word + b"\n")
        await until(client, rb"[\r\n]" + word + rb"\r\n")
        await client.close()
    for _ in range(2):  # a repeated DELETE tells it again
        answer = await api.call(pair, "DELETE", f"/sessions/{session_id}?audit=1")
        (artifact,) = answer.json()["artifacts"]
        assert artifact["type"] == "base64"
        assert artifact["data"] == artifact["content_base64"]
        recorded = base64.b64decode(artifact["data"])
        assert re.search(rb"[\r\n]first\r\n.*[\r\n]second\r\n", recorded, re.DOTALL)


async def test_clients_that_attach_at_once_share_one_program(api: Any, dial: Dial) -> None:
    pair = api.key(tier=8)
    session_id = await create(api, pair)
    clients = await asyncio.gather(*(dial(path_of(session_id)) for _ in range(5)))
    endings = [asyncio.create_task(ending(client)) for client in clients]
    await eventually(lambda: sum(each.done() for each in endings) == 4)
    assert [each.result() for each in endings if each.done()] == [({"type": "detached"}, 1000)] * 4
    assert (await show(api, pair, session_id))["status"] == "running"
    (last,) = (client for client, each in zip(clients, endings, strict=True) if not each.done())
    await last.send(b"exit\n")
    assert await endings[clients.index(last)] == ({"type": "exit"}, 1000)


async def test_a_busy_database_is_told(api: Any, dial: Dial) -> None:
    session_id = await create(api, api.key(tier=8))
    sessions = api.app.state.api.sessions
    named = sessions.named

    def refuse(_name: str) -> Any:
        raise StoreBusy("the database is locked")

    def admit(name: str) -> Any:
        sessions.named = refuse
        return named(name)

    sessions.named = refuse
    assert await refusal(dial, path_of(session_id)) == (503, "busy")
    sessions.named = admit
    client = await dial(path_of(session_id))
    said, code = await ending(client)
    assert (said["type"], said["error"], code) == ("error", "busy", 1008)


async def test_stopping_the_platform_tells_every_client(api: Any, dial: Dial) -> None:
    pair = api.key(tier=16)
    clients = [await dial(path_of(await create(api, pair, tmux=True))) for _ in range(3)]
    await asyncio.to_thread(api.app.state.api.stop)
    for client in clients:
        assert await ending(client) == ({"type": "exit"}, 1000)


async def test_descriptors_do_not_leak(api: Any, dial: Dial) -> None:
    pair = api.key(tier=32)

    async def once(**body: Any) -> None:
        session_id = await create(api, pair, **body)
        client = await dial(path_of(session_id))
        await client.send(b"echo ready\n")
        await until(client, rb"[\r\n]ready\r\n")
        await client.close()
        await api.call(pair, "DELETE", f"/sessions/{session_id}")
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before)

    tasks_before = len(asyncio.all_tasks())
    await once()
    before = descriptors()
    for body in ({}, {"tmux": True}) * 4:
        await once(**body)
    # The database's pool and the loop may open one or two; a leak would be one each time.
    assert descriptors() < before + 8


async def test_a_client_that_does_not_read_holds_up_the_program_and_not_the_platform(
    api: Any, dial: Dial
) -> None:
    if api.backend.name == "fake":
        return  # its terminal cannot print without end
    pair = api.key(tier=8)
    session_id = await create(api, pair, multiplexer="tmux")
    slow = await dial(path_of(session_id), max_queue=1, compression=None)
    await slow.send(b"yes turtles\n")
    await asyncio.wait_for(slow.recv(), WAIT_SECONDS)
    features = api.app.state.api.features
    shells = next(each.shells for each in features if hasattr(each, "shells"))
    terminal = shells._terminals[session_id].result()
    await eventually(lambda: bool(terminal._view.is_behind))
    assert len(terminal._view._ahead) < AHEAD_BYTES_MAX + 65_536
    assert len(terminal._screen) <= SCREEN_BYTES
    fast = await dial(path_of(session_id))
    await until(fast, rb"turtles\r\n")
    await fast.send(b"\x03")
    await fast.send(b"echo interr''upted\n")
    await until(fast, rb"[\r\n]interrupted\r\n")
    slow.transport.abort()
