"""`turtles inception`: the embedded platform, an app, and one chain of layers, resumed by its key.

::

    data directory
        runs.db, runs.db.key    our runs, and the key that opens their secrets
        platform/               the embedded platform (see machines.platform.server)

The platform is a process of its own.  It is found by its `ready.json` or started; while the chain
runs, one that dies is started again on the same port; when the chain has ended or we are told to
stop, it is stopped.  Whatever is killed, the same command goes on where the runs stand.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.clock import seconds
from engine.errors import TurtlesError, UsageError
from engine.secrets import Secret
from engine.system import SystemClock
from machines.platform import server

if TYPE_CHECKING:
    from engine.app import App, Outcome
    from engine.decide import Decision

CURRENCIES = ("XMR", "BTC", "LTC", "DOGE")
DEPTH_MAX = 8
TIER_MAX = 32
MONTHS = (1, 3, 6, 12, 24)
CHECK_MS = 300


class EnvironmentRefused(TurtlesError):
    """This machine or the platform cannot do what is asked; says what to do."""


class InceptionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to build.  `budget_cents` None means: enough for every layer at the list price."""

    data_dir: Path
    depth: int = 2
    currency: str = "XMR"
    key: str = "default"
    tier: int = 1
    months: int = 1
    budget_cents: int | None = None
    poll_seconds: float = 0.5
    block_seconds: float = 0.25
    platform_url: str | None = None
    timeout_seconds: float | None = None

    def check(self) -> None:
        """Refuse what cannot be, before anything is started.

        Raises:
            UsageError: names the option, the value and what is allowed.
        """
        if not 1 <= self.depth <= DEPTH_MAX:
            raise UsageError(f"depth {self.depth}: expected 1 to {DEPTH_MAX}")
        if self.currency not in CURRENCIES:
            raise UsageError(
                f"currency {self.currency!r}: expected one of {', '.join(CURRENCIES)}"
            )
        if not 1 <= self.tier <= TIER_MAX:
            raise UsageError(f"tier {self.tier}: expected 1 to {TIER_MAX}")
        if self.months not in MONTHS:
            months = ", ".join(str(m) for m in MONTHS)
            raise UsageError(f"months {self.months}: expected one of {months}")
        if self.budget_cents is not None and self.budget_cents < 0:
            raise UsageError(f"budget {self.budget_cents} cents: expected 0 or more")
        if self.poll_seconds <= 0 or self.block_seconds <= 0:
            raise UsageError("poll and block seconds: expected more than 0")

    def budget(self) -> int:
        """The whole chain's money: 7 USD per tier, month and layer, unless told otherwise."""
        list_price = 700 * self.tier * self.months
        return list_price * self.depth if self.budget_cents is None else self.budget_cents


class LayerResult(msgspec.Struct, frozen=True, kw_only=True):
    """One layer, as the command prints it."""

    depth: int
    public_key: str
    paid_cents: int
    txids: tuple[str, ...]
    session_id: str
    stdout: str
    latency_ms: int
    awareness: str
    profile: str | None


class InceptionResult(msgspec.Struct, frozen=True, kw_only=True):
    """The chain, as the command prints it in one JSON object."""

    run_id: str
    state: str
    status: str
    depth: int
    spent_cents: int
    layers: tuple[LayerResult, ...]
    transitions: int
    refusal: str | None

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()


async def incept(
    options: InceptionOptions,
    *,
    progress: Callable[[Decision], None],
    started: Callable[[str], None] = lambda run_id: None,
) -> InceptionResult:
    """Build the chain, or go on with it, until it has ended.

    Args:
        progress: called after every transition that this process makes.
        started: called once with the run's id.

    Raises:
        UsageError: an option cannot be.
        KeyConflict: the key names a chain with other options.
        EnvironmentRefused: no sandboxes here, or no platform.
        TimeoutError: `timeout_seconds` are over; the chain can be gone on with.
    """
    options.check()
    _make_private(options.data_dir)
    async with _platform(options) as base_url:
        return await _run(options, base_url, progress, started)


