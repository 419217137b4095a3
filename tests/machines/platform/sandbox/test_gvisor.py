"""gVisor alone: whole snapshots, what the relay carries, refusals, nothing left behind.

On a machine without runsc, or not as root, only the refusals are left of this file: the other tests
are not offered there (conftest.py says so at the end of a run).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from machines.platform.sandbox import processes
from machines.platform.sandbox.backend import MIB, Command, Handle, Saved, Spec
from machines.platform.sandbox.errors import (
    SandboxFrozen,
    SandboxGone,
    SandboxLimit,
)
from machines.platform.sandbox.gvisor import GvisorBackend

# Walls that stand between a sandbox and the host.  The other probes of scripts/probes.py look for
# what gVisor's own kernel gives freely (namespaces, chroot, ptrace, io_uring, device nodes without
# a device), or read files of /proc that it does not have: nothing of that is the host's.
WALLS = {
    "abstract_socket",
    "add_key",
    "become_someone",
    "bpf",
    "canary_file",
    "change_the_network",
    "clock_and_name",
    "file_handles",
    "hard_links",
    "host_port",
    "host_processes",
    "inherited_descriptors",
    "kernel_settings",
    "keyctl",
    "kill_host",
    "mount",
    "names",
    "nesting_programs",
    "other_roots",
    "raise_limits",
    "regain_capabilities",
    "request_key",
    "rights_programs",
    "routes",
    "shared_memory",
    "socket_algorithm",
    "socket_families",
    "socket_netlink_other",
    "socket_packet",
    "socket_protocols",
    "socket_raw",
    "socket_vsock",
    "symbolic_links",
    "user_map",
}
ReadUntil = Callable[..., bytes]
HERE = shutil.which("runsc") is not None and os.geteuid() == 0
COUNTER = Command(
    ("bash", "-c", "i=0; while :; do echo $((i+=1)); echo $i >/root/n; read -t 0.05 <> <(:); done")
)


pytestmark = pytest.mark.acceptance


def test_a_machine_without_runsc_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    probe = GvisorBackend(tmp_path / "root").probe()
    assert not probe.ok
    assert "runsc" in probe.reason
    assert "apt-get install runsc" in probe.fix


def test_an_ordinary_user_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/runsc")
    probe = GvisorBackend(tmp_path / "root").probe()
    assert not probe.ok
    assert "root" in probe.fix


if HERE:

    @pytest.fixture
    def box(gvisor: GvisorBackend, new_spec: Callable[..., Spec]) -> Handle:
        """A sandbox; the backend of the session ends it at the latest."""
        return gvisor.create(new_spec())

    def count(backend: GvisorBackend, handle: Handle) -> int:
        return int(backend.execute(handle, Command(("cat", "/root/n"))).stdout or b"0")

    def goes_on(backend: GvisorBackend, handle: Handle, after: int) -> bool:
        """Whether the counter moves; every look takes a while inside."""
        return any(count(backend, handle) > after for _ in range(50))

    def keep(backend: GvisorBackend, handle: Handle, target: Path) -> Saved:
        backend.cell(handle, "python3", "import threading; held = threading.Lock()")
        backend.cell(handle, "python3", "held.acquire(); lines = iter(range(9)); next(lines)")
        return backend.save(handle, target, level="full")

    def test_a_full_snapshot_keeps_what_cannot_be_written_down(
        gvisor: GvisorBackend, box: Handle, new_spec: Callable[..., Spec], tmp_path: Path
    ) -> None:
        saved = keep(gvisor, box, tmp_path / "full")
        assert (saved.level, saved.lost) == ("full", ())
        assert saved.size_bytes == (tmp_path / "full").stat().st_size
        assert (tmp_path / "full").stat().st_mode & 0o777 == 0o600
        asked = "print(held.locked(), next(lines))"
        assert gvisor.cell(box, "python3", asked).stdout == b"True 1\n"
        assert gvisor.cell(box, "python3", asked).stdout == b"True 2\n"
        other = gvisor.create(new_spec(environment={"WHO": "other"}))
        gvisor.load(other, tmp_path / "full")
        assert gvisor.cell(other, "python3", asked).stdout == b"True 1\n"
        greeting = gvisor.execute(other, Command(("sh", "-c", "echo $WHO")))
        assert greeting.stdout == b"other\n"
        gvisor.load(other, tmp_path / "full")
        assert gvisor.cell(other, "python3", asked).stdout == b"True 1\n"
        gvisor.destroy(box)
        gvisor.destroy(other)

    def test_programs_and_terminals_go_on_after_a_full_snapshot(
        gvisor: GvisorBackend, box: Handle, read_until: ReadUntil, tmp_path: Path
    ) -> None:
        program = gvisor.start_program(box, COUNTER)
        terminal = gvisor.open_terminal(box, ("bash",))
        read_until(program.output, b"2\n")
        gvisor.save(box, tmp_path / "full", level="full")
        seen = count(gvisor, box)
        assert goes_on(gvisor, box, seen)
        read_until(program.output, f"\n{seen + 1}\n".encode())
        os.write(terminal, b"echo still $((40+2))\n")
        read_until(terminal, b"still 42")
        gvisor.stop_program(box, program.number)
        assert read_until(program.status, None) == b"137\n"
        for descriptor in (terminal, program.output, program.status):
            os.close(descriptor)
        gvisor.destroy(box)

    def test_a_program_goes_on_in_another_sandbox_of_another_platform_process(
        new_spec: Callable[..., Spec], read_until: ReadUntil, tmp_path: Path
    ) -> None:
        first = GvisorBackend(tmp_path / "root")
        handle = first.create(new_spec())
        program = first.start_program(handle, COUNTER)
        read_until(program.output, b"2\n")
        first.save(handle, tmp_path / "full", level="full")
        first.close()
        second = GvisorBackend(tmp_path / "root")
        other = second.create(new_spec(network="semitrusted"))
        second.load(other, tmp_path / "full")
        seen = count(second, other)
        assert seen >= 2
        assert goes_on(second, other, seen)
        with second.egress(other) or pytest.fail("no way out") as listening:
            assert listening.getsockname() == ("127.0.0.1", 3128)
        second.close()
        for descriptor in (program.output, program.status):
            os.close(descriptor)

    def test_only_images_of_this_platform_are_restored(
        gvisor: GvisorBackend, box: Handle, new_spec: Callable[..., Spec], tmp_path: Path
    ) -> None:
        gvisor.save(box, tmp_path / "full", level="full")
        whole = (tmp_path / "full").read_bytes()
        for name, content in {
            "changed": whole[:-1] + bytes([whole[-1] ^ 1]),
            "longer": whole + b"x",
            "shorter": whole[:-1],
            "head": whole[:24] + b'{"files": {"../x": 1}}\n',
        }.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(SandboxLimit, match="made by this platform"):
                gvisor.load(box, tmp_path / name)
        stranger = GvisorBackend(tmp_path / "stranger")
        other = stranger.create(new_spec())
        with pytest.raises(SandboxLimit, match="made by this platform"):
            stranger.load(other, tmp_path / "full")
        assert stranger.execute(other, Command(("true",))).exit_code == 0
        stranger.close()
        assert gvisor.execute(box, Command(("true",))).exit_code == 0
        gvisor.destroy(box)

    def test_a_frozen_sandbox_is_not_kept(
        gvisor: GvisorBackend, box: Handle, tmp_path: Path
    ) -> None:
        gvisor.freeze(box)
        with pytest.raises(SandboxFrozen):
            gvisor.save(box, tmp_path / "full", level="full")
        assert not (tmp_path / "full").exists()
        gvisor.destroy(box)
        with pytest.raises(SandboxGone):
            gvisor.save(box, tmp_path / "full", level="full")

    def test_a_way_out_leads_to_the_hosts_listener_only(
        gvisor: GvisorBackend, new_spec: Callable[..., Spec]
    ) -> None:
        handle = gvisor.create(new_spec(network="semitrusted"))
        listening = gvisor.egress(handle)
        assert listening is not None
        listening.settimeout(20)
        code = "import socket; s = socket.create_connection(('127.0.0.1', 3128)); s.send(b'hello')"
        assert gvisor.cell(handle, "python3", code).exit_code == 0
        connection, _ = listening.accept()
        with connection, listening:
            connection.settimeout(20)
            assert connection.recv(5) == b"hello"
            connection.sendall(b"welcome")
            answer = gvisor.cell(handle, "python3", "print(s.recv(7)); s.close()")
            assert answer.stdout == b"b'welcome'\n"
            assert connection.recv(1) == b""
        outside = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
        said = gvisor.cell(handle, "python3", outside).stderr
        assert b"No route" in said or b"unreachable" in said  # by version
        gvisor.destroy(handle)

    def test_a_reader_that_is_slow_stops_nobody_else(
        gvisor: GvisorBackend, box: Handle, read_until: ReadUntil
    ) -> None:
        flood = gvisor.start_program(box, Command(("sh", "-c", "yes | head -c 3000000; echo end")))
        assert gvisor.execute(box, Command(("echo", "meanwhile"))).stdout == b"meanwhile\n"
        assert len(read_until(flood.output, b"end\n")) == 3_000_004
        assert read_until(flood.status, None) == b"0\n"
        os.close(flood.output)
        os.close(flood.status)
        gvisor.destroy(box)

    def test_too_much_memory_ends_all_of_it_and_says_so(gvisor: GvisorBackend, box: Handle) -> None:
        live = gvisor._find(box)
        with pytest.raises(SandboxGone, match="memory"):
            gvisor.execute(box, Command(("python3", "-c", "b'x' * (1 << 30)")))
        assert not live.directory.exists()
        assert not any(each.is_alive() for each in live.inside)

    def test_places_to_write_are_of_limited_size(gvisor: GvisorBackend, box: Handle) -> None:
        code = textwrap.dedent(
            """
            for place, most in (("/root", 8), ("/tmp", 6), ("/dev/shm", 2)):
                with open(place + "/fill", "wb", buffering=0) as file:
                    try:
                        while True: file.write(bytes(1 << 16))
                    except OSError as error:
                        print(error.errno, file.tell() <= most << 20)
            """
        )
        result = gvisor.execute(box, Command(("python3", "-c", code)))
        assert result.stdout == b"28 True\n" * 3
        gvisor.destroy(box)

    def test_without_groups_gvisors_kernel_freezes_and_a_watchdog_counts(
        new_spec: Callable[..., Spec], read_until: ReadUntil, tmp_path: Path
    ) -> None:
        backend = GvisorBackend(tmp_path / "root")
        backend._tree = None
        assert backend.probe().enforcement == "rlimit"
        handle = backend.create(new_spec())
        program = backend.start_program(handle, COUNTER)
        read_until(program.output, b"2\n")
        backend.freeze(handle)
        backend.freeze(handle)
        with pytest.raises(SandboxFrozen):
            backend.execute(handle, Command(("true",)))
        while select.select([program.output], [], [], 0.3)[0]:
            os.read(program.output, 65536)  # what was under way; then nothing comes any more
        backend.unfreeze(handle)
        backend.unfreeze(handle)
        assert goes_on(backend, handle, count(backend, handle))
        saved = backend.save(handle, tmp_path / "full", level="full")
        assert saved.level == "full"
        assert goes_on(backend, handle, count(backend, handle))
        assert backend.stats(handle).enforcement == "rlimit"
        with pytest.raises(SandboxGone, match="memory"):
            backend.execute(handle, Command(("python3", "-c", "b = b'x' * (2 << 30)")))
        os.close(program.output)
        os.close(program.status)
        backend.freeze(other := backend.create(new_spec()))
        backend.destroy(other)
        backend.close()

    def test_destroying_leaves_nothing(
        gvisor: GvisorBackend, new_spec: Callable[..., Spec], tmp_path: Path
    ) -> None:
        backend = GvisorBackend(tmp_path / "root")
        handle = backend.create(new_spec())
        live = backend._find(handle)
        everyone = [*live.inside, processes.identify(live.process.pid)]
        groups = live.cgroup.paths() if live.cgroup else ()
        assert len(everyone) >= 4
        backend.save(handle, tmp_path / "full", level="full")
        everyone += [*live.inside, processes.identify(live.process.pid)]
        backend.destroy(handle)
        assert not any(each and each.is_alive() for each in everyone)
        assert not any(Path(each).exists() for each in groups)
        assert list((tmp_path / "root" / "sandboxes").iterdir()) == []
        backend.close()
        assert list((tmp_path / "root" / "common").iterdir()) == []

    def test_what_a_killed_platform_leaves_is_swept(tmp_path: Path) -> None:
        script = textwrap.dedent(
            """
            import pathlib, sys, time
            from machines.platform.sandbox.backend import Spec
            from machines.platform.sandbox.gvisor import GvisorBackend
            backend = GvisorBackend(pathlib.Path(sys.argv[1]))
            live = backend._find(backend.create(Spec("orphan")))
            backend.freeze(backend.create(Spec("frozen")))
            print(*(each.pid for each in live.inside), flush=True)
            sys.stdin.read()
            """
        )
        argv = [sys.executable, "-c", script, str(tmp_path)]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(argv, cwd=Path.cwd(), **streams) as owner:  # type: ignore[call-overload]
            lines = iter(owner.stdout.readline, b"")
            pids = next(line for line in lines if line[:1].isdigit() and b"[" not in line).split()
            owner.send_signal(signal.SIGKILL)
            owner.wait()
        identities = [each for pid in pids if (each := processes.identify(int(pid)))]
        backend = GvisorBackend(tmp_path)
        assert backend.sweep() == 2
        assert processes.wait_until_gone(identities, 5)
        assert list((tmp_path / "sandboxes").iterdir()) == []
        assert backend.sweep() == 0
        assert (
            backend.execute(
                backend.create(Spec("orphan", memory_bytes=256 * MIB, disk_bytes=16 * MIB)),
                Command(("true",)),
            ).exit_code
            == 0
        )
        backend.close()

    def test_the_walls_to_the_host_stand(
        gvisor: GvisorBackend, box: Handle, scripts: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "canary").write_text("canary")
        library = ctypes.CDLL(None)
        key = 0x7B000000 | (os.getpid() & 0xFFFFFF)
        kept = library.shmget(key, 4096, 0o1666)
        script = (scripts / "probes.py").read_bytes()
        with (
            socket.create_server(("127.0.0.1", 0)) as listening,
            socket.socket(socket.AF_UNIX) as abstract,
            subprocess.Popen(["sleep", "300"]) as victim,
        ):
            abstract.bind(name := f"\0turtles-canary-{os.getpid()}")
            abstract.listen()
            canaries = {
                "file": str(tmp_path / "canary"),
                "port": listening.getsockname()[1],
                "ports": [],
                "variables": [],
                "addresses": [],
                "abstract": name[1:],
                "victim": victim.pid,
                "key": key,
                "secret": "none",
                "root": str(tmp_path),
            }
            command = Command(("python3", "probes.py"), files={"probes.py": script})
            try:
                result = gvisor.execute(box, command, stdin=json.dumps(canaries).encode())
                alive = victim.poll() is None
            finally:
                victim.kill()
                library.shmctl(kept, 0, None)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout.splitlines()[-1])
        assert found.keys() >= WALLS
        assert {name: found[name] for name in WALLS if found[name][0] is not None} == {}
        assert alive
        gvisor.destroy(box)
