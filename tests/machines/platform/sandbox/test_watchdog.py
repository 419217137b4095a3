"""Sandboxes without a cgroup are ended when what they use together is too much."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machines.platform.sandbox import bubblewrap as module
from machines.platform.sandbox import watchdog
from machines.platform.sandbox.backend import MIB, Command, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import SandboxGone
from machines.platform.sandbox.watchdog import (
    Watchdog,
    proportional_bytes,
    resident_bytes_below,
)


class Memory:
    """What processes use, as the test says; notes which were measured properly."""

    def __init__(self) -> None:
        self.resident: dict[int, int] = {}
        self.proportional: dict[int, int] = {}
        self.measured: list[int] = []

    def measure(self, pid: int) -> int:
        self.measured.append(pid)
        return self.proportional[pid]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def dog(memory: Memory) -> Iterator[Watchdog]:
    """Its thread never gets a turn: the tests call `check`."""
    made = Watchdog(
        resident=lambda pid: memory.resident[pid],
        proportional=memory.measure,
        wait=lambda stop, _seconds: threading.Event.wait(stop),
    )
    yield made
    for name in ("one", "two"):
        made.forget(name)


def test_only_a_sandbox_over_its_limit_is_ended_and_once(dog: Watchdog, memory: Memory) -> None:
    ended: list[str] = []
    memory.resident = {1: 90, 2: 300}
    memory.proportional = {1: 90, 2: 250}
    dog.watch("one", 1, lambda: 100, lambda reason: ended.append(f"one: {reason}"))
    dog.watch("two", 2, lambda: 100, lambda reason: ended.append(f"two: {reason}"))
    assert dog.check() == ["two"]
    assert dog.check() == []
    assert ended == ["two: its programs used 250 bytes of memory, 100 are allowed"]


def test_memory_that_is_shared_counts_once(dog: Watchdog, memory: Memory) -> None:
    """Resident memory counts it for every process; it is only a reason to look closer."""
    memory.resident, memory.proportional = {1: 99}, {1: 60}
    dog.watch("one", 1, lambda: 100, pytest.fail)
    assert dog.check() == []
    assert memory.measured == []
    memory.resident = {1: 500}
    assert dog.check() == []
    assert memory.measured == [1]


def test_the_limit_is_the_one_of_now(dog: Watchdog, memory: Memory) -> None:
    limits = [100]
    memory.resident = memory.proportional = {1: 80}
    ended: list[str] = []
    dog.watch("one", 1, lambda: limits[0], ended.append)
    assert dog.check() == []
    limits[0] = 70
    assert dog.check() == ["one"]
    assert len(ended) == 1


def test_one_that_is_forgotten_is_left_alone(dog: Watchdog, memory: Memory) -> None:
    memory.resident = memory.proportional = {1: 500}
    dog.watch("one", 1, lambda: 100, pytest.fail)
    dog.forget("one")
    dog.forget("one")
    assert dog.check() == []


def test_ending_one_may_forget_it_too(dog: Watchdog, memory: Memory) -> None:
    """As the backend does: `destroy` forgets what it destroys."""
    memory.resident = memory.proportional = {1: 500}
    dog.watch("one", 1, lambda: 100, lambda _reason: dog.forget("one"))
    assert dog.check() == ["one"]


def test_one_thread_serves_all_and_ends_with_the_last() -> None:
    asked: list[float] = []
    failing = threading.Event()
    ended = threading.Event()
    all_watched = threading.Event()

    def wait(stop: threading.Event, seconds: float) -> bool:
        assert all_watched.wait(10)
        asked.append(seconds)
        if len(asked) <= 3:
            return False
        return threading.Event.wait(stop)

    def resident(_pid: int) -> int:
        if not failing.is_set():
            failing.set()
            raise OSError("cannot be measured now")
        return 500

    dog = Watchdog(resident=resident, proportional=lambda _pid: 500, wait=wait)
    before = set(threading.enumerate())
    for name in ("one", "two"):
        dog.watch(name, 1, lambda: 600, lambda _reason: None)
    dog.watch("three", 1, lambda: 100, lambda _reason: ended.set())
    all_watched.set()
    assert ended.wait(10)  # after a round that failed
    (thread,) = set(threading.enumerate()) - before
    assert (thread.name, thread.daemon) == ("turtles-sandbox-watchdog", True)
    for name in ("one", "two"):
        dog.forget(name)
    thread.join(10)
    assert not thread.is_alive()
    assert set(asked) == {watchdog.INTERVAL_SECONDS}


# -- what the kernel says ------------------------------------------------------------------------


def test_use_is_summed_over_everything_below() -> None:
    text = "import os, sys\nx = bytearray(b'x') * (40 << 20)\nos.fork()\nos.write(1, b'1\\n')\n"
    code = f"{text}sys.stdin.read()"
    spawn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    parent = subprocess.Popen(
        [sys.executable, "-c", spawn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == parent.stdout.readline() == "1\n"
    resident, proportional = resident_bytes_below(parent.pid), proportional_bytes(parent.pid)
    assert resident > 80 * MIB
    assert 40 * MIB < proportional < 70 * MIB
    parent.communicate()
    assert resident_bytes_below(parent.pid) == proportional_bytes(parent.pid) == 0


MEMORY_FILES = """
import mmap, os, sys
files = [os.memfd_create("one"), os.memfd_create("two")]
for file in files:
    os.posix_fallocate(file, 0, 20 << 20)
