"""The contract of the port: what every implementation does alike."""

from __future__ import annotations

import os
import select
import socket
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from machines.platform.sandbox.backend import MIB, Backend, Command, Handle, Spec
from machines.platform.sandbox.errors import (
    PortClosed,
    SandboxFrozen,
    SandboxGone,
    SandboxLimit,
)
from machines.platform.toolbox import ToolboxUnavailable
from machines.wheel import own_wheel

ReadUntil = Callable[..., bytes]


def python(code: str) -> Command:
    return Command(("python3", "-c", code))


def test_a_command_prints_and_ends_with_zero(backend: Backend, handle: Handle) -> None:
    result = backend.execute(handle, python("x = 42\nprint(x, 'things')"))
    assert (result.exit_code, result.stdout, result.stderr) == (0, b"42 things\n", b"")
    assert not (result.truncated or result.timed_out or result.oom)


def test_a_shell_command_prints(backend: Backend, handle: Handle) -> None:
    assert backend.execute(handle, Command(("sh", "-c", "echo hello"))).stdout == b"hello\n"


def test_the_exit_code_comes_back(backend: Backend, handle: Handle) -> None:
    assert backend.execute(handle, Command(("true",))).exit_code == 0
    assert backend.execute(handle, Command(("false",))).exit_code == 1


def test_a_missing_program_is_exit_code_127(backend: Backend, handle: Handle) -> None:
    result = backend.execute(handle, Command(("no-such-program",)))
    assert result.exit_code == 127
    assert b"no-such-program" in result.stderr


def test_files_are_there_before_the_command_starts(backend: Backend, handle: Handle) -> None:
    command = Command(("python3", "main.py"), files={"main.py": b"print('from file')"})
    assert backend.execute(handle, command).stdout == b"from file\n"


def test_files_stay_for_the_next_command(backend: Backend, handle: Handle) -> None:
    backend.execute(handle, Command(("true",), files={"/root/a/later.py": b"print(7)"}))
    assert backend.execute(handle, Command(("python3", "/root/a/later.py"))).stdout == b"7\n"


def test_variables_persist_between_python_cells(backend: Backend, handle: Handle) -> None:
    assert backend.cell(handle, "python3", "x = 42").exit_code == 0
    assert backend.cell(handle, "python3", "print(x)").stdout == b"42\n"


def test_variables_persist_between_bash_cells(backend: Backend, handle: Handle) -> None:
    assert backend.cell(handle, "bash", "x=42").exit_code == 0
    assert backend.cell(handle, "bash", "echo $x").stdout == b"42\n"


def test_variables_do_not_reach_another_sandbox(
    backend: Backend, handle: Handle, new_spec: Callable[..., Spec]
) -> None:
    backend.cell(handle, "python3", "x = 42")
    other = backend.create(new_spec())
    try:
        assert backend.cell(other, "python3", "print(x)").exit_code != 0
    finally:
        backend.destroy(other)


def test_the_sessions_environment_is_seen(backend: Backend, new_spec: Callable[..., Spec]) -> None:
    handle = backend.create(new_spec(environment={"GREETING": "good day"}))
    try:
        command = Command(("sh", "-c", 'echo "$GREETING"'))
        assert backend.execute(handle, command).stdout == b"good day\n"
    finally:
        backend.destroy(handle)


def test_long_output_is_cut_and_says_so(backend: Backend, handle: Handle) -> None:
    result = backend.execute(handle, python("print('0123456789')"), max_output_bytes=4)
    assert (result.stdout, result.truncated) == (b"0123", True)


def test_output_of_exactly_the_limit_is_whole(backend: Backend, handle: Handle) -> None:
    result = backend.execute(handle, python("print('012')"), max_output_bytes=4)
    assert (result.stdout, result.truncated) == (b"012\n", False)


def test_a_destroyed_sandbox_is_gone(backend: Backend, new_spec: Callable[..., Spec]) -> None:
    handle = backend.create(new_spec())
    backend.destroy(handle)
    backend.destroy(handle)
    for use in (
        lambda: backend.execute(handle, Command(("true",))),
        lambda: backend.cell(handle, "bash", "true"),
        lambda: backend.stats(handle),
        lambda: backend.egress(handle),
        *needing_the_agent(backend, handle),
    ):
        with pytest.raises(SandboxGone, match=handle.sandbox_id):
            use()


def needing_the_agent(backend: Backend, handle: Handle) -> list[Callable[[], object]]:
    return [
        lambda: backend.execute(handle, Command(("true",))),
        lambda: backend.cell(handle, "bash", "x=1"),
        lambda: backend.collect(handle, ["/root"]),
        lambda: backend.start_program(handle, Command(("true",))),
        lambda: backend.stop_program(handle, 1),
        lambda: backend.open_terminal(handle, ("bash",)),
        lambda: backend.connect(handle, 8000),
    ]


