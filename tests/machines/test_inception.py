"""`turtles inception` without the command line: options, the platform's keeper, a chain twice."""

from __future__ import annotations

import asyncio
import math
import os
import select
import signal
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import KeyConflict, TurtlesError, UsageError
from engine.secrets import load_codec
from machines.clients.ports import Currency
from machines.inception import (
    CURRENCIES,
    EnvironmentRefused,
    InceptionOptions,
    InceptionResult,
    PlatformKeeper,
    incept,
    usual_trust,
)
from machines.platform import keys, server
from machines.platform.database import open_platform_database
from machines.platform.ledger.report import ledger_report

HERE = Path("/nowhere")
DURATIONS = (
    "poll and block seconds: expected more than 0 (a millisecond at least, a year at most), got"
)


# -- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 0}, "depth 0: expected 1 to 8"),
        ({"depth": -3}, "depth -3: expected 1 to 8"),
        ({"depth": 9}, "depth 9: expected 1 to 8"),
        ({"currency": "xmr"}, "currency 'xmr': expected one of XMR, BTC, LTC, DOGE"),
        ({"currency": ""}, "currency '': expected one of XMR, BTC, LTC, DOGE"),
        ({"tier": 0}, "tier 0: expected 1 to 32"),
        ({"tier": 33}, "tier 33: expected 1 to 32"),
        ({"trust": "none"}, "trust 'none': expected one of zerotrust, semitrusted"),
        ({"one_key": True}, "trust 'semitrusted': --one-key builds zerotrust sandboxes"),
        ({"one_key": True, "trust": "zerotrust"}, "tier: --one-key needs --tier, 1 to 32"),
        ({"latency_ms_max": -1}, "latency -1 ms: expected 0 (no bound) to 3600000"),
        ({"latency_ms_max": 3_600_001}, "latency 3600001 ms: expected 0 (no bound) to 3600000"),
        ({"months": 2}, "months 2: expected one of 1, 3, 6, 12, 24"),
        ({"months": 0}, "months 0: expected one of 1, 3, 6, 12, 24"),
        ({"budget_cents": -1}, "budget -1 cents: expected 0 or more"),
        ({"poll_seconds": 0.0}, f"{DURATIONS} 0.0 and 0.25"),
        ({"poll_seconds": -1.0}, f"{DURATIONS} -1.0 and 0.25"),
        ({"poll_seconds": math.nan}, f"{DURATIONS} nan and 0.25"),
        ({"poll_seconds": math.inf}, f"{DURATIONS} inf and 0.25"),
        ({"poll_seconds": 0.0001}, f"{DURATIONS} 0.0001 and 0.25"),
        ({"block_seconds": 0.0}, f"{DURATIONS} 0.5 and 0.0"),
        ({"block_seconds": math.nan}, f"{DURATIONS} 0.5 and nan"),
        ({"timeout_seconds": -1.0}, "timeout -1.0 seconds: expected 0.001 to 31536000"),
        ({"timeout_seconds": math.nan}, "timeout nan seconds: expected 0.001 to 31536000"),
        ({"key": ""}, "key of the run: expected 1 to 200 characters, got 0 ('')"),
        ({"key": "k" * 201}, "key of the run: expected 1 to 200 characters, got 201"),
    ],
)
def test_what_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        InceptionOptions(data_dir=HERE, **changed).check()
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"depth": 1},
        {"depth": 8, "tier": 32, "months": 24},
        {"currency": "DOGE", "budget_cents": 0},
        {"poll_seconds": 0.001, "block_seconds": 0.001, "timeout_seconds": 1.0},
        {"key": "k" * 200},
        {"trust": "zerotrust"},
        {"trust": "zerotrust", "one_key": True, "tier": 16, "depth": 5},
        {"latency_ms_max": 4_000},
    ],
)
def test_what_can_be_is_not_refused(changed: dict[str, Any]) -> None:
    InceptionOptions(data_dir=HERE, **changed).check()


async def test_nothing_is_made_for_options_that_cannot_be(tmp_path: Path) -> None:
    options = InceptionOptions(data_dir=tmp_path / "data", depth=99)
    with pytest.raises(UsageError, match="depth 99"):
        await incept(options, progress=lambda decision: None)
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - a look at one empty folder


async def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(EnvironmentRefused, match=r"cannot be made .* with --data-dir"):
        await incept(InceptionOptions(data_dir=in_the_way / "d"), progress=lambda decision: None)


