"""What the agent does inside, seen through the backend."""

from __future__ import annotations

import time

import pytest

from machines.platform.sandbox.backend import Command, Handle
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import SandboxGone


def shell(text: str) -> Command:
    return Command(("bash", "-c", text))


def test_standard_input_arrives_whole(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    data = bytes(range(256)) * 4096
    result = bubblewrap.execute(sandbox, Command(("sha256sum",)), stdin=data)
    assert len(result.stdout.split()[0]) == 64
    assert bubblewrap.execute(sandbox, Command(("cat",)), stdin=data).stdout == data


def test_unread_standard_input_does_not_block(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    assert bubblewrap.execute(sandbox, Command(("true",)), stdin=bytes(1 << 20)).exit_code == 0


def test_both_streams_are_kept_apart(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    result = bubblewrap.execute(sandbox, shell("echo out; echo err >&2; exit 3"))
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")


def test_a_flood_of_output_is_cut(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    result = bubblewrap.execute(
        sandbox, shell("head -c 50000000 /dev/zero; echo end >&2"), max_output_bytes=1000
    )
    assert (len(result.stdout), result.stderr, result.truncated) == (1000, b"end\n", True)


def test_a_time_limit_ends_the_whole_group(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    began = time.monotonic()
    result = bubblewrap.execute(sandbox, shell("echo a; sleep 60 | sleep 60"), timeout_seconds=0.2)
    assert (result.exit_code, result.stdout, result.timed_out) == (137, b"a\n", True)
    assert time.monotonic() - began < 5
    names = shell("cat /proc/[0-9]*/comm 2>/dev/null")
    while b"sleep" in bubblewrap.execute(sandbox, names).stdout:  # killed, perhaps not yet buried
        assert time.monotonic() - began < 20


def test_a_background_process_is_not_waited_for(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    result = bubblewrap.execute(sandbox, shell("sleep 60 & echo started"), timeout_seconds=20)
    assert (result.stdout, result.timed_out) == (b"started\n", False)


def test_endless_background_output_does_not_hold_the_answer(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    result = bubblewrap.execute(sandbox, shell("yes & exit 4"), timeout_seconds=20)
    assert (result.exit_code, result.timed_out) == (4, False)


def test_a_signal_is_128_and_its_number(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    assert bubblewrap.execute(sandbox, shell("kill -TERM $$")).exit_code == 143


def test_an_impossible_folder_or_file_is_126_or_127(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    assert bubblewrap.execute(sandbox, Command(("true",), cwd="/nowhere")).exit_code == 127
    assert bubblewrap.execute(sandbox, Command(("/etc/passwd",))).exit_code == 126
    command = Command(("true",), files={"/usr/evil": b""})
    assert bubblewrap.execute(sandbox, command).exit_code == 126


def test_a_cells_error_is_its_exit_code(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    result = bubblewrap.cell(sandbox, "python3", "x = 1\n1 / 0")
    assert result.exit_code == 1
    assert b"ZeroDivisionError" in result.stderr
    assert bubblewrap.cell(sandbox, "python3", "print(x)").stdout == b"1\n"
    assert bubblewrap.cell(sandbox, "python3", "def f(:").exit_code == 1
    assert bubblewrap.cell(sandbox, "bash", "false").exit_code == 1


def test_functions_and_folders_persist_in_bash(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    bubblewrap.cell(sandbox, "bash", "cd /tmp; twice() { echo $1 $1; }")
    assert bubblewrap.cell(sandbox, "bash", "twice $PWD").stdout == b"/tmp /tmp\n"


def test_a_cell_that_exits_starts_afresh(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    for language, leave in (("python3", "import os; os._exit(7)"), ("bash", "exit 7")):
        assert bubblewrap.cell(sandbox, language, leave).exit_code == 7
    assert bubblewrap.cell(sandbox, "bash", "echo new").stdout == b"new\n"
    assert bubblewrap.cell(sandbox, "python3", "print('new')").stdout == b"new\n"


def test_python_variables_outlive_a_time_limit(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    bubblewrap.cell(sandbox, "python3", "x = 42")
    late = bubblewrap.cell(sandbox, "python3", "while True: pass", timeout_seconds=0.2)
    assert late.timed_out
    assert bubblewrap.cell(sandbox, "python3", "print(x)").stdout == b"42\n"


def test_a_cell_that_ignores_its_limit_is_replaced(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    assert bubblewrap.cell(sandbox, "python3", stubborn, timeout_seconds=0.2).timed_out
    assert bubblewrap.cell(sandbox, "python3", "print(1)").stdout == b"1\n"


def test_a_cell_has_no_standard_input(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    assert b"EOFError" in bubblewrap.cell(sandbox, "python3", "input()").stderr
    assert bubblewrap.cell(sandbox, "bash", "cat; echo done").stdout == b"done\n"


def test_a_large_cell_arrives_whole(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    code = "x = '" + "y" * 1_000_000 + "'\nprint(len(x))"
    assert bubblewrap.cell(sandbox, "python3", code).stdout == b"1000000\n"
    assert (
        bubblewrap.cell(
            sandbox, "bash", code.replace("x = ", "x=").replace("print(len(x))", "echo ${#x}")
        ).stdout
        == b"1000000\n"
    )


def test_code_that_kills_the_agent_loses_its_sandbox(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    kill_agent = "kill -9 $PPID; sleep 60"
    with pytest.raises(SandboxGone, match="its agent ended"):
        bubblewrap.execute(sandbox, shell(kill_agent))
    with pytest.raises(SandboxGone, match="does not exist"):
        bubblewrap.execute(sandbox, shell("true"))
