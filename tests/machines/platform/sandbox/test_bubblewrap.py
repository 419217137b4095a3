"""The real backend: walls that are missing are refused, and nothing is ever left behind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from machines.platform import toolbox
from machines.platform.sandbox import bubblewrap as module
from machines.platform.sandbox import commands, doors, launch, layout, processes, selection
from machines.platform.sandbox.backend import MIB, Command, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.cgroups import Tree
from machines.platform.sandbox.channel import Channel
from machines.platform.sandbox.errors import (
    PortClosed,
    SandboxFrozen,
    SandboxGone,
    SandboxLimit,
    SandboxUnavailable,
)
from machines.platform.sandbox.program import find_candidates
from machines.platform.sandbox.records import Record, read_record, write_record

AFTER = "Untrusted code will not be run without isolation. Fix: "


def run(backend: BubblewrapBackend, handle: Handle, text: str, seconds: float = 30) -> bytes:
    return backend.execute(handle, Command(("sh", "-c", text)), timeout_seconds=seconds).stdout


def group_directories(backend: BubblewrapBackend) -> set[str]:
    """Its own only: other test runs on this machine make and remove groups, too."""
    parents = backend._tree.parents.values() if backend._tree else ()
    found = (each for parent in parents for each in parent.glob(f"{backend._group_prefix}*"))
    return {str(each) for each in found}


# -- refusal -------------------------------------------------------------------------------------

MESSAGES = [
    (
        "bwrap: No permissions to create new namespace, likely because the kernel does not allow "
        "non-privileged user namespaces.",
        "kernel.unprivileged_userns_clone=1",
    ),
    (
        "bwrap: No permissions to creating new namespace, likely because the kernel does not "
        "allow non-privileged user namespaces.",
        "seccomp=unconfined",
    ),
    (
        "bwrap: Creating new namespace failed: nesting depth or "
        "/proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
        "max_user_namespaces=15000",
    ),
    ("bwrap: Creating new namespace failed: Permission denied", "apparmor_parser"),
    ("bwrap: Creating new namespace failed: Function not implemented", "CONFIG_USER_NS"),
    ("bwrap: prctl(PR_SET_SECCOMP) reported EINVAL", "CONFIG_SECCOMP_FILTER"),
    ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "systempaths=unconfined"),
    ("bwrap: Creating new namespace failed: No space left on device", "max_user_namespaces=15000"),
    ("bwrap: setting up uid map: Permission denied", "apparmor_parser"),
    ("bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", "apparmor_parser"),
    ("bwrap: Unknown option --cap-drop", "too old"),
    ("bwrap: Can't find source path /root/.pyenv: Permission denied", "apt-get install python3"),
    ("bwrap: something never seen before", "remove what it reports"),
    ("", "remove what it reports"),
]


@pytest.fixture
def fake_bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A program that says what bubblewrap says on such a machine, and notes that it ran."""

    def make(script: str) -> Path:
        program = tmp_path / "bwrap"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("TURTLES_BWRAP", str(program))
        return program

    return make


@pytest.mark.parametrize(("said", "fix"), MESSAGES)
def test_each_known_message_has_its_one_remedy(
    fake_bwrap: Callable[[str], Path], tmp_path: Path, said: str, fix: str
) -> None:
    fake_bwrap(f"echo {shlex.quote(said)} >&2; exit 1")
    backend = BubblewrapBackend(tmp_path / "root")
    with pytest.raises(SandboxUnavailable) as refusal:
        backend.create(Spec("never"))
    assert fix in refusal.value.fix
    message = str(refusal.value)
    assert message.startswith("this machine does not let ")
    assert "create user namespaces (bwrap said: " in message
    assert said.rstrip(".")[:60] in message
    assert message.count(AFTER) == 1
    assert list((tmp_path / "root").iterdir()) == []


def test_the_probe_reports_the_refusal_and_never_raises(
    fake_bwrap: Callable[[str], Path], tmp_path: Path
) -> None:
    fake_bwrap("echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1")
    probe = BubblewrapBackend(tmp_path / "root").probe()
    assert not probe.ok
    assert "setting up uid map" in probe.reason
    assert "apparmor" in probe.fix.lower()


