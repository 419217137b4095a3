"""Blocks by hand and on a clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from engine.errors import StoreBusy
from machines.platform.blocks import BlockClock


def height(world, currency):
    return world.report()["currencies"][currency]["height"]


def test_mining_by_hand(world):
    before = height(world, "DOGE")
    assert len(world.mine("DOGE", 3)) == 3
    assert height(world, "DOGE") == before + 3
    assert height(world, "BTC") == before


def test_a_block_judges_the_open_invoices(world):
    """Nobody needs to ask for the status: the key is issued with the block."""
    invoice = world.invoice("BTC")
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.mine("BTC", 3)
    (row,) = world.report()["invoices"]
    assert row["status"] == "completed"
    assert row["public_key"]


def test_a_clock_at_zero_is_over_at_once(world):
    before = height(world, "LTC")
    world.runner.run(world.context.blocks.run())
    assert height(world, "LTC") == before


def test_the_clock_mines_every_chain_until_cancelled(world, monkeypatch):
    ticks = []

    async def tick(seconds):
        ticks.append(seconds)
        if len(ticks) > 3:
            raise asyncio.CancelledError

    monkeypatch.setattr("machines.platform.blocks.asyncio.sleep", tick)
    config = replace(world.config, block_seconds=0.5)
    clock = BlockClock(world.database, lambda: world.now_ms, config)
    before = {currency: height(world, currency) for currency in ("BTC", "LTC", "DOGE", "XMR")}
    with pytest.raises(asyncio.CancelledError):
        world.runner.run(clock.run())
    assert ticks == [0.5] * 4
    assert {currency: height(world, currency) - 3 for currency in before} == before


def test_a_busy_database_skips_one_block(world, monkeypatch):
    ticks, outcomes = [], [StoreBusy("somebody writes"), None]

    async def tick(seconds):
        ticks.append(seconds)
        if len(ticks) > 2:
            raise asyncio.CancelledError

    def mine_all():
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    monkeypatch.setattr("machines.platform.blocks.asyncio.sleep", tick)
    clock = BlockClock(world.database, lambda: 0, replace(world.config, block_seconds=1))
    monkeypatch.setattr(clock, "mine_all", mine_all)
    with pytest.raises(asyncio.CancelledError):
        world.runner.run(clock.run())
    assert outcomes == []


def test_stalled_blocks_are_not_mined(world):
    world.fault("stall_blocks", count=2, currency="LTC")
    assert len(world.mine("LTC", 3)) == 1
    assert len(world.mine("BTC", 1)) == 1
    world.fault("stall_blocks")
    assert world.mine("XMR") == []
    assert len(world.mine("BTC")) == 1
