"""Services: created once, watched, frozen, changed and deleted; states as rows say them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import StoreBusy
from machines.platform import deployments, service_rows
from machines.platform.orders import Caller
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Handle, Spec
from machines.platform.sandbox.errors import (
    PortClosed,
    SandboxGone,
    SandboxLimit,
    SandboxUnavailable,
)
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.service_orders import (
    Bootstrap,
    Change,
    DomainChange,
    Redeploy,
    ServiceOrder,
)
from machines.platform.service_sandboxes import LIVE
from machines.platform.services import Services

STAYS = "echo hello\nsleep infinity"


class WatchedBackend(FakeBackend):
    """Counts creations; can be slow until let go, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.created: list[Spec] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.failure: Exception | None = None
        self.resized: list[int] = []
        self.resize_failure: Exception | None = None

    def create(self, spec: Spec) -> Handle:
        self.created.append(spec)
        self.entered.set()
        assert self.go.wait(30)
        if self.failure is not None:
            raise self.failure
        return super().create(spec)

    def resize(self, handle: Handle, *, vcpus: int, memory_bytes: int) -> None:
        if self.resize_failure is not None:
            raise self.resize_failure
        self.resized.append(vcpus)
        super().resize(handle, vcpus=vcpus, memory_bytes=memory_bytes)

    def end_programs(self, service_id: str, said: bytes) -> None:
        """Let what runs in the background end by itself, and say so."""
        programs = self._sandboxes[service_id].programs
        for number in list(programs):
            programs.pop(number).end(said)

    def alive(self, service_id: str) -> bool:
        try:
            self.stats(Handle(service_id))
        except SandboxGone:
            return False
        return True


@pytest.fixture
def backend() -> WatchedBackend:
    return WatchedBackend()


@pytest.fixture(autouse=True)
def a_short_grace(api: Any) -> None:
    """Longer than a round of the watch, shorter than a test should wait."""
    api.app.state.api.services._deployments._grace_seconds = 0.5


async def create(api: Any, pair: tuple[str, str], **body: Any) -> Any:
    return await api.call(pair, "POST", "/services", {"name": "web"} | body)


async def made(api: Any, pair: tuple[str, str], **body: Any) -> str:
    """The id of a new service that runs."""
    answer = await create(api, pair, **body)
    assert answer.status_code == 200, answer.text
    service_id = answer.json()["id"]
    await until(api, pair, service_id, "running")
    return str(service_id)


def show(api: Any, pair: tuple[str, str], service_id: str) -> Any:
    row = api.app.state.api.services.find(pair[0], service_id)
    return {"state": row["state"], "reason": row["reason"], "deployment": row["deployment"]}


def text_of(api: Any, pair: tuple[str, str], service_id: str) -> str:
    """What it has printed."""
    row = api.app.state.api.services.find(pair[0], service_id)
    return "\n".join(api.app.state.api.services.logs(row, None))


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait for what a thread of the platform brings about."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - threads set no event of ours
            await asyncio.sleep(0.01)


async def gone(backend: Any, service_id: str) -> None:
    """Wait until its sandbox was ended."""
    await eventually(lambda: not backend.alive(service_id))


async def until(api: Any, pair: tuple[str, str], service_id: str, state: str) -> Any:
    """Wait for a state that the platform reaches by itself."""
    await eventually(lambda: show(api, pair, service_id)["state"] == state)
    return show(api, pair, service_id)


async def test_a_service_without_a_bootstrap_runs_at_once(api: Any, backend: Any) -> None:
    answer = await create(api, api.key(), ports=[8000], name="Web")
    shown = answer.json()
    assert (answer.status_code, shown["state"], shown["status"]) == (200, "running", "running")
    assert (shown["name"], shown["ports"], shown["network_mode"]) == ("web", [8000], "semitrusted")
    assert shown["id"] == shown["service_id"] and shown["id"].startswith("unsb-service-")
    assert shown["url"] == "http://web.on.platform/"
    assert backend.created[0].network == "semitrusted"


async def test_a_bootstrap_that_goes_on_is_running_after_its_grace(api: Any) -> None:
    pair = api.key()
    answer = await create(api, pair, bootstrap=STAYS)
    assert answer.json()["state"] == "starting"
    await until(api, pair, answer.json()["id"], "running")


async def test_a_bootstrap_that_ends_well_is_running(api: Any) -> None:
    pair = api.key()
    service_id = (await create(api, pair, bootstrap="echo done")).json()["id"]
    await until(api, pair, service_id, "running")


