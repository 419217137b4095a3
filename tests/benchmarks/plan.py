"""What is measured, in which order: for each workload its cells, taken round-robin.

Everything of one workload is measured in the same minutes, in turns, so that its ratios are of the
same machine.  Peers, which are slower, take part in every second round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tests.benchmarks.contenders import Contender
from tests.benchmarks.figures import median
from tests.benchmarks.peers.common import STEPS

Results = dict[str, dict[str, dict[str, Any]]]
"""By workload and row: label, kind, database, and the samples."""
Options = dict[str, Any] | Callable[[Results], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything; `--set NAME=VALUE` changes one.

    Args:
        rounds: of W1 and W2; of those, peers take part in every second.
        w1_runs, w1_peer_runs: runs of W1.
        w2_runs, w2_peer_runs: runs of W2.
        w3_runs, w3_peer_runs: runs that wait in W3.
        w3_rounds: of our side.
        w4_finished: finished runs in the store.
        w5_runs, w5_many, w5_peer_runs: runs that wait in W5; 0 leaves out.
        w6_runs, w6_rounds: runs that the workers of W6 share.
        w7_steps: steps that the run of W7 has behind it.
        idle_seconds: how long W5 looks at a process that does nothing.
    """

    rounds: int
    w1_runs: int = 1_000
    w1_peer_runs: int
    w2_runs: int
    w2_peer_runs: int
    w3_runs: int = 1_000
    w3_peer_runs: int
    w3_rounds: int
    w4_finished: tuple[int, ...]
    w5_runs: int = 10_000
    w5_many: int = 0
    w5_peer_runs: int
    w6_runs: int
    w6_rounds: int
    w7_steps: int
    idle_seconds: float


