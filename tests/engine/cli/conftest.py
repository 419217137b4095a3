"""The demonstration program, called in process or as one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from tests.postgres_server import PostgresServer, server

SCRIPT = Path(__file__).parent / "scripts" / "demo_program.py"
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Answer:
    """What a command did: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


class Demo:
    """The demonstration program on one data directory."""

    def __init__(self, data_dir: Path, program: Any) -> None:
        self.data_dir = data_dir
        self.program = program
        self._processes: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str, directory: Path | None = None) -> Answer:
        """Call a command in this process."""
        env = {"TURTLES_DATA_DIR": str(directory or self.data_dir), "TURTLES_LOG_LEVEL": "warning"}
        mask = os.umask(0o077)
        try:
            result = CliRunner().invoke(self.program.cli, list(arguments), env=env)
        finally:
            os.umask(mask)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    def process(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start a command as a process of its own."""
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TURTLES_DATA_DIR": str(self.data_dir),
                **env,
            },
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End what a failed test left running."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def until(self, condition: Any) -> None:
        """Wait for something that another process does."""
        limit = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < limit, "it never came"

    def order(self, key: str = "o1", amount_cents: int = 100, **fields: Any) -> str:
        """Accept an order; its run id."""
        given = json.dumps({"amount_cents": amount_cents, **fields})
        answer = self("run", "Order", "--input", given, "--key", key, "--no-wait", "--json")
        assert answer.code == 0, answer
        return answer.json["run_id"]


@pytest.fixture(scope="session")
def program() -> Any:
    spec = importlib.util.spec_from_file_location("demo_program", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_program"] = module  # type hints of the machine are looked up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def demo(tmp_path: Path, program: Any):
    made = Demo(tmp_path / "data", program)
    yield made
    made.close()
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A private PostgreSQL server."""
    with server() as running:
        yield running
