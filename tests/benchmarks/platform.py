"""Figures of a real platform over HTTP, beside baselines measured in the same run.

    python -m tests.benchmarks.platform            some minutes
    python -m tests.benchmarks.platform --quick    some seconds; for CI
    ... --sessions 200 --cycles 1000               how many at once, and for the search for leaks

One server process with a data directory of its own, bubblewrap sandboxes, keys of tier 32 (eight
slots each) that were issued in its database before it started, and the rate limit raised::

    this process --- HTTP, one kept connection for each thread ---> server ---> sandboxes
                 \\-- bare backend, bare SQLite commits (synchronous=FULL): the baselines

- create a session, a warm Python cell in it, `/execute`, freeze and unfreeze, snapshot and
  restore: p50, p95, and the processor time that the server itself spent on one;
- many sessions alive at once, each answering, and the memory of one while idle;
- after many cycles of create, execute and delete: the same processes, cgroups, directories,
  and descriptors and threads of the server as before. Otherwise the exit code is 1.

No time is asserted: this machine may be busy, and its load is printed beside the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import http.client
import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from engine.secrets import load_codec
from machines.platform import keys, server
from machines.platform.database import open_platform_database
from machines.platform.sandbox import processes
from machines.platform.sandbox.backend import Handle
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.cgroups import Tree, find_tree, group_name, group_prefix
from machines.platform.server import ServerInfo
from tests.benchmarks.sandboxes import TRUE, available_bytes, loads, new_backend, quantile, spec

TIER = 32
SLOTS = 8
"""Sessions that a key of this tier may have at once."""
REQUESTS_PER_MINUTE_PER_TIER = 1_000_000
THREADS = 4
_WARM_UP = 2
_WARM_UP_CELLS = 120
_CELLS = 12
_IDLE_SECONDS = 11.0
"""After ten seconds idle threads of the server end, with the next request."""
_SETTLE_SECONDS = 30.0
_KEPT_SECONDS = 3.0
"""The server hangs up on who has been silent for five."""
_CODE = {"language": "python", "code": "print(1)"}
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Print the figures; 0, or 1 when something was left behind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sessions", type=int)
    parser.add_argument("--cycles", type=int)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    sessions = options.sessions or (10 if options.quick else 200)
    cycles = options.cycles or (50 if options.quick else 1000)
    with running(-(-sessions // SLOTS)) as platform:
        print(f"load {loads()} on {os.cpu_count()} CPUs")
        latencies(platform, 4 if options.quick else 30)
        at_once(platform, sessions)
        print(f"load {loads()}")
        return 1 if leaks(platform, cycles) else 0


# -- a platform, and who calls it ----------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A bought key."""

    public: str
    secret: str


