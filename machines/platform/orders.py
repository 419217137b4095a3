"""Request bodies, checked once: what comes out of here is well-formed.

Every refusal is a 400 that names the field, the value seen and what was expected.  Fields that no
handler knows are ignored, as the wire facts ask.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import Callable
from typing import Any

import msgspec

from machines.platform.languages import Language
from machines.platform.replies import Problem, bad_field, int_field, text_field

SESSION_TTL_SECONDS_DEFAULT = 3600
SESSION_TTL_SECONDS_MAX = 86_400
CODE_TTL_SECONDS_DEFAULT = 60
CODE_TTL_SECONDS_MAX = 900
COMMAND_TIMEOUT_MS_DEFAULT = 60_000
COMMAND_TIMEOUT_MS_MAX = 900_000
CODE_CHARACTERS_MAX = 16_000_000
VCPUS_MAX = 8
_SHELL_NAMES = {"python": "python3", "javascript": "node"}
INPUT_DIRECTORY = "/tmp/input"  # noqa: S108 - a path inside the sandbox


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and under which idempotency key.  `digest` is that of the request."""

    public_key: str
    tier: int
    idempotency_key: str | None
    digest: str


class SessionOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked `POST /sessions` body."""

    shell: str
    network_mode: str
    ttl_seconds: int
    vcpu: int


def parse_session(body: dict[str, Any], shells: Callable[[], frozenset[str]]) -> SessionOrder:
    """Check a create request.

    Raises:
        Problem: 400 naming the field, the value seen and what was expected.
    """
    wanted = text_field(body, "shell", _language_of(body), limit=40)
    shell = _SHELL_NAMES.get(wanted, wanted)
    offered = shells()
    if shell not in offered:
        raise bad_field("shell", shell, "one of " + ", ".join(sorted(offered)))
    ttl_seconds = int_field(
        body, "ttl", SESSION_TTL_SECONDS_DEFAULT, least=0, most=SESSION_TTL_SECONDS_MAX
    )
    return SessionOrder(
        shell=shell,
        network_mode=parse_network_mode(body),
        # 0 asks for "no limit"; the platform's cap is 24 h.
        ttl_seconds=ttl_seconds or SESSION_TTL_SECONDS_MAX,
        vcpu=int_field(body, "vcpu", 1, least=1, most=VCPUS_MAX),
    )


def _language_of(body: dict[str, Any]) -> str:
    """Two clients say `language` beside, or instead of, `shell`."""
    language = body.get("language")
    return language if isinstance(language, str) else "bash"


def parse_network_mode(body: dict[str, Any]) -> str:
    """`zerotrust`, the only mode this platform offers.

    Raises:
        Problem: 400, another mode.
    """
    mode = text_field(body, "network_mode", "zerotrust", limit=40)
    if mode == "semitrusted":
        raise Problem(
            400,
            "network_mode_unavailable",
            "network_mode 'semitrusted' (egress through a proxy) is not offered by this platform; "
            "use 'zerotrust' (no network).",
            fields={"field": "network_mode"},
        )
    if mode != "zerotrust":
        raise bad_field("network_mode", mode, "'zerotrust'")
    return mode


class CodeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked `POST /execute` body."""

    language: Language
    code: str
    network_mode: str
    ttl_seconds: int
    vcpu: int
    environment: dict[str, str]
    stdin: str
    arguments: tuple[str, ...]
    files: dict[str, bytes]


class CommandOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked `POST /sessions/{id}/execute` or `/shell` body."""

    command: str
    timeout_ms: int


def parse_code(body: dict[str, Any], language: Callable[[str], Language]) -> CodeOrder:
    """Check a one-off request.

    Raises:
        Problem: 400 naming the field, the value seen and what was expected.
    """
    for name in ("return_artifact", "return_wasm_artifact"):
        if body.get(name):
            raise bad_field(name, body[name], "false: artifacts are not offered")
    return CodeOrder(
        language=language(text_field(body, "language", limit=40)),
        code=text_field(body, "code", limit=CODE_CHARACTERS_MAX),
        network_mode=parse_network_mode(body),
        ttl_seconds=int_field(
            body, "ttl", CODE_TTL_SECONDS_DEFAULT, least=1, most=CODE_TTL_SECONDS_MAX
        ),
        vcpu=int_field(body, "vcpu", 1, least=1, most=VCPUS_MAX),
        environment=_environment(body.get("env")),
        stdin=_optional_text(body, "stdin"),
        arguments=_arguments(body.get("args")),
        files=_files(body.get("input_files")),
    )


def parse_command(body: dict[str, Any]) -> CommandOrder:
    """Check an in-session request: `command`, else the paper's `code`; `timeout` in ms.

    Raises:
        Problem: 400.
    """
    name = "code" if body.get("command") is None and "code" in body else "command"
    return CommandOrder(
        command=text_field(body, name, limit=CODE_CHARACTERS_MAX),
        timeout_ms=int_field(
            body, "timeout", COMMAND_TIMEOUT_MS_DEFAULT, least=1, most=COMMAND_TIMEOUT_MS_MAX
        ),
    )


def _environment(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    good = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    if not good or len(value) > 256:
        raise bad_field("env", value, "an object of at most 256 strings")
    return dict(value)


def _optional_text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise bad_field(name, value, "a string")
    return value


def _arguments(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    good = isinstance(value, list) and all(
        isinstance(each, str) and "\0" not in each for each in value
    )
    if not good or len(value) > 256:
        raise bad_field("args", value, "an array of at most 256 strings")
    return tuple(value)


def _files(value: Any) -> dict[str, bytes]:
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) > 1000:
        raise bad_field("input_files", value, "an array of at most 1000 {filename, content}")
    return dict(_file(each) for each in value)


def _file(value: Any) -> tuple[str, bytes]:
    name = value.get("filename") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name or name != posixpath.basename(name) or "\0" in name:
        raise bad_field("input_files", value, "a filename without a directory")
    if name in (".", ".."):
        raise bad_field("input_files", value, "the name of a file")
    content = value.get("content", value.get("content_base64"))
    try:
        return f"{INPUT_DIRECTORY}/{name}", base64.b64decode(content, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise bad_field("input_files", name, "content in base64") from error
