"""Whether arguments fit a schema: the part of JSON Schema that our own schemas use.

Models make mistakes; what is wrong is told with the field's name, the value seen and what was
expected, so that the next attempt can be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import UsageError

_SHOWN_CHARACTERS_MAX = 60
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
}


class BadArguments(UsageError):
    """The arguments of a tool do not fit its schema."""


def check_arguments(name: str, schema: Mapping[str, Any], arguments: Any) -> None:
    """Refuse arguments that do not fit.

    Raises:
        BadArguments: names every field that is wrong.
    """
    wrong = list(_wrong("", schema, arguments))
    if wrong:
        raise BadArguments(f"tool {name}: {'; '.join(wrong)}")


def _wrong(place: str, schema: Mapping[str, Any], value: Any) -> Iterator[str]:
    kind = schema["type"]
    if not _is_a(kind, value):
        yield f"{_named(place)}: expected {kind}, got {_shown(value)}"
    elif kind == "object":
        yield from _wrong_members(place, schema, value)
    elif kind == "array":
        for number, each in enumerate(value):
            yield from _wrong(f"{place}[{number}]", schema["items"], each)
    else:
        yield from _wrong_value(place, schema, value)


def _is_a(kind: str, value: Any) -> bool:
    """Python calls a truth value an integer; JSON does not."""
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _wrong_members(
    place: str, schema: Mapping[str, Any], value: Mapping[str, Any]
) -> Iterator[str]:
    known: Mapping[str, Any] = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{_named(_below(place, name))}: missing"
    for name, each in value.items():
        if name in known:
            yield from _wrong(_below(place, name), known[name], each)
        elif isinstance(others, Mapping):
            yield from _wrong(_below(place, name), others, each)
        elif not others:
            yield f"{_named(_below(place, name))}: unknown; there are: {', '.join(known) or 'none'}"


def _wrong_value(place: str, schema: Mapping[str, Any], value: Any) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        words = ", ".join(map(str, schema["enum"]))
        yield f"{_named(place)}: expected one of {words}, got {_shown(value)}"
    elif "pattern" in schema and re.search(schema["pattern"], value) is None:
        yield f"{_named(place)}: expected text like {schema['pattern']}, got {_shown(value)}"
    elif isinstance(value, str) and len(value) < schema.get("minLength", 0):
        yield f"{_named(place)}: expected some text, got none"
    elif isinstance(value, int) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        least, most = schema.get("minimum", "any"), schema.get("maximum", "any")
        yield f"{_named(place)}: expected {least} to {most}, got {value}"


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _named(place: str) -> str:
    return place or "arguments"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}..."
