"""Request bodies, checked once: what comes out of here is well-formed.

Every refusal is a 400 that names the field, the value seen and what was expected.  Fields that no
handler knows are ignored, as the wire facts ask.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from machines.platform import detection
from machines.platform.languages import Language
from machines.platform.limits import Admission
from machines.platform.replies import Problem, bad_field, int_field, text_field
from machines.platform.sandbox.backend import FILES_BYTES_MAX, Network
from machines.platform.transfers import INPUT_DIRECTORY

CODE_TTL_SECONDS_DEFAULT = 60
CODE_TTL_SECONDS_MAX = 900
COMMAND_TIMEOUT_MS_DEFAULT = 60_000
COMMAND_TIMEOUT_MS_MAX = 900_000
CODE_CHARACTERS_MAX = 16_000_000
VCPUS_MAX = 8
ENVIRONMENT_MAX = 256
# The kernel's limit for one string is 128 KiB.
ENVIRONMENT_CHARACTERS_MAX = 30_000
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and under which idempotency key.  `digest` is that of the request.

    `admission` counts the request, where that is left to the transaction which takes the order.
    """

    public_key: str
    tier: int
    idempotency_key: str | None
    digest: str
    admission: Admission | None = None


def parse_network_mode(body: dict[str, Any], default: Network = "zerotrust") -> Network:
    """`zerotrust` (no network) or `semitrusted` (egress through the platform's proxy).

    `network` is an older client's name for the same.

    Raises:
        Problem: 400, another mode.
    """
    name = "network" if body.get("network_mode") is None and "network" in body else "network_mode"
    match text_field(body, name, default, limit=40):
        case "zerotrust":
            return "zerotrust"
        case "semitrusted":
            return "semitrusted"
        case other:
            raise bad_field(name, other, "'zerotrust' or 'semitrusted'")


class CodeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked `POST /execute` body."""

    language: Language
    code: str
    network_mode: Network
    ttl_seconds: int
    vcpu: int
    environment: dict[str, str]
    stdin: str
    arguments: tuple[str, ...]
    files: dict[str, bytes]
    returns_artifact: bool = False
    returns_wasm: bool = False
    detected: bool = False


class CommandOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked `POST /sessions/{id}/execute` or `/shell` body."""

    command: str
    timeout_ms: int


def parse_code(body: dict[str, Any], language: Callable[[str], Language]) -> CodeOrder:
    """Check a one-off request.

    Raises:
        Problem: 400 naming the field, the value seen and what was expected.
    """
    code = text_field(body, "code", limit=CODE_CHARACTERS_MAX)
    files = parse_files(body.get("input_files"))
    if (size := len(code.encode()) + sum(map(len, files.values()))) > FILES_BYTES_MAX:
        name = "input_files" if files else "code"
        raise bad_field(name, f"{size} bytes", f"at most {FILES_BYTES_MAX} bytes with the code")
    order = CodeOrder(
        language=language(text_field(body, "language", limit=40)),
        code=code,
        network_mode=parse_network_mode(body),
        ttl_seconds=int_field(
            body, "ttl", CODE_TTL_SECONDS_DEFAULT, least=1, most=CODE_TTL_SECONDS_MAX
        ),
        vcpu=int_field(body, "vcpu", 1, least=1, most=VCPUS_MAX),
        environment=parse_environment(body.get("env")),
        stdin=_optional_text(body, "stdin"),
        arguments=_arguments(body.get("args")),
        files=files,
        returns_artifact=_flag(body, "return_artifact"),
        returns_wasm=_flag(body, "return_wasm_artifact"),
    )
    if order.returns_wasm and not order.language.wasm:
        raise bad_field(
            "return_wasm_artifact", True, f"false: {order.language.name} has no wasm target here"
        )
    return order


def parse_source(
    raw: bytes, query: Mapping[str, str], language: Callable[[str], Language]
) -> CodeOrder:
    """Check a `POST /run` request: the body is the source, its language is found out.

    Raises:
        Problem: 400, also when the language cannot be told (`undetected_language`).
    """
    try:
        code = raw.decode()
    except UnicodeDecodeError as error:
        raise bad_field("body", raw[:20], "source code in UTF-8") from error
    body: dict[str, Any] = {"code": code, "network_mode": query.get("network_mode")}
    if "ttl" in query:
        body["ttl"] = _whole_number(query["ttl"])
    if "env" in query:
        body["env"] = _from_json("env", query["env"])
    text_field(body, "code", limit=CODE_CHARACTERS_MAX)
    name = detection.detect(code)
    if name is None:
        raise Problem(
            400,
            "undetected_language",
            "body: no language could be recognized. Begin with a line such as "
            "'#!/usr/bin/env python3', or name the language: POST /execute.",
            fields={"field": "body"},
        )
    return msgspec.structs.replace(parse_code({**body, "language": name}, language), detected=True)


def _whole_number(text: str) -> int | str:
    """What `int_field` refuses unless it is a number."""
    return int(text) if len(text) < 10 and text.isascii() and text.isdecimal() else text


def _from_json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise bad_field(name, text, "a JSON object") from error


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise bad_field(name, value, "true or false")
    return value


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


def parse_environment(value: Any, name: str = "env") -> dict[str, str]:
    """Environment variables: an object of at most 256 strings.

    Raises:
        Problem: 400 naming the field.
    """
    if value is None:
        return {}
    good = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    if not good or len(value) > ENVIRONMENT_MAX:
        raise bad_field(name, value, f"an object of at most {ENVIRONMENT_MAX} strings")
    for key, content in value.items():
        if not _ENVIRONMENT_NAME.fullmatch(key):
            raise bad_field(name, key, "names of letters, digits and _, not a digit first")
        if "\0" in content:
            raise bad_field(name, key, "values without NUL characters")
    if sum(len(key) + len(content) for key, content in value.items()) > ENVIRONMENT_CHARACTERS_MAX:
        raise bad_field(name, "much", f"at most {ENVIRONMENT_CHARACTERS_MAX} characters in all")
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
    if not good or len(value) > 256 or sum(map(len, value)) > ENVIRONMENT_CHARACTERS_MAX:
        raise bad_field("args", value, "an array of at most 256 strings, 30,000 characters in all")
    return tuple(value)


def parse_files(value: Any, name: str = "input_files") -> dict[str, bytes]:
    """`input_files` by their path inside the sandbox.  Two clients say `content_base64`.

    Raises:
        Problem: 400 naming the field.
    """
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) > 1000:
        raise bad_field(name, value, "an array of at most 1000 {filename, content}")
    return dict(_file(name, each) for each in value)


def _file(field: str, value: Any) -> tuple[str, bytes]:
    name = value.get("filename") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name or name != posixpath.basename(name) or "\0" in name:
        raise bad_field(field, value, "a filename without a directory")
    if name in (".", "..") or len(name.encode()) > 255:
        raise bad_field(field, value, "the name of a file, at most 255 bytes")
    content = value.get("content")
    if content is None:
        content = value.get("content_base64")
    try:
        return f"{INPUT_DIRECTORY}/{name}", base64.b64decode(content, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise bad_field(field, name, "content in base64") from error