class Platform:
    """A running server and signed calls to it; each thread keeps a connection of its own."""

    def __init__(self, data_dir: Path, info: ServerInfo, bought: list[Key]) -> None:
        self.info = info
        self.keys = bought
        self.sandboxes = data_dir / "sandboxes"
        self.tree: Tree | None = find_tree()
        self._local = threading.local()

    def call(self, method: str, path: str, body: Any = None, key: Key | None = None) -> Any:
        """The answer's document. Any refusal ends the benchmark."""
        key = key or self.keys[0]
        content = b"" if body is None else json.dumps(body).encode()
        timestamp = str(int(time.time()))
        message = f"{timestamp}:{method}:{path}:".encode() + content
        signature = hmac.new(key.secret.encode(), message, hashlib.sha256).hexdigest()
        headers = {
            "Authorization": f"Bearer {key.public}",
            "X-Timestamp": timestamp,
            "X-Signature": signature,
        }
        status, answer = self._exchange(method, path, content, headers)
        if status >= 300:
            raise SystemExit(f"{method} {path}: {status} {answer[:300]!r}")
        return json.loads(answer)

    def health(self) -> None:
        """An unsigned request that touches neither database nor sandbox."""
        self._exchange("GET", "/health", b"", {})

    def _exchange(
        self, method: str, path: str, content: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if kept is None:
            kept = http.client.HTTPConnection(self.info.host, self.info.port, timeout=120)
            self._local.connection = kept
        elif time.monotonic() - self._local.used > _KEPT_SECONDS:
            kept.close()  # it connects again by itself
        kept.request(method, path, content or None, headers)
        response = kept.getresponse()
        answer = response.status, response.read()
        self._local.used = time.monotonic()
        return answer

    def create(self, key: Key | None = None) -> str:
        """A new Python session; its id."""
        return str(self.call("POST", "/sessions", {"shell": "python3"}, key)["id"])

    def cell(self, session_id: str, code: str, key: Key | None = None) -> str:
        """What a cell printed."""
        path = f"/sessions/{session_id}/execute"
        return str(self.call("POST", path, {"command": code}, key)["stdout"])

    def change(self, session_id: str, verb: str) -> None:
        """Freeze, unfreeze."""
        self.call("POST", f"/sessions/{session_id}/{verb}", {})

    def snapshot(self, session_id: str) -> str:
        """Take one; its id."""
        return str(self.call("POST", f"/sessions/{session_id}/snapshot", {})["id"])

    def delete(self, session_id: str, key: Key | None = None) -> None:
        """End a session."""
        self.call("DELETE", f"/sessions/{session_id}", None, key)

    def cpu_seconds(self) -> float:
        """Processor time of the server process alone, so far."""
        fields = Path(f"/proc/{self.info.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def idle_bytes(self, session_id: str) -> int | None:
        """Memory counted for a session; None where nothing counts it."""
        if self.tree is None:
            return None
        return self.tree.group(group_name(self.sandboxes, session_id)).memory_bytes()


@contextmanager
def running(key_count: int) -> Iterator[Platform]:
    """A server that ends with the block. A machine that cannot isolate is an error."""
    with tempfile.TemporaryDirectory(prefix="turtles-bench-") as name, ExitStack() as stack:
        data_dir = Path(name) / "data"
        server.prepare_data_directory(data_dir)
        bought = issue(data_dir, max(key_count, 1))
        info = server.start_server(
            data_dir, requests_per_minute_per_tier=REQUESTS_PER_MINUTE_PER_TIER
        )
        stack.callback(server.stop_server, info)
        yield Platform(data_dir, info, bought)


def issue(data_dir: Path, count: int) -> list[Key]:
    """Keys, written into the database of a server that has not started yet."""
    database = open_platform_database(data_dir)
    keys.bind(database, load_codec(data_dir / "master.key", os.environ))
    now_ms = time.time_ns() // 1_000_000
    with database.transaction() as sql:
        names = [keys.issue(sql, TIER, 1, now_ms) for _ in range(count)]
        bought = [Key(name, keys.secret(sql, name)) for name in names]
    database.close()
    return bought


# -- latencies -----------------------------------------------------------------------------------


def latencies(platform: Platform, count: int) -> None:
    """Times of single requests, taken in turn with their baselines."""
    found: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any], times: int = 1) -> Any:
        cpu = platform.cpu_seconds()
        for _ in range(times):
            began = time.perf_counter()
            result = call()
            found.setdefault(name, []).append((time.perf_counter() - began) * 1000)
        # The clock of /proc is coarse: only the sum over many requests means something.
        spent.setdefault(name, []).append((platform.cpu_seconds() - cpu) * 1000 / times)
        return result

    with new_backend() as backend, raw_database() as commit:
        warm_up(platform, commit)
        for number in range(count + _WARM_UP):
            if number == _WARM_UP:
                found.clear()
                spent.clear()
            timed("bare commit", commit, _CELLS)
            bare(backend, f"bench-{number}", timed)
            over_http(platform, timed)
    report(found, spent, count)


