"""What is done to a running fleet.  Each function returns when it is over, and says what it did."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from tests.acceptance.chaos.fleet import Fleet, Hand
from tests.acceptance.chaos.proxy import Proxy, When

Disturbance = Callable[[Fleet, random.Random], Awaitable[str]]
CUT_SECONDS = 1.5


async def kill(fleet: Fleet, chance: random.Random) -> str:
    """SIGKILL one worker; another process takes its place, but not its runs."""
    hand = chance.choice(fleet.hands)
    fleet.signal(hand, signal.SIGKILL)
    return f"worker {hand.number}"


async def kill_most(fleet: Fleet, chance: random.Random) -> str:
    """SIGKILL all workers but one in the same moment."""
    victims = chance.sample(fleet.hands, len(fleet.hands) - 1)
    for hand in victims:
        fleet.signal(hand, signal.SIGKILL)
    return "workers " + " ".join(sorted(hand.number for hand in victims))


async def zombie(fleet: Fleet, chance: random.Random) -> str:
    """SIGSTOP one worker past the end of its lease, then SIGCONT."""
    hand, seconds = chance.choice(fleet.hands), fleet.lease_seconds * chance.uniform(1.2, 1.6)
    from_ns = time.monotonic_ns()
    fleet.signal(hand, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    fleet.signal(hand, signal.SIGCONT)
    hand.stopped.append((from_ns, time.monotonic_ns()))
    return f"worker {hand.number} for {seconds:.1f} s"


async def hiccup(fleet: Fleet, chance: random.Random) -> str:
    """SIGSTOP one worker for less than its lease."""
    hand, seconds = chance.choice(fleet.hands), fleet.lease_seconds * chance.uniform(0.2, 0.5)
    fleet.signal(hand, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    fleet.signal(hand, signal.SIGCONT)
    return f"worker {hand.number} for {seconds:.1f} s"


async def terminate(fleet: Fleet, chance: random.Random) -> str:
    """pg_terminate_backend for everybody, the load included, several times."""
    assert fleet.postgres is not None
    times = chance.randint(2, 4)
    ended = 0
    for _ in range(times):
        ended += await asyncio.to_thread(fleet.postgres.terminate_backends)
        await asyncio.sleep(chance.uniform(0.1, 0.4))
    return f"{ended} backends, {times} times"


async def _restart(fleet: Fleet, mode: Literal["fast", "immediate"], away_seconds: float) -> str:
    assert fleet.postgres is not None
    await asyncio.to_thread(fleet.postgres.stop, mode)
    await asyncio.sleep(away_seconds)
    await asyncio.to_thread(fleet.postgres.start)
    return f"away {away_seconds:.1f} s"


async def restart_fast(fleet: Fleet, chance: random.Random) -> str:
    """Stop the server in fast mode, and start it again."""
    return await _restart(fleet, "fast", chance.uniform(0.2, 1.0))


async def restart_immediate(fleet: Fleet, chance: random.Random) -> str:
    """The same in immediate mode: a crash, and recovery from the log."""
    return await _restart(fleet, "immediate", chance.uniform(0.2, 1.0))


async def outage(fleet: Fleet, chance: random.Random) -> str:
    """The server is gone for longer than every lease."""
    return await _restart(fleet, "fast", fleet.lease_seconds * 1.3)


async def _cut_commits(fleet: Fleet, when: When) -> str:
    before = sum(proxy.cuts for proxy in _proxies(fleet))
    for proxy in _proxies(fleet):
        proxy.cut_commits(when)
    await asyncio.sleep(CUT_SECONDS)
    for proxy in _proxies(fleet):
        proxy.cut_commits(None)
    cuts = sum(proxy.cuts for proxy in _proxies(fleet)) - before
    return f"{cuts} connections in {CUT_SECONDS:g} s"


async def cut_before_commit(fleet: Fleet, chance: random.Random) -> str:
    """Every COMMIT of every worker is lost with its connection."""
    return await _cut_commits(fleet, "before")


async def cut_sent_commit(fleet: Fleet, chance: random.Random) -> str:
    """Every COMMIT is sent, and the connection cut at once."""
    return await _cut_commits(fleet, "sent")


async def cut_answer(fleet: Fleet, chance: random.Random) -> str:
    """Every COMMIT is carried out, and its answer lost with the connection."""
    return await _cut_commits(fleet, "answered")


async def cut_all(fleet: Fleet, chance: random.Random) -> str:
    """Every connection of every worker is cut, several times."""
    times = chance.randint(3, 6)
    for _ in range(times):
        for proxy in _proxies(fleet):
            proxy.cut()
        await asyncio.sleep(chance.uniform(0.05, 0.3))
    return f"{times} times"


async def delay(fleet: Fleet, chance: random.Random) -> str:
    """Everything between one worker and the server takes longer."""
    hand, seconds = _any_with_proxy(fleet, chance), chance.uniform(0.1, 0.3)
    hand[1].delay_seconds = seconds
    await asyncio.sleep(fleet.lease_seconds)
    hand[1].delay_seconds = 0
    return f"worker {hand[0].number}, {seconds * 1000:.0f} ms each way"


async def partition(fleet: Fleet, chance: random.Random) -> str:
    """Nothing passes between one worker and the server until its lease is over; then all of it."""
    hand, proxy = _any_with_proxy(fleet, chance)
    seconds = fleet.lease_seconds * chance.uniform(1.2, 1.5)
    proxy.hold()
    await asyncio.sleep(seconds)
    proxy.let_go()
    return f"worker {hand.number} for {seconds:.1f} s"


async def _step(fleet: Fleet, chance: random.Random, seconds: int) -> str:
    hand = chance.choice(fleet.hands)
    fleet.set_clock(hand, seconds)
    await asyncio.sleep(fleet.lease_seconds)
    fleet.set_clock(hand, 0)
    return f"worker {hand.number} by {seconds:+d} s"


async def clock_forward(fleet: Fleet, chance: random.Random) -> str:
    """One worker's wall clock is an hour ahead for the length of a lease."""
    return await _step(fleet, chance, 3_600)


async def clock_back(fleet: Fleet, chance: random.Random) -> str:
    """One worker's wall clock is an hour behind."""
    return await _step(fleet, chance, -3_600)


async def locked(fleet: Fleet, chance: random.Random) -> str:
    """Another process holds SQLite's write lock for longer than anybody waits for it."""
    seconds = fleet.lease_seconds * 0.6

    def hold() -> None:
        file = fleet.url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(file, timeout=10)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)

    await asyncio.to_thread(hold)
    return f"for {seconds:.1f} s"


def _proxies(fleet: Fleet) -> list[Proxy]:
    return [hand.proxy for hand in fleet.hands if hand.proxy is not None]


def _any_with_proxy(fleet: Fleet, chance: random.Random) -> tuple[Hand, Proxy]:
    hand = chance.choice(fleet.hands)
    assert hand.proxy is not None
    return hand, hand.proxy


ON_ANY: tuple[Disturbance, ...] = (kill, zombie, kill_most, hiccup)
ON_SQLITE: tuple[Disturbance, ...] = (*ON_ANY, locked)
ON_POSTGRESQL: tuple[Disturbance, ...] = (
    kill, zombie, terminate, restart_fast, restart_immediate, cut_before_commit, cut_answer,
    cut_sent_commit, partition, clock_forward, clock_back, cut_all, kill_most, delay, outage,
    hiccup,
)  # fmt: skip
QUICK = 11
"""How many of them a short run does: the first ones."""
