"""What the flows may ask of the outside world: one small Protocol per outside thing.

Flows import this file and nothing else of `machines.clients`.  Values are frozen structs; money
is `int` in atomic units (satoshi, litoshi, koinu, piconero) or in US cents.  Every method either
returns, or raises one of the errors below; none retries on its own.

Errors say what the caller may conclude::

    ClientError
    ├── Unavailable          nothing happened, try later (refused, 429, 503, warming up)
    ├── ReplyLost            the request may or may not have happened (timeout, cut connection)
    ├── Unauthorized         401: bad key, bad signature, stale clock
    ├── NotFound             404: no such thing, or no longer
    ├── Rejected             the request is wrong and will stay wrong
    └── WalletLocked | InsufficientFunds | BroadcastRefused    a wallet's own refusals
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, Protocol, dataclass_transform

import msgspec

from engine.errors import TurtlesError
from engine.secrets import Secret


class ClientError(TurtlesError):
    """Base of what a client raises."""


class Unavailable(ClientError):
    """Nothing happened; worth another attempt later.

    Args:
        kind: `unreachable`, `rate_limit`, `concurrency`, `overloaded` or `not_ready`.
        retry_after_ms: what the server asked for, if it did.
    """

    def __init__(
        self, message: str, *, kind: str = "unreachable", retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_ms = retry_after_ms


class ReplyLost(ClientError):
    """The request was sent and its reply never came: it may or may not have happened."""


class Unauthorized(ClientError):
    """401.  `reason` is `invalid_key`, `invalid_signature`, `invalid_timestamp`, `expired` or
    `suspended`; `server_ms` is the server's `Date`, if it sent one."""

    def __init__(self, message: str, *, reason: str, server_ms: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.server_ms = server_ms


class NotFound(ClientError):
    """404 or 410: unknown, terminated or deleted."""


class Rejected(ClientError):
    """The request itself is wrong; repeating it cannot help."""


class WalletLocked(ClientError):
    """The wallet needs its passphrase first."""


class InsufficientFunds(ClientError):
    """Not enough spendable coin (`unlocks_later` when change is only locked)."""

    def __init__(self, message: str, *, unlocks_later: bool = False) -> None:
        super().__init__(message)
        self.unlocks_later = unlocks_later


class BroadcastRefused(ClientError):
    """The node refused the bytes.  That is not "not sent": look before concluding anything.

    Args:
        policy: the bytes are valid, but this node would not take them now: the fee is under its
            minimum, or too many unconfirmed transactions hang together.
    """

    def __init__(self, message: str, *, policy: bool = False) -> None:
        super().__init__(message)
        self.policy = policy


class Currency(Enum):
    """The four coins, with the exponent of their atomic unit and the depth the portal asks."""

    BTC = "BTC"
    LTC = "LTC"
    DOGE = "DOGE"
    XMR = "XMR"

    @property
    def exponent(self) -> int:
        """Decimal places of the atomic unit."""
        return 12 if self is Currency.XMR else 8

    @property
    def confirmations(self) -> int:
        """Depth at which a payment counts (paper, Flow 3)."""
        return {"BTC": 3, "LTC": 6, "DOGE": 6, "XMR": 10}[self.value]


@dataclass_transform(frozen_default=True)
class Record(msgspec.Struct, frozen=True):
    """Base of the values below: immutable, by name."""


class Credentials(Record):
    """A key pair.  The secret never travels; only signatures made with it do.

    `offset_ms` is added to our clock when signing: what the server's `Date` showed ours to lack.
    """

    public_key: str
    secret_key: Secret[str]
    offset_ms: int = 0


class Quote(Record):
    """One price of the portal's table of 160."""

    tier: int
    months: int
    price_cents: int
    requests_per_minute: int
    concurrency: int


class Invoice(Record):
    """What to pay, where and until when.

    `expires_ms` is the moment on *our* clock at which the server's clock says that it is over, so
    it may be compared with our time however wrong that is.
    """

    invoice_id: str
    currency: Currency
    address: str
    amount_atomic: int
    price_cents: int
    tier: int
    months: int
    expires_ms: int
    confirmations_required: int


PortalStatus = Literal[
    "pending", "partial", "confirming", "completed", "expired", "refund_pending", "refunded"
]


class PaymentStatus(Record):
    """The portal's view of an invoice.  The first `completed` reply carries the secret, once."""

    invoice_id: str
    status: PortalStatus
    received_atomic: int
    due_atomic: int
    confirmations: int
    expires_ms: int
    server_ms: int
    public_key: str | None = None
    secret_key: Secret[str] | None = None
    refund_txid: str | None = None
    refund_atomic: int | None = None


class SignedTransaction(Record):
    """Bytes that pay once, however often they are broadcast.

    `payload` is the raw transaction (bitcoin family) or the `tx_metadata` (monero, holds keys).
    `inputs` are `txid:vout` outpoints or key images.
    """

    txid: str
    payload: Secret[str]
    inputs: tuple[str, ...]
    fee_atomic: int
    amount_atomic: int
    address: str


class Sighting(Record):
    """Where a transaction is, according to the node (never to a return code).

    `unseen`: the node does not know it and its inputs are unspent; `mempool`; `mined` with
    `confirmations` >= 1; `conflicted`: an input was spent by another transaction, buried
    `confirmations` deep (0 when the rival is itself unconfirmed).
    """

    where: Literal["unseen", "mempool", "mined", "conflicted"]
    confirmations: int = 0
    block_hash: str | None = None


class KeyInfo(Record):
    """What the platform says of a key."""

    valid: bool
    public_key: str
    tier: int
    requests_per_minute: int
    concurrency: int
    reason: str | None = None
    server_ms: int | None = None


class SessionInfo(Record):
    """A sandbox session."""

    session_id: str
    status: str


class Execution(Record):
    """The end of a command."""

    stdout: str
    stderr: str
    exit_code: int
    duration_ms: int


class Portal(Protocol):
    """Prices, invoices, payment, keys.  No credentials: the buyer has no key yet."""

    async def quotes(self) -> tuple[Quote, ...]:
        """All 160 quotes."""

    async def create_invoice(
        self, *, tier: int, months: int, currency: Currency, refund_address: str, key: str
    ) -> Invoice:
        """Open an invoice; the same `key` always gives the same invoice."""

    async def payment_status(self, invoice_id: str) -> PaymentStatus:
        """Read the status.  A destructive read: the first `completed` reply holds the secret."""

    async def regenerate_secret(self, invoice_id: str) -> Credentials:
        """A new secret for the invoice's key; the old one is dead."""


class Wallet(Protocol):
    """One wallet of one currency: build, sign, then broadcast the same bytes for ever."""

    @property
    def currency(self) -> Currency:
        """The coin this wallet holds."""

    async def new_address(self, label: str) -> str:
        """An address of this wallet, the same one for the same label."""

    async def balance_atomic(self) -> int:
        """Spendable now."""

    async def build(self, *, address: str, amount_atomic: int) -> SignedTransaction:
        """Build and sign a payment and reserve its inputs; nothing is broadcast.

        The result is verified: exactly one output pays `address` exactly `amount_atomic`.
        """

    async def release(self, transaction: SignedTransaction) -> None:
        """Give back the inputs of a transaction that was never broadcast."""

    async def broadcast(self, transaction: SignedTransaction) -> None:
        """Hand the bytes to the node.  Harmless to repeat."""

    async def look(self, transaction: SignedTransaction) -> Sighting:
        """The node's truth about the transaction."""

    async def received_atomic(self, address: str, *, confirmations: int) -> int:
        """What arrived at one of our addresses, at least that deep."""

    async def unlock(self, passphrase: Secret[str], *, seconds: int) -> None:
        """Unlock the wallet for a short time."""


class Platform(Protocol):
    """The API host: sandboxes and code, every call signed with a key's secret."""

    async def healthy(self) -> bool:
        """Whether `/health` answers 200."""

    async def clock_offset_ms(self) -> int:
        """The server's time less ours, by the `Date` of `/health`; 0 when it is about the same."""

    async def validate_key(self, credentials: Credentials, *, offset_ms: int = 0) -> KeyInfo:
        """Prove a key.  `offset_ms` corrects our clock by what the server's `Date` showed."""

    async def create_session(
        self,
        credentials: Credentials,
        *,
        shell: str,
        network_mode: str,
        ttl_seconds: int,
        key: str,
        toolbox: bool = False,
    ) -> SessionInfo:
        """Create a sandbox; the same `key` always gives the same session.

        `toolbox`: with what this product needs to run inside it.
        """

    async def sessions(self, credentials: Credentials) -> tuple[SessionInfo, ...]:
        """The caller's live sessions."""

    async def execute(
        self, credentials: Credentials, session_id: str, command: str, *, key: str
    ) -> Execution:
        """Run a shell command in a session; the same `key` runs it once."""

    async def delete_session(self, credentials: Credentials, session_id: str) -> None:
        """End a session; one that is already gone is no error."""

    async def languages(self, credentials: Credentials) -> tuple[str, ...]:
        """The languages the platform can run now."""
