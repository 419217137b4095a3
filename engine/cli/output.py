"""Answers on stdout: one compact JSON value a line, or text for a person.

Everything shown goes through `plain`, which turns typed values into JSON values and every
`Secret` into `***`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any


def emit(value: Any) -> None:
    """One JSON value on one line."""
    import msgspec

    write(msgspec.json.encode(plain(value)).decode())


def write(line: str = "") -> None:
    """One line of text."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def complain(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def plain(value: Any) -> Any:
    """The JSON form of a value, secrets as `***`."""
    import msgspec

    return msgspec.to_builtins(value, enc_hook=_shown, str_keys=True)


def _shown(value: Any) -> Any:
    from engine.secrets import Secret

    return "***" if isinstance(value, Secret) else repr(value)


def one_line(value: Any, limit: int = 100) -> str:
    """A value as compact JSON, cut to `limit` characters."""
    import msgspec

    text = msgspec.json.encode(plain(value)).decode()
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under heads: a table on a terminal, aligned columns when piped."""
    if sys.stdout.isatty():
        _rich_table(heads, rows)
        return
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        write("  ".join(cells).rstrip())


def _rich_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        shown.add_column(head, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))  # never markup: the text is data
    Console(file=sys.stdout).print(shown)


def moment(at_ms: int | None) -> str:
    """A moment in UTC to the millisecond, or `-`."""
    if at_ms is None:
        return "-"
    shown = datetime.fromtimestamp(at_ms / 1000, UTC)
    return f"{shown:%Y-%m-%d %H:%M:%S}.{at_ms % 1000:03d}Z"


def lasting(duration_ms: int) -> str:
    """A duration in words that fit a column: `850 ms`, `3.2 s`, `4:05`, `1:02:05`."""
    if duration_ms < 1000:
        return f"{max(duration_ms, 0)} ms"
    if duration_ms < 60_000:
        return f"{duration_ms // 1000}.{duration_ms % 1000 // 100} s"
    total_seconds = duration_ms // 1000
    hours, minutes, seconds = total_seconds // 3600, total_seconds // 60 % 60, total_seconds % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
