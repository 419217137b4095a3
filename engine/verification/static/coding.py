"""V014: contexts and payloads that the store cannot keep, or gives back changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from engine.codec import Codec
from engine.secrets import SecretsCodec
from engine.verification.scope import OutOfScope, hints_of
from engine.verification.static.finding import Finding
from engine.verification.static.subject import Subject
from engine.verification.values import Hints, values_of

VALUES_MAX = 60


def check_coding(subject: Subject) -> Iterator[Finding]:
    """Encode and decode small values of the context and of every payload."""
    table = subject.table
    codec = Codec(SecretsCodec(b"\0" * 32), {})
    hints = Hints(texts=hints_of(table).texts)
    for kind in dict.fromkeys([table.context, *table.payloads.values()]):
        yield from _check(subject, codec, kind, hints)


def _check(subject: Subject, codec: Codec, kind: type[Any], hints: Hints) -> Iterator[Finding]:
    what = "context" if kind is subject.table.context else "payload"
    file, line = _place(kind)
    try:
        for value in values_of(kind, limit=VALUES_MAX, hints=hints):
            problem = _round_trip(codec, kind, value)
            if problem is not None:
                yield subject.at_line("V014", "error", file, line,
                    f"{what} {kind.__name__} {problem}",
                    "Use msgspec types: numbers, texts, enums, tuples, structs with eq, Secret",
                    method="checked", witness=_shown(value))  # fmt: skip
                return
    except OutOfScope as error:
        yield subject.at_line("V014", "error", file, line, f"{what} {kind.__name__}: {error}",
            "Use a type that msgspec stores, or give the field a default", method="checked"
        )  # fmt: skip


def _round_trip(codec: Codec, kind: type[Any], value: Any) -> str | None:
    try:
        body = codec.encode(value)
    except Exception as error:  # noqa: BLE001 - any type of the user's; told as a finding
        return f"cannot be stored: {type(error).__name__}: {error}"
    try:
        again = codec.decode(kind, body, kind.__name__)
    except Exception as error:  # noqa: BLE001 - likewise
        return f"is stored but cannot be read back: {type(error).__name__}: {error}"
    if type(again) is not type(value) or again != value:
        return "comes back from the store as something else"
    return None


def _shown(value: Any) -> dict[str, Any]:
    fields: Iterable[str] = getattr(value, "__struct_fields__", ())
    return {name: _one(getattr(value, name)) for name in fields}


def _one(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value, enc_hook=lambda v: f"<{type(v).__name__}>", str_keys=True)
    except (TypeError, msgspec.ValidationError):
        return f"<{type(value).__name__}>"


def _place(kind: type) -> tuple[str, int]:
    """Where a class was written; ("", 0) without source."""
    import inspect

    try:
        return inspect.getsourcefile(kind) or "", inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return "", 0
