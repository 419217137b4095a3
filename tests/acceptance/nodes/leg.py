"""One payment of ours by the real machines, in a process that can be killed at every boundary.

::

    leg = Leg(directory, order, wallet)
    leg.work()                              until nothing is due: what it then says of itself
    leg.work(die_at=("before rpc sendrawtransaction", 1))    None: SIGKILL came there
    leg.work(lose={"sendrawtransaction": "reply"})           the node did it, nobody heard

A leg is a run of `Spend` and, once that is broadcast, one of `Confirmation`, over a SQLite file.
Each `work` forks: the child opens the file, does what the program does at its start (reservations
are restored), moves whatever is due, and tells through a pipe how far it came; at the boundary it
was given it sends itself SIGKILL.  Boundaries are numbered by name: before and after every write to
the file, every effect, every call to a node.  The parent never opens the file, so nothing of it
survives a fork.

Time is a manual clock that the child inherits and advances; `horizon_ms` bounds how far, because a
payment that waits for a block would be polled for ever.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import msgspec
import structlog

from engine.clock import hours, minutes, seconds
from engine.errors import TurtlesError
from engine.secret import Secret
from engine.secrets import SecretsCodec
from engine.testing import CrashPlan, Harness, ManualClock
from machines.app import restore_reservations
from machines.clients import Transport
from machines.clients.ports import Currency, Wallet
from machines.flows.f03c_confirmation import Confirmation, Following
from machines.flows.f03w_wallet import Spend, SpendOrder
from machines.flows.money import FEE_ATOMIC_MAX, STALL_MS, Wallets
from persistence.store import open_store

EPOCH_MS = 1_700_000_000_000
HORIZON_MS = seconds(60)
AFTER_DEATH_MS = minutes(2)
"""Longer than the lease of a worker that is dead."""
Loss = Literal["request", "reply"]
Point = tuple[str, int]


@dataclass(frozen=True)
class Progress:
    """What a child says at its end: the states its runs passed, and what it was told to notice."""

    now_ms: int
    spend: str
    passed: list[str]
    confirmation: str
    followed: list[str]
    watched: list[str]
    reason: str
    txid: str
    inputs: tuple[str, ...]
    report: dict[str, int]
    points: list[Point] = field(repr=False)

    @property
    def ended(self) -> bool:
        """Nothing of it will move any more."""
        over = {"broadcast", "deep_enough", "replaced", "given_up"}
        return (self.confirmation or self.spend) in over - {"broadcast"} | UNPAID


UNPAID = frozenset({"unfunded", "rejected", "conflicted", "abandoned", "manual"})


class DyingPlan(CrashPlan):
    """Notes every boundary by name and number; SIGKILL at one of them."""

    def __init__(self, die_at: Point | None) -> None:
        super().__init__()
        self.points: list[Point] = []
        self._counted: Counter[str] = Counter()
        self._die_at = die_at

    def pass_by(self, name: str) -> None:
        """A boundary is reached."""
        self._counted[name] += 1
        self.points.append((name, self._counted[name]))
        if self.points[-1] == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)


class Wire(httpx.AsyncBaseTransport):
    """The network between us and the nodes: boundaries around each call, and losses.

    Args:
        lose: by method, once: the request never arrives, or its reply gets lost.
    """

    def __init__(self, plan: DyingPlan, lose: Mapping[str, Loss]) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self._plan = plan
        self._lose = dict(lose)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One call."""
        method = _method_of(request)
        loss = self._lose.pop(method, None)
        self._plan.pass_by(f"before rpc {method}")
        if loss == "request":
            raise httpx.ReadTimeout(f"{method}: lost on its way", request=request)
        response = await self._inner.handle_async_request(request)
        await response.aread()
        self._plan.pass_by(f"after rpc {method}")
        if loss == "reply":
            raise httpx.ReadTimeout(f"{method}: its reply was lost", request=request)
        return response

    async def aclose(self) -> None:
        """Close the sockets."""
        await self._inner.aclose()


def _method_of(request: httpx.Request) -> str:
    body = json.loads(request.content)
    return str(body.get("method") or request.url.path.rpartition("/")[2])


@dataclass
class Leg:
    """One exactly-once payment.

    Args:
        directory: where the SQLite file goes.
        wallet_over: makes the paying wallet over a transport, in the child.
        order: what to pay.
        required: the depth at which it counts.
        watch_to: a payment that was deep enough is watched on to this depth; 0 for not.
    """

    directory: Path
    wallet_over: Callable[[Transport], Wallet]
    order: SpendOrder
    required: int
    watch_to: int = 0
    now_ms: int = EPOCH_MS
    last: Progress | None = None
    deaths: int = 0
    died_at: list[Point] = field(default_factory=list)

    def work(
        self,
        *,
        die_at: Point | None = None,
        lose: Mapping[str, Loss] | None = None,
        horizon_ms: int = HORIZON_MS,
    ) -> Progress | None:
        """One life of the program: until nothing is due, or until SIGKILL (then None)."""
        plan = DyingPlan(die_at)
        told = in_a_child(lambda: _move(self, plan, dict(lose or {}), horizon_ms))
        if told is None:
            assert die_at is not None
            self.deaths += 1
            self.died_at.append(die_at)
            self.now_ms += AFTER_DEATH_MS
            return None
        told["inputs"] = tuple(told["inputs"])
        told["points"] = [tuple(point) for point in told["points"]]
        self.last = Progress(**told)
        self.now_ms = self.last.now_ms + seconds(1)
        return self.last


