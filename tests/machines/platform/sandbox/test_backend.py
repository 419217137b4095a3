"""The contract of the port: what every implementation does alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from machines.platform.sandbox.backend import MIB, Backend, Command, Handle, Spec
from machines.platform.sandbox.errors import SandboxGone, SandboxLimit


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
    ):
        with pytest.raises(SandboxGone, match=handle.sandbox_id):
            use()


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