mapped = mmap.mmap(files[0], 20 << 20)
touched = mapped[::4096]
os.fork()
os.write(1, b"1\\n")
sys.stdin.read()
"""


def test_files_in_memory_count_once_mapped_or_not() -> None:
    spawn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {MEMORY_FILES!r}])"
    parent = subprocess.Popen(
        [sys.executable, "-c", spawn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == parent.stdout.readline() == "1\n"
    resident, proportional = resident_bytes_below(parent.pid), proportional_bytes(parent.pid)
    parent.communicate()
    assert 40 * MIB < proportional < 60 * MIB
    assert resident >= proportional


def test_where_proportional_memory_is_not_told_unshared_counts(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    for pid, files in {
        "1": {"smaps_rollup": "0-7f rollup\nRss: 900 kB\nPss:  123 kB\nPss_Shmem: 7 kB\n"},
        "2": {"statm": "500 100 30 1 0 80 0\n"},
        "3": {"smaps_rollup": "", "statm": "0 0 0 0 0 0 0\n"},
        "4": {},
    }.items():
        (tmp_path / pid).mkdir()
        for name, text in files.items():
            (tmp_path / pid / name).write_text(text)
    used = [watchdog._proportional(pid, tmp_path) for pid in (1, 2, 3, 4)]
    assert used == [(123 * 1024, 7 * 1024), (70 * page, 0), (0, 0), (0, 0)]


# -- in a sandbox --------------------------------------------------------------------------------

EACH_BELOW_ITS_LIMIT = """
import os, signal
for _ in range(2):
    if os.fork() == 0:
        x = bytearray(b"x") * (140 << 20)
        signal.pause()
signal.pause()
"""


def test_many_processes_together_are_held_down_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_spec: Callable[..., Spec]
) -> None:
    """Each below 256 MiB, together over: the sandbox ends, and its caller learns why."""
    monkeypatch.setattr(module, "find_tree", lambda: None)
    backend = BubblewrapBackend(tmp_path)
    spared = backend.create(new_spec())
    handle = backend.create(new_spec())
    reason = r"its programs used \d+ bytes of memory, 268435456 are allowed"
    with pytest.raises(SandboxGone, match=reason):
        backend.execute(handle, Command(("python3", "-c", EACH_BELOW_ITS_LIMIT)))
    assert backend.execute(spared, Command(("echo", "alive"))).stdout == b"alive\n"
    while (tmp_path / handle.sandbox_id).exists():  # the watchdog's thread removes it
        pass
    backend.close()
    assert not backend._watchdog._watched


HIDDEN = """
import os
files = [os.memfd_create("hidden") for _ in range(3)]
for file in files:
    for _ in range(100):
        os.write(file, bytes(1 << 20))
input()
"""


def test_memory_in_files_that_nobody_mapped_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_spec: Callable[..., Spec]
) -> None:
    monkeypatch.setattr(module, "find_tree", lambda: None)
    backend = BubblewrapBackend(tmp_path)
    handle = backend.create(new_spec())
    with pytest.raises(SandboxGone, match="bytes of memory"):
        backend.execute(handle, Command(("sh", "-c", f"sleep 60 | python3 -c '{HIDDEN}'")))
    backend.close()


def test_with_groups_nobody_watches(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    watched = sandbox.sandbox_id in bubblewrap._watchdog._watched
    assert watched == (bubblewrap.stats(sandbox).enforcement == "rlimit")