@pytest.mark.parametrize(
    ("changed", "cents"),
    [
        ({}, 1_400),
        ({"depth": 1}, 700),
        ({"depth": 8}, 5_600),
        ({"depth": 4, "tier": 2, "months": 3}, 16_800),
        ({"depth": 4, "budget_cents": 0}, 0),
        ({"depth": 4, "budget_cents": 701}, 701),
        ({"depth": 4, "one_key": True, "trust": "zerotrust", "tier": 16}, 11_200),
    ],
)
def test_budget(changed: dict[str, Any], cents: int) -> None:
    """The list price of every layer, or what was said."""
    assert InceptionOptions(data_dir=HERE, **changed).budget() == cents


def test_the_usual_trust() -> None:
    """A chain is nested, unless all of it lives on one key."""
    assert [usual_trust(one_key) for one_key in (False, True)] == ["semitrusted", "zerotrust"]


@pytest.mark.parametrize("currency", CURRENCIES)
def test_the_currencies_are_those_of_the_clients(currency: str) -> None:
    InceptionOptions(data_dir=HERE, currency=Currency(currency).value).check()


def test_a_result_is_one_line_of_json() -> None:
    result = InceptionResult(
        run_id="r", state="done", status="completed", depth=1, spent_cents=700,
        card_left_cents=0, layers=(), transitions=3, refusal=None,
    )  # fmt: skip
    assert "\n" not in result.to_json()
    assert msgspec.json.decode(result.to_json(), type=InceptionResult) == result


# -- the keeper of the platform -----------------------------------------------------------------


@pytest.fixture
def platform_dir(tmp_path: Path) -> Iterator[Path]:
    """A platform's data directory; a server that is left there fails the test, and is stopped."""
    place = tmp_path / "platform"
    yield place
    left = server.find_server(place)
    if left is not None:
        server.stop_server(left)
    assert left is None, "a server was left behind"


def kill(place: Path) -> server.ServerInfo:
    """SIGKILL the server of a directory; returns when it is gone."""
    info = server.find_server(place)
    assert info is not None
    descriptor = os.pidfd_open(info.pid)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    assert select.select([descriptor], [], [], 10)[0]
    os.close(descriptor)
    return info


async def test_the_keeper_finds_starts_again_and_stops(platform_dir: Path) -> None:
    keeper = PlatformKeeper(platform_dir, block_seconds=0.25)
    await keeper.start()
    first = server.find_server(platform_dir)
    assert first is not None
    assert keeper.base_url == first.base_url

    another = PlatformKeeper(platform_dir, block_seconds=0.25)
    await another.start()
    assert another.base_url == keeper.base_url, "found, not started"

    watch = asyncio.create_task(keeper.watch())
    killed = await asyncio.to_thread(kill, platform_dir)
    revived = None
    async with asyncio.timeout(60):
        while revived is None:
            revived = await asyncio.to_thread(server.find_server, platform_dir)
    assert revived.pid != killed.pid
    assert (revived.port, revived.base_url) == (killed.port, keeper.base_url)

    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    await another.stop()
    assert server.find_server(platform_dir) == revived, "somebody still needs it"
    await keeper.stop()
    assert server.find_server(platform_dir) is None
    await keeper.stop()


async def test_a_killed_platform_comes_back_on_its_port_in_a_later_life(
    platform_dir: Path,
) -> None:
    first = PlatformKeeper(platform_dir, block_seconds=0.25)
    await first.start()
    await asyncio.to_thread(kill, platform_dir)
    second = PlatformKeeper(platform_dir, block_seconds=0.25)
    await second.start()
    assert second.base_url == first.base_url
    await first.stop()
    await second.stop()


# -- a chain, twice -----------------------------------------------------------------------------


async def test_the_same_key_again_gives_the_same_chain(tmp_path: Path) -> None:
    """After completion nothing is spent again, and other options under that key are refused."""
    seen: list[str] = []
    options = InceptionOptions(
        data_dir=tmp_path / "data", depth=1, trust="zerotrust", currency="LTC", key="mine",
        poll_seconds=0.1, block_seconds=0.1, timeout_seconds=90,
    )  # fmt: skip

    async def again(**changes: Any) -> InceptionResult:
        changed = msgspec.structs.replace(options, **changes)
        return await incept(
            changed, progress=lambda decision: seen.append(decision.entry.event),
            started=lambda run_id: seen.append(run_id),
        )  # fmt: skip

    first = await again()
    assert (first.state, first.status, first.spent_cents) == ("done", "completed", 700)
    assert first.run_id == seen[0]
    moves = len(seen)

    assert await again() == first
    assert seen[moves:] == [first.run_id], "nothing moved"
    with pytest.raises(KeyConflict, match=r"chain 'mine': .*--depth 1, now 2"):
        await again(depth=2)
    with pytest.raises(TurtlesError, match="not reachable"):
        await again(platform_url="http://127.0.0.1:9")

    assert server.find_server(options.data_dir / "platform") is None
    database = open_platform_database(options.data_dir / "platform")
    ledger = ledger_report(database)
    database.close()
    assert [one["confirmed_spends"] for one in ledger["invoices"]] == [1]
    assert ledger["consistent"]


