"""Log lines: how they are written, and the one list of what may be in them.

::

    log = structlog.get_logger("turtles.worker")
    log.info("worker.reaped", runs=3)
        -> {"runs": 3, "event": "worker.reaped", "level": "info", "timestamp": "2026-..."}

Lines go to stderr, so that stdout belongs to a command's answer.  `CATALOGUE` names every event
with its fields; a test reads the source and refuses a call that is not in it, so a reader of logs
can rely on the names.  Whatever the caller does, `redact` lets no secret through.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

from engine.errors import UsageError
from engine.secrets import Secret

CATALOGUE: Mapping[str, tuple[str, ...]] = {
    # the engine: runs, effects, workers
    "effect.retry": ("run_id", "effect", "attempt", "delay_ms", "reason"),
    "effect.unknown": ("run_id", "effect", "reason"),
    "event.rejected": ("run_id", "event_name", "reason"),
    "run.lost": ("run_id", "reason"),
    "run.moved": ("run_id", "machine", "seq", "event_name", "source", "target", "status"),
    "run.quarantined": ("run_id", "state", "reason"),
    "run.stopped": ("run_id", "reason"),
    "run.unreadable": ("run_id", "reason"),
    "worker.beat_missed": ("reason",),
    "worker.id_taken": ("reason",),
    "worker.job_failed": ("exc_info",),
    "worker.reaped": ("runs",),
    "worker.retire_failed": ("reason",),
    "worker.strays_freed": ("runs",),
    # limits
    "limit.changed": ("limit", "before", "after"),
    # the store
    "hints.away": ("reason",),
    "send.dropped": ("event_name", "receiver", "why"),
    "store.failed": ("reason",),
    # the clients
    "http_call": ("call", "method", "elapsed_ms", "status", "outcome"),
    # the engine inside a layer's sandbox
    "layer.told": ("state", "status"),
    # the embedded platform
    "audit_failed": ("action", "error"),
    "block_skipped": ("reason",),
    "client_left": ("route",),
    "deployment_not_heard": ("number", "error"),
    "destroy_failed": ("sandbox_id", "error"),
    "egress": ("sandbox_id", "method", "host", "port", "status", "moved_bytes", "duration_ms"),
    "egress_accept_failed": ("sandbox_id", "error"),
    "expiry_failed": ("error",),
    "job_failed": ("job_id", "error"),
    "image_lost": ("service_id", "reason"),
    "images_start": ("lost_images", "swept_files"),
    "listening": ("base_url", "pid"),
    "mining_failed": ("error",),
    "permissions_loose": ("path", "problem"),
    "rate_limit_changed": ("requests_per_minute_per_tier",),
    "refund_not_resent": ("invoice", "reason"),
    "refund_waits": ("invoice", "reason"),
    "payment_reversed": ("invoice",),
    "payment_restored": ("invoice",),
    "request": ("method", "route", "status", "duration_ms"),
    "sandbox.cgroup_refused": ("reason", "enforcement"),
    "sandbox.created": ("sandbox_id", "enforcement"),
    "sandbox.destroyed": ("sandbox_id",),
    "sandbox.frozen": ("sandbox_id",),
    "sandbox.groups_left": ("directory",),
    "sandbox.loaded": ("sandbox_id", "left_out"),
    "sandbox.over_memory": ("sandbox_id", "used_bytes", "limit_bytes"),
    "sandbox.program_refused": ("program", "reason"),
    "sandbox.swept": ("sandbox_id",),
    "sandbox.unfrozen": ("sandbox_id",),
    "sandbox.watchdog_failed": ("reason",),
    "sandbox_unavailable": ("problem",),
    "service_lines_wait": ("lines", "error"),
    "service_waits": ("service_id", "error"),
    "services_lost": ("services",),
    "sessions_start": ("swept_sandboxes", "lost_sessions"),
    "shell_attached": ("session",),
    "shell_closed": ("session", "ending"),
    "shell_not_ended": ("session", "error"),
    "snapshots_start": ("failed_snapshots", "swept_files"),
    "stopped": (),
    "sweep_failed": ("error",),
    "toolbox.made": ("modules", "wheel", "sha256"),
    "unexpected_error": ("route", "error", "where"),
    "wrong_gift_code": ("client",),
}
"""Every event that is logged, with the only fields it may carry."""

Level = Literal["debug", "info", "warning", "error", "critical"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error", "critical")
SECRET_ENDINGS = (
    "secret",
    "secret_key",
    "passphrase",
    "password",
    "key_hex",
    "private_key",
    "token",
)
"""A field whose name is or ends with one of these is never shown."""
HIDDEN = "***"
_CAPABILITY = re.compile(r"((?:unsb-session|unsb-vm)-[0-9a-f]{4})[0-9a-f]{12}")
"""A platform's session lets in whoever knows its id: enough of it to find, too little to attach."""
_CHOSEN: dict[str, Any] = {"json": True, "level": "warning"}


def configure(*, json: bool, level: Level = "warning", copy: Processor | None = None) -> None:
    """Set structlog up for this process; may be called again.

    Args:
        json: one JSON object a line; otherwise lines for a person.
        level: the least serious lines that are written.
        copy: sees every line from `info` up, written or not, after secrets are hidden.
    """
    _CHOSEN.update(json=json, level=level)
    seen = level if copy is None or LEVELS.index(level) < LEVELS.index("info") else "info"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact,
            *([copy, _at_least(level)] if copy is not None else []),
            *_renderers(json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, seen.upper())),
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )


def copy_lines(copy: Processor) -> None:
    """Let `copy` see the lines of this process, too; what is written stays as it was chosen."""
    configure(json=_CHOSEN["json"], level=_CHOSEN["level"], copy=copy)


def configure_from(environment: Mapping[str, str]) -> None:
    """Set up as `TURTLES_LOG` (json, text) and `TURTLES_LOG_LEVEL` say.

    The default is warnings, for a person on a terminal and as JSON elsewhere.

    Raises:
        UsageError: another value; names it and the allowed ones.
    """
    level = environment.get("TURTLES_LOG_LEVEL", "").lower() or "warning"
    form = environment.get("TURTLES_LOG", "").lower()
    if level not in LEVELS:
        raise UsageError(f"TURTLES_LOG_LEVEL: expected one of {', '.join(LEVELS)}, got {level!r}.")
    if form not in ("", "json", "text"):
        raise UsageError(f"TURTLES_LOG: expected json or text, got {form!r}.")
    configure(json=form == "json" or (not form and not sys.stderr.isatty()), level=level)


def _at_least(level: Level) -> Processor:
    def drop(_logger: Any, method: str, event: EventDict) -> EventDict:
        if method in LEVELS and LEVELS.index(method) < LEVELS.index(level):
            raise structlog.DropEvent
        return event

    return drop


def _renderers(json: bool) -> list[Any]:
    if json:
        # Tracebacks as text: the structured form would show local variables.
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


class _Stderr:
    """Writes to what `sys.stderr` is at that moment: a live display or a test may replace it."""

    def __init__(self, *_args: Any) -> None:
        pass

    def msg(self, line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    debug = info = warning = error = critical = exception = log = msg


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: hide each `Secret`, each field named like one, and sessions' ids."""
    for name, value in event.items():
        event[name] = _hidden(name, value)
    return event


def _hidden(name: str, value: Any) -> Any:
    if isinstance(value, Secret) or name.lower().endswith(SECRET_ENDINGS):
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: _hidden(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and name != "exc_info":
        return [_hidden("", inner) for inner in value]
    return _CAPABILITY.sub(r"\1...", value) if isinstance(value, str) else value