def test_the_probe_does_not_raise_on_surprises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def surprise() -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(selection, "find_candidates", surprise)
    probe = BubblewrapBackend(tmp_path).probe()
    assert not probe.ok
    assert "surprise" in probe.reason


def test_a_program_that_hangs_after_its_message_is_refused_too(
    fake_bwrap: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "START_SECONDS", 0.3)
    fake_bwrap("[ $1 = --help ] || { echo 'bwrap: odd' >&2; exec sleep 600; }")
    with pytest.raises(SandboxUnavailable, match="bwrap said: bwrap: odd"):
        BubblewrapBackend(tmp_path / "root").create(Spec("never"))
    assert list((tmp_path / "root").iterdir()) == []


def test_an_agent_that_answers_without_walls_is_refused(
    fake_bwrap: Callable[[str], Path], tmp_path: Path
) -> None:
    """A program that simply runs the agent on the host: inspection sees it, nothing else runs."""
    agent = Path(module.__file__).with_name("agent.py")
    shutil.copy(agent, tmp_path / "agent.py")
    tmp_path.chmod(0o755)
    program = fake_bwrap(f'shift 8; exec /usr/bin/python3 -I -S -B {agent} "$1" "$2"')
    backend = BubblewrapBackend(tmp_path / "root")
    with pytest.raises(SandboxUnavailable) as refusal:
        backend.create(Spec("never"))
    assert AFTER in str(refusal.value)
    assert program.exists()
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize(
    ("wall", "hole"),
    [
        ("--unshare-net", "net namespace is shared"),
        ("--unshare-ipc", "ipc namespace is shared"),
        ("--unshare-uts", "uts namespace is shared"),
        ("--unshare-pid", "pid namespace is shared"),
    ],
)
def test_a_missing_namespace_is_found_and_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wall: str, hole: str
) -> None:
    whole = layout.namespaces

    def without(*, can_disable_userns: bool) -> list[str]:
        words = whole(can_disable_userns=can_disable_userns)
        at = words.index("--hostname") if wall == "--unshare-uts" else len(words)
        return [word for word in [*words[:at], *words[at + 2 :]] if word != wall]

    monkeypatch.setattr(layout, "namespaces", without)
    backend = BubblewrapBackend(tmp_path / "root")
    with pytest.raises(SandboxUnavailable) as refusal:
        backend.create(Spec("never"))
    said = str(refusal.value)
    assert hole in said
    assert list((tmp_path / "root").iterdir()) == []


def test_a_wrong_name_in_the_variable_is_said_plainly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TURTLES_BWRAP", "/no/such/bwrap")
    with pytest.raises(SandboxUnavailable, match="TURTLES_BWRAP names /no/such/bwrap"):
        BubblewrapBackend(tmp_path).create(Spec("never"))