def test_a_frozen_sandbox_refuses_at_once_and_lives_on(backend: Backend, handle: Handle) -> None:
    backend.freeze(handle)
    backend.freeze(handle)
    for use in needing_the_agent(backend, handle):
        with pytest.raises(SandboxFrozen, match=handle.sandbox_id):
            use()
    backend.unfreeze(handle)
    backend.unfreeze(handle)
    assert backend.execute(handle, Command(("true",))).exit_code == 0
    with pytest.raises(PortClosed):
        backend.connect(handle, 8000)


# -- files that come out -------------------------------------------------------------------------


def bring(backend: Backend, handle: Handle, **files: bytes) -> None:
    named = {f"/root/out/{name}": content for name, content in files.items()}
    backend.execute(handle, Command(("true",), files=named))


def test_files_are_collected_by_their_path_below_the_directories(
    backend: Backend, handle: Handle
) -> None:
    files = {"/root/out/a": b"1", "/root/out/sub/b": b"2", "/root/art/c": b"3", "/root/other": b"4"}
    backend.execute(handle, Command(("true",), files=files))
    absent = ["/no/such", "/root/out/a", "no\0path", "half\udc80", "/" + "x" * 5000]
    found = backend.collect(handle, ["/root/out", "/root/art", *absent])
    assert found == {"a": b"1", "sub/b": b"2", "c": b"3"}


def test_the_first_directory_wins(backend: Backend, handle: Handle) -> None:
    backend.execute(handle, Command(("true",), files={"/root/one/a": b"1", "/root/two/a": b"2"}))
    assert backend.collect(handle, ["/root/one", "/root/two"]) == {"a": b"1"}


def test_files_that_do_not_fit_are_left_out(backend: Backend, handle: Handle) -> None:
    bring(backend, handle, a=b"12345", b=b"123456", c=b"12345")
    assert backend.collect(handle, ["/root/out"], bytes_max=10) == {"a": b"12345", "c": b"12345"}
    assert backend.collect(handle, ["/root/out"], count_max=1) == {"a": b"12345"}
    assert backend.collect(handle, ["/root/out"], bytes_max=0, count_max=0) == {}


# -- programs in the background ------------------------------------------------------------------


def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_background_program_prints_and_tells_its_exit_code(
    backend: Backend, handle: Handle, read_until: ReadUntil
) -> None:
    program = backend.start_program(handle, Command(("sh", "-c", "echo hello")))
    assert read_until(program.status, None) == b"0\n"
    assert read_until(program.output, None) == b"hello\n"
    assert not os.get_blocking(program.output)
    assert not os.get_blocking(program.status)
    failed = backend.start_program(handle, Command(("false",)))
    assert read_until(failed.status, None) == b"1\n"
    assert failed.number != program.number
    close(program.output, program.status, failed.output, failed.status)


def test_a_background_program_stays_until_it_is_stopped(
    backend: Backend, handle: Handle, read_until: ReadUntil
) -> None:
    program = backend.start_program(handle, Command(("sh", "-c", "echo up\nsleep infinity")))
    assert read_until(program.output, b"\n") == b"up\n"
    assert backend.execute(handle, Command(("echo", "meanwhile"))).stdout == b"meanwhile\n"
    assert select.select([program.status], [], [], 0)[0] == []
    backend.stop_program(handle, program.number)
    assert read_until(program.status, None) == b"137\n"
    assert read_until(program.output, None) == b""
    backend.stop_program(handle, program.number)
    backend.stop_program(handle, 12345)
    close(program.output, program.status)


def test_a_program_that_cannot_be_started_is_refused(backend: Backend, handle: Handle) -> None:
    with pytest.raises(SandboxLimit, match="no-such-program"):
        backend.start_program(handle, Command(("no-such-program",)))
    with pytest.raises(SandboxLimit, match="no-such-program"):
        backend.open_terminal(handle, ("no-such-program",))
    assert backend.execute(handle, Command(("true",))).exit_code == 0


def test_destroying_ends_what_was_handed_out(
    backend: Backend, new_spec: Callable[..., Spec], read_until: ReadUntil
) -> None:
    handle = backend.create(new_spec())
    program = backend.start_program(handle, Command(("sh", "-c", "echo up\nsleep infinity")))
    terminal = backend.open_terminal(handle, ("bash",))
    backend.destroy(handle)
    assert read_until(program.status, None) == b""
    assert read_until(program.output, None) in (b"up\n", b"")
    read_until(terminal, None)
    close(program.output, program.status, terminal)