QUICK = Sizes(
    rounds=2, w1_peer_runs=60, w2_runs=50, w2_peer_runs=20, w3_peer_runs=100, w3_rounds=1,
    w4_finished=(10_000,), w5_peer_runs=0, w6_runs=1_000, w6_rounds=1, w7_steps=50_000,
    idle_seconds=2.0,
)  # fmt: skip
FULL = Sizes(
    rounds=4, w1_peer_runs=200, w2_runs=200, w2_peer_runs=50, w3_peer_runs=1_000, w3_rounds=3,
    w4_finished=(100_000, 1_000_000), w5_many=100_000, w5_peer_runs=500, w6_runs=3_000, w6_rounds=3,
    w7_steps=1_000_000, idle_seconds=5.0,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of one workload.

    Args:
        workload: of the report.
        row: unique in its workload.
        ask: the workload that the contender is asked for.
        options: what it is told beside; or how that follows from what is known by then.
        rounds: in which rounds it takes part.
    """

    workload: str
    row: str
    label: str
    contender: Contender
    ask: str
    options: Options = field(default_factory=dict)
    rounds: tuple[int, ...] = (0,)


def cells(contenders: list[Contender], sizes: Sizes) -> Iterator[Cell]:
    """All of them, workload by workload."""
    named = {each.key: each for each in contenders}
    engines = [named["turtles-sqlite"], named["turtles-postgresql"]]
    raw = [named["raw-sqlite"], named["raw-postgresql"]]
    others = [each for each in contenders if not each.ours and not each.raw]
    yield from _w1(engines, raw, others, sizes)
    yield from _w2(engines, raw, others, sizes)
    yield from _w3(engines, others, sizes)
    yield from _w4(engines, sizes)
    yield from _w5(engines, others, sizes)
    yield from _w6(engines, sizes)
    yield from _w7(engines, sizes)


def _every(rounds: int, step: int = 1) -> tuple[int, ...]:
    return tuple(range(0, rounds, step))


def _w1(
    engines: list[Contender], raw: list[Contender], others: list[Contender], sizes: Sizes
) -> Iterator[Cell]:
    always, given = _every(sizes.rounds), {"runs": sizes.w1_runs}
    yield Cell(
        workload="counts", row="turtles-sqlite", label="commits and statements",
        contender=engines[0], ask="w1-count", options={"runs": sizes.w1_runs // 2},
    )  # fmt: skip
    for engine in engines:
        for at_once in (16, 200, 1_000):
            yield Cell(
                workload="w1", row=f"{engine.key}-{at_once}", contender=engine, ask="w1",
                label=f"{engine.label}, {at_once:,} at once",
                options={**given, "at_once": at_once}, rounds=always,
            )  # fmt: skip
    normal = replace(engines[0], synchronous="NORMAL")
    yield Cell(
        workload="w1", row="turtles-sqlite-normal", contender=normal, ask="w1", rounds=always,
        label="**turtles**, SQLite with synchronous NORMAL", options=given,
    )  # fmt: skip
    for floor in raw:
        for ask, words in (("w1-driver", ""), ("w1-core", ", SQLAlchemy Core executemany")):
            yield Cell(
                workload="w1", row=f"{floor.key}{ask[2:]}", contender=floor, ask=ask, rounds=always,
                label=f"{floor.label}{words}, steps to a commit as ours",
                options=_batched(floor.key.replace("raw", "turtles"), sizes),
            )  # fmt: skip
    for peer in others:
        yield Cell(
            workload="w1", row=peer.key, label=peer.label, contender=peer, ask="w1",
            options={"runs": sizes.w1_peer_runs}, rounds=_every(sizes.rounds, 2),
        )  # fmt: skip


def _batched(engine: str, sizes: Sizes) -> Callable[[Results], dict[str, Any]]:
    """As many steps to a commit as ours had at its usual number at once."""

    def options(results: Results) -> dict[str, Any]:
        return {"runs": sizes.w1_runs, "at_once": batch_of(engine, results, sizes.w1_runs)}

    return options


def batch_of(engine: str, results: Results, runs: int) -> int:
    """Steps in a commit of ours, rounded; 200 where it is not known."""
    if engine == "turtles-sqlite":
        counted = results.get("counts", {}).get(engine, {}).get("samples", [])
        found = median(counted, "steps_per_commit")
    else:
        row = results.get("w1", {}).get(f"{engine}-200", {}).get("samples", [])
        commits = median(row, "commits")
        found = (runs + 200) * STEPS / commits if commits else None
    return max(round(found), 1) if found else 200


def _w2(
    engines: list[Contender], raw: list[Contender], others: list[Contender], sizes: Sizes
) -> Iterator[Cell]:
    for each in [*engines, *raw]:
        label = each.label if each.ours else f"{each.label}: eleven commits"
        yield Cell(
            workload="w2", row=each.key, label=label, contender=each, ask="w2",
            options={"runs": sizes.w2_runs, "at_once": 1}, rounds=_every(sizes.rounds),
        )  # fmt: skip
    for peer in others:
        yield Cell(
            workload="w2", row=peer.key, label=peer.label, contender=peer, ask="w2",
            options={"runs": sizes.w2_peer_runs, "at_once": 1}, rounds=_every(sizes.rounds, 2),
        )  # fmt: skip
        if peer.key == "absurd":
            yield Cell(
                workload="w2", row="absurd-user", contender=peer, ask="w2-user",
                label="Absurd as a user has it: worker in the background, `await_task_result`",
                options={"runs": sizes.w2_peer_runs // 2},
            )  # fmt: skip


def _w3(engines: list[Contender], others: list[Contender], sizes: Sizes) -> Iterator[Cell]:
    for each in engines:
        yield Cell(
            workload="w3", row=each.key, label=each.label, contender=each, ask="w3",
            options={"runs": sizes.w3_runs}, rounds=_every(sizes.w3_rounds),
        )  # fmt: skip
    for peer in others:
        if not peer.key.endswith("-shipped"):
            yield Cell(
                workload="w3", row=peer.key, label=peer.label, contender=peer, ask="w3",
                options={"runs": sizes.w3_peer_runs},
            )  # fmt: skip


def _w4(engines: list[Contender], sizes: Sizes) -> Iterator[Cell]:
    for finished in sizes.w4_finished:
        for each in engines:
            yield Cell(
                workload="w4", row=f"{each.key}-{finished}", contender=each, ask="w4",
                label=f"{each.label}, {finished:,} finished",
                options={"runs": max(sizes.w2_runs, 100), "at_once": 1, "finished": finished},
            )  # fmt: skip


def _w5(engines: list[Contender], others: list[Contender], sizes: Sizes) -> Iterator[Cell]:
    for count in filter(None, (sizes.w5_runs, sizes.w5_many)):
        for each in engines:
            yield Cell(
                workload="w5", row=f"{each.key}-{count}", contender=each, ask="w5",
                label=f"{each.label}, {count:,} waiting",
                options={"runs": count, "idle_seconds": sizes.idle_seconds},
            )  # fmt: skip
    for peer in others if sizes.w5_peer_runs else ():
        if not peer.key.endswith("-shipped"):
            yield Cell(
                workload="w5", row=peer.key, contender=peer, ask="w5",
                label=f"{peer.label}, {sizes.w5_peer_runs:,} waiting",
                options={"runs": sizes.w5_peer_runs, "idle_seconds": sizes.idle_seconds},
            )  # fmt: skip


def _w6(engines: list[Contender], sizes: Sizes) -> Iterator[Cell]:
    for engine in reversed(engines):
        for workers in (1, 2, 4):
            yield Cell(
                workload="w6", row=f"{engine.key}-{workers}", contender=engine, ask="w6",
                label=f"{engine.label}, {workers} worker{'s' if workers > 1 else ''}",
                options={"runs": sizes.w6_runs, "extra": str(workers)},
                rounds=_every(sizes.w6_rounds),
            )  # fmt: skip


def _w7(engines: list[Contender], sizes: Sizes) -> Iterator[Cell]:
    for each in engines:
        yield Cell(
            workload="w7", row=each.key, label=each.label, contender=each, ask="w7",
            options={"finished": sizes.w7_steps},
        )  # fmt: skip
