"""What is on disk whenever the platform can die, and what its next start makes of it.

A backend that copies the database whenever it is called: a copy is what SIGKILL at that moment
leaves.  Each is then started as the next process would.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine.secrets import SecretsCodec
from machines.platform import service_rows
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.orders import Caller
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.service_orders import Redeploy
from machines.platform.service_sandboxes import LIVE
from machines.platform.services import Services
from machines.platform.sessions import Sessions

CALLS = ("create", "start_program", "stop_program", "freeze", "unfreeze", "resize", "destroy")
STAYS = "echo hello\nsleep infinity"


class Witness(FakeBackend):
    """Keeps what is on disk before and after each call that changes a sandbox."""

    def __init__(self) -> None:
        super().__init__()
        self.file: Path | None = None
        self.copies: list[Path] = []
        for name in CALLS:
            setattr(self, name, self._witnessed(name, getattr(self, name)))

    def _witnessed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def witnessed(*values: Any, **named: Any) -> Any:
            self._copy(f"before-{name}")
            result = call(*values, **named)
            self._copy(f"after-{name}")
            return result

        return witnessed

    def _copy(self, moment: str) -> None:
        if self.file is None:
            return
        directory = self.file.parent.parent / f"{len(self.copies):03}-{moment}"
        directory.mkdir(mode=0o700)
        self.copies.append(directory)
        with (
            closing(sqlite3.connect(self.file)) as source,
            closing(sqlite3.connect(directory / "platform.db")) as target,
        ):
            source.backup(target)
        (directory / "platform.db").chmod(0o600)


@pytest.fixture
def backend() -> Witness:
    return Witness()


async def settled(api: Any, pair: tuple[str, str], service_id: str) -> None:
    services = api.app.state.api.services
    async with asyncio.timeout(10):
        while services.find(pair[0], service_id)["state"] in ("starting", "redeploying"):  # noqa: ASYNC110 - threads
            await asyncio.sleep(0.01)


async def a_whole_life(api: Any, pair: tuple[str, str]) -> None:
    """Every call that moves a service, once."""
    body = {"name": "web", "bootstrap": STAYS, "custom_domains": ["a.example.com"]}
    service_id = (await api.call(pair, "POST", "/services", body, once="k")).json()["id"]
    path = f"/services/{service_id}"
    await settled(api, pair, service_id)
    await api.call(pair, "PUT", f"{path}/env", b"A=1")
    for verb, sent in (("freeze", {}), ("unfreeze", {}), ("resize", {"vcpu": 2}), ("redeploy", {})):
        assert (await api.call(pair, "POST", f"{path}/{verb}", sent)).status_code == 200
        await settled(api, pair, service_id)
    failing = {"bootstrap": "nonsense"}
    assert (await api.call(pair, "POST", f"{path}/redeploy", failing)).status_code == 200
    await settled(api, pair, service_id)
    assert (await api.call(pair, "DELETE", path)).status_code == 200


async def test_every_moment_of_death_is_put_right(api: Any, backend: Witness) -> None:
    backend.file = api.data_dir / "platform.db"
    api.app.state.api.services._deployments._grace_seconds = 0.5
    pair = api.key(tier=32)
    await a_whole_life(api, pair)
    backend.file = None
    moments = [directory.name.partition("-")[2] for directory in backend.copies]
    assert {f"{when}-{name}" for name in CALLS for when in ("before", "after")} == set(moments)
    for directory in backend.copies:
        await asyncio.to_thread(started_again, directory, pair[0])


def started_again(directory: Path, public_key: str) -> None:
    """What the next process finds and does."""
    database = open_platform_database(directory)
    few = PlatformConfig(payer_outputs=5, shop_outputs=2, stranger_outputs=2)
    context = open_money(database, SecretsCodec(b"k" * 32), lambda: 1_700_000_100_000, few)
    backend = FakeBackend()
    services = Services(context, backend, Sessions(context, backend), grace_seconds=0.01)
    with database.reading() as sql:
        before = sql.all("SELECT * FROM service")
    services.start()
    with database.reading() as sql:
        after = sql.all("SELECT * FROM service")
        strays = [
            sql.all(
                f"SELECT * FROM {table} WHERE service_id NOT IN "  # noqa: S608 - our tables
                "(SELECT service_id FROM service WHERE state <> 'deleted')"
            )
            for table in ("service_domain", "service_vault", "service_log")
        ]
    assert strays == [[], [], []]
    assert len(before) == len(after) <= 1
    for row, was in zip(after, before, strict=True):
        if was["state"] in LIVE:
            assert (row["state"], row["reason"]) == ("stopped", "platform_restarted")
        else:
            assert row == was
        if row["state"] != "deleted":
            goes_on(services, row, public_key)
    services.stop()
    database.close()


def goes_on(services: Services, row: Any, public_key: str) -> None:
    """Its owner can bring it back, or delete it."""
    caller = Caller(public_key=public_key, tier=32, idempotency_key=None, digest="d")
    again = services.redeploy(caller, row["service_id"], Redeploy())
    assert again["deployment"] == row["deployment"] + 1
    assert service_rows.bootstrap_of(again) == service_rows.bootstrap_of(row)
    assert services.by_host("web.on.localhost") is not None
    assert services.delete(public_key, row["service_id"])["state"] == "deleted"
