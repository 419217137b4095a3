"""What the server process writes to its log."""

from __future__ import annotations

import json

import structlog

from engine.secret import Secret
from machines.platform.serving import log_to_stderr


def test_a_log_line_is_json_without_secrets(capsys):
    try:
        log_to_stderr()
        log = structlog.get_logger("turtles.platform.server")
        log.info(
            "listening", base_url="http://here", client_secret="unsb-sk-1", inner=[Secret("s2")]
        )
        log.debug("listening", base_url="not this one")
    finally:
        structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    assert "unsb-sk-1" not in line and "s2" not in line
    told = json.loads(line)
    assert (told["event"], told["level"], told["base_url"]) == ("listening", "info", "http://here")
    assert (told["client_secret"], told["inner"]) == ("***", ["***"])
