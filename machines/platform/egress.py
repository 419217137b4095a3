"""The way out of a semitrusted sandbox: an HTTP proxy on a socket that lives inside it.

::

    code inside -> 127.0.0.1:3128 (inside) ==listening socket==> proxy (here) -> allowed host
                                                                              -> this platform

A socket belongs to the network namespace in which it was made, so what the agent bound inside is
accepted here, and dialled from here; nothing bridges the two, and the sandbox has no route.
Absolute-form requests (`GET http://host/path`) and CONNECT (not to port 80); one request a
connection.  Answers of the proxy itself: 400 no proxy request, 403 `egress_denied`, 408, 413, 429,
431, 502, 504.

One connection's way is told in egress_exchange.py, the rules in egress_policy.py.

The proxy runs in a thread with a loop of its own: neither a busy platform nor a slow sandbox
holds up another sandbox.  Each has its own accepting task, connections, and token bucket.  What
is logged names sandbox, method, host, port, status and sizes, never a path, query, header or body.

Requests to the platform's own names go to a second socket of its server, on which it serves
portal, API and services, but not the wallets of its host (machines/platform/app.py).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import structlog

from machines.platform.egress_exchange import Exchange
from machines.platform.egress_policy import (
    Address,
    EgressPolicy,
    PlatformAddress,
    TokenBucket,
    denied,
    parse_destination,
)
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Handle, Spec

__all__ = ["EgressProxy", "ProxiedBackend", "Served", "configured", "proxied"]

Resolve = Callable[[str, int], Awaitable[list[Address]]]
_Result = TypeVar("_Result")
log = structlog.get_logger("turtles.platform.egress")


async def resolve_here(host: str, port: int) -> list[Address]:
    """The addresses of a name, as this machine sees them.  OSError when it has none."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]


class Served:
    """What the proxy keeps for one sandbox."""

    def __init__(self, sandbox_id: str, listener: socket.socket, policy: EgressPolicy) -> None:
        self.sandbox_id = sandbox_id
        self.listener = listener
        self.bucket = TokenBucket(policy.requests_per_second, policy.burst, time.monotonic())
        self.slots = asyncio.Semaphore(policy.connections)
        # A name below an allowed `*.` can be as slow as its owner likes.
        self.names = asyncio.Semaphore(2)
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_limited = False


