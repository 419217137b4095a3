"""`turtles inception` without the command line: options, the platform's keeper, a chain twice."""

from __future__ import annotations

import asyncio
import math
import os
import select
import signal
from collections.abc import Iterator
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
    lowest_tier,
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
        ({"trust": "semitrusted", "tier": 4}, "tier 4: --trust semitrusted makes a sandbox beside"),
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
        {"trust": "semitrusted", "tier": 5},
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
    ],
)
def test_budget(changed: dict[str, Any], cents: int) -> None:
    """The list price of every layer, or what was said."""
    assert InceptionOptions(data_dir=HERE, **changed).budget() == cents


def test_the_lowest_tier() -> None:
    """Code inside that makes a sibling needs a second slot."""
    assert [lowest_tier(trust) for trust in ("zerotrust", "semitrusted")] == [1, 5]


@pytest.mark.parametrize("currency", CURRENCIES)
def test_the_currencies_are_those_of_the_clients(currency: str) -> None:
    InceptionOptions(data_dir=HERE, currency=Currency(currency).value).check()


def test_a_result_is_one_line_of_json() -> None:
    result = InceptionResult(
        run_id="r", state="done", status="completed", depth=1, spent_cents=700, layers=(),
        transitions=3, refusal=None,
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
        data_dir=tmp_path / "data", depth=1, currency="LTC", key="mine", poll_seconds=0.1,
        block_seconds=0.05, timeout_seconds=90,
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


async def test_code_inside_a_semitrusted_chain_makes_siblings(tmp_path: Path) -> None:
    """Through the platform's proxy, with the key of its layer, which is written nowhere."""
    options = InceptionOptions(
        data_dir=tmp_path / "data", depth=2, currency="LTC", tier=5, trust="semitrusted",
        poll_seconds=0.1, block_seconds=0.05, timeout_seconds=90,
    )  # fmt: skip
    result = await incept(options, progress=lambda decision: None)
    assert (result.state, result.spent_cents) == ("done", 7_000)
    made = [one.sibling for one in result.layers]
    assert len(set(made)) == 2 and all(one.startswith("unsb-session-") for one in made)
    assert [one.no_sibling for one in result.layers] == ["", ""]

    place = options.data_dir / "platform"
    database = open_platform_database(place)
    keys.bind(database, load_codec(place / "master.key", os.environ))
    with database.reading() as sql:
        rows = sql.all("SELECT session_id, public_key, network_mode, state, reason FROM session")
        found = sql.all("SELECT public_key FROM api_key")
        secrets = [keys.secret(sql, row["public_key"]) for row in found]
    database.close()
    assert {row["state"] for row in rows} == {"terminated"}
    by_id = {row["session_id"]: row for row in rows}
    for one in result.layers:
        assert by_id[one.session_id]["network_mode"] == "semitrusted"
        assert by_id[one.sibling]["network_mode"] == "zerotrust"
        assert by_id[one.sibling]["public_key"] == one.public_key
        assert by_id[one.sibling]["reason"] == "deleted"
    log = (place / "platform.log").read_text()
    assert log.count('"host": "platform.turtles"') >= 4
    written = b"".join(one.read_bytes() for one in options.data_dir.rglob("*") if one.is_file())
    assert secrets and not any(secret.encode() in written for secret in secrets)


async def test_code_inside_a_zerotrust_chain_reaches_nothing(tmp_path: Path) -> None:
    options = InceptionOptions(
        data_dir=tmp_path / "data", depth=1, currency="LTC", poll_seconds=0.1,
        block_seconds=0.05, timeout_seconds=90,
    )  # fmt: skip
    (layer,) = (await incept(options, progress=lambda decision: None)).layers
    assert layer.sibling == ""
    assert layer.no_sibling.startswith("URLError: ")
    log = (options.data_dir / "platform" / "platform.log").read_text()
    assert "platform.turtles" not in log
