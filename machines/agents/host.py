"""What `turtles mcp` runs: a platform, an app that works, a dispatcher, and a door to it.

::

    stdio    one MCP client, until it hangs up
    --http   127.0.0.1:PORT   /mcp        streamable HTTP      Authorization: Bearer TOKEN
                              /call/NAME  plain signed HTTP    (see plain_http)
             TOKEN: the file `agents.token` in the data directory, made on first use, mode 0600.
             Whoever can call these tools can spend the wallet, so being on this machine is not
             enough.

Whatever is killed, the next start on the same data directory goes on where the runs stand.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from engine.clock import seconds
from engine.errors import UsageError
from engine.limits import check_key
from engine.secret import Secret
from engine.system import SystemClock
from machines.agents.dispatcher import Dispatcher
from machines.platform_keeper import BLOCK_SECONDS, kept_platform

TOKEN_FILE = "agents.token"  # noqa: S105 - a file's name
PAYMENT_POLL_SECONDS = 0.5
"""Between two looks at the simulated chain, whose blocks come several a second."""


class HostOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where, and what for."""

    data_dir: Path
    conversation: str = "mcp"
    block_seconds: float = BLOCK_SECONDS
    poll_seconds: float = PAYMENT_POLL_SECONDS
    platform_url: str | None = None
    http: str | None = None

    def check(self) -> None:
        """Refuse what cannot be, before anything is started.

        Raises:
            UsageError: names the option, the value and what is allowed.
        """
        check_key("conversation", self.conversation)
        if self.http is not None:
            loopback(self.http)


def loopback(address: str) -> tuple[str, int]:
    """Host and port of an address on this machine.

    Raises:
        UsageError: it is none.
    """
    host, colon, port = address.rpartition(":")
    try:
        fits = bool(colon) and ipaddress.ip_address(host.strip("[]")).is_loopback
        fits = fits and port.isdecimal() and int(port) < 65_536
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(f"--http {address!r}: expected a loopback address, e.g. 127.0.0.1:8700")
    return host.strip("[]"), int(port)


async def serve(options: HostOptions, *, say: Callable[[str], None]) -> int:
    """Serve until the client hangs up, or a signal comes; the exit code."""
    if importlib.util.find_spec("mcp") is None:
        raise UsageError("turtles mcp needs the package mcp: pip install 'turtles[mcp]'")
    async with hosted(options) as dispatcher:
        if options.http is None:
            from machines.agents.mcp_server import serve_stdio

            await serve_stdio(dispatcher)
        else:
            token = read_token(options.data_dir)
            await serve_http(dispatcher, token, *loopback(options.http), say=say)
    return 0


@contextlib.asynccontextmanager
async def hosted(options: HostOptions) -> AsyncIterator[Dispatcher]:
    """A dispatcher over an app that works, and a platform that is kept alive meanwhile."""
    from machines.app import restore_reservations, turtles_app
    from machines.clients import own_clients
    from machines.clients.calls import HttpCalls
    from persistence import open_store

    options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(open_store(f"sqlite:///{options.data_dir / 'runs.db'}")) as store:
        async with (
            _platform(options) as base_url,
            own_clients(base_url, SystemClock().now_ms) as clients,
        ):
            app = turtles_app(store, clients)
            await app.open()
            await restore_reservations(app, clients)
            async with app:
                yield Dispatcher(
                    app,
                    clients.portal,
                    HttpCalls(base_url, clients.transport),
                    conversation=options.conversation,
                    poll_ms=seconds(options.poll_seconds),
                )


@contextlib.asynccontextmanager
async def _platform(options: HostOptions) -> AsyncIterator[str]:
    if options.platform_url is not None:
        yield options.platform_url
        return
    place = options.data_dir / "platform"
    async with kept_platform(place, block_seconds=options.block_seconds) as base_url:
        yield base_url


async def serve_http(
    dispatcher: Dispatcher, token: Secret[str], host: str, port: int, *, say: Callable[[str], None]
) -> None:
    """Serve both doors until cancelled; says `ready URL` when it listens."""
    import uvicorn

    from machines.agents.mcp_server import http_app
    from machines.agents.plain_http import signed_routes

    routes = signed_routes(dispatcher, token, SystemClock().now_ms)
    application = http_app(dispatcher, token, host=host, routes=routes)
    listening = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    )
    shown = f"[{host}]" if ":" in host else host
    say(f"ready http://{shown}:{listening.getsockname()[1]}")
    settings = uvicorn.Config(application, log_config=None, lifespan="on", ws="none")
    server = uvicorn.Server(settings)
    # Signals are the command's business (`engine.cli.signals`): it cancels this coroutine.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    try:
        await server.serve(sockets=[listening])
    finally:
        listening.close()


def read_token(data_dir: Path) -> Secret[str]:
    """The token of a data directory; made on first use, for its owner alone."""
    file = data_dir / TOKEN_FILE
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as fresh:
            fresh.write(secrets.token_urlsafe(32))
    return Secret(file.read_text().strip())
