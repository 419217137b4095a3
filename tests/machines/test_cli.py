"""`turtles`: inception and platform, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from machines import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def turtles(tmp_path):
    """Call a command in this process, on a data directory of this test."""

    def call(*arguments):
        env = {"TURTLES_DATA_DIR": str(tmp_path / "data"), "TURTLES_LOG_LEVEL": "critical"}
        mask = os.umask(0o077)
        try:
            result = CliRunner().invoke(cli.cli, list(arguments), env=env)
        finally:
            os.umask(mask)
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        return result

    yield call
    structlog.reset_defaults()


@pytest.fixture
def started(tmp_path):
    """Start a command as a process of its own; whatever is left at the end is killed."""
    processes = []

    def start(*arguments):
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "machines.cli", *arguments],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "TURTLES_DATA_DIR": str(tmp_path / "data"),
                },
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def line_with(stream, text):
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--depth", "-1"), "depth -1: expected 1 to 8"),
        (("--depth", "0"), "depth 0: expected 1 to 8"),
        (("--depth", "9"), "depth 9: expected 1 to 8"),
        (("--depth", "two"), "Invalid value for '--depth'"),
        (("--currency", "EUR"), "currency 'EUR': expected one of XMR, BTC, LTC, DOGE"),
        (("--tier", "33"), "tier 33: expected 1 to 32"),
        (("--months", "2"), "months 2: expected one of 1, 3, 6, 12, 24"),
        (("--budget-cents", "-1"), "budget -1 cents: expected 0 or more"),
        (("--poll-seconds", "0"), "poll and block seconds: expected more than 0"),
    ],
)
def test_an_inception_that_cannot_be_is_refused_and_nothing_starts(
    turtles, tmp_path, arguments, message
):
    answer = turtles("inception", *arguments, "--json")
    assert answer.exit_code == 2
    assert answer.stderr.startswith("error: ") and message in answer.stderr
    assert message in json.loads(answer.stdout)["message"]
    assert not (tmp_path / "data").exists()


def test_a_platform_that_cannot_be_reached_is_named(turtles):
    answer = turtles("inception", "--platform-url", "http://127.0.0.1:9", "--json")
    assert answer.exit_code == 3
    assert "http://127.0.0.1:9" in answer.stderr
    assert json.loads(answer.stdout)["error"] == "environment_unusable"


def test_a_newer_schema_is_refused_by_inception(turtles, tmp_path):
    assert turtles("db", "upgrade").exit_code == 0
    database = sqlite3.connect(tmp_path / "data" / "runs.db")
    with database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    answer = turtles("inception", "--platform-url", "http://127.0.0.1:9")
    assert answer.exit_code == 3
    assert "schema revision 9999 is unknown here" in answer.stderr


def test_graph_draws_every_machine(turtles):
    from machines.app import MACHINES

    for machine in MACHINES:
        answer = turtles("graph", machine.__name__)
        assert answer.exit_code == 0
        assert answer.stdout.startswith("stateDiagram-v2\n")
    assert "inside_sandbox" in turtles("graph", "Inception").stdout
    unknown = turtles("graph", "Incepton")
    assert unknown.exit_code == 2 and "There are: Agent, Authentication, " in unknown.stderr


def test_a_ledger_without_a_platform_is_refused(turtles, tmp_path):
    answer = turtles("platform", "ledger", "--json")
    assert answer.exit_code == 2
    assert f"data directory {tmp_path / 'data'}: no platform has run there" in answer.stderr


def test_the_platform_serves_until_it_is_told_to_stop(started, turtles):
    server = started("platform", "serve", "--block-seconds", "0", "--allow-faults")
    assert line_with(server.stdout, "ready ").startswith("ready http://127.0.0.1:")
    second = turtles("platform", "serve")
    assert second.exit_code == 3
    assert "another platform server has it" in second.stderr
    listed = json.loads(turtles("platform", "ledger", "--json").stdout)
    assert listed["invoices"] == [] and listed["consistent"]
    assert "BALANCED" in turtles("platform", "ledger").stdout
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=30) == 0


def test_serve_refuses_another_host_than_this_one(turtles):
    answer = turtles("platform", "serve", "--host", "0.0.0.0")  # noqa: S104 - must be refused
    assert answer.exit_code == 2
    assert "expected a loopback address" in answer.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--egress-allow", "example.org"), "expected HOST:PORT such as example.org:443"),
        (("--egress-rate", "0"), "egress rate 0.0: expected more than 0"),
        (("--tls-key", "k.pem"), "expected both or neither"),
        (("--tls-key", "k", "--tls-certificate", "c.pem"), "--tls-certificate c.pem: cannot be"),
    ],
)
def test_serve_refuses_a_wrong_option_before_anything_is_made(turtles, tmp_path, options, message):
    answer = turtles("platform", "serve", *options)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trust", "full"), "trust 'full': expected one of zerotrust, semitrusted"),
        (("--one-key",), "tier: --one-key needs --tier"),
        (("--one-key", "--trust", "semitrusted", "--tier", "16"), "--one-key builds zerotrust"),
    ],
)
def test_inception_refuses_a_trust_that_cannot_be(turtles, tmp_path, options, message):
    answer = turtles("inception", *options)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert not (tmp_path / "data").exists()


def test_an_interrupted_inception_goes_on_with_the_same_command(started, turtles):
    command = ("inception", "--depth", "1", "--trust", "zerotrust", "--currency", "LTC",
               "--block-seconds", "0.1", "--json")  # fmt: skip
    first = started(*command)
    line_with(first.stderr, "layer 1 Payment  paying -> confirming")
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "stopped; run the same command again to go on" in err
    assert json.loads(out)["error"] == "interrupted"
    assert "Traceback" not in err

    second = started(*command)
    out, err = second.communicate(timeout=90)
    assert second.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    assert (result["state"], result["depth"], result["spent_cents"]) == ("done", 1, 700)
    assert "building" not in err  # what was done before the interruption is not done again

    (invoice,) = json.loads(turtles("platform", "ledger", "--json").stdout)["invoices"]
    assert invoice["confirmed_spends"] == 1
    checked = turtles("doctor")
    assert checked.exit_code == 0, checked.stdout
    why = json.loads(turtles("why", "Inception:default", "--json").stdout)
    assert why["reasons"] == ["it has ended (completed); nothing will move it again"]


def test_inception_still_going_at_the_timeout_ends_with_4(started):
    process = started("inception", "--depth", "1", "--timeout", "0.2", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "is still going after 0.2 s; run the same command again to go on" in err
    assert json.loads(out)["error"] == "not_ended"


def test_the_entry_point_is_this_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"turtles": "machines.cli:main"}
    assert callable(cli.main)