def _make_private(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentRefused(
            f"data directory {data_dir}: cannot be made ({error.strerror}). "
            "Choose another with --data-dir."
        ) from error


async def _run(
    options: InceptionOptions,
    base_url: str,
    progress: Callable[[Decision], None],
    started: Callable[[str], None],
) -> InceptionResult:
    from machines.app import restore_reservations, turtles_app
    from machines.clients import clients_for
    from machines.flows.f13_inception import Inception, Layer
    from persistence import open_store

    clock = SystemClock()
    clients = clients_for(
        base_url,
        rpc_username="turtles",
        rpc_password=Secret("turtles"),
        clock_ms=clock.now_ms,
    )
    store = open_store(f"sqlite:///{options.data_dir / 'runs.db'}")
    try:
        if not await clients.platform.healthy():
            raise EnvironmentRefused(
                f"platform {base_url}: not reachable. Start it with `turtles platform serve`, "
                "or leave --platform-url out to use the embedded one."
            )
        problem = await clients.platform.sandbox_problem()
        if problem is not None:
            raise EnvironmentRefused(problem)
        layer = Layer(
            depth=1,
            max_depth=options.depth,
            currency=options.currency,
            budget_cents=options.budget(),
            tier=options.tier,
            months=options.months,
            poll_ms=seconds(options.poll_seconds),
        )
        app = turtles_app(store, clients, moved=progress, clock=clock)
        await app.open()
        await restore_reservations(app, clients)
        async with app:
            run = await app.start(Inception, layer, key=options.key)
            started(run.run_id)
            outcome = await app.wait(run.run_id, timeout_seconds=options.timeout_seconds)
            return await _result(app, options, outcome)
    finally:
        store.close()
        await clients.aclose()


async def _result(app: App, options: InceptionOptions, outcome: Outcome) -> InceptionResult:
    layers = outcome.output.layers if outcome.output is not None else ()
    results = tuple(msgspec.convert(msgspec.to_builtins(one), LayerResult) for one in layers)
    return InceptionResult(
        run_id=outcome.run_id,
        state=outcome.state,
        status=outcome.status,
        depth=options.depth,
        spent_cents=sum(one.paid_cents for one in results),
        layers=results,
        transitions=await _transitions(app, outcome.run_id, outcome.seq),
        refusal=outcome.last_error or outcome.context.refusal or None,
    )


async def _transitions(app: App, run_id: str, seq: int) -> int:
    """Transitions of a run and of all the runs below it."""
    from engine.ports import Query

    children = await app.runs(Query(parent_id=run_id, limit=1000))
    below = [await _transitions(app, child.run.run_id, child.run.seq) for child in children]
    return seq + sum(below)


@contextlib.asynccontextmanager
async def _platform(options: InceptionOptions) -> AsyncIterator[str]:
    """The base URL of a platform that is kept alive meanwhile."""
    if options.platform_url is not None:
        yield options.platform_url
        return
    keeper = PlatformKeeper(options.data_dir / "platform", block_seconds=options.block_seconds)
    await keeper.start()
    watch = asyncio.create_task(keeper.watch())
    try:
        yield keeper.base_url
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await keeper.stop()


class PlatformKeeper:
    """Starts the embedded platform, starts it again when it dies, and stops it."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self._data_dir = data_dir
        self._settings = settings
        self._info: server.ServerInfo | None = None

    @property
    def base_url(self) -> str:
        """Where it listens; the same after a restart."""
        assert self._info is not None
        return self._info.base_url

    async def start(self) -> None:
        """Find it or start it.

        Raises:
            ServerError: it did not start.
        """
        await asyncio.to_thread(self._make, self._last_port())

    def _last_port(self) -> int:
        try:
            ready = msgspec.json.decode((self._data_dir / "ready.json").read_bytes())
            return int(ready["port"])
        except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            return 0

    def _make(self, port: int) -> None:
        try:
            self._info = server.start_server(self._data_dir, port=port, **self._settings)
        except server.ServerError:
            if port == 0 or self._info is not None:
                raise
            self._info = server.start_server(self._data_dir, port=0, **self._settings)

    async def watch(self) -> None:
        """Start it again whenever it is gone, on the port that the clients know."""
        while True:
            await asyncio.sleep(CHECK_MS / 1000)
            if await asyncio.to_thread(server.find_server, self._data_dir) is None:
                assert self._info is not None
                with contextlib.suppress(server.ServerError):
                    await asyncio.to_thread(self._make, self._info.port)

    async def stop(self) -> None:
        """Stop it, whoever started it."""
        info = await asyncio.to_thread(server.find_server, self._data_dir)
        if info is not None:
            await asyncio.to_thread(server.stop_server, info)
