"""Blocks, by hand or on a clock.

Each block also re-judges the open invoices of its chain in the same transaction, so that what a
status call shows never lags behind the chain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from engine.errors import StoreBusy
from machines.platform import invoices, misbehaviour
from machines.platform.context import CURRENCIES, PlatformConfig
from machines.platform.ledger import chain
from persistence.database import Database, Session

_log = structlog.get_logger("turtles.platform.blocks")


class BlockClock:
    """Mines the blocks of all chains."""

    def __init__(
        self, database: Database, clock_ms: Callable[[], int], config: PlatformConfig
    ) -> None:
        self._database = database
        self._clock_ms = clock_ms
        self._config = config

    def mine(self, currency: str, count: int = 1) -> list[str]:
        """Mine `count` blocks; the hashes of those that no `stall_blocks` fault swallowed."""
        with self._database.transaction() as sql:
            return self._mine(sql, currency, count)

    def mine_all(self) -> None:
        """One block of every chain, in one transaction."""
        with self._database.transaction() as sql:
            for currency in CURRENCIES:
                self._mine(sql, currency, 1)

    def judge(self, sql: Session) -> None:
        """Judge the invoices of all chains, one of which has changed other than by a block."""
        for currency in CURRENCIES:
            invoices.evaluate_open(sql, self._config, currency, self._clock_ms())

    async def run(self) -> None:
        """Mine every chain each `block_seconds` until cancelled; at once over when that is 0.

        A block that cannot be written now is mined at the next tick.
        """
        if not self._config.block_seconds:
            return
        while True:
            await asyncio.sleep(self._config.block_seconds)
            try:
                self.mine_all()
            except StoreBusy as error:
                _log.warning("block_skipped", reason=str(error))

    def _mine(self, sql: Session, currency: str, count: int) -> list[str]:
        now_ms = self._clock_ms()
        mined: list[str] = []
        for _ in range(count):
            if not misbehaviour.take(sql, "stall_blocks", currency=currency):
                mined += chain.mine(sql, currency, now_ms)
        invoices.evaluate_open(sql, self._config, currency, now_ms)
        return mined
