"""The environment vault of a service: names and values, sealed in the database.

A write sets or updates what it names and leaves the rest (the wire facts do not say whether it
should replace; the tools' own words are "set or update"); `DELETE` removes.  What is in it reaches
the programs that are started in the service from then on: a redeploy's bootstrap and commands,
not those that run already.  Values are shown by an export alone.

The text form, `.env`: one `NAME=value` a line; blank lines and lines with `#` are skipped, and
`export ` before a name is allowed.  A value in single quotes stands as it is; in double quotes
backslashes mean what they mean in C; any other is taken to the end of its line.  `dump` writes
what `parse` reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.secrets import SecretsCodec
from machines.platform.replies import Problem, bad_field, parse_object
from machines.platform.wire import Call
from persistence.database import Row
from persistence.database import Session as Sql

BYTES_MAX = 64 * 1024
NAME_CHARACTERS_MAX = 256
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[^\s\"'#][^\n\r]*[^\s]|[^\s\"'#]|")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
_MEANT = {"n": "\n", "r": "\r", '"': '"', "\\": "\\"}

Variables = dict[str, str]


def read(sql: Sql, codec: SecretsCodec, service_id: str) -> Variables | None:
    """The variables; None when the service has no vault."""
    row = stored(sql, service_id)
    if row is None:
        return None
    return msgspec.json.decode(codec.open(row["sealed"]), type=Variables)


def stored(sql: Sql, service_id: str) -> Row | None:
    """The vault's row: its count and `updated_ms` are no secret."""
    return sql.one("SELECT * FROM service_vault WHERE service_id = :id", id=service_id)


def update(
    sql: Sql, codec: SecretsCodec, service_id: str, given: Mapping[str, str], now_ms: int
) -> Variables:
    """Set these, leave the others; all of them, as they are now.

    Raises:
        Problem: 413, it would be too large.
    """
    variables = (read(sql, codec, service_id) or {}) | dict(given)
    if (size := len(dump(variables).encode())) > BYTES_MAX:
        raise _too_large(size)
    _write(sql, codec, service_id, variables, now_ms)
    return variables


def remove(
    sql: Sql, codec: SecretsCodec, service_id: str, names: list[str] | None, now_ms: int
) -> list[str] | None:
    """Remove these, or everything; the names that were there.  None when there is no vault."""
    variables = read(sql, codec, service_id)
    if variables is None:
        return None
    gone = [name for name in variables if names is None or name in names]
    for name in gone:
        del variables[name]
    if variables:
        _write(sql, codec, service_id, variables, now_ms)
    else:
        sql.run("DELETE FROM service_vault WHERE service_id = :id", id=service_id)
    return gone


def _write(
    sql: Sql, codec: SecretsCodec, service_id: str, variables: Variables, now_ms: int
) -> None:
    sql.run(
        "INSERT INTO service_vault (service_id, sealed, count, updated_ms) "
        "VALUES (:id, :sealed, :count, :now) ON CONFLICT (service_id) DO UPDATE SET "
        "sealed = excluded.sealed, count = excluded.count, updated_ms = excluded.updated_ms",
        id=service_id,
        sealed=codec.seal(msgspec.json.encode(variables).decode()),
        count=len(variables),
        now=now_ms,
    )


def parse_put(call: Call) -> Variables:
    """What a PUT gives: `.env` text, or JSON with `env` (an object or text), `content` (text), or
    the variables themselves.

    Raises:
        Problem: 400, 413.
    """
    if len(call.raw) > BYTES_MAX * 2:
        raise _too_large(len(call.raw))
    kind = call.content_type.partition(";")[0].strip().lower()
    is_json = kind.endswith("json") or (
        kind != "text/plain" and call.raw.lstrip()[:1] in (b"{", b"[")
    )
    if is_json:
        return parse_json(parse_object(call.raw))
    try:
        return parse(call.raw.decode(), "body")
    except UnicodeDecodeError as error:
        raise bad_field("body", "bytes", "text in UTF-8") from error


def parse_json(body: Mapping[str, Any]) -> Variables:
    """The JSON shapes of a write.

    Raises:
        Problem: 400, 413.
    """
    for name in ("env", "content"):
        value = body.get(name)
        if isinstance(value, dict) and name == "env":
            return check(value, "env")
        if isinstance(value, str):
            return parse(value, name)
        if value is not None:
            raise bad_field(name, value, "text of NAME=value lines, or an object of strings")
    return check({name: value for name, value in body.items() if value is not None}, "body")


def parse(text: str, field: str) -> Variables:
    """The variables in `.env` text.

    Raises:
        Problem: 400 naming the line, 413.
    """
    variables: dict[str, Any] = {}
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip().removeprefix("export ").strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not equals:
            # Never the line itself: it may be half of a secret.
            raise bad_field(field, f"line {number}", "NAME=value")
        variables[name.rstrip()] = _value(value.strip())
    return check(variables, field)


def _value(text: str) -> str:
    quote = text[:1]
    if len(text) < 2 or quote not in ("'", '"') or text[-1] != quote:
        return text
    inner = text[1:-1]
    if quote == "'":
        return inner
    return re.sub(r"\\(.)", lambda found: _MEANT.get(found[1], found[0]), inner, flags=re.DOTALL)


def check(variables: Mapping[str, Any], field: str) -> Variables:
    """Names and values that can be an environment.

    Raises:
        Problem: 400 that shows names and never values, 413.
    """
    if not variables:
        raise bad_field(field, {}, "at least one variable")
    for name, value in variables.items():
        if not _NAME.fullmatch(name) or len(name) > NAME_CHARACTERS_MAX:
            raise bad_field(
                field,
                name[:60],
                f"names of at most {NAME_CHARACTERS_MAX} letters, digits and _, no digit first",
            )
        if not isinstance(value, str) or not _is_plain(value):
            raise bad_field(field, name, "a string without NUL characters as its value")
    if (size := len(dump(variables).encode())) > BYTES_MAX:
        raise _too_large(size)
    return dict(variables)


def parse_names(body: Mapping[str, Any]) -> list[str] | None:
    """`keys` of a DELETE; None means everything.

    Raises:
        Problem: 400.
    """
    value = body.get("keys")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise bad_field("keys", value, "an array of names")
    return value


def dump(variables: Mapping[str, str]) -> str:
    """The variables as `.env` text, in the order of their names."""
    return "".join(f"{name}={_quoted(variables[name])}\n" for name in sorted(variables))


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    return '"' + "".join(_ESCAPES.get(character, character) for character in value) + '"'


def _is_plain(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _too_large(size: int) -> Problem:
    return Problem(
        413,
        "vault_too_large",
        f"the vault would hold {size} bytes as text, at most {BYTES_MAX} are kept. Remove some.",
    )