def warm_up(platform: Platform, commit: Callable[[], None]) -> None:
    """Let both logs grow to where SQLite begins to use them anew (1000 pages).

    Until then each commit makes the file longer, and waits for the file system's journal, too:
    on a busy disk that is some milliseconds more, for the first minutes of a server's life.
    """
    session_id = platform.create()
    for _ in range(_WARM_UP_CELLS):
        platform.cell(session_id, "x = 1")
        for _ in range(10):
            commit()
    platform.delete(session_id)


def bare(backend: BubblewrapBackend, name: str, timed: Callable[..., Any]) -> None:
    """One life of a sandbox without a platform."""
    handle = timed("bare create", partial(backend.create, spec(name)))
    timed("bare first cell", partial(backend.cell, handle, "python3", "x = 1"))
    timed("bare warm cell", partial(backend.cell, handle, "python3", "x"), _CELLS)
    timed("bare /bin/true", partial(backend.execute, handle, TRUE))
    timed("bare freeze", partial(backend.freeze, handle))
    timed("bare unfreeze", partial(backend.unfreeze, handle))
    timed("bare destroy", partial(backend.destroy, Handle(name)))


def over_http(platform: Platform, timed: Callable[..., Any]) -> None:
    """One life of a session."""
    timed("GET /health", platform.health, _CELLS)
    timed("GET /sessions", partial(platform.call, "GET", "/sessions"), _CELLS)
    session_id = timed("create", platform.create)
    timed("first cell", partial(platform.cell, session_id, "x = 1"))
    timed("warm cell", partial(platform.cell, session_id, "x"), _CELLS)
    timed("/execute", partial(platform.call, "POST", "/execute", _CODE))
    for verb in ("freeze", "unfreeze") * 2:
        timed(verb, partial(platform.change, session_id, verb))
    snapshot_id = timed("snapshot", partial(platform.snapshot, session_id))
    timed("restore", partial(platform.call, "POST", f"/snapshots/{snapshot_id}/restore", {}))
    timed("delete", partial(platform.delete, session_id))
    platform.call("DELETE", f"/snapshots/{snapshot_id}")


_BASES = {
    "GET /health": "bare commit",
    "GET /sessions": "bare commit",
    "create": "bare create",
    "first cell": "bare first cell",
    "warm cell": "bare warm cell",
    "/execute": "bare create",
    "freeze": "bare freeze",
    "unfreeze": "bare unfreeze",
    "snapshot": "bare commit",
    "restore": "bare create",
    "delete": "bare destroy",
}


def report(found: dict[str, list[float]], spent: dict[str, list[float]], count: int) -> None:
    """One line for each, and the two figures that were asked for."""
    print(f"ms, {count} sessions      p50      p95   server CPU   ratio of p50 to its baseline")
    for name, times in found.items():
        middle, high = quantile(times, 0.5), quantile(times, 0.95)
        line = f"  {name:16} {middle:8.2f} {high:8.2f}"
        if base := _BASES.get(name):
            cpu = sum(spent[name]) / len(spent[name])
            ratio = middle / quantile(found[base], 0.5)
            line += f"   {cpu:8.2f}     {ratio:8.2f} x {base}"
        print(line)
    middles = {name: quantile(times, 0.5) for name, times in found.items()}
    floor = 2 * middles["bare commit"] + middles["bare warm cell"]
    print(f"create: p50 {middles['create']:.1f} ms, wanted under 150")
    print(
        f"warm cell: p50 {middles['warm cell']:.1f} ms, wanted under 5; "
        f"{middles['warm cell'] / floor:.1f} x its two commits and the bare cell ({floor:.1f} ms)"
    )


@contextmanager
def raw_database() -> Iterator[Callable[[], None]]:
    """One commit of one small row, as durable as those of the platform."""
    with tempfile.TemporaryDirectory(prefix="turtles-raw-") as name:
        raw = sqlite3.connect(Path(name) / "raw.db", isolation_level=None)
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("PRAGMA synchronous=FULL")
        raw.execute("CREATE TABLE row (number INTEGER PRIMARY KEY, text TEXT)")

        def commit() -> None:
            raw.execute("BEGIN IMMEDIATE")
            raw.execute("INSERT INTO row (text) VALUES ('about as long as a request row is')")
            raw.execute("COMMIT")

        yield commit
        raw.close()


