"""What is asked of an agent over its channel: `run`, `cell` and `collect` (protocol: agent.py)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any

from machines.platform.sandbox.backend import FILES_BYTES_MAX, Command, Result
from machines.platform.sandbox.channel import Channel, read_files, read_result
from machines.platform.sandbox.errors import SandboxLimit
from machines.platform.sandbox.live import Live

__all__ = ["ask", "check_collection", "collect", "run_fields"]

_GRACE_SECONDS = 10.0
_COLLECT_SECONDS = 60.0
_COLLECT_FILES_MAX = 1000
_PATH_BYTES_MAX = 12_000  # of one path in JSON


def run_fields(command: Command, stdin: bytes) -> dict[str, Any]:
    """The request for one command."""
    return {
        "argv": list(command.argv),
        "cwd": command.cwd,
        "environment": dict(command.environment),
        "files": {path: b64encode(content).decode() for path, content in command.files.items()},
        "stdin": b64encode(stdin).decode(),
    }


def ask(
    live: Live,
    operation: str,
    fields: Mapping[str, Any],
    *,
    timeout_seconds: float,
    max_output_bytes: int,
) -> Result:
    """Run something to its end. The caller holds the sandbox's lock. BrokenChannel, OSError."""
    kills_before = live.oom_kills()
    document = live.channel.request(
        operation,
        {**fields, "timeout_seconds": timeout_seconds, "max_output_bytes": max_output_bytes},
        wait_seconds=timeout_seconds + _GRACE_SECONDS,
        answer_bytes_max=3 * max_output_bytes + 65536,
    )
    oom = live.oom_kills() > kills_before
    return read_result(document, max_output_bytes=max_output_bytes, oom=oom)


def check_collection(bytes_max: int, count_max: int) -> None:
    """SandboxLimit for more than one collection may bring."""
    for name, value, limit in (
        ("bytes_max", bytes_max, FILES_BYTES_MAX),
        ("count_max", count_max, _COLLECT_FILES_MAX),
    ):
        if not 0 <= value <= limit:
            raise SandboxLimit(f"{name} {value}: expected 0 to {limit}")


def collect(
    channel: Channel, directories: Iterable[str], *, bytes_max: int, count_max: int
) -> dict[str, bytes]:
    """Regular files below directories inside, by relative path. BrokenChannel."""
    limits = {"bytes_max": bytes_max, "count_max": count_max}
    document = channel.request(
        "collect",
        {"directories": list(directories), **limits},
        wait_seconds=_COLLECT_SECONDS,
        answer_bytes_max=2 * bytes_max + _PATH_BYTES_MAX * count_max + 65536,
    )
    return read_files(document, **limits)
