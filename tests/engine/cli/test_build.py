"""The front door: help, the JSON switch, exit codes, bad options."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from engine.cli import build_cli
from engine.cli.exits import MEANINGS

ONES = (
    "run",
    "work",
    "list",
    "show",
    "why",
    "send",
    "pause",
    "resume",
    "cancel",
    "graph",
    "doctor",
)


def test_help_lists_the_commands_and_the_exit_codes(demo):
    answer = demo("--help")
    assert answer.code == 0
    for command in (*ONES, "db"):
        assert f"  {command} " in answer.out
    for code, meaning in MEANINGS.items():
        assert f"{code}  {meaning[:40]}" in answer.out


@pytest.mark.parametrize("command", ONES)
def test_every_command_has_help_json_and_a_data_directory(demo, command):
    answer = demo(command, "--help")
    assert answer.code == 0
    assert "--json" in answer.out and "--data-dir" in answer.out


def test_help_loads_no_database_no_state_machine_and_no_event_loop():
    program = (
        "import sys, engine.cli; heavy = {'sqlalchemy', 'statemachine', 'rich', 'structlog',"
        "'asyncio', 'httpx', 'cryptography', 'engine.app'} & set(sys.modules); sys.exit(str(heavy)"
        " if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_version_is_told_and_nothing_else_is_done(demo):
    answer = demo("--version", "run", "Order")
    assert (answer.code, answer.out, answer.err) == (0, "demo 1.0\n", "")
    assert "--version" in demo("--help").out


def test_without_a_version_there_is_no_such_option(demo):
    cli = build_cli(demo.program.make_app)
    assert CliRunner().invoke(cli, ["--version"]).exit_code == 2


def test_no_command_is_a_usage_error(demo):
    answer = demo()
    assert answer.code == 2
    assert "Commands:" in answer.err + answer.out


def test_an_unknown_command_is_named(demo):
    answer = demo("lst")
    assert answer.code == 2
    assert answer.err.startswith("error: No such command 'lst'. Did you mean 'list'?")
    assert answer.out == ""


def test_a_bad_option_is_named_and_with_json_also_on_stdout(demo):
    answer = demo("list", "--limit", "none", "--json")
    assert answer.code == 2
    assert "'none'" in answer.err
    assert answer.json["error"] == "usage"
    assert answer.json["message"] in answer.err


def test_a_bad_log_level_is_a_usage_error(demo):
    process = demo.process("list", TURTLES_LOG_LEVEL="loud")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "TURTLES_LOG_LEVEL: expected one of debug" in err and out == ""


def test_logs_go_to_stderr_as_json_when_it_is_no_terminal(demo):
    process = demo.process(
        "run", "Shipment", "--input", '{"amount_cents": 5}', "--json", TURTLES_LOG_LEVEL="info"
    )
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(out.splitlines()) == 1
    assert '"event": "run.moved"' in err