# -- terminals -----------------------------------------------------------------------------------


def test_a_terminal_answers_and_learns_its_size(
    backend: Backend, handle: Handle, read_until: ReadUntil
) -> None:
    terminal = backend.open_terminal(
        handle, ("bash",), columns=91, rows=37, environment={"WHO": "turtle"}
    )
    assert os.isatty(terminal)
    assert not os.get_blocking(terminal)
    os.write(terminal, b"stty size\n")
    assert b"37 91" in read_until(terminal, b"37 91")
    termios.tcsetwinsize(terminal, (50, 132))
    os.write(terminal, b"stty size\n")
    read_until(terminal, b"50 132")
    os.write(terminal, b"echo $WHO\n")
    read_until(terminal, b"turtle")
    os.write(terminal, b"exit\n")
    read_until(terminal, None)
    os.close(terminal)


@pytest.mark.parametrize(("columns", "rows"), [(0, 24), (80, -1), (1001, 24)])
def test_a_terminal_of_impossible_size_is_refused(
    backend: Backend, handle: Handle, columns: int, rows: int
) -> None:
    with pytest.raises(SandboxLimit, match="expected 1 to 1000"):
        backend.open_terminal(handle, ("bash",), columns=columns, rows=rows)


# -- sockets -------------------------------------------------------------------------------------


def listening(backend: Backend, handle: Handle, read_until: ReadUntil) -> tuple[int, int]:
    """Start a web server inside and wait until it listens; its descriptors."""
    program = backend.start_program(handle, Command(("python3", "-m", "http.server", "8123")))
    while True:
        try:
            backend.connect(handle, 8123).close()
        except PortClosed:
            assert select.select([program.status], [], [], 0.02)[0] == []
        else:
            return program.output, program.status


def test_a_port_inside_is_reached(backend: Backend, handle: Handle, read_until: ReadUntil) -> None:
    with pytest.raises(PortClosed, match="8123"):
        backend.connect(handle, 8123)
    descriptors = listening(backend, handle, read_until)
    with backend.connect(handle, 8123) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n\r\n")
        assert b" 200 " in connection.recv(65536)
    with pytest.raises(PortClosed, match="8124"):
        backend.connect(handle, 8124)
    for port in (-1, 0, 65536):
        with pytest.raises(SandboxLimit, match="port"):
            backend.connect(handle, port)
    close(*descriptors)


def test_only_a_semitrusted_sandbox_has_a_way_out(
    backend: Backend, handle: Handle, new_spec: Callable[..., Spec]
) -> None:
    assert backend.egress(handle) is None
    other = backend.create(new_spec(network="semitrusted"))
    first, second = backend.egress(other), backend.egress(other)
    assert first is not None
    assert second is not None
    first.close()
    assert second.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert second.getsockname()[0] == "127.0.0.1"
    with pytest.raises(BlockingIOError):
        second.accept()
    second.close()
    backend.destroy(other)


