"""The programs of services: started in their sandboxes, found ready, found ended.

::

    launch -> program runs -> a declared port accepts, or (no ports) it survived the grace -> ready
                           -> it ended with 0 (it may have left daemons)                   -> ready
                           -> it ended otherwise                                           -> failed
                           -> no port opened in time                                       -> failed

A program that was ready and ends with 0 changes nothing; one that ends otherwise has failed.  Each
deployment of a service has a number; what an old one says is heard by nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from engine.errors import TurtlesError
from machines.platform.program_watch import ProgramWatch
from machines.platform.sandbox.backend import Backend, Command, Handle
from machines.platform.sandbox.errors import SandboxError, SandboxGone
from machines.platform.service_orders import Bootstrap

GRACE_SECONDS = 1.0
READY_SECONDS = 300.0
RETRY_SECONDS = 0.5
BOOTSTRAP_PATH = "/tmp/.bootstrap"  # noqa: S108 - a path inside the sandbox
# What these speak cannot be found out by connecting.
DATAGRAM_TYPES = ("udp", "source", "teamspeak")
_FIRST_LOOK_SECONDS = 0.02
_LAST_LOOK_SECONDS = 1.0
_FETCH = """
set -e
if command -v curl >/dev/null 2>&1; then
    curl --fail --silent --show-error --location --max-time 120 --output "$2" -- "$1"
else
    python3 -c 'import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=120) as answer, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(answer, file)' "$1" "$2"
fi
chmod 0700 "$2"
if [ "$(head -c 2 "$2")" = "#!" ]; then exec "$2"; fi
exec bash "$2"
"""

log = structlog.get_logger("turtles.platform.services")


@dataclass(slots=True)
class _Running:
    deployment: int
    number: int
    ended: threading.Event = field(default_factory=threading.Event)
    forgotten: threading.Event = field(default_factory=threading.Event)


class Deployments:
    """The running program of each service.

    Args:
        on_ready: told (service id, deployment).
        on_failed: told (service id, deployment, reason).
    """

    def __init__(
        self,
        backend: Backend,
        watch: ProgramWatch,
        on_ready: Callable[[str, int], None],
        on_failed: Callable[[str, int, str], None],
        *,
        grace_seconds: float = GRACE_SECONDS,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self._backend = backend
        self._watch = watch
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._grace_seconds = grace_seconds
        self._ready_seconds = ready_seconds
        self._running: dict[str, _Running] = {}

    def launch(
        self,
        handle: Handle,
        deployment: int,
        command: Command,
        ports: tuple[int, ...],
    ) -> None:
        """Start the program of a deployment.  Call `end` first when an older one may run.

        Raises:
            SandboxError: it cannot be started.
        """
        program = self._backend.start_program(handle, command)
        running = _Running(deployment, program.number)
        self._running[handle.sandbox_id] = running
        self._watch.watch(handle.sandbox_id, deployment, program)
        threading.Thread(
            target=self._await_ready, args=(handle, running, ports), daemon=True
        ).start()

    def end(self, handle: Handle) -> None:
        """Stop the program of a service, if there is one.  A sandbox that is gone is no error.

        Raises:
            SandboxError: it could not be stopped.
        """
        running = self.forget(handle)
        if running is None:
            return
        try:
            self._backend.stop_program(handle, running.number)
        except SandboxGone:
            return

    def forget(self, handle: Handle) -> _Running | None:
        """Hear nothing more of the program of a service."""
        running = self._running.pop(handle.sandbox_id, None)
        self._watch.drop(handle.sandbox_id)
        if running is not None:
            running.ended.set()
            running.forgotten.set()
        return running

    def has(self, handle: Handle) -> bool:
        """Whether a program of this service is watched, or was to its end."""
        return handle.sandbox_id in self._running

    def ended(self, service_id: str, deployment: int, exit_code: int | None) -> None:
        """What the watch tells: a program has ended, or died with its sandbox."""
        running = self._running.get(service_id)
        if running is None or running.deployment != deployment:
            return
        running.ended.set()
        if exit_code == 0:
            _surely(running, lambda: self._on_ready(service_id, deployment))
        else:
            reason = "sandbox_died" if exit_code is None else f"exit_code_{exit_code}"
            _surely(running, lambda: self._on_failed(service_id, deployment, reason))

    def _await_ready(self, handle: Handle, running: _Running, ports: tuple[int, ...]) -> None:
        if ports:
            opened = self._await_port(handle, running, ports)
        else:
            opened = not running.ended.wait(self._grace_seconds)
        if running.ended.is_set():
            return
        name, deployment = handle.sandbox_id, running.deployment
        if opened:
            _surely(running, lambda: self._on_ready(name, deployment))
        else:
            _surely(running, lambda: self._on_failed(name, deployment, "no_port_opened"))

    def _await_port(self, handle: Handle, running: _Running, ports: tuple[int, ...]) -> bool:
        deadline = time.monotonic() + self._ready_seconds
        pause_seconds = _FIRST_LOOK_SECONDS
        while time.monotonic() < deadline:
            if running.ended.wait(pause_seconds):
                return False
            if any(self._accepts(handle, port) for port in ports):
                return True
            pause_seconds = min(pause_seconds * 1.5, _LAST_LOOK_SECONDS)
        return False

    def _accepts(self, handle: Handle, port: int) -> bool:
        try:
            self._backend.connect(handle, port).close()
        except SandboxError:
            return False
        return True


def _surely(running: _Running, tell: Callable[[], None]) -> None:
    """Tell until it is heard: the store may be busy for a while."""
    while not running.forgotten.is_set():
        try:
            tell()
        except TurtlesError as error:
            log.warning("deployment_not_heard", number=running.number, error=str(error))
            running.forgotten.wait(RETRY_SECONDS)
        else:
            return


def bootstrap_command(
    bootstrap: Bootstrap, files: Mapping[str, bytes], environment: Mapping[str, str]
) -> Command:
    """The program that a bootstrap is."""
    argv: tuple[str, ...]
    written = dict(files)
    if bootstrap.url is not None:
        argv = ("sh", "-c", _FETCH, "bootstrap", bootstrap.url, BOOTSTRAP_PATH)
    else:
        script = bootstrap.script or ""
        written[BOOTSTRAP_PATH] = script.encode()
        argv = ("bash", BOOTSTRAP_PATH)
        if script.startswith("#!"):
            argv = ("sh", "-c", 'chmod 0700 "$0" && exec "$0"', BOOTSTRAP_PATH)
    return Command(argv=argv, files=written, environment=dict(environment))
