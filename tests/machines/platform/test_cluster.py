"""The documents of /cluster, /stats and /pools, from readings that tests choose."""

from __future__ import annotations

from typing import Any

from machines.platform.cluster import (
    Cluster,
    Machine,
    Reading,
    cluster_document,
    pools_document,
    read_machine,
    stats_document,
)

GIB = 2**30
MACHINE = Machine(
    memory_total_bytes=16_000_000_000,
    memory_available_bytes=5 * GIB,
    load=(0.5, 1.256, 12.0),
)


def reading(**changes: Any) -> Reading:
    values: dict[str, Any] = {
        "machine": MACHINE,
        "live": {"zerotrust": 3},
        "spawning": 1,
        "can_isolate": True,
        "uptime_seconds": 90,
    }
    return Reading(**(values | changes))


def test_cluster_has_every_field_of_the_wire_facts() -> None:
    assert cluster_document(reading()) == {
        "mode": "on_demand",
        "network_mode": "zerotrust",
        "pool_size": 0,
        "available": 2,
        "allocated": 3,
        "spawning": 1,
        "total_containers": 3,
        "network_breakdown": {
            "zerotrust": {"total": 5, "available": 2, "allocated": 3},
            "semitrusted": {"total": 2, "available": 2, "allocated": 0, "services": 0},
        },
        "load_avg": {"load1": 0.5, "load5": 1.26, "load15": 12.0},
        "memory": {"used_gb": 10.63, "available_gb": 5.37, "used_percent": 66.4},
        "uptime_seconds": 90,
    }


def test_the_loads_of_stats_are_strings() -> None:
    assert stats_document(reading()) == {
        "containers": 3,
        "load_1min": "0.50",
        "load_5min": "1.26",
        "load_15min": "12.00",
        "uptime_seconds": 90,
    }


def test_there_is_one_pool_and_it_adds_up() -> None:
    shown = pools_document(reading())
    (pool,) = shown["pools"]
    assert pool == {
        "id": "local",
        "status": "available",
        "host": "localhost",
        "total": 5,
        "available": 2,
        "allocated": 3,
        "load_avg": {"load1": 0.5, "load5": 1.26, "load15": 12.0},
    }
    assert shown["pool_count"] == 1
    assert (shown["total_capacity"], shown["total_available"], shown["total_allocated"]) == (
        5,
        2,
        3,
    )


def test_a_machine_that_cannot_isolate_has_no_room() -> None:
    shown = pools_document(reading(can_isolate=False, live={}))
    assert (shown["total_capacity"], shown["pools"][0]["status"]) == (0, "unavailable")


def test_every_network_mode_is_counted() -> None:
    shown = cluster_document(reading(live={"zerotrust": 1, "semitrusted": 2}))
    assert shown["allocated"] == 3
    assert shown["network_breakdown"]["semitrusted"]["allocated"] == 2


def test_this_machine_has_memory_and_load() -> None:
    machine = read_machine()
    assert 0 < machine.memory_available_bytes <= machine.memory_total_bytes
    assert all(load >= 0 for load in machine.load)


async def test_sessions_and_one_off_executions_are_counted(api: Any) -> None:
    cluster = Cluster(api.context, api.app.state.api.sessions, lambda: MACHINE)
    pair = api.key(tier=8)
    session_id = (await api.call(pair, "POST", "/sessions")).json()["id"]
    command = {"command": "echo hi"}
    await api.call(pair, "POST", f"/sessions/{session_id}/execute", command)
    await api.call(pair, "POST", "/execute", {"language": "python", "code": "print(1)"})
    assert (cluster.read(True).live, cluster.read(True).spawning) == ({"zerotrust": 1}, 0)

    # Both executions as they were while they ran: the one in the session is no sandbox more.
    with api.database.transaction() as sql:
        sql.run("UPDATE execution SET state = 'running', ended_ms = NULL, exit_code = NULL")
        sql.run("UPDATE session SET state = 'starting'")
    assert (cluster.read(True).live, cluster.read(True).spawning) == ({"zerotrust": 2}, 1)


async def test_uptime_counts_from_the_start_and_is_never_negative(api: Any) -> None:
    cluster = Cluster(api.context, api.app.state.api.sessions, lambda: MACHINE)
    api.now_ms += 5_000
    cluster.start()
    api.now_ms += 1_999
    assert cluster.read(True).uptime_seconds == 1
    api.now_ms -= 60_000
    assert cluster.read(True).uptime_seconds == 0
