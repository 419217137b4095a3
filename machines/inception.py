"""`turtles inception`: the embedded platform, an app, and one chain of layers, resumed by its key.

The app here builds the first layer.  In a nested chain (`semitrusted`) the second one is built by
an engine inside the first one's sandbox (machines.layer_process), and so on down.

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
    from machines.flows.layer import Layer, LayerReport

CURRENCIES = ("XMR", "BTC", "LTC", "DOGE")
DEPTH_MAX = 8
TIER_MAX = 32
TRUSTS = ("zerotrust", "semitrusted")
MONTHS = (1, 3, 6, 12, 24)
SECONDS_MAX = 365 * 86_400
LATENCY_MS_MAX = 3_600_000


__all__ = [
    "EnvironmentRefused",
    "InceptionOptions",
    "InceptionResult",
    "LayerResult",
    "PlatformKeeper",
    "incept",
    "usual_trust",
]


class EnvironmentRefused(TurtlesError):
    """This machine or the platform cannot do what is asked; says what to do."""


class InceptionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to build.  `budget_cents` None means: enough for every layer at the list price."""

    data_dir: Path
    depth: int = 2
    currency: str = "XMR"
    key: str = "default"
    tier: int | None = None
    trust: str = "semitrusted"
    one_key: bool = False
    latency_ms_max: int = 0
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
        if self.tier is not None and not 1 <= self.tier <= TIER_MAX:
            raise UsageError(f"tier {self.tier}: expected 1 to {TIER_MAX}")
        self._check_kind()
        if not 0 <= self.latency_ms_max <= LATENCY_MS_MAX:
            raise UsageError(
                f"latency {self.latency_ms_max} ms: expected 0 (no bound) to {LATENCY_MS_MAX}"
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

    def _check_kind(self) -> None:
        if self.trust not in TRUSTS:
            raise UsageError(f"trust {self.trust!r}: expected one of {', '.join(TRUSTS)}")
        if not self.one_key:
            return
        if self.trust != "zerotrust":
            raise UsageError(
                f"trust {self.trust!r}: --one-key builds zerotrust sandboxes, because no key may "
                "go where the network leads. Leave --trust out, or --one-key."
            )
        if self.tier is None:
            raise UsageError(
                "tier: --one-key needs --tier, 1 to 32; a key holds one sandbox for each four "
                "tiers, rounded up, and every layer takes one"
            )

    @property
    def key_tier(self) -> int:
        """The tier of every key: the lowest, unless told otherwise."""
        return 1 if self.tier is None else self.tier

    def budget(self) -> int:
        """The whole chain's money: 7 USD per tier, month and key, unless told otherwise."""
        list_price = 700 * self.key_tier * self.months
        keys = 1 if self.one_key else self.depth
        return list_price * keys if self.budget_cents is None else self.budget_cents


def usual_trust(one_key: bool) -> str:
    """What a chain's sandboxes may reach unless told otherwise."""
    return "zerotrust" if one_key else "semitrusted"


def _is_duration(value: float) -> bool:
    """Nothing can wait for no time, for ever, or for a time that is no number."""
    return 0.001 <= value <= SECONDS_MAX


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One transition in the journal of the engine inside a layer's sandbox."""

    run: str
    machine: str
    seq: int
    event: str
    source: str
    target: str
    at_ms: int


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
    journal: tuple[Step, ...] = ()


class InceptionResult(msgspec.Struct, frozen=True, kw_only=True):
    """The chain, as the command prints it in one JSON object."""

    run_id: str
    state: str
    status: str
    depth: int
    spent_cents: int
    card_left_cents: int
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
    from machines.flows.layer import Layer
    from machines.wheel import own_wheel
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
            tier=options.key_tier,
            network_mode=options.trust,
            one_key=options.one_key,
            latency_ms_max=options.latency_ms_max,
            tool_digest=own_wheel().sha256 if options.trust == "semitrusted" else "",
            months=options.months,
            poll_ms=seconds(options.poll_seconds),
        )
        app = turtles_app(store, clients, moved=progress, world=World(clock=clock))
        await app.open()
        await restore_reservations(app, clients)
        async with app:
            run_id = await _begun(app, options.key, layer)
            started(run_id)
            outcome = await app.wait(run_id, timeout_seconds=options.timeout_seconds)
            return await _result(app, options, outcome)
    finally:
        store.close()
        await clients.aclose()


async def _begun(app: App, key: str, asked: Layer) -> str:
    """The chain's first run: a new one, or the one that has this key.

    What goes into the sandboxes may differ: a newer version of this program goes on with a chain.

    Raises:
        KeyConflict: it was begun with other options; says which.
    """
    from machines.flows.f13_inception import Inception

    known = await app.find(Inception, key)
    if known is None:
        return (await app.start(Inception, asked, key=key)).run_id
    begun = (await app.get(known)).context
    differing = [
        f"{option} {getattr(begun, field)}, now {getattr(asked, field)}"
        for option, field in _FIXED.items()
        if getattr(begun, field) != getattr(asked, field)
    ]
    if differing:
        raise KeyConflict(
            f"chain {key!r}: begun with other options ({'; '.join(differing)}). "
            "Give the same ones to go on with it, or another --run KEY for a new chain."
        )
    return known


_FIXED = {
    "--depth": "max_depth",
    "--currency": "currency",
    "--tier": "tier",
    "--trust": "network_mode",
    "--one-key": "one_key",
    "--latency-ms-max": "latency_ms_max",
    "--months": "months",
    "--budget-cents": "budget_cents",
    "poll milliseconds": "poll_ms",
}
"""Options that a chain keeps from its beginning, and where it keeps them."""


async def _result(app: App, options: InceptionOptions, outcome: Outcome) -> InceptionResult:
    layers = outcome.output.layers if outcome.output is not None else ()
    results = tuple(_layer_result(one) for one in layers)
    return InceptionResult(
        run_id=outcome.run_id,
        state=outcome.state,
        status=outcome.status,
        depth=options.depth,
        spent_cents=sum(one.paid_cents for one in results),
        card_left_cents=outcome.context.card_left_cents,
        layers=results,
        transitions=await _transitions(app, outcome.run_id, outcome.seq),
        refusal=outcome.last_error or outcome.context.refusal or None,
    )


def _layer_result(report: LayerReport) -> LayerResult:
    """A layer's report, its journal by name."""
    steps = [msgspec.structs.asdict(step) for step in report.journal]
    fields = {**msgspec.structs.asdict(report), "journal": steps}
    return msgspec.convert(fields, LayerResult)


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
