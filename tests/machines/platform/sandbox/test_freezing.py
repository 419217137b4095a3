"""Standing still: every process, in each of the three ways, and going on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from machines.platform.sandbox import agent, commands, doors, freezing, live, processes
from machines.platform.sandbox import bubblewrap as module
from machines.platform.sandbox.backend import MIB, Command, Handle, Result, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.cgroups import Tree, find_tree
from machines.platform.sandbox.channel import Channel
from machines.platform.sandbox.errors import (
    FreezeFailed,
    SandboxFrozen,
    SandboxGone,
    SandboxLimit,
)
from machines.platform.sandbox.freezing import (
    GroupFreezer,
    SignalFreezer,
    Standstill,
    choose_freezer,
    stand_still,
)


def _ways() -> dict[str, Tree | None]:
    """What this machine can do; signals it always can."""
    tree, ways = find_tree(), {}
    if tree is not None:
        ways["group"] = tree
        freezer = Path("/sys/fs/cgroup/freezer")
        if "unified" in tree.parents and os.access(freezer, os.W_OK):
            rest = {name: path for name, path in tree.parents.items() if name != "unified"}
            ways["freezer"] = Tree(1, {**rest, "freezer": freezer})
    return {**ways, "signals": None}


WAYS = _ways()


@pytest.fixture(params=list(WAYS))
def still(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[BubblewrapBackend]:
    """A backend that freezes in one of the ways."""
    monkeypatch.setattr(module, "find_tree", lambda: WAYS[request.param])
    backend = BubblewrapBackend(tmp_path)
    yield backend
    backend.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def spec(new_spec: Callable[..., Spec]) -> Spec:
    return new_spec()


def shell(backend: BubblewrapBackend, handle: Handle, text: str, seconds: float = 20) -> bytes:
    return backend.execute(handle, Command(("sh", "-c", text)), timeout_seconds=seconds).stdout


def ticks(pids: list[int]) -> list[str]:
    """CPU time and state of processes, as the kernel counts them."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return [" ".join(fields[11:13]) for fields in stats]


def below(backend: BubblewrapBackend, handle: Handle) -> list[int]:
    live = backend._find(handle)
    return [each.pid for each in processes.descendants(live.process.pid)]


# -- in every way --------------------------------------------------------------------------------


def test_a_busy_sandbox_stands_still_and_goes_on(still: BubblewrapBackend, spec: Spec) -> None:
    handle = still.create(spec)
    shell(still, handle, "setsid sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &")
    pids = below(still, handle)

    def moves(looks: int) -> bool:
        before = ticks(pids)
        return any(ticks(pids) != before for _ in range(looks))

    while not moves(1):
        pass
    still.freeze(handle)
    assert not moves(2000)
    assert below(still, handle) == pids
    assert still.stats(handle).processes == len(pids)
    assert still.stats(handle).memory_bytes > MIB
    still.unfreeze(handle)
    while not moves(1):
        pass
    assert shell(still, handle, "echo fine") == b"fine\n"


def test_a_frozen_sandbox_refuses_and_both_calls_may_be_repeated(
    still: BubblewrapBackend, spec: Spec
) -> None:
    handle = still.create(spec)
    still.unfreeze(handle)
    still.cell(handle, "python3", "x = 41")
    still.freeze(handle)
    still.freeze(handle)
    with pytest.raises(SandboxFrozen, match="Unfreeze it first"):
        shell(still, handle, "true")
    with pytest.raises(SandboxFrozen):
        still.cell(handle, "python3", "print(x)")
    still.unfreeze(handle)
    still.unfreeze(handle)
    assert still.cell(handle, "python3", "print(x + 1)").stdout == b"42\n"


def test_a_command_under_way_is_answered_after_the_thaw(
    still: BubblewrapBackend, spec: Spec
) -> None:
    handle = still.create(spec)
    with ThreadPoolExecutor(1) as pool:
        waiting, program = start_waiting(still, handle, pool, 20)
        still.freeze(handle)
        os.kill(program, signal.SIGUSR1)
        with pytest.raises(SandboxFrozen):
            shell(still, handle, "true")
        assert not waiting.done()
        still.unfreeze(handle)
        assert waiting.result(timeout=20).stdout == b"done\n"


