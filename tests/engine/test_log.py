"""Every log call names a catalogued event with catalogued fields; no secret gets through."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import structlog

from engine.errors import UsageError
from engine.log import CATALOGUE, configure, configure_from
from engine.secrets import Secret

ROOT = Path(__file__).parents[2]
METHODS = {"debug", "info", "warning", "error", "critical", "exception"}
SPREAD = {"http_call", "unexpected_error"}
"""Events with a `**mapping`; what is in it is asserted where it is made."""


def log_calls():
    for package in ("engine", "persistence", "machines"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text())
            names = {
                target.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
                if ast.unparse(node.value.func).endswith("get_logger")
                for target in node.targets
            }
            names |= {f"self._{name}" for name in names}  # the same logger, bound once
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in METHODS
                    and ast.unparse(node.func.value) in names
                ):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def event_of(call):
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) else None


def test_every_log_call_is_in_the_catalogue():
    problems, seen = [], set()
    for where, call in log_calls():
        event = event_of(call)
        seen.add(event)
        if event not in CATALOGUE or len(call.args) != 1:
            problems.append(f"{where}: event {ast.unparse(call.args[0])} is not in CATALOGUE")
            continue
        for keyword in call.keywords:
            if keyword.arg is None and event not in SPREAD:
                problems.append(f"{where}: {event} spreads a mapping")
            elif keyword.arg is not None and keyword.arg not in CATALOGUE[event]:
                problems.append(f"{where}: {event} has no field {keyword.arg!r} in CATALOGUE")
    assert not problems, "\n".join(problems)
    assert sorted(set(CATALOGUE) - seen) == [], "catalogued, but nobody logs it"


def test_every_logger_is_ours():
    for package in ("engine", "persistence", "machines"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "structlog.get_logger":
                    assert event_of(node).startswith("turtles."), file


@pytest.fixture
def restored():
    yield
    structlog.reset_defaults()


def test_json_lines_on_stderr_without_secrets(restored, capsys):
    configure(json=True, level="info")
    log = structlog.get_logger("turtles.test")
    log.info(
        "a", passphrase="p1", key_hex="p2", wallet_password="p3", plain="shown",
        deep={"api_secret": "p4", "list": [Secret("p5")]}, held=Secret("p6"),
    )  # fmt: skip
    log.debug("too small to be written")
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert json.loads(line)["plain"] == "shown"
    assert json.loads(line)["deep"] == {"api_secret": "***", "list": ["***"]}
    assert not any(f"p{n}" in line for n in range(1, 7))


def test_the_id_of_a_session_is_as_good_as_a_password_and_shortened(restored, capsys):
    configure(json=True, level="info")
    structlog.get_logger("turtles.test").info(
        "a", sandbox_id="unsb-session-0123456789abcdef", service_id="unsb-service-0123456789abcdef",
        route="/sessions/unsb-vm-0123456789abcdef/shell", more=["unsb-session-0123456789abcdef"],
    )  # fmt: skip
    line = json.loads(capsys.readouterr().err)
    assert line["sandbox_id"] == "unsb-session-0123..."
    assert line["route"] == "/sessions/unsb-vm-0123.../shell"
    assert line["more"] == ["unsb-session-0123..."]
    assert line["service_id"] == "unsb-service-0123456789abcdef"


@pytest.mark.parametrize("form", [True, False])
def test_a_logged_error_shows_where_and_no_local_variables(restored, capsys, form):
    configure(json=form, level="info")
    try:
        hidden_local = "do-not-show"
        raise RuntimeError(f"broken {len(hidden_local)}")
    except RuntimeError:
        structlog.get_logger("turtles.test").error("b", exc_info=True)
    _, err = capsys.readouterr()
    assert "RuntimeError: broken 11" in err and "test_log.py" in err
    assert "do-not-show" not in err.replace('hidden_local = "do-not-show"', "")


def test_the_environment_chooses_form_and_level(restored, capsys):
    configure_from({"TURTLES_LOG": "json", "TURTLES_LOG_LEVEL": "DEBUG"})
    structlog.get_logger("turtles.test").debug("c")
    assert json.loads(capsys.readouterr().err)["level"] == "debug"
    configure_from({})
    structlog.get_logger("turtles.test").info("d")
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="got 'loud'"):
        configure_from({"TURTLES_LOG_LEVEL": "loud"})
    with pytest.raises(UsageError, match="got 'xml'"):
        configure_from({"TURTLES_LOG": "xml"})
