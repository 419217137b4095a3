"""Rows of services: what is stored is read again, names and domains belong to one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from machines.platform import execution_rows, service_rows
from machines.platform.orders import Caller
from machines.platform.replies import Problem
from machines.platform.service_orders import Bootstrap, Change, ServiceOrder
from persistence.database import Session as Sql

FULL = ServiceOrder(
    name="web",
    ports=(8000, 9000),
    bootstrap=Bootstrap(script="echo \N{SNOWMAN}"),
    network_mode="zerotrust",
    custom_domains=("a.example.com", "b.example.com"),
    vcpu=2,
    service_type="tcp",
    unfreeze_on_demand=True,
    show_freeze_page=False,
    input_files={"/tmp/input/a": b"\0\xff"},  # noqa: S108 - inside a sandbox
    source_image="unsb-image-1",
)


@pytest.fixture
def caller(api: Any) -> Caller:
    return Caller(public_key=api.key()[0], tier=4, idempotency_key="k", digest="d")


@pytest.fixture
def sql(api: Any, caller: Caller) -> Iterator[Sql]:
    """A transaction; `caller` has its key before."""
    with api.database.transaction() as session:
        yield session


def test_what_is_inserted_is_read_again(sql: Sql, caller: Caller) -> None:
    service_rows.insert(sql, "s1", caller, FULL, 5)
    row = service_rows.select(sql, "s1")
    assert row is not None
    assert service_rows.ports_of(row) == FULL.ports
    assert service_rows.domains_of(row) == FULL.custom_domains
    assert service_rows.bootstrap_of(row) == FULL.bootstrap
    assert service_rows.files_of(sql, "s1") == FULL.input_files
    assert service_rows.handle_of(row).sandbox_id == "s1"
    assert (row["state"], row["deployment"], row["created_ms"]) == ("starting", 1, 5)
    assert (row["network_mode"], row["vcpu"], row["service_type"]) == ("zerotrust", 2, "tcp")
    assert (row["unfreeze_on_demand"], row["show_freeze_page"], row["locked"]) == (1, 0, 0)
    assert "input_files" not in row
    small = service_rows.select_small(sql, "s1")
    assert small is not None
    assert "bootstrap" not in small
    assert service_rows.repeated(sql, caller) == small
    assert service_rows.select_all_live(sql, caller.public_key) == [small]


def test_a_redeploy_stores_what_it_was_given(sql: Sql, caller: Caller) -> None:
    service_rows.insert(sql, "s1", caller, FULL, 5)
    service_rows.remember(sql, "s1", None, None)
    row = service_rows.select(sql, "s1")
    assert row is not None
    assert (row["deployment"], service_rows.bootstrap_of(row)) == (2, FULL.bootstrap)
    assert service_rows.files_of(sql, "s1") == FULL.input_files
    service_rows.remember(sql, "s1", Bootstrap(url="http://example.com"), {})
    row = service_rows.select(sql, "s1")
    assert row is not None
    assert service_rows.bootstrap_of(row) == Bootstrap(url="http://example.com")
    assert service_rows.files_of(sql, "s1") == {}


def test_a_change_leaves_what_it_does_not_name(sql: Sql, caller: Caller) -> None:
    service_rows.insert(sql, "s1", caller, FULL, 5)
    before = service_rows.select(sql, "s1")
    service_rows.change(sql, "s1", Change(ports=(), show_freeze_page=True))
    after = service_rows.select(sql, "s1")
    assert before is not None
    assert after == {**before, "ports": "[]", "show_freeze_page": 1}


def test_names_and_domains_belong_to_one(sql: Sql, caller: Caller) -> None:
    service_rows.insert(sql, "s1", caller, FULL, 5)
    service_rows.require_free_name(sql, "web", "s1")
    with pytest.raises(Problem, match="'web' is in use"):
        service_rows.require_free_name(sql, "web")
    with pytest.raises(Problem, match="belongs to another service"):
        service_rows.set_domains(sql, "s2", ["b.example.com"])
    service_rows.set_domains(sql, "s1", ["b.example.com"])
    assert service_rows.select_by_host(sql, "a.example.com") is None
    found = service_rows.select_by_host(sql, "B.example.com.:80")
    assert found is not None
    assert found["service_id"] == "s1"


def test_what_never_came_to_be_leaves_no_trace(sql: Sql, caller: Caller) -> None:
    service_rows.insert(sql, "s1", caller, FULL, 5)
    service_rows.remove(sql, "s1")
    assert service_rows.select(sql, "s1") is None
    assert sql.all("SELECT * FROM service_domain") == []
    service_rows.insert(sql, "s2", caller, FULL, 6)


def test_so_many_commands_run_in_a_service_at_once(sql: Sql, caller: Caller) -> None:
    """Each has a thread of the platform, for as long as its caller likes."""
    service_rows.insert(sql, "s1", caller, FULL, 5)
    columns = execution_rows.draft(language="bash", network_mode="zerotrust", service_id="s1")
    for number in range(service_rows.COMMANDS_MAX):
        service_rows.require_calm(sql, caller.public_key, "s1")
        one = msgspec.structs.replace(caller, idempotency_key=str(number))
        execution_rows.insert(sql, one, f"job{number}", "running", columns, 5)
    with pytest.raises(Problem) as refused:
        service_rows.require_calm(sql, caller.public_key, "s1")
    assert (refused.value.status, refused.value.error) == (429, "concurrency_limit_reached")
    service_rows.require_calm(sql, caller.public_key, "s2")
    sql.run("UPDATE execution SET state = 'cancelled' WHERE job_id = 'job0'")
    service_rows.require_calm(sql, caller.public_key, "s1")