def test_a_doorman_that_never_answers_holds_no_request_through_a_standstill(
    bubblewrap: BubblewrapBackend, sandbox: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever freezes such a sandbox keeps a thread of the platform for ever."""
    monkeypatch.setattr(doors, "_WAIT_SECONDS", 0.5)
    running = bubblewrap._find(sandbox)
    ours, theirs = socket.socketpair()
    with theirs, ThreadPoolExecutor(1) as pool:
        running.door.close()
        running.door = Channel(ours, running.standstill.lost_seconds)
        asking = pool.submit(bubblewrap.connect, sandbox, 80)
        assert theirs.recv(1)  # it was asked
        # It waits for the request, and may come just before the sandbox is ended for that.
        with suppress(SandboxGone):
            bubblewrap.freeze(sandbox)
        with pytest.raises(SandboxGone, match="no answer"):
            asking.result(timeout=20)
    with pytest.raises(SandboxGone):
        bubblewrap.stats(sandbox)


def test_a_command_may_stand_still_for_longer_than_it_may_run(
    bubblewrap: BubblewrapBackend, sandbox: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the host nor the agent counts that time; a frozen agent is not a dead one."""
    monkeypatch.setattr(commands, "_GRACE_SECONDS", 1.0)
    with ThreadPoolExecutor(1) as pool:
        waiting, program = start_waiting(bubblewrap, sandbox, pool, 2.5)
        bubblewrap.freeze(sandbox)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=2.7)
        bubblewrap.unfreeze(sandbox)
        os.kill(program, signal.SIGUSR1)
        result = waiting.result(timeout=20)
    assert (result.stdout, result.timed_out) == (b"done\n", False)


WAITING = """
import signal, sys
def end(*_):
    print("done")
    sys.exit()
signal.signal(signal.SIGUSR1, end)
while True:
    signal.pause()
"""
_USR1_BIT = 1 << (signal.SIGUSR1 - 1)


def start_waiting(
    backend: BubblewrapBackend, handle: Handle, pool: ThreadPoolExecutor, seconds: float
) -> tuple[Future[Result], int]:
    """A command that ends by SIGUSR1 to the process that is given."""
    known = below(backend, handle)
    command = Command(("python3", "-c", WAITING))
    waiting = pool.submit(backend.execute, handle, command, timeout_seconds=seconds)
    while True:
        for pid in set(below(backend, handle)) - set(known):
            if caught_signals(pid) & _USR1_BIT:
                return waiting, pid
        assert not waiting.done()


