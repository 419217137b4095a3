"""`python -m machines`."""

from __future__ import annotations

import runpy
import sys

import pytest

from machines.wheel import VERSION


def test_the_version_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["turtles", "--version"])
    runpy.run_module("machines", run_name="__main__")
    assert capsys.readouterr().out == f"turtles {VERSION}\n"


def test_anything_else_is_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["turtles", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("machines", run_name="__main__")
    assert ended.value.code in (0, None)
    assert "inception" in capsys.readouterr().out
