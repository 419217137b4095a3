"""A whole `Payment` through a real litecoind, killed where it hurts.

The portal here is a shop of one price whose invoices are addresses of the node's wallet `shop`, and
whose only source is that wallet (`listreceivedbyaddress`).  It keeps its books in a file of its own
(it is another party: our SIGKILL does not reach it), shows a secret once, and honours the newest.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from engine.clock import hours, minutes, seconds
from engine.secret import Secret
from engine.secrets import SecretsCodec
from engine.testing import Harness, ManualClock
from machines.clients import BitcoindWallet, Transport
from machines.clients.ports import (
    Credentials,
    Currency,
    Invoice,
    KeyInfo,
    NotFound,
    PaymentStatus,
    Platform,
    Portal,
    PortalStatus,
    Quote,
    Unauthorized,
)
from machines.flows.f03_payment import Payment
from machines.flows.f03c_confirmation import Confirmation
from machines.flows.f03w_wallet import Spend
from machines.flows.money import Wallets
from machines.flows.purchase import Purchase
from persistence.store import open_store
from tests.acceptance.nodes.leg import (
    AFTER_DEATH_MS,
    EPOCH_MS,
    DyingPlan,
    Point,
    Wire,
    in_a_child,
)
from tests.acceptance.nodes.litecoin import ATOMIC, Litecoin

PRICE_CENTS = 700
DUE_ATOMIC = 20_000_003
ROUNDS_MAX = 20
POINTS: tuple[Point, ...] = (
    ("after effect open_invoice", 1),
    ("after rpc signrawtransactionwithwallet", 1),
    ("before rpc sendrawtransaction", 1),
    ("after rpc sendrawtransaction", 1),
    ("after effect hand_out", 1),
)


class ShopPortal:
    """Sells one key for litecoin; books in a file, truth from the shop's wallet."""

    def __init__(self, node: Litecoin, books: Path, clock: ManualClock) -> None:
        self._node = node
        self._books = books
        self._clock = clock

    async def quotes(self) -> tuple[Quote, ...]:
        quote = Quote(
            tier=1, months=1, price_cents=PRICE_CENTS, requests_per_minute=7, concurrency=1
        )
        return (quote,)

    async def create_invoice(
        self, *, tier: int, months: int, currency: Currency, refund_address: str, key: str
    ) -> Invoice:
        books = self.read()
        if key not in books["invoices"]:
            expires_ms = self._clock.now_ms() + hours(1)
            books["invoices"][key] = [self._node.fresh("shop"), expires_ms]
            self._write(books)
        address, expires_ms = books["invoices"][key]
        return Invoice(
            invoice_id=address, currency=currency, address=address, amount_atomic=DUE_ATOMIC,
            price_cents=PRICE_CENTS, tier=tier, months=months, expires_ms=expires_ms,
            confirmations_required=currency.confirmations,
        )  # fmt: skip

    async def payment_status(self, invoice_id: str) -> PaymentStatus:
        books = self.read()
        expires_ms = next((e for a, e in books["invoices"].values() if a == invoice_id), None)
        if expires_ms is None:
            raise NotFound(f"shop: no invoice {invoice_id}")
        received, depth = self._received(invoice_id)
        status: PortalStatus = "partial" if 0 < received < DUE_ATOMIC else "pending"
        if received >= DUE_ATOMIC:
            status = "completed" if depth >= Currency.LTC.confirmations else "confirming"
        secret = None
        if status == "completed" and not books["viewed"]:
            books["viewed"], secret = True, Secret(f"unsb-sk-{books['generation']}")
            self._write(books)
        return PaymentStatus(
            invoice_id=invoice_id, status=status, received_atomic=received,
            due_atomic=DUE_ATOMIC, confirmations=depth, expires_ms=expires_ms,
            server_ms=self._clock.now_ms(), secret_key=secret,
            public_key="unsb-pk-1" if status == "completed" else None,
        )  # fmt: skip

    async def regenerate_secret(self, invoice_id: str) -> Credentials:
        books = self.read()
        books["generation"] += 1
        self._write(books)
        secret = Secret(f"unsb-sk-{books['generation']}")
        return Credentials(public_key="unsb-pk-1", secret_key=secret)

    async def validate_key(self, credentials: Credentials, *, offset_ms: int = 0) -> KeyInfo:
        """The platform's half: only the newest secret is good."""
        if credentials.secret_key.reveal() != f"unsb-sk-{self.read()['generation']}":
            raise Unauthorized("401", reason="invalid_signature")
        return KeyInfo(
            valid=True, public_key=credentials.public_key, tier=1, requests_per_minute=7,
            concurrency=1,
        )  # fmt: skip

    def read(self) -> dict[str, Any]:
        """The books."""
        empty = {"invoices": {}, "viewed": False, "generation": 0}
        books: dict[str, Any] = json.loads(self._books.read_text()) if self._books.exists() else {}
        return empty | books

    def _write(self, books: dict[str, Any]) -> None:
        self._books.write_text(json.dumps(books))

    def _received(self, address: str) -> tuple[int, int]:
        found = self._node.call("listreceivedbyaddress", 0, False, False, address, wallet="shop")
        if not found:
            return 0, 0
        return int(found[0]["amount"] * ATOMIC), int(found[0]["confirmations"])


