"""The inside of the server process: database, application, uvicorn, signals.

::

    open database -> bind -> lifespan start (sweep, mark) -> listen -> ready.json
    SIGTERM/SIGINT -> remove ready.json -> end sessions -> drain connections -> close database

It listens twice: where the world was told, and on a port of the loopback that only the proxy of
semitrusted sandboxes knows.  What comes in there is served without the wallets of this host.

Sessions end before connections are drained: a command that would run for minutes more ends with
its sandbox, and its caller is told so, instead of holding up the stop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
import uvicorn
from starlette.applications import Starlette

from engine.log import configure, copy_lines
from engine.secrets import load_codec
from machines.platform import keys
from machines.platform.app import build_app
from machines.platform.context import PlatformConfig, PlatformContext, open_money
from machines.platform.database import open_platform_database
from machines.platform.egress import EgressProxy
from machines.platform.egress_policy import PlatformAddress
from machines.platform.lines import RECENT
from machines.platform.sandbox.backend import Backend
from machines.platform.server import DRAIN_SECONDS, ServerError, remove_ready, write_ready
from machines.platform.tls import Tls

WEBSOCKET_BYTES_MAX = 1024 * 1024
"""The longest message that a terminal's socket takes."""

log = structlog.get_logger("turtles.platform.server")


def run(
    data_dir: Path,
    host: str,
    port: int,
    *,
    block_seconds: float | None,
    invoice_seconds: int | None,
    allow_faults: bool,
    backend: Backend,
    requests_per_minute_per_tier: int,
    proxy: EgressProxy,
    tls: Tls | None = None,
    payer_outputs: int | None = None,
    operators: Sequence[str] = (),
    say: Callable[[str], None],
) -> int:
    """Serve a prepared and locked data directory until a signal; the exit code (0)."""
    copy_lines(RECENT.copy)
    chosen = {
        "block_seconds": block_seconds,
        "invoice_seconds": invoice_seconds,
        "payer_outputs": payer_outputs,
    }
    settings = {name: value for name, value in chosen.items() if value is not None}
    config = PlatformConfig(
        allow_faults=allow_faults,
        operators=frozenset(operators),
        **settings,  # type: ignore[arg-type]
    )
    codec = load_codec(data_dir / "master.key", os.environ)
    database = open_platform_database(data_dir)
    try:
        context = open_money(database, codec, clock_ms, config)
        _check_master_key(context)
        with _listening(host, port) as listener, _listening(host, 0) as inner:
            inside_host, inside_port = inner.getsockname()[:2]
            certificate = tls.certificate if tls else None
            proxy.platform = PlatformAddress(inside_host, inside_port, certificate)
            app = build_app(
                context,
                backend,
                allow_faults=allow_faults,
                requests_per_minute_per_tier=requests_per_minute_per_tier,
                inside_port=inside_port,
            )
            server = _Server(app, data_dir, host, tls, say)
            try:
                asyncio.run(server.run_until_signal([listener, inner]))
            except SystemExit as error:
                raise ServerError(
                    f"platform server for {data_dir}: its start failed; the log says why"
                ) from error
    finally:
        remove_ready(data_dir)
        backend.close()
        database.close()
    return 0


def _check_master_key(context: PlatformContext) -> None:
    """Fail at the start, not at the first request, when stored secrets cannot be opened.

    Raises:
        SecretsError: another master key sealed them.
    """
    with context.database.reading() as sql:
        public_key = sql.scalar("SELECT public_key FROM api_key ORDER BY created_ms LIMIT 1")
        if public_key is not None:
            keys.secret(sql, public_key)


def clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        # The protocol is named so that asyncio sets TCP_NODELAY on what this socket accepts;
        # without it every answer waits 40 ms for a delayed acknowledgement.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ServerError(
                f"address {host}:{port}: cannot be bound ({error}). "
                "Choose another --port, or 0 for a free one."
            ) from error
        yield listener


class _Server(uvicorn.Server):
    """uvicorn with our signals, our announcement and our order of stopping."""

    def __init__(
        self,
        app: Starlette,
        data_dir: Path,
        host: str,
        tls: Tls | None,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                http="h11",
                ws="wsproto",
                ws_max_size=WEBSOCKET_BYTES_MAX,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
                log_config=None,
                access_log=False,
                # Who asks is who is connected: sandboxes come over the loopback, too, and
                # would otherwise be believed whatever `X-Forwarded-For` they send.
                proxy_headers=False,
                date_header=False,
                server_header=False,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )
        self._app = app
        self._data_dir = data_dir
        self._host = host
        self._scheme = "https" if tls else "http"
        self._say = say

    async def run_until_signal(self, listeners: list[socket.socket]) -> None:
        """Serve on bound sockets; the first is the one that is announced."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        # `_serve` is `serve` without uvicorn's own signal handlers, which end the process by
        # the signal instead of with exit code 0.
        await self._serve(listeners)

    def _on_signal(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if not self.started or not sockets:
            return
        port = sockets[0].getsockname()[1]
        info = write_ready(self._data_dir, self._host, port, self._scheme)
        log.info("listening", base_url=info.base_url, pid=info.pid)
        self._say(f"portal and API: {info.base_url}")
        self._say(f"ready {info.base_url}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Withdraw, end the sessions, then drain."""
        remove_ready(self._data_dir)
        await asyncio.to_thread(self._app.state.api.stop)
        await super().shutdown(sockets)
        log.info("stopped")


def log_to_stderr() -> None:
    """One JSON object a line on stderr, secrets hidden, for the server process."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    configure(json=True, level="info")
