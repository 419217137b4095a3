"""What the money half of the platform stands on, gathered in one value.

Rates and discounts are a table here, not facts of the world: the real service publishes neither
(only 7.00 for one month and 19.53 for three are attested), and a simulated coin has no market.
They are integers so that a price has exactly one value in every currency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import UsageError
from engine.secrets import SecretsCodec
from machines.platform import keys, lives
from persistence.database import Database

if TYPE_CHECKING:
    from machines.platform.blocks import BlockClock

CURRENCIES = ("BTC", "LTC", "DOGE", "XMR")


_ATOMIC_PER_CENT = {"BTC": 20, "LTC": 12_500, "DOGE": 5_000_000, "XMR": 62_500_000}
_CONFIRMATIONS = {"BTC": 3, "LTC": 6, "DOGE": 6, "XMR": 10}
_DISCOUNTS = {1: 0, 3: 7, 6: 14, 12: 21, 24: 28}


@dataclass(frozen=True, kw_only=True)
class PlatformConfig:
    """How this platform sells and how its simulated coins behave.

    Args:
        atomic_per_cent: atomic units that one US cent buys (50 000 USD for a bitcoin is 20).
        discount_percent: months sold, and the whole percents taken off for them.
        confirmations: depth at which a payment counts.
        invoice_seconds: life of an invoice (paper: one hour).
        payer_outputs, shop_outputs, stranger_outputs: how many coins each wallet starts with.
        output_cents: what each of those coins is worth.
        rpc_user, rpc_password: HTTP basic credentials of the bitcoin-like nodes.
        block_seconds: a block of every chain this often; 0 mines by hand only.
        allow_faults: whether `POST /_test/faults` exists.
        operators: public keys that may read the platform's own log lines.
    """

    atomic_per_cent: Mapping[str, int] = field(default_factory=_ATOMIC_PER_CENT.copy)
    discount_percent: Mapping[int, int] = field(default_factory=_DISCOUNTS.copy)
    confirmations: Mapping[str, int] = field(default_factory=_CONFIRMATIONS.copy)
    invoice_seconds: int = 3600
    payer_outputs: int = 100
    shop_outputs: int = 30
    stranger_outputs: int = 10
    output_cents: int = 50_000
    rpc_user: str = "turtles"
    rpc_password: str = "turtles"  # noqa: S105 - guards simulated coins on the loopback
    block_seconds: float = 0
    allow_faults: bool = False
    operators: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, table in (
            ("atomic_per_cent", self.atomic_per_cent),
            ("confirmations", self.confirmations),
        ):
            for currency in CURRENCIES:
                _at_least_one(f"{name}[{currency}]", table.get(currency))
        _at_least_one("invoice_seconds", self.invoice_seconds)
        _at_least_one("output_cents", self.output_cents)
        for months, percent in self.discount_percent.items():
            _at_least_one("discount_percent: months", months)
            if not 0 <= percent < 100:
                raise UsageError(f"discount for {months} months: {percent}, expected 0 to 99")
        if self.block_seconds < 0:
            raise UsageError(f"block_seconds: {self.block_seconds}, expected 0 or more")


def _at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"platform setting {name}: {value!r}, expected an integer of at least 1")


@dataclass(frozen=True)
class PlatformContext:
    """One running platform.  `clock_ms` gives milliseconds since 1970."""

    database: Database
    codec: SecretsCodec
    clock_ms: Callable[[], int]
    config: PlatformConfig
    blocks: BlockClock

    def __post_init__(self) -> None:
        keys.bind(self.database, self.codec)
        lives.bind(self.database, self.codec)


def open_money(
    database: Database,
    codec: SecretsCodec,
    clock_ms: Callable[[], int],
    config: PlatformConfig | None = None,
) -> PlatformContext:
    """A context over an open database: funds the wallets of a new one.

    Output locks are forgotten, as a real node forgets them when it restarts.
    """
    from machines.platform.blocks import BlockClock
    from machines.platform.ledger.genesis import create_world

    config = config or PlatformConfig()
    keys.bind(database, codec)
    lives.bind(database, codec)
    with database.transaction() as sql:
        lives.register(sql, clock_ms())
        create_world(sql, config, clock_ms())
        sql.run("DELETE FROM output_lock")
    blocks = BlockClock(database, clock_ms, config)
    return PlatformContext(database, codec, clock_ms, config, blocks)
