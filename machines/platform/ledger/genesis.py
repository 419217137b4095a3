"""The world at its beginning: three wallets for each coin, funded in the first block.

`payer` buys, `shop` receives and pays refunds, `stranger` is somebody else who pays into other
people's invoices when a fault says so.  All money there will ever be is made here, so conservation
is one sum: unspent outputs and fees equal what this file made.
"""

from __future__ import annotations

from machines.platform.context import CURRENCIES, PlatformConfig
from machines.platform.ledger import chain, mempool, wallets
from machines.platform.ledger.transaction import Output, Transaction
from persistence.database import Session

_FIRST_BLOCKS = 12


def create_world(sql: Session, config: PlatformConfig, now_ms: int) -> None:
    """Create and fund the wallets of every coin, unless that was done before."""
    if sql.scalar("SELECT 1 FROM wallet LIMIT 1"):
        return
    counts = {
        "payer": config.payer_outputs,
        "shop": config.shop_outputs,
        "stranger": config.stranger_outputs,
    }
    for currency in CURRENCIES:
        amount = config.output_cents * config.atomic_per_cent[currency]
        for wallet, count in counts.items():
            _fund(sql, currency, wallet, (amount,) * count, now_ms)
        chain.mine(sql, currency, now_ms, _FIRST_BLOCKS)


def _fund(sql: Session, currency: str, wallet: str, amounts: tuple[int, ...], now_ms: int) -> None:
    wallets.create(sql, currency, wallet)
    address, _ = wallets.new_address(sql, currency, wallet, "funding", now_ms, kind="funding")
    if amounts:
        outputs = tuple(Output(address, amount) for amount in amounts)
        coinbase = Transaction(currency=currency, inputs=(), outputs=outputs, salt=address)
        mempool.insert_coinbase(sql, coinbase, now_ms)