async def test_a_bootstrap_that_ends_badly_has_failed_and_its_log_tells(
    api: Any, backend: Any
) -> None:
    pair = api.key()
    service_id = (await create(api, pair, bootstrap="nonsense")).json()["id"]
    shown = await until(api, pair, service_id, "failed")
    assert shown["reason"] == "exit_code_2"
    log = (await api.call(pair, "GET", f"/services/{service_id}/logs")).json()["log"]
    assert "does not execute 'nonsense'" in log
    assert "exit code 2" in log


async def test_a_declared_port_must_accept_before_it_is_running(
    api: Any, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, looked = threading.Event(), threading.Event()

    def connect(handle: Handle, port: int) -> socket.socket:
        looked.set()
        if not opened.is_set() or port != 8001:
            raise PortClosed(handle.sandbox_id, port)
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    monkeypatch.setattr(backend, "connect", connect)
    pair = api.key()
    service_id = (await create(api, pair, bootstrap=STAYS, ports=[8000, 8001])).json()["id"]
    assert await asyncio.to_thread(looked.wait, 10)
    assert show(api, pair, service_id)["state"] == "starting"
    opened.set()
    await until(api, pair, service_id, "running")


async def test_a_port_that_never_opens_is_a_failure(api: Any, backend: Any) -> None:
    services = Services(api.context, backend, api.app.state.api.sessions, ready_seconds=0.05)
    pair = api.key()
    caller = Caller(public_key=pair[0], tier=4, idempotency_key=None, digest="d")
    order = ServiceOrder(name="web", ports=(8000,), bootstrap=Bootstrap(script=STAYS))
    row = await asyncio.to_thread(services.create, caller, order)
    shown = await until(api, pair, row["service_id"], "failed")
    assert shown["reason"] == "no_port_opened"
    await gone(backend, row["service_id"])
    await asyncio.to_thread(services.stop)


async def test_a_program_that_fails_later_fails_its_service(api: Any, backend: Any) -> None:
    pair = api.key()
    service_id = await made(api, pair, bootstrap=STAYS)
    await asyncio.to_thread(backend.end_programs, service_id, b"7\n")
    assert (await until(api, pair, service_id, "failed"))["reason"] == "exit_code_7"
    await gone(backend, service_id)
    # A failed service holds no slot.
    assert (await create(api, pair, name="other")).status_code == 200


async def test_a_program_that_ends_well_later_changes_nothing(api: Any, backend: Any) -> None:
    pair = api.key()
    service_id = await made(api, pair, bootstrap=STAYS)
    await asyncio.to_thread(backend.end_programs, service_id, b"0\n")
    await eventually(lambda: "exit code 0" in text_of(api, pair, service_id))
    assert show(api, pair, service_id)["state"] == "running"


async def test_a_sandbox_that_dies_fails_its_service(api: Any, backend: Any) -> None:
    pair = api.key()
    service_id = await made(api, pair, bootstrap=STAYS)
    await asyncio.to_thread(backend.destroy, Handle(service_id))
    assert (await until(api, pair, service_id, "failed"))["reason"] == "sandbox_died"


async def test_a_busy_store_does_not_lose_a_deployment(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "RETRY_SECONDS", 0.01)
    services, pair = api.app.state.api.services, api.key()
    ready, refused = services._deployments._on_ready, threading.Event()

    def busy_at_first(service_id: str, number: int) -> None:
        if not refused.is_set():
            refused.set()
            raise StoreBusy("busy")
        ready(service_id, number)

    monkeypatch.setattr(services._deployments, "_on_ready", busy_at_first)
    await made(api, pair, bootstrap=STAYS)
    assert refused.is_set()


async def test_a_deployment_that_nobody_follows_has_failed(api: Any) -> None:
    services, pair = api.app.state.api.services, api.key()
    service_id = await made(api, pair, bootstrap=STAYS)
    assert not services.fail_forgotten(service_id)
    with api.database.transaction() as sql:
        sql.run("UPDATE service SET state = 'redeploying'")
    assert not services.fail_forgotten(service_id)
    services._deployments.forget(Handle(service_id))
    assert services.fail_forgotten(service_id)
    assert show(api, pair, service_id)["state"] == "failed"


# -- creating ------------------------------------------------------------------------------------


async def test_the_same_idempotency_key_gives_the_same_service(api: Any, backend: Any) -> None:
    pair = api.key(tier=8)
    first = await api.call(pair, "POST", "/services", {"name": "one"}, once="k")
    again = await api.call(pair, "POST", "/services", {"name": "one"}, once="k")
    other = await api.call(pair, "POST", "/services", {"name": "two"}, once="k")
    assert first.json() == again.json()
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_key_reused")
    assert len(backend.created) == 1


async def test_racing_creates_with_one_key_build_one_sandbox(api: Any, backend: Any) -> None:
    pair = api.key(tier=4)
    backend.go.clear()
    racing = [
        asyncio.create_task(api.call(pair, "POST", "/services", {"name": "web"}, once="k"))
        for _ in range(6)
    ]
    assert await asyncio.to_thread(backend.entered.wait, 10)
    backend.go.set()
    answers = await asyncio.gather(*racing)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(backend.created) == 1


async def test_names_are_global_and_free_again_after_deletion(api: Any) -> None:
    one, two = api.key(), api.key()
    service_id = await made(api, one)
    taken = await create(api, two, name="WEB")
    assert (taken.status_code, taken.json()["error"]) == (409, "name_taken")
    assert service_id not in taken.text
    await api.call(one, "DELETE", f"/services/{service_id}")
    assert (await create(api, two)).status_code == 200


async def test_a_failed_create_leaves_nothing_and_frees_its_key(api: Any, backend: Any) -> None:
    pair = api.key()
    backend.failure = SandboxUnavailable("walls are gone", "mend them")
    refused = await api.call(pair, "POST", "/services", {"name": "web"}, once="k")
    assert (refused.status_code, refused.json()["error"]) == (503, "sandbox_unavailable")
    assert (await api.call(pair, "GET", "/services")).json()["count"] == 0
    backend.failure = None
    again = await api.call(pair, "POST", "/services", {"name": "web"}, once="k")
    assert again.json()["state"] == "running"


async def test_slots_are_one_for_each_vcpu(api: Any) -> None:
    pair = api.key(tier=8)
    full = await create(api, pair, vcpu=3)
    assert (full.status_code, full.json()["error"]) == (429, "concurrency_limit_reached")
    await made(api, pair, vcpu=2)
    assert (await create(api, pair, name="other")).status_code == 429


async def test_racing_creates_share_one_slot(api: Any) -> None:
    pair = api.key(tier=4)
    answers = await asyncio.gather(*(create(api, pair, name=f"web{n}") for n in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] + [429] * 11


async def test_prepare_runs_in_the_sandbox_before_the_bootstrap(api: Any, backend: Any) -> None:
    services, pair = api.app.state.api.services, api.key()
    seen: list[bool] = []
    caller = Caller(public_key=pair[0], tier=4, idempotency_key=None, digest="d")

    def prepare(handle: Handle) -> None:
        seen.append(backend.alive(handle.sandbox_id))

    order = ServiceOrder(name="web", bootstrap=Bootstrap(script=STAYS), prepare=prepare)
    row = await asyncio.to_thread(services.create, caller, order)
    assert seen == [True]

    def refuse(_handle: Handle) -> None:
        raise Problem(400, "snapshot_too_large", "too large")

    order = ServiceOrder(name="other", prepare=refuse)
    await api.call(pair, "DELETE", f"/services/{row['service_id']}")
    with pytest.raises(Problem, match="too large"):
        await asyncio.to_thread(services.create, caller, order)
    assert services.live(pair[0]) == []


async def test_a_key_keeps_so_many_services(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_rows, "SERVICES_MAX", 1)
    pair = api.key(tier=32)
    await made(api, pair)
    full = await create(api, pair, name="other")
    assert (full.status_code, full.json()["error"]) == (409, "too_many_services")


# -- finding -------------------------------------------------------------------------------------


async def test_found_by_id_name_and_host(api: Any) -> None:
    pair, other = api.key(), api.key()
    service_id = await made(api, pair, custom_domains=["shop.example.com"])
    services = api.app.state.api.services
    assert services.find(pair[0], "web")["service_id"] == service_id
    for host in ("web.on.localhost:8000", "WEB.on.anything.example", "shop.example.com:443"):
        assert services.by_host(host)["service_id"] == service_id
    for host in ("localhost:8000", "api.example.com", "other.on.localhost", "[::1]:80", ""):
        assert services.by_host(host) is None
    for wanted in (service_id, "web", "unsb-service-0", "\N{SNOWMAN}"):
        with pytest.raises(Problem) as refused:
            services.find(other[0], wanted)
        assert refused.value.status == 404
    await api.call(pair, "DELETE", "/services/web")
    assert services.by_host("web.on.localhost") is None
    assert services.by_host("shop.example.com") is None


# -- freezing ------------------------------------------------------------------------------------


async def test_freezing_gives_the_slot_back_and_unfreezing_takes_one(api: Any) -> None:
    pair = api.key(tier=4)
    service_id = await made(api, pair)
    services = api.app.state.api.services
    frozen = services.freeze(pair[0], service_id)
    assert (frozen["state"], frozen["reason"]) == ("frozen", None)
    assert services.freeze(pair[0], service_id)["state"] == "frozen"
    other = await made(api, pair, name="other")
    with pytest.raises(Problem) as refused:
        services.unfreeze(pair[0], service_id)
    assert (refused.value.status, refused.value.error) == (429, "concurrency_limit_reached")
    await api.call(pair, "DELETE", f"/services/{other}")
    row, _took_ms = services.unfreeze(pair[0], service_id)
    assert row["state"] == "running"
    assert services.unfreeze(pair[0], service_id)[0]["state"] == "running"


async def test_a_refused_freeze_is_taken_back(
    api: Any, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, services = api.key(), api.app.state.api.services
    service_id = await made(api, pair)

    def refuse(_handle: Handle) -> None:
        raise SandboxLimit("it does not stand still")

    monkeypatch.setattr(backend, "freeze", refuse)
    with pytest.raises(Problem, match="does not stand still"):
        services.freeze(pair[0], service_id)
    assert show(api, pair, service_id)["state"] == "running"
    monkeypatch.undo()
    services.freeze(pair[0], service_id)
    monkeypatch.setattr(backend, "unfreeze", refuse)
    with pytest.raises(Problem, match="does not stand still"):
        services.unfreeze(pair[0], service_id)
    assert show(api, pair, service_id)["state"] == "frozen"


async def test_a_frozen_service_whose_sandbox_died_cannot_go_on(api: Any, backend: Any) -> None:
    pair, services = api.key(), api.app.state.api.services
    service_id = await made(api, pair)
    services.freeze(pair[0], service_id)
    backend.destroy(Handle(service_id))
    with pytest.raises(Problem) as refused:
        services.unfreeze(pair[0], service_id)
    assert refused.value.status == 409
    shown = show(api, pair, service_id)
    assert (shown["state"], shown["reason"]) == ("failed", "sandbox_died")


async def test_visitors_wake_what_wants_to_be_woken(api: Any) -> None:
    pair, services = api.key(tier=4), api.app.state.api.services
    service_id = await made(api, pair)
    services.freeze(pair[0], service_id)
    with pytest.raises(Problem) as refused:
        services.wake(service_id)
    assert (refused.value.status, refused.value.error) == (503, "service_frozen")
    await api.call(pair, "PATCH", f"/services/{service_id}", {"unfreeze_on_demand": True})
    racing = [asyncio.to_thread(services.wake, service_id) for _ in range(8)]
    assert {row["state"] for row in await asyncio.gather(*racing)} == {"running"}
    services.freeze(pair[0], service_id)
    await made(api, pair, name="other")
    with pytest.raises(Problem) as full:
        services.wake(service_id)
    assert full.value.status == 429
    with pytest.raises(Problem) as unknown:
        services.wake("unsb-service-0")
    assert unknown.value.status == 404


async def test_touch_notes_activity_now_and_then(api: Any) -> None:
    pair, services = api.key(), api.app.state.api.services
    service_id = await made(api, pair)
    seen = []
    for later_ms in (0, 1_000, 10_000):
        api.now_ms += later_ms
        services.touch(service_id)
        seen.append(services.find(pair[0], service_id)["last_active_ms"] - api.now_ms)
    assert seen == [0, -1_000, 0]


# -- redeploying ---------------------------------------------------------------------------------


async def redeploy(api: Any, pair: tuple[str, str], service_id: str, **body: Any) -> Any:
    return await api.call(pair, "POST", f"/services/{service_id}/redeploy", body)


async def test_redeploying_runs_the_stored_bootstrap_again_in_place(api: Any, backend: Any) -> None:
    pair = api.key()
    service_id = await made(api, pair, bootstrap=STAYS)
    answer = await redeploy(api, pair, service_id)
    assert (answer.status_code, answer.json()["state"]) == (200, "redeploying")
    shown = await until(api, pair, service_id, "running")
    assert shown["deployment"] == 2
    assert len(backend.created) == 1
    await eventually(lambda: text_of(api, pair, service_id).count("hello") == 2)


async def test_what_the_old_deployment_says_is_not_heard(api: Any, backend: Any) -> None:
    pair, services = api.key(), api.app.state.api.services
    service_id = await made(api, pair, bootstrap=STAYS)
    await redeploy(api, pair, service_id)
    services._program_ended(service_id, 1, 9)
    services._failed(service_id, 1, "exit_code_9")
    services._ready(service_id, 1)
    assert (await until(api, pair, service_id, "running"))["deployment"] == 2


async def test_redeploying_with_another_bootstrap_stores_it(api: Any) -> None:
    pair = api.key()
    service_id = await made(api, pair, bootstrap=STAYS)
    await redeploy(api, pair, service_id, bootstrap_content="nonsense")
    await until(api, pair, service_id, "failed")
    await redeploy(api, pair, service_id)
    await until(api, pair, service_id, "failed")
    await redeploy(api, pair, service_id, bootstrap="echo fine")
    assert (await until(api, pair, service_id, "running"))["deployment"] == 4


async def test_a_failed_service_is_redeployed_in_a_fresh_sandbox(api: Any, backend: Any) -> None:
    pair = api.key(tier=4)
    service_id = (await create(api, pair, bootstrap="nonsense")).json()["id"]
    await until(api, pair, service_id, "failed")
    other = await made(api, pair, name="other")
    assert (await redeploy(api, pair, service_id)).status_code == 429
    await api.call(pair, "DELETE", f"/services/{other}")
    await redeploy(api, pair, service_id, bootstrap=STAYS)
    await until(api, pair, service_id, "running")
    assert [spec.sandbox_id for spec in backend.created] == [service_id, other, service_id]
    assert "files of the old one are lost" in text_of(api, pair, service_id)


async def test_a_redeploy_that_the_sandbox_refuses_has_failed(api: Any, backend: Any) -> None:
    pair = api.key()
    service_id = (await create(api, pair, bootstrap="nonsense")).json()["id"]
    await until(api, pair, service_id, "failed")
    backend.failure = SandboxUnavailable("walls are gone", "mend them")
    assert (await redeploy(api, pair, service_id)).status_code == 503
    shown = show(api, pair, service_id)
    assert (shown["state"], shown["reason"]) == ("failed", "sandbox_unavailable")


async def test_nothing_to_redeploy_and_nothing_that_can_be(api: Any) -> None:
    pair, services = api.key(), api.app.state.api.services
    service_id = await made(api, pair)
    answer = await redeploy(api, pair, service_id)
    assert (answer.status_code, answer.json()["error"]) == (400, "no_bootstrap")
    services.freeze(pair[0], service_id)
    answer = await redeploy(api, pair, service_id, bootstrap=STAYS)
    assert (answer.status_code, answer.json()["error"]) == (409, "service_frozen")


async def test_an_image_fills_the_fresh_sandbox_again(api: Any) -> None:
    pair, services = api.key(), api.app.state.api.services
    caller = Caller(public_key=pair[0], tier=4, idempotency_key=None, digest="d")
    order = ServiceOrder(
        name="web", bootstrap=Bootstrap(script="nonsense"), source_image="unsb-image-1"
    )
    row = await asyncio.to_thread(services.create, caller, order)
    await until(api, pair, row["service_id"], "failed")
    filled: list[str] = []
    services.refill = lambda row, _handle: filled.append(row["source_image"])
    await redeploy(api, pair, row["service_id"])
    assert filled == ["unsb-image-1"]


# -- changing ------------------------------------------------------------------------------------


async def test_more_vcpus_take_slots_and_reach_the_sandbox(api: Any, backend: Any) -> None:
    pair, services = api.key(tier=8), api.app.state.api.services
    caller = Caller(public_key=pair[0], tier=8, idempotency_key=None, digest="d")
    service_id = await made(api, pair)
    assert services.change(caller, service_id, Change(vcpu=2))["vcpu"] == 2
    with pytest.raises(Problem) as refused:
        services.change(caller, service_id, Change(vcpu=3, name="new"))
    assert refused.value.status == 429
    assert services.find(pair[0], service_id)["name"] == "web"
    services.freeze(pair[0], service_id)
    services.change(caller, service_id, Change(vcpu=1))
    assert backend.resized == [2, 1]
    services.unfreeze(pair[0], service_id)
    assert services.find(pair[0], service_id)["vcpu"] == 1


async def test_a_refused_resize_is_taken_back(api: Any, backend: Any) -> None:
    pair, services = api.key(tier=8), api.app.state.api.services
    caller = Caller(public_key=pair[0], tier=8, idempotency_key=None, digest="d")
    service_id = await made(api, pair)
    backend.resize_failure = SandboxLimit("too large")
    with pytest.raises(Problem, match="too large"):
        services.change(caller, service_id, Change(vcpu=2))
    assert services.find(pair[0], service_id)["vcpu"] == 1


async def test_a_domain_belongs_to_one_service(api: Any) -> None:
    pair, other, services = api.key(), api.key(), api.app.state.api.services
    service_id = await made(api, pair, custom_domains=["a.example.com"])
    mine = await made(api, other, name="mine")
    taken = DomainChange(kind="add", domains=("b.example.com", "a.example.com"))
    with pytest.raises(Problem) as refused:
        services.change_domains(other[0], mine, taken)
    assert (refused.value.status, refused.value.error) == (409, "domain_taken")
    assert services.by_host("b.example.com") is None
    services.change_domains(
        pair[0], service_id, DomainChange(kind="remove", domains=("a.example.com",))
    )
    row = services.change_domains(other[0], mine, taken)
    assert service_rows.domains_of(row) == ("b.example.com", "a.example.com")


# -- deleting ------------------------------------------------------------------------------------


async def test_deleting_ends_the_sandbox_and_forgets_everything(api: Any, backend: Any) -> None:
    pair = api.key(tier=4)
    service_id = await made(api, pair, bootstrap=STAYS, custom_domains=["a.example.com"])
    await api.call(pair, "PUT", f"/services/{service_id}/env", {"env": {"A": "secret"}})
    answer = await api.call(pair, "DELETE", f"/services/{service_id}")
    assert (answer.json()["state"], answer.json()["service_id"]) == ("deleted", service_id)
    assert not backend.alive(service_id)
    with api.database.reading() as sql:
        for table in ("service_domain", "service_vault", "service_log"):
            assert not sql.all(f"SELECT * FROM {table}")  # noqa: S608 - our tables
        row = sql.one("SELECT bootstrap, input_files FROM service")
    assert row == {"bootstrap": None, "input_files": None}
    assert (await api.call(pair, "DELETE", f"/services/{service_id}")).status_code == 404


async def test_deleted_while_it_is_being_created(api: Any, backend: Any) -> None:
    pair = api.key(tier=8)
    backend.go.clear()
    making = asyncio.create_task(create(api, pair, bootstrap=STAYS))
    assert await asyncio.to_thread(backend.entered.wait, 10)
    deleting = asyncio.create_task(api.call(pair, "DELETE", "/services/web"))
    await eventually(lambda: not api.app.state.api.services.live(pair[0]))
    backend.go.set()
    assert (await making).json()["state"] == "deleted"
    service_id = (await deleting).json()["id"]
    assert not backend.alive(service_id)


# -- the platform's life -------------------------------------------------------------------------


async def test_what_ran_when_the_platform_was_killed_is_stopped(api: Any, backend: Any) -> None:
    pair = api.key(tier=32)
    made_rows = {}
    for number, state in enumerate(LIVE):
        service_id = await made(api, pair, name=f"web{number}", bootstrap=STAYS)
        with api.database.transaction() as sql:
            sql.run(
                "UPDATE service SET state = :state WHERE service_id = :id",
                id=service_id,
                state=state,
            )
        made_rows[state] = service_id
    # What the next process does at its start, over the same database.
    backend.close()
    later = Services(api.context, backend, api.app.state.api.sessions)
    assert later.start() == len(LIVE)
    for service_id in made_rows.values():
        shown = show(api, pair, service_id)
        assert (shown["state"], shown["reason"]) == ("stopped", "platform_restarted")
    assert later.start() == 0
    caller = Caller(public_key=pair[0], tier=32, idempotency_key=None, digest="d")
    row = await asyncio.to_thread(later.redeploy, caller, made_rows["frozen"], Redeploy())
    assert row["deployment"] == 2
    await until(api, pair, row["service_id"], "running")
    await asyncio.to_thread(later.stop)


async def test_a_stopping_platform_stops_services_and_refuses_new_ones(
    api: Any, backend: Any
) -> None:
    pair = api.key()
    service_id = await made(api, pair, bootstrap=STAYS)
    await asyncio.to_thread(api.app.state.api.services.stop)
    assert not backend.alive(service_id)
    shown = show(api, pair, service_id)
    assert (shown["state"], shown["reason"]) == ("stopped", "platform_stopped")
    answer = await create(api, pair, name="other")
    assert (answer.status_code, answer.json()["error"]) == (503, "stopping")
