"""`turtles inception`: the embedded platform, an app, and one chain of layers, resumed by its key.

::

    data directory
        runs.db, runs.db.key    our runs, and the key that opens their secrets
        platform/               the embedded platform (see machines.platform.server)

The platform is a process of its own, found or started, kept alive and stopped as told in
machines.platform_keeper.  Whatever is killed, the same command goes on where the runs stand.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.clock import seconds
from engine.errors import KeyConflict, TurtlesError, UsageError
from engine.limits import check_key
from engine.secrets import Secret
from engine.system import SystemClock
from engine.world import World
from machines.platform_keeper import BLOCK_SECONDS, PlatformKeeper, kept_platform

if TYPE_CHECKING:
    from engine.app import App, Outcome
    from engine.decide import Decision
    from machines.flows.layer import Layer

CURRENCIES = ("XMR", "BTC", "LTC", "DOGE")
DEPTH_MAX = 8
TIER_MAX = 32
TRUSTS = ("zerotrust", "semitrusted")
SIBLING_TIER = 5
"""The lowest tier with two sandboxes at once."""
MONTHS = (1, 3, 6, 12, 24)
SECONDS_MAX = 365 * 86_400


__all__ = [
    "EnvironmentRefused",
    "InceptionOptions",
    "InceptionResult",
    "LayerResult",
    "PlatformKeeper",
    "incept",
    "lowest_tier",
]


class EnvironmentRefused(TurtlesError):
    """This machine or the platform cannot do what is asked; says what to do."""


class InceptionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to build.  `budget_cents` None means: enough for every layer at the list price."""

    data_dir: Path
    depth: int = 2
    currency: str = "XMR"
    key: str = "default"
    tier: int = 1
    trust: str = "zerotrust"
    months: int = 1
    budget_cents: int | None = None
    poll_seconds: float = 0.5
    block_seconds: float = BLOCK_SECONDS
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
            raise UsageError(f"currency {self.currency!r}: expected one of {', '.join(CURRENCIES)}")
        if not 1 <= self.tier <= TIER_MAX:
            raise UsageError(f"tier {self.tier}: expected 1 to {TIER_MAX}")
        if self.trust not in TRUSTS:
            raise UsageError(f"trust {self.trust!r}: expected one of {', '.join(TRUSTS)}")
        if self.trust == "semitrusted" and self.tier < SIBLING_TIER:
            raise UsageError(
                f"tier {self.tier}: --trust semitrusted makes a sandbox beside a sandbox, and two "
                f"at once need tier {SIBLING_TIER} or more"
            )
        if self.months not in MONTHS:
            months = ", ".join(str(m) for m in MONTHS)
            raise UsageError(f"months {self.months}: expected one of {months}")
        if self.budget_cents is not None and self.budget_cents < 0:
            raise UsageError(f"budget {self.budget_cents} cents: expected 0 or more")
        if not (_is_duration(self.poll_seconds) and _is_duration(self.block_seconds)):
            raise UsageError(
                "poll and block seconds: expected more than 0 (a millisecond at least, a year at "
                f"most), got {self.poll_seconds} and {self.block_seconds}"
            )
        if self.timeout_seconds is not None and not _is_duration(self.timeout_seconds):
            raise UsageError(
                f"timeout {self.timeout_seconds} seconds: expected 0.001 to {SECONDS_MAX}"
            )
        check_key("key of the run", self.key)

    def budget(self) -> int:
        """The whole chain's money: 7 USD per tier, month and layer, unless told otherwise."""
        list_price = 700 * self.tier * self.months
        return list_price * self.depth if self.budget_cents is None else self.budget_cents


def lowest_tier(trust: str) -> int:
    """The cheapest tier of whose keys a chain can be built."""
    return SIBLING_TIER if trust == "semitrusted" else 1


def _is_duration(value: float) -> bool:
    """Nothing can wait for no time, for ever, or for a time that is no number."""
    return 0.001 <= value <= SECONDS_MAX


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
    sibling: str = ""
    no_sibling: str = ""


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
    from machines.flows.f13_inception import Inception
    from machines.flows.layer import Layer
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
            network_mode=options.trust,
            months=options.months,
            poll_ms=seconds(options.poll_seconds),
        )
        app = turtles_app(store, clients, moved=progress, world=World(clock=clock))
        await app.open()
        await restore_reservations(app, clients)
        async with app:
            try:
                run = await app.start(Inception, layer, key=options.key)
            except KeyConflict as error:
                raise KeyConflict(await _conflict(app, options.key, layer)) from error
            started(run.run_id)
            outcome = await app.wait(run.run_id, timeout_seconds=options.timeout_seconds)
            return await _result(app, options, outcome)
    finally:
        store.close()
        await clients.aclose()


async def _conflict(app: App, key: str, asked: Layer) -> str:
    """Which options of a chain differ from those it was begun with."""
    run_id = await app.find("Inception", key)
    begun = asked if run_id is None else (await app.get(run_id)).context
    differing = [
        f"{option} {getattr(begun, field)}, now {getattr(asked, field)}"
        for option, field in _FIXED.items()
        if getattr(begun, field) != getattr(asked, field)
    ]
    return (
        f"chain {key!r}: begun with other options ({'; '.join(differing)}). "
        "Give the same ones to go on with it, or another --run KEY for a new chain."
    )


_FIXED = {
    "--depth": "max_depth",
    "--currency": "currency",
    "--tier": "tier",
    "--trust": "network_mode",
    "--months": "months",
    "--budget-cents": "budget_cents",
    "poll milliseconds": "poll_ms",
}
"""Options that a chain keeps from its beginning, and where it keeps them."""


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
    place = options.data_dir / "platform"
    async with kept_platform(place, block_seconds=options.block_seconds) as base_url:
        yield base_url