def caught_signals(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return int(line.split()[1], 16)
    return 0


def test_a_frozen_sandbox_is_destroyed_at_once(
    still: BubblewrapBackend, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_KILL_SECONDS", 3600.0)  # waiting for that would be noticed
    handle = still.create(spec)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shell, still, handle, "sleep 600 & sleep 600", 900)
        while len(pids := below(still, handle)) < 6:
            assert not waiting.done()
        still.freeze(handle)
        still.destroy(handle)
        with pytest.raises(SandboxGone):
            waiting.result(timeout=20)
    assert [pid for pid in pids if processes.identify(pid) is not None] == []
    with pytest.raises(SandboxGone):
        still.freeze(handle)
    with pytest.raises(SandboxGone):
        still.unfreeze(handle)


def test_freezing_and_destroying_at_once_leaves_nothing(
    still: BubblewrapBackend, new_spec: Callable[..., Spec]
) -> None:
    for _ in range(5):
        handle = still.create(new_spec())
        pids = below(still, handle)
        with ThreadPoolExecutor(2) as pool:
            frozen = pool.submit(still.freeze, handle)
            pool.submit(still.destroy, handle).result(timeout=20)
            assert isinstance(frozen.exception(timeout=20), (SandboxGone, type(None)))
        assert [pid for pid in pids if processes.identify(pid) is not None] == []


def test_more_memory_is_given_and_too_little_refused(still: BubblewrapBackend, spec: Spec) -> None:
    handle = still.create(spec)
    take = Command(("python3", "-c", "print(len(b'x' * (400 << 20)))"))
    assert still.execute(handle, take).exit_code != 0
    still.freeze(handle)
    still.resize(handle, vcpus=2, memory_bytes=1024 * MIB)
    still.unfreeze(handle)
    assert still.execute(handle, take).stdout == b"419430400\n"
    with pytest.raises(SandboxLimit, match="memory_bytes"):
        still.resize(handle, vcpus=1, memory_bytes=8 * MIB)
    still.resize(handle, vcpus=1, memory_bytes=256 * MIB)
    assert still.execute(handle, take).exit_code != 0
    assert shell(still, handle, "echo alive") == b"alive\n"


def test_a_failure_to_freeze_is_undone(
    still: BubblewrapBackend, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = still.create(spec)
    monkeypatch.setattr(freezing, "FREEZE_SECONDS", 0.0)
    monkeypatch.setattr(GroupFreezer, "still", lambda _self: False)
    monkeypatch.setattr(SignalFreezer, "_stands", lambda _self, _identity: False)
    with pytest.raises(FreezeFailed, match="goes on as before; try again"):
        still.freeze(handle)
    assert shell(still, handle, "echo fine") == b"fine\n"


def test_what_was_frozen_when_its_platform_died_is_swept(tmp_path: Path, scripts: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, str(scripts / "owner.py"), str(tmp_path), "1", "--frozen"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    backend = BubblewrapBackend(tmp_path)
    assert backend.sweep() == 1
    assert list(tmp_path.iterdir()) == []


def test_the_agent_gives_a_program_the_time_of_a_standstill_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sleeps no longer than a tick, so a gap far beyond that was no running time."""
    now = [100.0]
    monkeypatch.setattr(agent, "time", SimpleNamespace(monotonic=lambda: now[0]))
    allowance = agent.Allowance(3.0)
    assert allowance.tick() == agent.TICK_SECONDS
    now[0] += 1.5  # a machine that is only busy
    assert allowance.left() == 1.5
    now[0] += 3600
    assert allowance.left() == 1.5 - agent.TICK_SECONDS
    now[0] += 0.75
    assert allowance.tick() == 0.25
    now[0] += 0.25
    assert allowance.tick() == 0.0


# -- more memory than one can show without a group -----------------------------------------------


def test_using_more_in_use_than_wanted_is_refused(
    bubblewrap: BubblewrapBackend, spec: Spec
) -> None:
    if bubblewrap._tree is None:
        bubblewrap.resize(bubblewrap.create(spec), vcpus=1, memory_bytes=128 * MIB)
        return  # per process there is no use to compare with
    handle = bubblewrap.create(spec)
    bubblewrap.cell(handle, "python3", "x = bytearray(b'x') * (160 << 20)")
    with pytest.raises(SandboxLimit, match="in use"):
        bubblewrap.resize(handle, vcpus=1, memory_bytes=128 * MIB)
    assert bubblewrap.cell(handle, "python3", "print(len(x))").stdout == b"167772160\n"
    bubblewrap.destroy(handle)


# -- signals -------------------------------------------------------------------------------------

FORKING = """
import os, time
limit = time.monotonic() + 15  # whatever becomes of the test
for _ in range(2):
    os.fork()
os.write(1, b"forking\\n")
while time.monotonic() < limit:
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(os.wait()[1])
    os.waitpid(child, 0)
"""


@pytest.fixture
def forking() -> Iterator[subprocess.Popen[str]]:
    """A program that does nothing but fork, four times at once, below a parent that is spared."""
    spawn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FORKING!r}])"
    parent = subprocess.Popen(
        [sys.executable, "-c", spawn], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    try:
        assert [parent.stdout.readline() for _ in range(4)] == ["forking\n"] * 4
        yield parent
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def test_signals_stop_everything_under_a_forking_load(forking: subprocess.Popen[str]) -> None:
    for _ in range(60):
        freezer = SignalFreezer(forking.pid)
        assert stand_still(freezer)
        held = processes.descendants(forking.pid)
        assert len(held) >= 4
        assert {state for each in held for state in freezing._states(each)} <= set("TtZD")
        assert processes.descendants(forking.pid) == held
        freezer.go_on()


def test_what_had_stopped_before_stays_stopped() -> None:
    spawn = (
        "import subprocess, sys\n"
        "for _ in range(2):\n"
        "    print(subprocess.Popen(['sleep', '600'], stdout=2).pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", spawn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        stopped, moving = int(parent.stdout.readline()), int(parent.stdout.readline())
        os.kill(stopped, signal.SIGSTOP)
        while states(stopped) != ["T"]:
            pass
        freezer = SignalFreezer(parent.pid)
        assert stand_still(freezer)
        assert (states(stopped), states(moving)) == (["T"], ["T"])
        freezer.go_on()
        while states(moving) == ["T"]:
            pass
        assert states(stopped) == ["T"]
    finally:
        for pid in (stopped, moving):
            os.kill(pid, signal.SIGKILL)
        parent.communicate()


def states(pid: int) -> list[str]:
    identity = processes.identify(pid)
    return freezing._states(identity) if identity else []


def test_a_process_in_uninterruptible_sleep_counts_once_it_has_the_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sleeper = processes.identify(os.getpid())
    assert sleeper is not None
    sent: list[signal.Signals] = []
    monkeypatch.setattr(processes, "descendants", lambda _pid: [sleeper])
    monkeypatch.setattr(freezing, "_states", lambda _identity: ["D"])
    monkeypatch.setattr(freezing, "_signal", lambda _identity, number: sent.append(number))
    freezer = SignalFreezer(1)
    assert [freezer.still() for _ in range(3)] == [False, False, True]
    freezer.go_on()
    assert sent == [signal.SIGSTOP, signal.SIGCONT]


def test_one_running_thread_is_enough_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "descendants", lambda _pid: [processes.Identity(1, 1)])
    monkeypatch.setattr(freezing, "_states", lambda _identity: ["T", "R"])
    monkeypatch.setattr(freezing, "_signal", lambda _identity, _number: None)
    freezer = SignalFreezer(1)
    assert not any(freezer.still() for _ in range(10))


def test_a_recycled_number_is_not_signalled() -> None:
    with subprocess.Popen(["sleep", "600"]) as bystander:
        try:
            freezing._signal(processes.Identity(bystander.pid, 1), signal.SIGKILL)
            freezing._signal(processes.Identity(2**22 - 1, 1), signal.SIGKILL)
            assert bystander.poll() is None
        finally:
            bystander.kill()


# -- groups, and the waiting ---------------------------------------------------------------------


def test_the_best_way_is_taken(tmp_path: Path) -> None:
    memory, two, one = (tmp_path / name for name in ("memory", "unified", "freezer"))
    for directory in (memory, two, one):
        directory.mkdir()
    (two / "cgroup.freeze").write_text("0")
    (one / "freezer.state").write_text("THAWED\n")
    second = choose_freezer({"memory": memory, "unified": two}, 1)
    assert second == GroupFreezer(
        two / "cgroup.freeze", "1", "0", two / "cgroup.events", "frozen 1"
    )
    state = one / "freezer.state"
    first = choose_freezer({"memory": memory, "freezer": one}, 1)
    assert first == GroupFreezer(state, "FROZEN", "THAWED", state, "FROZEN")
    assert choose_freezer({"memory": memory}, 7) == SignalFreezer(7)
    assert choose_freezer(None, 7) == SignalFreezer(7)


def test_a_group_is_still_when_the_kernel_says_so(tmp_path: Path) -> None:
    switch, events = tmp_path / "cgroup.freeze", tmp_path / "cgroup.events"
    events.write_text("populated 1\nfrozen 0\n")
    freezer = GroupFreezer(switch, "1", "0", events, "frozen 1")
    freezer.stop()
    assert switch.read_text() == "1"
    assert not freezer.still()
    events.write_text("populated 1\nfrozen 1\n")
    assert freezer.still()
    freezer.go_on()
    assert switch.read_text() == "0"


@dataclass
class Reluctant:
    """Stands still at the given look; notes what it was asked."""

    looks: int
    asked: list[str] = field(default_factory=list)
    error: Exception | None = None

    def stop(self) -> None:
        self.asked.append("stop")

    def still(self) -> bool:
        self.looks -= 1
        if self.error is not None and self.looks == 0:
            raise self.error
        return self.looks <= 0

    def go_on(self) -> None:
        self.asked.append("go on")


def waited(freezer: Reluctant, given_up: Callable[[], bool] = lambda: False) -> bool:
    now = [0.0]

    def pause(_seconds: float) -> None:
        now[0] += 1.0

    return stand_still(freezer, given_up=given_up, monotonic=lambda: now[0], pause=pause)


def test_it_is_waited_for_until_it_really_stands() -> None:
    freezer = Reluctant(looks=5)
    assert waited(freezer)
    assert freezer.asked == ["stop"]


def test_waiting_has_a_bound_and_ends_with_the_sandbox() -> None:
    late, leaving = Reluctant(looks=8), Reluctant(looks=3)
    assert not waited(late)
    assert not waited(leaving, lambda: True)
    assert late.asked == leaving.asked == ["stop", "go on"]


def test_an_error_while_waiting_is_undone() -> None:
    freezer = Reluctant(looks=2, error=OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        waited(freezer)
    assert freezer.asked == ["stop", "go on"]


def test_time_lost_to_standing_still_is_counted() -> None:
    now = [10.0]
    standstill = Standstill(lambda: now[0])
    assert (standstill.frozen, standstill.lost_seconds()) == (False, 0.0)
    standstill.begin()
    now[0] = 13.0
    assert (standstill.frozen, standstill.lost_seconds()) == (True, 3.0)
    standstill.end()
    now[0] = 20.0
    assert (standstill.frozen, standstill.lost_seconds()) == (False, 3.0)
    standstill.begin()
    now[0] = 21.0
    standstill.end()
    standstill.end()
    assert standstill.lost_seconds() == 4.0
