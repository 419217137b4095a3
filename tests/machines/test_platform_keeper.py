"""Who may stop a platform: the last keeper, and only one that a keeper started."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from machines.platform.sandbox.processes import Identity
from machines.platform.server import DataDirectoryRefused, find_server, start_server, stop_server
from machines.platform_keeper import PlatformKeeper, kept_platform

ROOT = Path(__file__).parents[2]
KEEPING = """
import asyncio, sys
from pathlib import Path
from machines.platform_keeper import kept_platform

async def main():
    async with kept_platform(Path(sys.argv[1])) as base_url:
        print(base_url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def place(tmp_path):
    """A platform directory; nothing is left running in it."""
    yield tmp_path / "platform"
    if server := find_server(tmp_path / "platform"):
        stop_server(server)


@pytest.fixture
def keeping(place):
    """A keeper as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPING, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def noted(place):
    return [one["pid"] for one in json.loads((place / "keeper.json").read_bytes())["started"]]


def until(condition):
    limit = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < limit, "it never came"
    return found


def keep(place):
    """Keep the platform for a moment; its server meanwhile."""

    async def main():
        async with kept_platform(place) as base_url:
            found = find_server(place)
            assert found is not None and found.base_url == base_url
            return found

    return asyncio.run(main())


def test_what_it_started_is_noted_for_its_owner_alone_and_stopped(place):
    async def main():
        async with kept_platform(place):
            assert noted(place) == [find_server(place).pid]
            assert (place / "keeper.json").stat().st_mode & 0o777 == 0o600
            assert (place / "keeper.lock").stat().st_mode & 0o777 == 0o600

    asyncio.run(main())
    assert find_server(place) is None
    assert noted(place) == []


def test_a_platform_that_a_person_started_stays(place):
    server = start_server(place)
    assert keep(place) == server
    assert find_server(place) == server


def test_what_a_killed_keeper_left_is_taken_over_and_stopped(place, keeping):
    base_url = keeping.stdout.readline().strip()
    keeping.kill()
    keeping.wait()
    left = find_server(place)
    assert left.base_url == base_url
    assert keep(place) == left
    assert find_server(place) is None


def test_what_a_keeper_left_that_was_killed_before_it_was_ready_is_stopped(place, keeping):
    until((place / "keeper.json").exists)
    keeping.kill()
    keeping.wait()
    (left,) = until(lambda: noted(place))
    assert keep(place).pid == left
    assert find_server(place) is None


def test_a_person_who_starts_one_after_a_kill_keeps_it(place, keeping):
    keeping.stdout.readline()
    keeping.kill()
    keeping.wait()
    stop_server(find_server(place))
    server = start_server(place)
    keep(place)
    assert find_server(place) == server


def test_the_last_of_two_keepers_stops_it(place):
    async def main():
        async with kept_platform(place) as first:
            async with kept_platform(place) as second:
                assert first == second
            assert find_server(place) is not None
        assert find_server(place) is None

    asyncio.run(main())


def test_the_one_that_did_not_start_it_may_be_the_last(place):
    async def main():
        first, second = AsyncExitStack(), AsyncExitStack()
        await first.enter_async_context(kept_platform(place))
        await second.enter_async_context(kept_platform(place))
        await first.aclose()
        assert find_server(place) is not None
        await second.aclose()
        assert find_server(place) is None

    asyncio.run(main())


def test_one_that_dies_is_started_again_where_the_clients_know_it_and_is_ours(place):
    person = start_server(place)

    async def main():
        async with kept_platform(place) as base_url:
            assert base_url == person.base_url
            os.kill(person.pid, signal.SIGKILL)
            again = await asyncio.to_thread(
                until, lambda: (new := find_server(place)) and new != person and new
            )
            assert again.base_url == base_url
            assert noted(place) == [again.pid]

    asyncio.run(main())
    assert find_server(place) is None


def test_cancelled_while_it_starts_leaves_nothing(place):
    async def main():
        keeping = asyncio.create_task(kept_platform(place).__aenter__())
        await asyncio.to_thread(until, (place / "keeper.json").exists)
        (pid,) = noted(place)
        assert not (place / "ready.json").exists()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        return pid

    pid = asyncio.run(main())
    assert find_server(place) is None
    assert not Path(f"/proc/{pid}").exists()


def test_stopped_before_it_began_starts_nothing(place):
    async def main():
        keeper = PlatformKeeper(place)
        await keeper.stop()
        await keeper.start()

    asyncio.run(main())
    assert not place.exists()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"started": 3}',
        b'{"started": [{"pid": PID, "start_time": "an earlier boot/1"}]}',
        b'{"started": [{"pid": PID, "start_time": "BOOT/1"}]}',
    ],
)
def test_a_note_that_names_no_living_server_stops_none(place, text):
    server = start_server(place)
    boot = server.start_time.partition("/")[0]
    filled = text.replace(b"PID", str(server.pid).encode()).replace(b"BOOT", boot.encode())
    (place / "keeper.json").write_bytes(filled)
    keep(place)
    assert find_server(place) == server


def test_a_directory_that_others_can_enter_is_refused(place):
    place.mkdir(mode=0o755)
    with pytest.raises(DataDirectoryRefused, match=f"Run: chmod 700 {place}"):
        keep(place)
    assert list(place.iterdir()) == []


def test_work_keeps_its_platform_and_stops_it(place):
    """`turtles work` and `turtles run` use the same keeper."""
    process = subprocess.Popen(
        [sys.executable, "-m", "machines.cli", "work", "--data-dir", str(place.parent)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert "working on" in process.stderr.readline()
        first = find_server(place)
        os.kill(first.pid, signal.SIGKILL)
        again = until(lambda: (new := find_server(place)) and new != first and new)
        assert again.base_url == first.base_url
        assert isinstance(again.identity, Identity)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()
    assert find_server(place) is None
