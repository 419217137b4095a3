"""W4 and W7: does what is finished, or long past, make the next step slower?

Both take the two sides of their ratio in turns, in one process, so that the machine's own ups and
downs meet both.  W4: single runs in an empty store and in one with many finished runs.  W7: bursts
of steps of a run that has very many behind it, and of a fresh run in the same store.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine import App
from persistence import open_store
from tests.benchmarks.machines import TIMES, Go, Long, Loop, Order, Walk
from tests.benchmarks.peers.common import Options, latencies, order
from tests.benchmarks.seeding import seeder

_ROUNDS = 10
_BURST = 200
"""Steps between two rests of a looping run."""
Sample = Callable[..., Awaitable[list[float]]]


def w4(options: Options, sample: Sample) -> dict[str, Any]:
    """Latency beside finished runs, and what one costs in bytes.

    `extra` is the url of the empty store on PostgreSQL.
    """
    full = replace(options, directory=f"{options.directory}/full")
    empty = replace(options, directory=f"{options.directory}/empty", url=options.extra or None)
    for each in (full, empty):
        Path(each.directory).mkdir()
    run_id = asyncio.run(_one_run(full))
    with seeder(full) as seeds:
        seeds.settle()
        before = seeds.size_bytes()
        seeds.clone_run(run_id, options.finished)
        seeds.settle()
        each_bytes = (seeds.size_bytes() - before) / options.finished
    found = asyncio.run(_in_turns(full, empty, sample, options.runs))
    crowded, alone = latencies(found[0]), latencies(found[1])
    return {
        "finished": options.finished,
        "bytes_per_finished": each_bytes,
        "p50_ms": crowded["p50_ms"],
        "empty_p50_ms": alone["p50_ms"],
        "ratio": crowded["p50_ms"] / alone["p50_ms"],
    }


async def _one_run(options: Options) -> str:
    store = _open(options)
    async with App([Walk], store=store) as app:
        run = await app.start(Walk, Order(**order(0)))
        await app.wait(run.run_id)
    store.close()
    return run.run_id


async def _in_turns(
    full: Options, empty: Options, sample: Sample, runs: int
) -> tuple[list[float], list[float]]:
    stores = _open(full), _open(empty)
    found: tuple[list[float], list[float]] = [], []
    async with App([Walk], store=stores[0]) as crowded, App([Walk], store=stores[1]) as alone:
        for turn in range(_ROUNDS):
            pairs = list(zip((crowded, alone), found, strict=True))
            for app, times in pairs if turn % 2 else reversed(pairs):
                times += await sample(app, max(runs // _ROUNDS, 1), warm=2)
    for store in stores:
        store.close()
    return found


def w7(options: Options) -> dict[str, Any]:
    """Steps of a run that has `finished` steps behind it, beside those of a fresh one."""
    run_id = asyncio.run(_rested_run(options))
    with seeder(options) as seeds:
        seeds.lengthen_run(run_id, options.finished)
        seeds.settle()
    old, new = asyncio.run(_bursts(options, run_id))
    return {
        "steps_before": options.finished,
        "step_ms": statistics.median(old),
        "fresh_step_ms": statistics.median(new),
        "ratio": statistics.median(old) / statistics.median(new),
    }


async def _rested_run(options: Options) -> str:
    store = _open(options)
    async with _Rests(store) as rests:
        run = await rests.app.start(Loop, Long(rest_every=_BURST))
        await rests.next()
    store.close()
    return run.run_id


async def _bursts(options: Options, run_id: str) -> tuple[list[float], list[float]]:
    store = _open(options)
    old: list[float] = []
    new: list[float] = []
    async with _Rests(store) as rests:
        for turn in range(_ROUNDS):
            TIMES.clear()
            await rests.app.send(run_id, Go(number=turn), key=f"go-{turn}")
            await rests.next()
            old += _between(TIMES)
            TIMES.clear()
            await rests.app.start(Loop, Long(rest_every=_BURST))
            await rests.next()
            new += _between(TIMES)
    store.close()
    return old, new


def _between(times: list[float]) -> list[float]:
    """Milliseconds from step to step, without the first ones of a burst."""
    return [(b - a) * 1000 for a, b in pairwise(times[10:])]


class _Rests:
    """An app, and a way to wait for the next run to rest."""

    def __init__(self, store: Any) -> None:
        self.app = App([Loop], store=store, moved=self._moved)
        self._rested = asyncio.Event()

    async def __aenter__(self) -> _Rests:
        await self.app.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.app.__aexit__(*error)

    def _moved(self, decision: Any) -> None:
        if decision.after.state == "resting":
            self._rested.set()

    async def next(self) -> None:
        """Until a run rests."""
        async with asyncio.timeout(300):
            await self._rested.wait()
        self._rested.clear()


def _open(options: Options) -> Any:
    return open_store(options.url or f"sqlite:///{os.fspath(options.directory)}/runs.db")
