"""The engine inside a nested layer's sandbox: one run of `Inception`, in a database of its own.

::

    ~/.turtles/layer/
        runs.db, runs.db.key   its runs, and the key that opens their secrets
        engine.lock            held by the one engine that works here
        latency_ms             how long it took to get here, measured once
        progress.json          its runs so far, for `turtles tree`
        stop                   somebody wants it to cancel its run
        told.json              its report: it has ended

Standard input says what is asked for (`layer_wire.Ask`).  Whoever finds a run here goes on with it
and needs to be told nothing: a killed engine is started again and pays nothing twice.  The platform
is reached by the proxy alone; there are no wallets.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from engine.errors import UsageError
from engine.ports import Query
from engine.secrets import Secret
from engine.system import SystemClock
from engine.world import World
from machines.flows import layer_wire
from machines.flows.f13_inception import Inception
from machines.flows.layer import Step, Twig, line_of
from machines.flows.layer_wire import STEPS_MAX, TWIGS_MAX, Ask, Told, shown

if TYPE_CHECKING:
    from engine.app import App, Outcome

PLACE = Path(".turtles") / "layer"
"""Below the home directory."""
PROXY = "http://127.0.0.1:3128"
"""Where the platform's proxy listens inside a semitrusted sandbox."""
KEY = "layer"
LOOK_SECONDS = 0.2
_RUNS_MAX = 1_000
_log = structlog.get_logger("turtles.layer")


class Place:
    """The files of one engine; see the module."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = directory / "runs.db"
        self.lock = directory / "engine.lock"
        self.latency = directory / "latency_ms"
        self.progress = directory / "progress.json"
        self.stop = directory / "stop"
        self.told = directory / "told.json"
        self.log = directory / "engine.log"

    def make(self) -> None:
        """Make the directory, for its owner alone."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, file: Path, content: bytes) -> None:
        """All of it or nothing."""
        half = file.with_suffix(".half")
        half.write_bytes(content)
        half.replace(file)

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Whether we are the one engine here, until the block ends."""
        with self.lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def has_engine(self) -> bool:
        """Whether an engine works here now."""
        with self.held() as mine:
            return not mine


async def serve(place: Place, asked: str, began_ms: int) -> None:
    """Build the layer, or go on with it, until it has ended and its report is written.

    Args:
        asked: one line of JSON; may be empty where a run has begun.
        began_ms: when whoever wanted an engine here began.

    Raises:
        UsageError: nothing has begun here, and what was asked for is no layer.
    """
    place.make()
    with place.held() as mine:
        if not mine or place.told.exists():
            return
        ask = None if not asked.strip() else _ask_from(asked)
        async with _app(place, layer_wire.INSIDE_URL if ask is None else ask.url) as app:
            latency_ms = _latency(place, began_ms, app)
            run_id = await _run(app, ask, latency_ms)
            helpers = [
                asyncio.create_task(_tell_progress(place, app)),
                asyncio.create_task(_heed_stop(place, app, run_id)),
            ]
            try:
                outcome = await app.wait(run_id)
            finally:
                for helper in helpers:
                    helper.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
            place.write(place.progress, msgspec.json.encode(await twigs_of(app)))
            place.write(place.told, msgspec.json.encode(await _told(app, outcome)))
            _log.info("layer.told", state=outcome.state, status=outcome.status)


def _ask_from(line: str) -> Ask:
    try:
        return layer_wire.ask_from(line)
    except msgspec.DecodeError:
        # Neither the text nor the decoder's error is shown: both may hold the card's code.
        raise UsageError(
            "standard input: not what a layer is asked for. This command is for the engine of "
            "the layer above, not for people."
        ) from None


@contextlib.asynccontextmanager
async def _app(place: Place, url: str) -> AsyncIterator[App]:
    from machines.app import turtles_app
    from machines.clients import clients_for
    from persistence import open_store

    clock = SystemClock()
    proxy = PROXY if url == layer_wire.INSIDE_URL else None
    clients = clients_for(
        url, rpc_username="", rpc_password=Secret(""), clock_ms=clock.now_ms, proxy=proxy
    )
    store = open_store(f"sqlite:///{place.database}")
    try:
        # No wallet is handed down: what is paid here is paid from the card.
        poor = dataclasses.replace(clients, wallets={})
        app = turtles_app(store, poor, world=World(clock=clock))
        async with app:
            yield app
    finally:
        store.close()
        await clients.aclose()


def _latency(place: Place, began_ms: int, app: App) -> int:
    """How long it took to get here; the first engine's measure stands."""
    if not place.latency.exists():
        place.write(place.latency, b"%d" % max(app.clock.now_ms() - began_ms, 0))
    return int(place.latency.read_text())


