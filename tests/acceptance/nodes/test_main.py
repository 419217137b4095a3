"""The command says so when a daemon is missing; it never passes by not running."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.nodes import __main__ as command
from tests.acceptance.nodes.daemon import BinariesMissing, Daemon, NotReady, need, post


def test_a_missing_daemon_is_an_error_that_names_its_package(
    monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "BINARY", str(tmp_path / "litecoind"))
    monkeypatch.setattr(sys, "argv", ["nodes", "--quick", "--only", "litecoin"])
    assert command.main() == command.MISSING
    assert "apt-get install -y --no-install-recommends litecoind" in capsys.readouterr().err


def test_a_binary_that_cannot_be_run_is_missing(tmp_path: Path) -> None:
    text = tmp_path / "monerod"
    text.write_text("no program")
    with pytest.raises(BinariesMissing, match="monero"):
        need(str(text), "monero")
    assert need(sys.executable, "python3") == sys.executable


def test_a_daemon_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    daemon = Daemon([sys.executable, "-c", "print('no such option')"], tmp_path / "log")
    daemon.start()

    def never() -> None:
        raise NotReady("refused")

    with pytest.raises(AssertionError, match="no such option"):
        daemon.wait_until(never)
    assert not daemon.alive


def test_nobody_listening_is_not_ready() -> None:
    with pytest.raises(NotReady):
        post(1, "/", {})
