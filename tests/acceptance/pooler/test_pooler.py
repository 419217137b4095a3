"""A pooler in transaction mode between the workers and their server: PgBouncer, real.

Every transaction may have another connection of the server, and whatever one leaves in a session
is lost or met by somebody else.  PgBouncer before 1.21 forgets prepared statements: `prepare=off`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engine import App, Call, Context, Event, Machine, State, effect
from engine.ports import Query
from persistence import open_store
from tests.postgres_server import server

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]
RUNS = 200
STEPS = 5


class Count(Context):
    """How far a run has come."""

    steps: int = 0


class Stepped(Event, tag="stepped"):
    """One step is done."""


@effect(idempotent=True)
async def step(context: Count, call: Call) -> Stepped:
    """Nothing outside."""
    return Stepped()


class Walk(Machine[Count]):
    """Steps, an event from outside, and the end."""

    walking = State(initial=True, effect=step)
    resting = State(waits=True)
    arrived = State(final=True)
    stepped = walking.to(resting, cond="tired") | walking.to(walking)
    called = resting.to(arrived)

    def tired(self, context: Count) -> bool:
        """Whether this is the last step."""
        return context.steps + 1 >= STEPS

    def on_stepped(self, context: Count) -> Count:
        """Count it."""
        return self.but(context, steps=context.steps + 1)


@contextlib.contextmanager
def pgbouncer(url: str) -> Iterator[str]:
    """The same database through a pooler with three connections to it."""
    program = shutil.which("pgbouncer")
    assert program, "PgBouncer is not installed; .ci/run installs Debian's package pgbouncer"
    parts = urlsplit(url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="turtles-pgbouncer-"))
    folder.chmod(0o755)
    (folder / "users.txt").write_text(f'"{parts.username}" "{parts.password}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={parts.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = plain\nauth_file = {folder}/users.txt\npool_mode = transaction\n"
        "default_pool_size = 3\nmax_client_conn = 50\nserver_tls_sslmode = disable\n"
    )
    nobody = pwd.getpwnam("nobody")
    user = {"user": nobody.pw_uid, "group": nobody.pw_gid} if os.geteuid() == 0 else {}
    process = subprocess.Popen(
        [program, "-q", str(folder / "pgbouncer.ini")], stderr=subprocess.PIPE, **user
    )
    try:
        _until_it_answers(port, process)
        yield f"postgresql://{parts.username}:{parts.password}@127.0.0.1:{port}{parts.path}"
    finally:
        process.terminate()
        process.communicate()
        shutil.rmtree(folder)


def _until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    last = time.monotonic() + 20
    while time.monotonic() < last and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
    raise AssertionError(f"PgBouncer did not start: {process.communicate()[1]!r}")


async def _all_runs(url: str, keys: range) -> None:
    store = open_store(url)
    async with App([Walk], store=store) as app:
        runs = await asyncio.gather(*[app.start(Walk, Count(), key=f"k{n}") for n in keys])
        for one in runs:
            while (await app.get(one.run_id)).state != "resting":
                pass  # each look is a transaction of its own
        await asyncio.gather(*[app.send(one.run_id, "called", key="once") for one in runs])
        ended = await asyncio.gather(*[app.wait(one.run_id, timeout_seconds=60) for one in runs])
    assert {(one.status, one.context.steps) for one in ended} == {("completed", STEPS)}
    store.close()


def test_two_workers_behind_a_pooler_in_transaction_mode():
    with server() as postgres:
        url = postgres.create_database()
        with pgbouncer(url) as pooled:
            pooled += "?prepare=off&hints=off"
            open_store(pooled).close()
            code = "import asyncio, sys; sys.path.insert(0, sys.argv[1]); import test_pooler as t; "
            code += f"asyncio.run(t._all_runs(sys.argv[2], range({RUNS // 2}, {RUNS})))"
            folder = str(Path(__file__).parent)
            other = subprocess.Popen([sys.executable, "-c", code, folder, pooled])
            asyncio.run(_all_runs(pooled, range(RUNS // 2)))
            assert other.wait(60) == 0
        store = open_store(url)
        assert store.inspector.findings() == []
        assert len(store.runs.select(Query(limit=2 * RUNS))) == RUNS
        store.close()
