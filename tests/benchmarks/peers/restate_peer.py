"""Restate: a workflow of ten `run` steps, a server from npm, a service in Python behind hypercorn.

::

    this process (clients over HTTP) ---> restate-server ---> this file, `serve` (one process)

Server defaults (24 partitions, fsync of its log); only addresses and telemetry are set.  Runs that
wait are workflows on a durable promise; W5 sets an inactivity timeout of five seconds, after which
Restate suspends them (default: a minute).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import restate
from common import (
    HALF,
    STEPS,
    Options,
    Watch,
    check,
    latencies,
    main,
    order,
    pure,
    stay,
    tell,
)

COUNTS: dict[str, set[str]] = {"waiting": set(), "done": set()}
_INACTIVE = float(os.environ.get("BENCH_INACTIVE_SECONDS", "60"))

walk = restate.Workflow("walk")
half = restate.Workflow("half")


@walk.main()
async def run(context: restate.WorkflowContext, data: dict[str, Any]) -> dict[str, Any]:
    """Ten durable steps."""
    for number in range(STEPS):
        data = await context.run_typed(f"step-{number}", pure, data=data)
    return data


@half.main(name="run", inactivity_timeout=timedelta(seconds=_INACTIVE))
async def run_half(context: restate.WorkflowContext, data: dict[str, Any]) -> dict[str, Any]:
    """Five steps, a promise, five more."""
    for number in range(HALF):
        data = await context.run_typed(f"step-{number}", pure, data=data)
    COUNTS["waiting"].add(context.key())
    await context.promise("go", type_hint=int).value()
    for number in range(HALF, STEPS):
        data = await context.run_typed(f"step-{number}", pure, data=data)
    COUNTS["done"].add(context.key())
    return data


@half.handler()
async def go(context: restate.WorkflowSharedContext, number: int) -> None:
    """What a run in the middle waits for."""
    await context.promise("go", type_hint=int).resolve(number)


def serve(port: int) -> None:
    """The service, until killed; `/counts` tells how many wait and how many have ended."""
    from hypercorn.asyncio import serve as hypercorn
    from hypercorn.config import Config

    services: Any = restate.app([walk, half])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/counts":
            await services(scope, receive, send)
            return
        body = json.dumps({name: len(keys) for name, keys in COUNTS.items()}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.loglevel = "ERROR"
    asyncio.run(hypercorn(app, config))


class System:
    """Server and service; as children they die with the process group."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.file = Path(options.directory) / "ports.json"
        if not self.file.exists():
            self.file.write_text(json.dumps([free_port() for _ in range(4)]))
        self.ingress, self.admin, self.fabric, self.service = json.loads(self.file.read_text())
        self.base = Path(options.directory) / "restate-data"
        self.fresh = not self.base.exists()
        self.children: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> System:
        environment = {
            **os.environ,
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{self.ingress}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{self.admin}",
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{self.fabric}",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_LOG_FILTER": "error",
            "DO_NOT_TRACK": "1",
        }
        server = [self.options.extra, "--no-logo", "--node-name", "bench", "--base-dir", self.base]
        service = [sys.executable, __file__, "serve", str(self.service)]
        with (Path(self.options.directory) / "restate.log").open("ab") as log:
            for command in (server, service):
                child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
                    command, env=environment, stdout=log, stderr=log
                )
                self.children.append(child)
        limits = httpx.Limits(max_connections=200)
        self.client = httpx.AsyncClient(timeout=600, limits=limits)
        await self.answers(f"http://127.0.0.1:{self.service}/counts")
        await self.answers(f"http://127.0.0.1:{self.admin}/health")
        await self.answers(f"http://127.0.0.1:{self.ingress}/restate/health")
        if self.fresh:
            answer = await self.client.post(
                f"http://127.0.0.1:{self.admin}/deployments",
                json={"uri": f"http://127.0.0.1:{self.service}"},
            )
            answer.raise_for_status()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.client.aclose()
        for child in self.children:
            child.kill()
            child.wait()

    async def answers(self, url: str) -> None:
        """Until somebody is there."""
        for _ in range(3000):
            try:
                if (await self.client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)
        raise SystemExit(f"{url}: no answer; see {self.options.directory}/restate.log")

    async def post(self, path: str, body: Any) -> Any:
        """Ask the ingress."""
        answer = await self.client.post(f"http://127.0.0.1:{self.ingress}/{path}", json=body)
        if answer.status_code >= 300:
            raise SystemExit(f"{path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.content else None

    async def reached(self, what: str, count: int) -> None:
        """Until the service has seen so many."""
        while True:
            found = await self.client.get(f"http://127.0.0.1:{self.service}/counts")
            if found.json()[what] >= count:
                return
            await asyncio.sleep(0.05)

    def resident_bytes(self) -> int:
        """Memory of server and service."""
        return sum(
            int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * 4096
            for child in self.children
        )

    def cpu_seconds(self) -> float:
        """Processor time of both."""
        return sum(
            sum(
                map(
                    int,
                    Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13],
                )
            )
            for child in self.children
        ) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def each(count: int, at_once: int, call: Any) -> None:
    """Call with every number, so many at once."""
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(client() for _ in range(at_once)))


