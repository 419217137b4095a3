"""Backends and sandboxes for the tests of this folder."""

from __future__ import annotations

import itertools
import os
import select
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machines.platform.sandbox.backend import Backend, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.sandbox.gvisor import GvisorBackend

MIB = 1024 * 1024
HAS_GVISOR = shutil.which("runsc") is not None and os.geteuid() == 0
# gVisor takes as long as all the others together: `pytest -m acceptance` runs it.
_GVISOR = pytest.param("gvisor", marks=pytest.mark.acceptance)
BACKENDS = ["fake", "bubblewrap", *([_GVISOR] if HAS_GVISOR else [])]
_numbers = itertools.count()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which implementations the contract ran against."""
    there = ", and gvisor with -m acceptance"
    why = there if HAS_GVISOR else "; gvisor not offered: it needs runsc on the PATH, and root"
    terminalreporter.write_line(f"sandbox backends under contract: fake, bubblewrap{why}")


@pytest.fixture(scope="session")
def bubblewrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BubblewrapBackend]:
    """One real backend for the session; a machine that cannot isolate fails, it never skips."""
    backend = BubblewrapBackend(tmp_path_factory.mktemp("sandboxes"))
    probe = backend.probe()
    assert probe.ok, f"{probe.reason}. Fix: {probe.fix}"
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def gvisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GvisorBackend]:
    """One for the session, where it is offered at all; then it must work."""
    backend = GvisorBackend(tmp_path_factory.mktemp("gvisor"))
    probe = backend.probe()
    assert probe.ok, f"{probe.reason}. Fix: {probe.fix}"
    yield backend
    backend.close()


@pytest.fixture(params=BACKENDS)
def new_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Backend]:
    """Makes a backend of its own, of every implementation."""
    if request.param == "fake":
        return FakeBackend
    real = {"bubblewrap": BubblewrapBackend, "gvisor": GvisorBackend}[request.param]
    return lambda: real(tmp_path)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every implementation of the port."""
    if request.param == "fake":
        return FakeBackend()
    real: Backend = request.getfixturevalue(request.param)
    return real


def small_spec(**changes: object) -> Spec:
    """A fresh id and modest limits."""
    limits = {"memory_bytes": 256 * MIB, "disk_bytes": 16 * MIB, "pids": 40, **changes}
    return Spec(f"test-{next(_numbers)}", **limits)  # type: ignore[arg-type]


@pytest.fixture
def new_spec() -> Callable[..., Spec]:
    """Makes specs with fresh ids."""
    return small_spec


@pytest.fixture
def handle(backend: Backend) -> Iterator[Handle]:
    """A sandbox of `backend`."""
    made = backend.create(small_spec())
    yield made
    backend.destroy(made)


@pytest.fixture
def sandbox(bubblewrap: BubblewrapBackend) -> Iterator[Handle]:
    """A sandbox of the real backend."""
    made = bubblewrap.create(small_spec())
    yield made
    bubblewrap.destroy(made)


def _read_until(descriptor: int, wanted: bytes | None, seconds: float = 20.0) -> bytes:
    seen, limit = b"", time.monotonic() + seconds
    while wanted is None or wanted not in seen:
        left = limit - time.monotonic()
        assert left > 0, f"{wanted!r} did not come; seen: {seen!r}"
        if not select.select([descriptor], [], [], left)[0]:
            continue
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # a terminal's way of saying that its program ended
            piece = b""
        if not piece:
            assert wanted is None, f"the end came before {wanted!r}; seen: {seen!r}"
            break
        seen += piece
    return seen


@pytest.fixture
def read_until() -> Callable[..., bytes]:
    """(descriptor, wanted) -> what came until `wanted` was in it; None: until the end."""
    return _read_until


@pytest.fixture
def scripts() -> Path:
    """Where the programs that tests start as processes of their own are."""
    return Path(__file__).parent / "scripts"
