"""The engine inside a layer's sandbox, here without one: what it is told, writes, and resumes."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import UsageError
from engine.secret import Secret
from machines.flows.layer import Twig
from machines.flows.layer_wire import Ask, Told
from machines.layer_process import Place, serve

CODE = "FOUR-SECRET-LITTLE-WORDS"


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *values: Any) -> None:  # noqa: A002 - its name there
        """Nothing to anybody."""


@pytest.fixture
def url() -> Iterator[str]:
    """A platform that is well, and sells nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(url: str, depth: int = 3, max_depth: int = 2) -> str:
    """By default a layer below the bound, which ends when it knows where it is."""
    return Ask(
        url=url, chain="root", depth=depth, max_depth=max_depth, currency="LTC", budget_cents=0,
        tier=1, months=1, poll_ms=1, session_ttl_seconds=60, latency_ms_max=0, latency_above_ms=0,
        incarnation=0, digest="d", code=Secret(CODE),
    ).to_json()  # fmt: skip


def told(place: Place) -> Told:
    return msgspec.json.decode(place.told.read_bytes(), type=Told)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "layer")


async def test_the_deepest_engine_tells_that_the_turtles_stop(place: Place, url: str) -> None:
    await serve(place, ask(url), 0)
    report = told(place)
    assert (report.state, report.complete, report.layers) == ("too_deep", False, ())
    assert report.said == "turtle 2 of 2 was here"
    own = [step.target for step in report.journal if step.machine == "Inception"]
    assert own == ["inside_sandbox", "discover_tools", "too_deep"]
    assert {step.machine for step in report.journal} == {"Inception", "Discovery"}
    twigs = msgspec.json.decode(place.progress.read_bytes(), type=tuple[Twig, ...])
    assert [(one.machine, one.depth) for one in twigs] == [("Inception", 3), ("Discovery", 3)]
    assert twigs[1].parent == twigs[0].run
    assert int(place.latency.read_text()) > 0
    assert stat.S_IMODE(place.directory.stat().st_mode) == 0o700


async def test_what_has_been_told_stands(place: Place, url: str) -> None:
    await serve(place, ask(url), 0)
    before = place.told.read_bytes()
    await serve(place, ask(url, depth=2), 0)
    assert place.told.read_bytes() == before


async def test_an_engine_that_was_killed_goes_on_without_being_asked(
    place: Place, url: str
) -> None:
    """As if it had died just before it told: the same run ends, and the first latency stands."""
    await serve(place, ask(url), 0)
    first, latency = told(place), place.latency.read_text()
    place.told.unlink()
    await serve(place, "", 10**15)
    assert told(place) == first
    assert place.latency.read_text() == latency


async def test_one_engine_at_a_time(place: Place, url: str) -> None:
    place.make()
    assert not place.has_engine()
    with place.held() as mine:
        assert mine and place.has_engine()
        await serve(place, ask(url), 0)
        assert not place.told.exists()
    assert not place.has_engine()


async def test_a_stop_cancels_the_run(place: Place) -> None:
    """Nobody answers, so it would look for a platform for a while."""
    place.make()
    place.stop.touch()
    await serve(place, ask("http://127.0.0.1:9"), 0)
    assert (told(place).status, told(place).complete) == ("cancelled", False)


@pytest.mark.parametrize("line", ["{", '{"code": "FOUR-SECRET-LITTLE-WORDS"}', "[]"])
async def test_what_is_no_layer_is_refused_and_not_shown(place: Place, line: str) -> None:
    with pytest.raises(UsageError, match="not what a layer is asked for") as refused:
        await serve(place, line, 0)
    assert CODE not in repr(refused.value) + repr(refused.value.__cause__)


async def test_nothing_begun_and_nothing_asked(place: Place) -> None:
    with pytest.raises(UsageError, match="no layer was begun here"):
        await serve(place, "", 0)


async def test_the_code_is_in_no_file(place: Place, url: str) -> None:
    await serve(place, ask(url), 0)
    assert not [one for one in place.directory.iterdir() if CODE.encode() in one.read_bytes()]