class EgressProxy:
    """Serves the listening sockets of sandboxes until they are detached.

    Args:
        policy: what may be reached.
        resolve: names to addresses; another one in tests.
    """

    def __init__(self, policy: EgressPolicy, *, resolve: Resolve = resolve_here) -> None:
        self.policy = policy
        self.platform: PlatformAddress | None = None
        self._resolve = resolve
        self._sandboxes: dict[str, Served] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # -- called from the platform's threads -----------------------------------------------------

    def attach(self, sandbox_id: str, listener: socket.socket) -> None:
        """Serve a sandbox's listening socket, which is the proxy's from now on."""
        self._call(self._attach(sandbox_id, listener))

    def detach(self, sandbox_id: str) -> None:
        """Stop serving a sandbox and close all that is open for it.  Idempotent."""
        if self._loop is not None:
            self._call(self._detach(sandbox_id))

    def close(self) -> None:
        """Detach every sandbox and end the thread.  Idempotent."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._detach_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    @property
    def attached(self) -> frozenset[str]:
        """The sandboxes that are served now."""
        return frozenset(self._sandboxes)

    def _call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_default_executor(ThreadPoolExecutor(32, "egress-names"))
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name="egress", daemon=True
                )
                self._thread.start()
            loop = self._loop
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    # -- inside the loop ------------------------------------------------------------------------

    async def _attach(self, sandbox_id: str, listener: socket.socket) -> None:
        await self._detach(sandbox_id)
        listener.setblocking(False)
        sandbox = Served(sandbox_id, listener, self.policy)
        self._sandboxes[sandbox_id] = sandbox
        self._spawn(sandbox, self._accept(sandbox))

    async def _detach(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is None:
            return
        tasks = list(sandbox.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # An open socket keeps its network namespace alive.
        sandbox.listener.close()

    async def _detach_all(self) -> None:
        for sandbox_id in list(self._sandboxes):
            await self._detach(sandbox_id)

    def _spawn(self, sandbox: Served, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        sandbox.tasks.add(task)
        task.add_done_callback(sandbox.tasks.discard)

    async def _accept(self, sandbox: Served) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await sandbox.slots.acquire()
            try:
                connection, _ = await loop.sock_accept(sandbox.listener)
            except OSError as error:
                sandbox.slots.release()
                log.warning("egress_accept_failed", sandbox_id=sandbox.sandbox_id, error=str(error))
                if sandbox.listener.fileno() < 0:
                    return
                await asyncio.sleep(1)  # out of descriptors, most likely
                continue
            self._spawn(sandbox, self._serve(sandbox, connection))

    async def _serve(self, sandbox: Served, connection: socket.socket) -> None:
        exchange = Exchange(self, sandbox, connection)
        try:
            await exchange.run()
        finally:
            sandbox.slots.release()

    async def addresses(self, sandbox: Served, host: str, port: int) -> list[Address]:
        """Where an allowed host may be dialled, resolved once.

        Raises:
            Problem: 403 only private addresses, 502 no such name.
        """
        try:
            found = [ipaddress.ip_address(host)]
        except ValueError:
            found = await self._look_up(sandbox, host, port)
        if good := self.policy.dialable(found):
            return good
        raise denied(
            host, port, "its address is not one of the open internet", self.policy, self.own_ports
        )

    async def _look_up(self, sandbox: Served, host: str, port: int) -> list[Address]:
        try:
            async with sandbox.names, asyncio.timeout(self.policy.connect_seconds):
                return await self._resolve(host, port)
        except (OSError, TimeoutError, ValueError) as error:
            raise Problem(502, "egress_failed", f"{host}: the name cannot be resolved.") from error

    @property
    def own_ports(self) -> tuple[int, ...]:
        """Ports under which the platform's own names are served."""
        return self.platform.ports if self.platform else ()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class ProxiedBackend:
    """A backend whose semitrusted sandboxes have a way out; all else is the backend's.

    Use `proxied`, which gives it the type of the port.
    """

    def __init__(self, backend: Backend, proxy: EgressProxy) -> None:
        self._backend = backend
        self.proxy = proxy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def create(self, spec: Spec) -> Handle:
        """Build a sandbox and serve its socket, if it has one."""
        handle = self._backend.create(spec)
        if spec.network != "semitrusted":
            return handle
        try:
            listener = self._backend.egress(handle)
            if listener is not None:
                self.proxy.attach(handle.sandbox_id, listener)
        except BaseException:
            self._backend.destroy(handle)
            raise
        return handle

    def destroy(self, handle: Handle) -> None:
        """Stop serving its socket, and end the sandbox."""
        self.proxy.detach(handle.sandbox_id)
        self._backend.destroy(handle)

    def close(self) -> None:
        """End the proxy and every sandbox."""
        self.proxy.close()
        self._backend.close()


def proxied(backend: Backend, proxy: EgressProxy) -> Backend:
    """`backend` with a way out for semitrusted sandboxes."""
    # It has every method of the port by delegation, which a type checker cannot see.
    return cast(Backend, ProxiedBackend(backend, proxy))


def configured(
    allow: Sequence[str], requests_per_second: float | None, burst: int | None
) -> EgressProxy:
    """A proxy as the command line describes it; None takes the default.

    Raises:
        UsageError: a rule or a limit that cannot be.
    """
    default = EgressPolicy()
    return EgressProxy(
        EgressPolicy(
            allow=tuple(parse_destination(text) for text in allow),
            requests_per_second=(
                default.requests_per_second if requests_per_second is None else requests_per_second
            ),
            burst=default.burst if burst is None else burst,
        )
    )