def test_a_toolbox_is_seen_by_whom_it_was_given_to(
    backend: Backend, handle: Handle, new_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    house = ["/opt/turtles/wheelhouse"]
    assert backend.collect(handle, house) == {}
    if backend.name == "gvisor":
        with pytest.raises(ToolboxUnavailable, match="the backend gvisor has none"):
            backend.create(new_spec(toolbox=True))
        return
    other = backend.create(new_spec(toolbox=True))
    wheel = own_wheel()
    shown = {wheel.filename: wheel.content, "SHA256SUMS": wheel.checksums.encode()}
    assert backend.collect(other, house) == shown
    backend.freeze(other)
    backend.unfreeze(other)
    assert backend.collect(other, house) == shown
    # It is no part of what is kept, and stays where something else is loaded.
    assert backend.save(other, tmp_path / "kept", level="files").size_bytes < 100_000
    backend.load(handle, tmp_path / "kept")
    assert backend.collect(handle, house) == {}
    backend.load(other, tmp_path / "kept")
    assert backend.collect(other, house) == shown
    backend.destroy(other)


# -- sizes, snapshots ----------------------------------------------------------------------------


def test_a_sandbox_gets_other_limits(backend: Backend, handle: Handle) -> None:
    backend.resize(handle, vcpus=2, memory_bytes=512 * MIB)
    assert backend.execute(handle, Command(("true",))).exit_code == 0
    with pytest.raises(SandboxLimit, match="memory_bytes"):
        backend.resize(handle, vcpus=1, memory_bytes=1)


def test_what_was_saved_is_found_again_in_another_sandbox(
    backend: Backend, handle: Handle, new_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    bring(backend, handle, a=b"kept")
    backend.cell(handle, "python3", "x = 42")
    saved = backend.save(handle, tmp_path / "whole", level="files+vars")
    assert saved.level == "files+vars"
    assert saved.size_bytes == (tmp_path / "whole").stat().st_size
    other = backend.create(new_spec())
    backend.load(other, tmp_path / "whole")
    assert backend.collect(other, ["/root/out"]) == {"a": b"kept"}
    assert backend.cell(other, "python3", "print(x)").stdout == b"42\n"
    backend.destroy(other)


def test_closing_destroys_what_is_left(new_backend: Callable[[], Backend]) -> None:
    backend = new_backend()
    handles = [backend.create(Spec(name)) for name in ("one", "two")]
    backend.close()
    backend.close()
    for handle in handles:
        with pytest.raises(SandboxGone):
            backend.stats(handle)


def test_destroying_what_never_was_does_nothing(backend: Backend) -> None:
    backend.destroy(Handle("never-was"))


def test_an_id_is_used_once_at_a_time(backend: Backend, new_spec: Callable[..., Spec]) -> None:
    spec = new_spec()
    handle = backend.create(spec)
    with pytest.raises(SandboxLimit, match="in use"):
        backend.create(spec)
    backend.destroy(handle)
    backend.destroy(backend.create(spec))


def test_a_sweep_leaves_living_sandboxes_alone(backend: Backend, handle: Handle) -> None:
    assert backend.sweep() == 0
    assert backend.execute(handle, Command(("true",))).exit_code == 0


def test_stats_name_their_enforcement(backend: Backend, handle: Handle) -> None:
    stats = backend.stats(handle)
    assert stats.enforcement == backend.probe().enforcement
    assert stats.processes >= 0
    assert stats.memory_bytes >= 0


def test_the_probe_is_ok_and_has_nothing_to_fix(backend: Backend) -> None:
    probe = backend.probe()
    assert (probe.ok, probe.fix) == (True, "")


def test_programs_that_exist_are_told_apart(backend: Backend) -> None:
    asked = ("bash", "python3", "no-such-program", "../bin/bash")
    assert backend.available_programs(asked) == {"bash", "python3"}


def test_cells_exist_for_two_languages(backend: Backend, handle: Handle) -> None:
    with pytest.raises(SandboxLimit, match="cobol"):
        backend.cell(handle, "cobol", "x")


@pytest.mark.parametrize("code", ["echo a\0b", "echo \ud800"])
def test_a_cell_that_is_no_text_is_refused(backend: Backend, handle: Handle, code: str) -> None:
    with pytest.raises(SandboxLimit, match="Unicode text without NUL"):
        backend.cell(handle, "bash", code)
    assert backend.execute(handle, Command(("true",))).exit_code == 0


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_time_limits_out_of_range_are_refused(
    backend: Backend, handle: Handle, seconds: float
) -> None:
    with pytest.raises(SandboxLimit, match="timeout_seconds"):
        backend.execute(handle, Command(("true",)), timeout_seconds=seconds)


def test_output_limits_out_of_range_are_refused(backend: Backend, handle: Handle) -> None:
    with pytest.raises(SandboxLimit, match="max_output_bytes"):
        backend.cell(handle, "bash", "true", max_output_bytes=1 << 30)


@pytest.mark.parametrize(
    "changes",
    [
        {"sandbox_id": "../escape"},
        {"sandbox_id": ""},
        {"sandbox_id": ".hidden"},
        {"sandbox_id": "x" * 65},
        {"memory_bytes": 1},
        {"pids": 0},
        {"vcpus": 0},
        {"disk_bytes": 2048 * MIB},
        {"environment": {"A=B": "x"}},
        {"environment": {"A": "nul\0"}},
    ],
)
def test_a_spec_out_of_range_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SandboxLimit, match=next(iter(changes))[:11]):
        Spec(**{"sandbox_id": "fine", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": ()},
        {"argv": ("a\0b",)},
        {"argv": ("a\udfff",)},
        {"cwd": "relative"},
        {"files": {"": b""}},
        {"files": {"big": bytes(9 * MIB)}},
        {"environment": {"": "x"}},
    ],
)
def test_a_command_out_of_range_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SandboxLimit):
        Command(**{"argv": ("true",), **changes})  # type: ignore[arg-type]


def test_secrets_in_the_environment_are_not_shown() -> None:
    spec = Spec("fine", environment={"TOKEN": "hunter2"})
    command = Command(("true",), environment={"TOKEN": "hunter2"}, files={"f": b"hunter2"})
    assert "hunter2" not in repr(spec) + repr(command)