def test_a_bubblewrap_that_the_sandboxs_user_cannot_reach_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A virtual environment below /root: only we can open the program, and we pass it on."""
    program = find_candidates()[0]
    hidden = tmp_path / "hidden"
    shutil.copytree(program.program.parent, hidden / "package" / "_bin")
    if program.libraries is not None:
        shutil.copytree(program.libraries, hidden / "package.libs")
    hidden.chmod(0o700)
    monkeypatch.setenv("TURTLES_BWRAP", str(hidden / "package" / "_bin" / "bwrap"))
    backend = BubblewrapBackend(tmp_path / "root")
    handle = backend.create(Spec("hidden"))
    assert run(backend, handle, "echo fine") == b"fine\n"
    backend.destroy(handle)


def test_a_python_outside_usr_is_shown_and_its_neighbours_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = Path(tempfile.mkdtemp(prefix="turtles-python-"))
    try:
        (home / "base" / "bin").mkdir(parents=True)
        (home / "base" / "marker").write_text("base")
        (home / "secret").write_text("not for the sandbox")
        home.chmod(0o755)
        found = layout.find_interpreter()
        shown = layout.Interpreter(found.program, str(home / "base"))
        monkeypatch.setattr(layout, "find_interpreter", lambda: shown)
        backend = BubblewrapBackend(tmp_path)
        handle = backend.create(Spec("prefix"))
        assert run(backend, handle, f"cat {home}/base/marker; ls {home}") == b"basebase\n"
        assert run(backend, handle, f"touch {home}/base/x || echo refused") == b"refused\n"
        backend.destroy(handle)
    finally:
        shutil.rmtree(home)


def test_a_toolbox_shows_what_our_code_needs_and_nothing_else_of_ours(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec]
) -> None:
    handle = bubblewrap.create(new_spec(toolbox=True))
    names = (
        "statemachine sqlalchemy alembic httpx structlog msgspec cryptography typer rich "
        "starlette uvicorn wsproto h11"
    )
    program = f"import sys, {', '.join(names.split())}; print(sys.path, sys.version_info[:2])"
    python = "PYTHONPATH=/opt/turtles/lib /opt/turtles/bin/python"
    path, version = run(bubblewrap, handle, f'{python} -c "{program}"').decode().split("] (")
    assert "site-packages" not in path and "dist-packages" not in path
    assert version == f"{sys.version_info[0]}, {sys.version_info[1]})\n"
    missing = run(bubblewrap, handle, f"{python} -c 'import pytest' 2>&1 || true")
    assert b"No module named 'pytest'" in missing
    assert run(bubblewrap, handle, "find /opt -writable | wc -l") == b"0\n"
    bubblewrap.destroy(handle)


def test_packages_beside_a_shown_library_are_hidden(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(tempfile.mkdtemp(prefix="turtles-python-"))
    try:
        home.chmod(0o755)
        (home / "site-packages").mkdir()
        (home / "site-packages" / "private.py").write_text("")
        (home / "os.py").write_text("")
        hidden = f"{toolbox.INTERPRETER}/site-packages"
        box = toolbox.Toolbox(((str(home), toolbox.INTERPRETER),), (hidden,), ())
        monkeypatch.setattr(launch, "load_toolbox", lambda: box)
        handle = bubblewrap.create(new_spec(toolbox=True))
        assert run(bubblewrap, handle, f"cd {toolbox.INTERPRETER}; ls . site-packages") == (
            b".:\nos.py\nsite-packages\n\nsite-packages:\n"
        )
        assert run(bubblewrap, handle, f"touch {hidden}/x || echo refused") == b"refused\n"
        bubblewrap.destroy(handle)
    finally:
        shutil.rmtree(home)


def test_without_a_toolbox_to_show_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none() -> None:
        raise toolbox.ToolboxUnavailable("no Python", "install one")

    monkeypatch.setattr(launch, "load_toolbox", none)
    backend = BubblewrapBackend(tmp_path)
    with pytest.raises(toolbox.ToolboxUnavailable, match="Fix: install one"):
        backend.create(Spec("never", toolbox=True))
    assert list(tmp_path.iterdir()) == []
    backend.destroy(backend.create(Spec("never")))


# -- life ----------------------------------------------------------------------------------------


def test_a_sandbox_outlives_the_thread_that_made_it(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec]
) -> None:
    """--die-with-parent means the parent thread; request threads end all the time."""
    made: list[Handle] = []
    maker = threading.Thread(target=lambda: made.append(bubblewrap.create(new_spec())))
    maker.start()
    maker.join()
    assert run(bubblewrap, made[0], "echo alive") == b"alive\n"
    bubblewrap.destroy(made[0])


def test_sandboxes_serve_many_threads(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec]
) -> None:
    def serve(number: int) -> bytes:
        handle = bubblewrap.create(new_spec())
        try:
            return run(bubblewrap, handle, f"echo {number}")
        finally:
            bubblewrap.destroy(handle)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(serve, range(12))) == [b"%d\n" % each for each in range(12)]


def test_one_sandbox_serves_one_request_after_another(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    with ThreadPoolExecutor(4) as pool:
        texts = [f"echo {each}" for each in range(8)]
        answers = list(pool.map(lambda text: run(bubblewrap, sandbox, text), texts))
    assert answers == [b"%d\n" % each for each in range(8)]


def test_destroying_ends_a_request_under_way(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec]
) -> None:
    handle = bubblewrap.create(new_spec())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run, bubblewrap, handle, "sleep 600", 900)
        while b"sleep" not in commands_of(bubblewrap):
            assert not waiting.done()
        bubblewrap.destroy(handle)
        with pytest.raises(SandboxGone):
            waiting.result(timeout=20)


def commands_of(_backend: BubblewrapBackend) -> bytes:
    below = processes.descendants(os.getpid())
    names = []
    for each in below:
        try:
            names.append(Path(f"/proc/{each.pid}/comm").read_bytes())
        except OSError:
            continue
    return b"".join(names)


def test_an_agent_that_goes_silent_is_given_up(
    bubblewrap: BubblewrapBackend, sandbox: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_GRACE_SECONDS", 0.2)
    with pytest.raises(SandboxGone, match="no answer"):
        run(bubblewrap, sandbox, "kill -STOP $PPID; sleep 600", 0.2)


def test_an_id_whose_directory_exists_is_refused(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec]
) -> None:
    spec = new_spec()
    (bubblewrap._root / spec.sandbox_id).mkdir()
    with pytest.raises(SandboxLimit, match="in use"):
        bubblewrap.create(spec)
    assert bubblewrap.sweep() == 1
    bubblewrap.destroy(bubblewrap.create(spec))


def test_directories_are_for_the_owner_only(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    for path in (bubblewrap._root, bubblewrap._root / sandbox.sandbox_id):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_stats_count_what_runs(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    before = bubblewrap.stats(sandbox)
    run(bubblewrap, sandbox, "sleep 600 >/dev/null 2>&1 & sleep 600 >/dev/null 2>&1 & true")
    after = bubblewrap.stats(sandbox)
    assert after.processes == before.processes + 2
    assert after.memory_bytes > 0


def test_without_groups_the_limits_are_per_process_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_spec: Callable[..., Spec]
) -> None:
    monkeypatch.setattr(module, "find_tree", lambda: None)
    assert_rlimit(BubblewrapBackend(tmp_path), new_spec())


def test_groups_that_cannot_be_made_fall_back_to_limits_per_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_spec: Callable[..., Spec]
) -> None:
    nowhere = Tree(2, {"memory": tmp_path / "absent", "pids": tmp_path / "absent"})
    monkeypatch.setattr(module, "find_tree", lambda: nowhere)
    assert_rlimit(BubblewrapBackend(tmp_path / "root"), new_spec())


def assert_rlimit(backend: BubblewrapBackend, spec: Spec) -> None:
    handle = backend.create(spec)
    assert (backend.stats(handle).enforcement, backend.probe().enforcement) == ("rlimit", "rlimit")
    assert backend.stats(handle).memory_bytes > MIB
    bomb = Command(("python3", "-c", "print(len(b'x' * (1 << 30)))"))
    result = backend.execute(handle, bomb)
    assert b"MemoryError" in result.stderr
    assert run(backend, handle, "echo alive") == b"alive\n"
    backend.destroy(handle)


# -- doors ---------------------------------------------------------------------------------------


def test_doors_do_not_wait_for_a_command(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: Callable[..., bytes]
) -> None:
    """The long command ends because of what came in by the door."""
    with ThreadPoolExecutor(1) as pool:
        waits = "until [ -e /root/go ]; do sleep 0.01; done; echo came"
        waiting = pool.submit(run, bubblewrap, sandbox, waits)
        while b"sleep" not in commands_of(bubblewrap):
            assert not waiting.done()
        with pytest.raises(PortClosed):
            bubblewrap.connect(sandbox, 80)
        program = bubblewrap.start_program(sandbox, Command(("touch", "/root/go")))
        assert read_until(program.status, None) == b"0\n"
        assert waiting.result(timeout=20) == b"came\n"
    os.close(program.output)
    os.close(program.status)


def test_doors_leak_no_descriptor_on_either_side(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec], read_until: Callable[..., bytes]
) -> None:
    handle = bubblewrap.create(new_spec(network="semitrusted"))
    server = bubblewrap.start_program(handle, Command(("python3", "-m", "http.server", "8080")))

    def use_all() -> None:
        program = bubblewrap.start_program(handle, Command(("true",)))
        read_until(program.status, None)
        terminal = bubblewrap.open_terminal(handle, ("true",))
        for descriptor in (program.output, program.status, terminal):
            os.close(descriptor)
        for refused in (("no-such-program",), ("/etc/passwd",)):
            with pytest.raises(SandboxLimit):
                bubblewrap.start_program(handle, Command(refused))
            with pytest.raises(SandboxLimit):
                bubblewrap.open_terminal(handle, refused)
        with pytest.raises(PortClosed):
            bubblewrap.connect(handle, 81)
        bubblewrap.connect(handle, 8080).close()
        egress = bubblewrap.egress(handle)
        assert egress is not None
        egress.close()

    def open_now() -> list[int]:
        bubblewrap.stop_program(handle, 12345)  # after it the doorman is done with all before
        live = bubblewrap._live[handle.sandbox_id]
        everyone = [os.getpid(), *(each.pid for each in live.inside)]
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in everyone]

    while True:
        try:
            bubblewrap.connect(handle, 8080).close()
            break
        except PortClosed:
            continue
    use_all()
    before = open_now()
    for _ in range(20):
        use_all()
    assert open_now() == before
    os.close(server.output)
    os.close(server.status)
    bubblewrap.destroy(handle)


def test_a_wrong_answer_at_the_door_ends_the_sandbox(
    bubblewrap: BubblewrapBackend, sandbox: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its doorman hands out a slave, it was taken over."""
    monkeypatch.setattr(doors.os, "isatty", lambda _descriptor: False)
    with pytest.raises(SandboxGone, match="no terminal"):
        bubblewrap.open_terminal(sandbox, ("true",))
    with pytest.raises(SandboxGone, match="does not exist"):
        bubblewrap.stats(sandbox)