# -- many at once --------------------------------------------------------------------------------


def at_once(platform: Platform, count: int) -> None:
    """All alive together, each answering; memory of one while idle."""
    owners = [platform.keys[number // SLOTS] for number in range(count)]
    before, began = available_bytes(), time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        ids = list(pool.map(platform.create, owners))
        created = time.perf_counter() - began
        less = before - available_bytes()
        counted = [platform.idle_bytes(session_id) for session_id in ids]
        began = time.perf_counter()
        said = list(pool.map(partial(answer, platform), ids, owners))
        answered = time.perf_counter() - began
        alive = {key: platform.call("GET", "/sessions", key=key)["count"] for key in set(owners)}
        began = time.perf_counter()
        list(pool.map(platform.delete, ids, owners))
        deleted = time.perf_counter() - began
    if said != ids or sum(alive.values()) != count:
        raise SystemExit(f"{count} at once: {sum(alive.values())} alive, or not all answered")
    each = [f"{seconds / count * 1000:.1f}" for seconds in (created, answered, deleted)]
    print(f"{count} sessions at once, {len(set(owners))} keys, all of them answered")
    print(
        f"  ms each, {THREADS} at a time: create {each[0]}, first cell {each[1]}, delete {each[2]}"
    )
    known = [size for size in counted if size is not None]
    by_group = f"{sum(known) / len(known) / 1e6:.1f}" if known else "unknown"
    print(
        f"  MB of an idle session: {by_group} as its cgroup counts, "
        f"{less / count / 1e6:.1f} less available on the machine"
    )


def answer(platform: Platform, session_id: str, key: Key) -> str:
    """A cell's own answer, which no other session could give."""
    return platform.cell(session_id, f"print({session_id!r})", key).strip()


# -- leaks ---------------------------------------------------------------------------------------


def leaks(platform: Platform, cycles: int) -> bool:
    """Whether anything is left after many cycles; printed when so."""
    time.sleep(_IDLE_SECONDS)
    for _ in range(_WARM_UP):
        cycle(platform)
    before, began = settled(platform, {}), time.perf_counter()
    for _ in range(cycles):
        cycle(platform)
    took = time.perf_counter() - began
    after = settled(platform, before)
    print(f"{cycles} cycles of create, execute, delete: {took / cycles * 1000:.1f} ms each")
    for name, there in before.items():
        print(f"  {name}: {there} before, {after[name]} after")
    return after != before


def cycle(platform: Platform) -> None:
    """A life of a session, with something in its background."""
    session_id = platform.create()
    platform.cell(session_id, "import subprocess; subprocess.Popen(['sleep', '600'])")
    if platform.cell(session_id, "print(6 * 7)") != "42\n":
        raise SystemExit(f"{session_id}: the cell did not answer")
    platform.delete(session_id)


def settled(platform: Platform, wanted: dict[str, int]) -> dict[str, int]:
    """What is there when it is as wanted, or has not changed for a while.

    Pools give idle threads and connections back only after some seconds.
    """
    limit = time.monotonic() + _SETTLE_SECONDS
    found, since = inventory(platform), time.monotonic()
    while found != wanted and time.monotonic() < limit:
        time.sleep(0.5)
        if (again := inventory(platform)) != found:
            found, since = again, time.monotonic()
        if not wanted and time.monotonic() - since > _SETTLE_SECONDS / 10:
            break
    return found


def inventory(platform: Platform) -> dict[str, int]:
    """How many there are of what a session could leave behind."""
    pid = platform.info.pid
    parents = platform.tree.parents.values() if platform.tree else ()
    name = f"{group_prefix(platform.sandboxes)}*"
    groups = [each for parent in parents for each in parent.glob(name)]
    return {
        "processes": len(processes.descendants(pid)),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "cgroups": len(groups),
        "directories": len(list(platform.sandboxes.iterdir())),
    }


if __name__ == "__main__":
    sys.exit(main())
