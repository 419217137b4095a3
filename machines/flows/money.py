"""What the payment machines share: the times and fees of each coin, legs, and errors of the ports.

A *leg* is one exactly-once spend on an invoice.  The first pays all of it; a further one pays the
gap when the portal counts less than is due, or replaces a leg that was double-spent::

    open ──► sent ──► deep ──► lost   in flight while open or sent; live while it pays, or may
      │        │
      ▼        ▼                      unsent: no node ever saw it; dead: its rival is buried;
    unsent    dead                    lost: no longer deep when what it bought was delivered

Source: payments.md section 4 (times per currency), 4.3 (integer arithmetic).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from engine.clock import minutes, seconds
from engine.effects import Call
from engine.errors import OutcomeUnknown, Permanent, Transient
from engine.retry import Retry
from machines.clients.ports import (
    ClientError,
    Currency,
    Platform,
    Portal,
    Record,
    ReplyLost,
    SignedTransaction,
    Unavailable,
    Wallet,
)

RESTOCKING_PERCENT = 9
"""What the portal keeps of a payment it sends back (paper, Flow 3)."""

LEGS_MAX = 5
"""More legs than this on one invoice mean that something is wrong: no further top-up."""

UNLOCK_SECONDS = 60
"""How long a wallet stays open after we unlocked it."""

FEE_ATOMIC_MAX: Mapping[Currency, int] = {
    Currency.BTC: 200_000,  # 0.002 BTC
    Currency.LTC: 10_000_000,  # 0.1 LTC
    Currency.DOGE: 1_000_000_000,  # 10 DOGE
    Currency.XMR: 50_000_000_000,  # 0.05 XMR
}
"""The most a leg may cost in network fees, unless the context says otherwise."""

PATIENT = Retry(attempts=1_000_000_000, first_ms=500, max_ms=15_000)
"""For calls that a deadline of the state ends, not a number of attempts."""


POLL_MS = seconds(14)
"""Pause between two looks at the chain, the wallet or the portal (paper, Flow 3)."""

CUT_MS: Mapping[Currency, int] = {
    Currency.BTC: minutes(35),
    Currency.LTC: minutes(20),
    Currency.DOGE: minutes(10),
    Currency.XMR: minutes(25),
}
"""No first broadcast later than this before the invoice's expiry: it might be seen too late."""

STALL_MS: Mapping[Currency, int] = {
    Currency.BTC: minutes(90),
    Currency.LTC: minutes(30),
    Currency.DOGE: minutes(15),
    Currency.XMR: minutes(45),
}
"""No new confirmation for so long deserves a name."""


class Wallets(Mapping[Currency, Wallet]):
    """The wallets a program has, by coin: `call.resource(Wallets)[currency]`."""

    def __init__(self, wallets: Mapping[Currency, Wallet]) -> None:
        self._wallets = dict(wallets)

    def __getitem__(self, currency: Currency) -> Wallet:
        """The wallet of a coin.

        Raises:
            Permanent: there is none; an effect that needs it can never succeed.
        """
        try:
            return self._wallets[currency]
        except KeyError:
            known = ", ".join(sorted(one.value for one in self._wallets)) or "none"
            raise Permanent(
                f"no wallet for {currency.value}; this program has: {known}. Configure one."
            ) from None

    def __iter__(self) -> Iterator[Currency]:
        return iter(self._wallets)

    def __len__(self) -> int:
        return len(self._wallets)


def portal_of(call: Call) -> Portal:
    """The portal this program talks to."""
    # mypy cannot say "a Protocol used as a key"; the program registers one implementation.
    return call.resource(Portal)  # type: ignore[type-abstract]


def platform_of(call: Call) -> Platform:
    """The API host this program talks to."""
    return call.resource(Platform)  # type: ignore[type-abstract]


class Leg(Record):
    """One exactly-once spend on an invoice.

    Args:
        received_before_atomic: what the portal had counted when this leg was opened.
        unmatched_before_atomic: the purchase's `unmatched_atomic` before this leg was opened; it
            holds again when the leg comes to nothing.
        transaction: kept while the chain must be asked about it.
        depth: the last depth the node reported.
    """

    number: int
    amount_atomic: int
    received_before_atomic: int
    unmatched_before_atomic: int = 0
    status: Literal["open", "sent", "deep", "dead", "unsent", "lost"] = "open"
    txid: str | None = None
    fee_atomic: int = 0
    transaction: SignedTransaction | None = None
    depth: int = 0

    @property
    def in_flight(self) -> bool:
        """Its outcome is not known yet."""
        return self.status in ("open", "sent")

    @property
    def live(self) -> bool:
        """It pays, or may still pay."""
        return self.status in ("open", "sent", "deep")


def restocking_fee_atomic(paid_atomic: int) -> int:
    """What the portal keeps of `paid_atomic`: 9 %, rounded up; the refund is the exact rest."""
    return -(-RESTOCKING_PERCENT * paid_atomic // 100)


@contextmanager
def asking(what: str, *, repeatable: bool = True) -> Iterator[None]:
    """Translate the ports' passing errors; their other errors are the caller's to name.

    Args:
        what: named in the message.
        repeatable: asking twice equals asking once; otherwise a lost reply is `OutcomeUnknown`.
    """
    try:
        yield
    except Unavailable as error:
        raise Transient(f"{what}: {error}", retry_after_ms=error.retry_after_ms) from error
    except ReplyLost as error:
        lost = Transient if repeatable else OutcomeUnknown
        raise lost(f"{what}: {error}") from error


@contextmanager
def watching(what: str) -> Iterator[None]:
    """Translate every error of a port to "try again": for reads that a deadline ends.

    With money on its way, an odd reply (a page of HTML, an unknown field) must not end the run.
    """
    try:
        with asking(what):
            yield
    except ClientError as error:
        raise Transient(f"{what}: {error}") from error