async def _live(node: Litecoin, directory: Path, now_ms: int, plan: DyingPlan) -> dict[str, Any]:
    clock = ManualClock(now_ms)
    transport = Transport(clock.now_ms, network=Wire(plan, {}))
    wallet = BitcoindWallet(
        Currency.LTC, node.url(), transport, wallet_name="bank", username="u",
        password=Secret("p"),
    )  # fmt: skip
    shop = ShopPortal(node, directory / "books.json", clock)
    store = open_store(f"sqlite:///{directory / 'purchase.db'}", synchronous="NORMAL")
    harness = Harness(
        (Payment, Spend, Confirmation),
        store=store,
        resources={Portal: shop, Platform: shop, Wallets: Wallets({Currency.LTC: wallet})},
        clock=clock,
        plan=plan,
        secrets=SecretsCodec(bytes(32)),
    )
    order = Purchase(tier=1, months=1, currency=Currency.LTC, budget_cents=PRICE_CENTS)
    try:
        async with harness:
            run = await harness.app.start(Payment, order, key="the purchase")
            await harness.until_idle(horizon_ms=minutes(1))
            outcome = await harness.app.outcome(run.run_id)
            entries = await harness.app.journal(run.run_id)
    finally:
        await transport.aclose()
        store.close()
    return {
        "now_ms": clock.now_ms() + seconds(1),
        "state": outcome.state,
        "status": outcome.status,
        "address": outcome.context.invoice.address if outcome.context.invoice else "",
        "passed": [entry.target for entry in entries],
    }


def whole_purchases(node: Litecoin) -> int:
    """One undisturbed, and one for each point with SIGKILL there, plus a reorganisation in each.

    Returns:
        how many deaths there were.
    """
    deaths = 0
    for point in (None, *POINTS):
        deaths += _one(node, point)
    return deaths


def _one(node: Litecoin, point: Point | None) -> int:
    directory = Path(tempfile.mkdtemp(prefix="turtles-purchase-", dir=node.directory))
    now_ms, deaths, told, turned = EPOCH_MS, 0, None, False
    for number in range(ROUNDS_MAX):
        plan = DyingPlan(point if number == 0 else None)
        told = in_a_child(partial(_live, node, directory, now_ms, plan))
        if told is None:
            deaths, now_ms = deaths + 1, now_ms + AFTER_DEATH_MS
            continue
        now_ms = told["now_ms"]
        paid = node.payments(told["address"]) if told["address"] else []
        assert paid in ([], [DUE_ATOMIC]), (point, paid, told)
        if told["status"] in ("completed", "failed"):
            break
        node.mine(2)
        if paid and not turned:
            turned = True
            node.reorganise(2, empty=True)
    assert told is not None and told["state"] == "completed", (point, told)
    assert node.payments(told["address"]) == [DUE_ATOMIC], point
    assert (deaths == 1) == (point is not None), point
    books = json.loads((directory / "books.json").read_text())
    assert len(books["invoices"]) == 1, books
    return deaths