@pytest.mark.acceptance
@pytest.mark.timeout(300)
@pytest.mark.parametrize("depth", [2, 4])
async def test_layers_inside_one_another(depth: int, tmp_path: Path) -> None:
    """Each redeems a key of its own, and tells its journal from inside; nothing is left."""
    options = InceptionOptions(
        data_dir=tmp_path / "data", depth=depth, currency="LTC", poll_seconds=0.2,
        timeout_seconds=280,
    )  # fmt: skip
    result = await incept(options, progress=lambda decision: None)
    assert (result.state, result.refusal) == ("done", None)
    assert (result.spent_cents, result.card_left_cents) == (700 * depth, 0)
    assert [one.depth for one in result.layers] == list(range(1, depth + 1))
    assert len({one.public_key for one in result.layers}) == depth
    assert len({one.session_id for one in result.layers}) == depth
    assert [one.profile for one in result.layers[1:]] == ["bubblewrap"] * (depth - 1)
    assert all(one.latency_ms > 0 for one in result.layers)
    for one in result.layers:
        passed = [step.target for step in one.journal if step.machine == "Inception"]
        assert passed[:2] == ["inside_sandbox", "discover_tools"]
        assert passed[-1] == ("done" if one.depth < depth else "too_deep")
    check_nested_books(options.data_dir, result)


def check_nested_books(data_dir: Path, result: InceptionResult) -> None:
    """What the platform knows of a nested chain, and what lies in its files."""
    place = data_dir / "platform"
    database = open_platform_database(place)
    keys.bind(database, load_codec(place / "master.key", os.environ))
    with database.reading() as sql:
        sessions = sql.all("SELECT session_id, public_key, network_mode, state FROM session")
        redemptions = sql.all("SELECT redemption_id, public_key, state FROM gift_redemption")
        balances = sql.all("SELECT balance_cents FROM gift_card")
        found = sql.all("SELECT public_key FROM api_key")
        secrets = [keys.secret(sql, row["public_key"]) for row in found]
    ledger = ledger_report(database)
    database.close()
    assert ledger["consistent"]
    assert sorted(one["price_cents"] for one in ledger["invoices"]) == sorted(
        [700, 700 * (result.depth - 1)]
    )
    assert [row["balance_cents"] for row in balances] == [0]
    assert {row["state"] for row in sessions} == {"terminated"}
    assert {row["network_mode"] for row in sessions} == {"semitrusted"}
    owners = {row["session_id"]: row["public_key"] for row in sessions}
    assert owners == {one.session_id: one.public_key for one in result.layers}
    ids = {row["public_key"]: row["redemption_id"].encode() for row in redemptions}
    redeemed = {key: f"redemption {sha256(one).hexdigest()[:16]}" for key, one in ids.items()}
    assert redeemed == {one.public_key: one.txids[0] for one in result.layers[1:]}
    written = b"".join(one.read_bytes() for one in data_dir.rglob("*") if one.is_file())
    assert secrets and not any(secret.encode() in written for secret in secrets)


async def test_one_key_holds_four_layers_at_tier_sixteen(tmp_path: Path) -> None:
    """And five are refused before anything is spent (paper: 4 slots at tier 16)."""
    options = InceptionOptions(
        data_dir=tmp_path / "data", depth=5, currency="LTC", poll_seconds=0.1, key="five",
        block_seconds=0.1, timeout_seconds=90, trust="zerotrust", one_key=True, tier=16,
    )  # fmt: skip
    refused = await incept(options, progress=lambda decision: None)
    assert (refused.state, refused.status) == ("too_few_slots", "failed")
    assert (refused.spent_cents, refused.layers) == (0, ())
    options = msgspec.structs.replace(options, depth=4, key="four")
    result = await incept(options, progress=lambda decision: None)
    assert (result.state, result.spent_cents) == ("done", 11_200)
    assert len(result.layers) == 4
    assert len({one.public_key for one in result.layers}) == 1


async def test_code_inside_a_zerotrust_chain_reaches_nothing(tmp_path: Path) -> None:
    options = InceptionOptions(
        data_dir=tmp_path / "data", depth=1, currency="LTC", poll_seconds=0.1,
        block_seconds=0.1, timeout_seconds=90, trust="zerotrust",
    )  # fmt: skip
    (layer,) = (await incept(options, progress=lambda decision: None)).layers
    assert layer.sibling == ""
    assert layer.no_sibling.startswith("URLError: ")
    log = (options.data_dir / "platform" / "platform.log").read_text()
    assert "platform.turtles" not in log