async def _run(app: App, ask: Ask | None, latency_ms: int) -> str:
    known = await app.find(Inception, KEY)
    if known is not None:
        return known
    if ask is None:
        raise UsageError("standard input: empty, and no layer was begun here")
    started = await app.start(Inception, layer_wire.layer_of(ask, latency_ms), key=KEY)
    return started.run_id


async def _heed_stop(place: Place, app: App, run_id: str) -> None:
    # A file, because whoever asks for it is another process, that knows nothing of this one.
    while not place.stop.exists():  # noqa: ASYNC110
        await asyncio.sleep(LOOK_SECONDS)
    await app.cancel(run_id)


async def _tell_progress(place: Place, app: App) -> None:
    before: tuple[Twig, ...] | None = None
    while True:
        twigs = await twigs_of(app)
        if twigs != before:
            place.write(place.progress, msgspec.json.encode(twigs))
            before = twigs
        await asyncio.sleep(LOOK_SECONDS)


async def twigs_of(app: App) -> tuple[Twig, ...]:
    """Every run here, and what the engine one sandbox further down has told of its own."""
    stored = await app.runs(Query(limit=_RUNS_MAX))
    runs = [await app.get(one.run.run_id) for one in reversed(stored)]
    depth = next((run.context.depth for run in runs if run.machine == "Inception"), 0)
    own = [_twig(depth, run) for run in runs]
    below = [twig for run in runs if run.machine == "Inception" for twig in run.context.twigs]
    return tuple([*own, *below][:TWIGS_MAX])


def _twig(depth: int, run: Any) -> Twig:
    is_layer = run.machine == "Inception"
    return Twig(
        depth=depth,
        run=run.run_id,
        parent=run.parent.run_id if run.parent else "",
        machine=run.machine,
        state=run.state,
        status=run.status,
        paid_cents=run.context.paid_cents if is_layer else 0,
        session_id=run.context.last_session_id if is_layer else "",
    )


async def _told(app: App, outcome: Outcome) -> Told:
    context, output = outcome.context, outcome.output
    above = msgspec.structs.replace(context, depth=context.depth - 1)
    return Told(
        said=line_of(above),
        state=outcome.state,
        status=outcome.status,
        complete=output is not None and output.complete,
        refusal=shown(outcome.last_error or context.refusal),
        layers=() if output is None else output.layers,
        journal=await steps_of(app),
    )


async def steps_of(app: App) -> tuple[Step, ...]:
    """The transitions of every run here, the layer's own first; as many as may be told."""
    stored = list(reversed(await app.runs(Query(limit=_RUNS_MAX))))
    runs = sorted(stored, key=lambda one: one.run.machine != "Inception")
    steps: list[Step] = []
    for one in runs:
        for entry in await app.journal(one.run.run_id):
            steps.append(
                Step(
                    run=entry.run_id,
                    machine=one.run.machine,
                    seq=entry.seq,
                    event=entry.event,
                    source=entry.source,
                    target=entry.target,
                    at_ms=entry.at_ms,
                )
            )
    return tuple(steps[:STEPS_MAX])