def w1(options: Options) -> dict[str, Any]:
    """Throughput."""

    async def body() -> dict[str, Any]:
        async with System(options) as system:

            async def one(number: int) -> None:
                check(await system.post(f"walk/w{number}/run", order(number)))

            await each(20, options.at_once, lambda number: one(-1 - number))
            watch, cpu = Watch(), system.cpu_seconds()
            await each(options.runs, options.at_once, one)
            result = watch.throughput(options.runs)
            result["server_cpu_ms_per_run"] = (system.cpu_seconds() - cpu) / options.runs * 1000
            return result

    return asyncio.run(body())


def w2(options: Options) -> dict[str, Any]:
    """Latency."""

    async def body() -> dict[str, Any]:
        async with System(options) as system:
            found = []
            for number in range(options.runs + 5):
                began = time.perf_counter()
                check(await system.post(f"walk/w{number}/run", order(number)))
                found.append((time.perf_counter() - began) * 1000)
            return latencies(found[5:])

    return asyncio.run(body())


async def reach_waiting(system: System, first: int, count: int) -> float:
    """Bring runs to their middle; the seconds until all were accepted."""
    began = time.perf_counter()
    await each(count, 64, lambda n: system.post(f"half/h{first + n}/run/send", order(first + n)))
    accepted = time.perf_counter() - began
    await system.reached("waiting", first + count)
    return accepted


def w3_prepare(options: Options) -> None:
    """Runs in their middle."""

    async def body() -> None:
        async with System(options) as system:
            await reach_waiting(system, 0, options.runs)
            tell({"waiting": options.runs})
            stay()

    asyncio.run(body())


def w3_recover(options: Options) -> dict[str, Any]:
    """Server and service start again; each run gets its event."""

    async def body() -> dict[str, Any]:
        async with System(options) as system:
            launched = time.monotonic() - options.spawned_at
            await each(options.runs, 64, lambda n: system.post(f"half/h{n}/go", n))
            sent = time.monotonic() - options.spawned_at
            await system.reached("done", options.runs)
            took = time.monotonic() - options.spawned_at
        return {
            "runs": options.runs, "launch_seconds": launched, "sent_seconds": sent, "seconds": took,
        }  # fmt: skip

    return asyncio.run(body())


def w5(options: Options) -> dict[str, Any]:
    """Runs that wait; memory and processor of server and service."""
    os.environ["BENCH_INACTIVE_SECONDS"] = "5"

    async def body() -> dict[str, Any]:
        async with System(options) as system:
            await reach_waiting(system, 0, 50)
            await asyncio.sleep(6)
            resident, began = system.resident_bytes(), time.perf_counter()
            started = await reach_waiting(system, 50, options.runs)
            waiting = time.perf_counter() - began
            await asyncio.sleep(7)
            cpu, began = system.cpu_seconds(), time.perf_counter()
            await asyncio.sleep(options.idle_seconds)
            idle = (system.cpu_seconds() - cpu) / (time.perf_counter() - began)
            return {
                "started_seconds": started,
                "waiting_seconds": waiting,
                "bytes_per_waiting": (system.resident_bytes() - resident) / options.runs,
                "idle_cores": idle,
                "resident_bytes": system.resident_bytes(),
            }

    return asyncio.run(body())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        main({"w1": w1, "w2": w2, "w3-prepare": w3_prepare, "w3-recover": w3_recover, "w5": w5})