def order_for(currency: Currency, address: str, amount_atomic: int, **changes: Any) -> SpendOrder:
    """An order with a year to begin in."""
    fields: dict[str, Any] = {
        "currency": currency,
        "address": address,
        "amount_atomic": amount_atomic,
        "pay_by_ms": EPOCH_MS + hours(24 * 365),
        "confirmations": currency.confirmations,
        "poll_ms": seconds(14),
        "fee_atomic_max": FEE_ATOMIC_MAX[currency],
    }
    return SpendOrder(**(fields | changes))


def in_a_child(life: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any] | None:
    """Run it in a process of its own: what it says of itself, None when SIGKILL came.

    Raises:
        AssertionError: it failed in another way.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _live(life, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return None
    told: dict[str, Any] = json.loads(said)
    assert not told.get("problem"), told["problem"]
    return told


def _live(life: Callable[[], Coroutine[Any, Any, dict[str, Any]]], writer: int) -> None:
    """The child's whole life; never returns."""
    try:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        said = asyncio.run(life())
    except BaseException:  # noqa: BLE001 - a child must not fall back into the parent's code
        said = {"problem": traceback.format_exc()}
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(json.dumps(said).encode())
    os._exit(0)


async def _move(
    leg: Leg, plan: DyingPlan, lose: Mapping[str, Loss], horizon_ms: int
) -> dict[str, Any]:
    clock = ManualClock(leg.now_ms)
    transport = Transport(clock.now_ms, network=Wire(plan, lose))
    wallet = leg.wallet_over(transport)
    currency = leg.order.currency
    store = open_store(f"sqlite:///{leg.directory / 'leg.db'}", synchronous="NORMAL")
    harness = Harness(
        (Spend, Confirmation),
        store=store,
        resources={Wallets: Wallets({currency: wallet})},
        clock=clock,
        plan=plan,
        secrets=SecretsCodec(bytes(32)),
    )
    try:
        async with harness:
            await _settle_reservations(harness, wallet)
            until_ms = clock.now_ms() + horizon_ms
            await harness.app.start(Spend, leg.order, key="the leg")
            await harness.until_idle(horizon_ms=horizon_ms)
            spent = await _told(harness, Spend)
            if spent["state"] == "broadcast":
                following = _following(leg, spent["output"].transaction)
                await harness.app.start(Confirmation, following, key="the leg")
                await harness.until_idle(horizon_ms=max(0, until_ms - clock.now_ms()))
            followed = await _told(harness, Confirmation)
            if leg.watch_to and followed["state"] == "deep_enough":
                watching = _watching(leg, followed["context"])
                await harness.app.start(Confirmation, watching, key="the watch")
                await harness.until_idle(horizon_ms=max(0, until_ms - clock.now_ms()))
            watched = await _told(harness, Confirmation, "the watch")
    finally:
        await transport.aclose()
        store.close()
    transaction = spent["context"].transaction
    return {
        "now_ms": clock.now_ms(),
        "spend": spent["state"],
        "passed": spent["passed"],
        "confirmation": followed["state"],
        "followed": followed["passed"],
        "watched": watched["passed"],
        "reason": spent["context"].reason,
        "txid": transaction.txid if transaction else "",
        "inputs": list(transaction.inputs) if transaction else [],
        "report": {
            name: getattr(followed["output"], name)
            for name in followed["output"].__struct_fields__
        } if followed["output"] else {},
        "points": plan.points,
    }  # fmt: skip


async def _settle_reservations(harness: Harness, wallet: Wallet) -> None:
    """As the program does at its start; a node that is down is met again by the machine."""
    clients: Any = SimpleNamespace(wallets={wallet.currency: wallet})
    try:
        await restore_reservations(harness.app, clients)
    except TurtlesError:
        return


def _following(leg: Leg, transaction: Any) -> Following:
    return Following(
        currency=leg.order.currency,
        transaction=transaction,
        required=leg.required,
        poll_ms=leg.order.poll_ms,
        stall_ms=STALL_MS[leg.order.currency],
        since_ms=EPOCH_MS,
        give_up_ms=EPOCH_MS + hours(24 * 365),
        passphrase=leg.order.passphrase,
    )


def _watching(leg: Leg, deep: Following) -> Following:
    return msgspec.structs.replace(
        deep, required=leg.watch_to, reversals=0, stalls=0, evictions=0, rivals=0
    )


async def _told(harness: Harness, machine: Any, key: str = "the leg") -> dict[str, Any]:
    run_id = await harness.app.find(machine, key)
    if run_id is None:
        return {"state": "", "passed": [], "context": None, "output": None}
    outcome, entries = await harness.app.outcome(run_id), await harness.app.journal(run_id)
    passed = [e.target for i, e in enumerate(entries) if i == 0 or e.target != e.source]
    return {
        "state": outcome.state,
        "passed": passed,
        "context": outcome.context,
        "output": outcome.output,
    }


def passphrase(text: str) -> Secret[str] | None:
    """A secret of the order, if there is one."""
    return Secret(text) if text else None


def stopwatch() -> Callable[[], float]:
    """Seconds since this call."""
    began = time.monotonic()
    return lambda: round(time.monotonic() - began, 1)