def test_limits_of_a_resize_reach_what_the_door_starts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    new_spec: Callable[..., Spec],
    read_until: Callable[..., bytes],
) -> None:
    monkeypatch.setattr(module, "find_tree", lambda: None)
    backend = BubblewrapBackend(tmp_path)
    handle = backend.create(new_spec())
    for mib in (256, 512):
        backend.resize(handle, vcpus=1, memory_bytes=mib * MIB)
        program = backend.start_program(handle, Command(("bash", "-c", "ulimit -d")))
        assert read_until(program.output, None) == b"%d\n" % (mib * 1024)
        os.close(program.output)
        os.close(program.status)
    backend.destroy(handle)


def test_a_door_request_under_way_is_answered_before_the_freeze(
    bubblewrap: BubblewrapBackend, sandbox: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None waits through a standstill: that takes a thread of the platform for as long."""
    sent, go = threading.Event(), threading.Event()
    whole = module.Channel._send

    def send_later(channel: Channel, data: bytes, descriptors: Sequence[int]) -> None:
        sent.set()
        assert go.wait(20)
        whole(channel, data, descriptors)

    monkeypatch.setattr(Channel, "_send", send_later)
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(bubblewrap.connect, sandbox, 80)
        assert sent.wait(20)
        freezing = pool.submit(bubblewrap.freeze, sandbox)
        began = time.monotonic()
        while time.monotonic() - began < 0.3:
            assert not freezing.done() and not asked.done()
        go.set()
        with pytest.raises(PortClosed):
            asked.result(timeout=20)
        freezing.result(timeout=20)
    with pytest.raises(SandboxFrozen):
        bubblewrap.connect(sandbox, 80)
    assert bubblewrap.egress(sandbox) is None  # asks nobody, waits for nobody
    bubblewrap.unfreeze(sandbox)
    assert run(bubblewrap, sandbox, "echo alive") == b"alive\n"


# -- nothing is left -----------------------------------------------------------------------------


def test_fifty_sandboxes_leave_nothing(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec]
) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    bubblewrap.destroy(bubblewrap.create(new_spec()))
    before = (descriptors(), processes.descendants(os.getpid()), group_directories(bubblewrap))
    for _ in range(50):
        handle = bubblewrap.create(new_spec())
        assert run(bubblewrap, handle, "sleep 600 >/dev/null 2>&1 & echo ok") == b"ok\n"
        bubblewrap.destroy(handle)
    after = (descriptors(), processes.descendants(os.getpid()), group_directories(bubblewrap))
    assert after == before
    assert list(bubblewrap._root.iterdir()) == []


def start_owner(root: Path, scripts: Path, *words: str) -> tuple[subprocess.Popen[str], dict]:
    owner = subprocess.Popen(
        [sys.executable, str(scripts / "owner.py"), str(root), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    return owner, json.loads(owner.stdout.readline())


def end_owner(owner: subprocess.Popen[str]) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.communicate()


def test_a_killed_platforms_sandboxes_are_swept(tmp_path: Path, scripts: Path) -> None:
    owner, made = start_owner(tmp_path, scripts, "2", "--stuck")
    living = [each for pid in made["pids"] if (each := processes.identify(pid))]
    assert len(living) >= 9
    end_owner(owner)
    backend = BubblewrapBackend(tmp_path)
    assert backend.sweep() == 2
    assert processes.wait_until_gone(living, 10)
    assert [each for each in made["groups"] if Path(each).exists()] == []
    assert list(tmp_path.iterdir()) == []
    assert backend.sweep() == 0


def test_a_living_platforms_sandboxes_are_not_swept(tmp_path: Path, scripts: Path) -> None:
    owner, made = start_owner(tmp_path, scripts, "1")
    try:
        backend = BubblewrapBackend(tmp_path)
        assert backend.sweep() == 0
        assert all(processes.identify(pid) for pid in made["pids"])
    finally:
        end_owner(owner)
    assert backend.sweep() == 1


def test_a_recycled_process_number_is_not_killed(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        identity = processes.identify(bystander.pid)
        assert identity is not None
        stranger = processes.Identity(identity.pid, identity.start_ticks - 1)
        dead = processes.Identity(2**22 - 1, 1)
        write_record(tmp_path / "old", Record(owner=dead, processes=(stranger,)))
        assert BubblewrapBackend(tmp_path).sweep() == 1
        assert bystander.poll() is None
        assert identity.is_alive()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_record_of_another_boot_kills_nothing(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        identity = processes.identify(bystander.pid)
        me = processes.identify(os.getpid())
        assert identity is not None
        assert me is not None
        write_record(tmp_path / "old", Record(me, (identity,), boot="another"))
        assert BubblewrapBackend(tmp_path).sweep() == 1
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_directory_without_a_record_is_swept(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "record.json").write_text("{")
    assert BubblewrapBackend(tmp_path).sweep() == 1


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_failure_while_starting_leaves_nothing(
    bubblewrap: BubblewrapBackend,
    new_spec: Callable[..., Spec],
    monkeypatch: pytest.MonkeyPatch,
    which: int,
) -> None:
    """Before anything, behind the gate, and with the agent running."""
    before = (processes.descendants(os.getpid()), group_directories(bubblewrap))
    records = iter(range(which))

    def fail_later(directory: Path, record: Record) -> None:
        if next(records, None) is None:
            raise OSError("no space left for the record")
        write_record(directory, record)

    monkeypatch.setattr(launch, "write_record", fail_later)
    spec = new_spec()
    with pytest.raises(SandboxUnavailable, match="no space left for the record"):
        bubblewrap.create(spec)
    monkeypatch.undo()
    assert (processes.descendants(os.getpid()), group_directories(bubblewrap)) == before
    assert not (bubblewrap._root / spec.sandbox_id).exists()
    bubblewrap.destroy(bubblewrap.create(spec))


def test_the_record_names_every_process(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    record = read_record(bubblewrap._root / sandbox.sandbox_id)
    assert record is not None
    assert len(record.processes) == 4  # bubblewrap twice, the agent, its doorman
    assert all(each.is_alive() for each in record.processes)


def test_nobody_else_on_the_machine_can_read_the_id_of_a_sandbox(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    """A session lets in who knows its id; these files of a process are open to every user."""
    running = bubblewrap._find(sandbox).process.pid
    pids = [running, *(each.pid for each in processes.descendants(running))]
    assert len(pids) > 1
    for pid in pids:
        for name in ("cgroup", "cmdline", "comm", "status", "stat"):
            assert sandbox.sandbox_id.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
