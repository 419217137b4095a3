"""Reading a JSON object strictly: a missing or wrong field is named, unknown ones are ignored.

Where real servers spell one thing in several ways, the readers take several names and use the
first that is present and not null.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from machines.clients.money import parse_amount, parse_cents, parse_number
from machines.clients.ports import Currency, Rejected


class Fields:
    """One JSON object of a reply; `where` names the reply in error messages."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise Rejected(f"{where}: expected a JSON object, got {type(data).__name__}")
        self._data: dict[str, Any] = data
        self._where = where

    def get(self, *names: str) -> Any:
        """The first of `names` that is present and not null, else None."""
        return next((self._data[name] for name in names if self._data.get(name) is not None), None)

    def text(self, *names: str) -> str:
        """A required, non-empty text."""
        value = self.optional_text(*names)
        if not value:
            raise self.refusal(names, "expected a non-empty text")
        return value

    def optional_text(self, *names: str) -> str | None:
        """A text, or None when absent."""
        value = self.get(*names)
        if value is not None and not isinstance(value, str):
            raise self.refusal(names, f"expected a text, got {type(value).__name__}")
        return value

    def integer(self, *names: str, default: int | None = None) -> int:
        """A whole number; `default` when absent, if there is one."""
        value = self.get(*names)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refusal(names, f"expected a whole number, got {type(value).__name__}")
        return value

    def boolean(self, *names: str) -> bool:
        """A required true or false."""
        value = self.get(*names)
        if not isinstance(value, bool):
            raise self.refusal(names, f"expected true or false, got {type(value).__name__}")
        return value

    def array(self, *names: str) -> list[Any]:
        """A required list."""
        value = self.get(*names)
        if not isinstance(value, list):
            raise self.refusal(names, f"expected a list, got {type(value).__name__}")
        return value

    def items(self, *names: str) -> list[Fields]:
        """A required list of objects."""
        return objects(self.array(*names), f"{self._where} {names[0]}")

    def entries(self) -> list[tuple[str, Fields]]:
        """Name and object of every member, where all of them are objects."""
        return [(name, Fields(value, self._where)) for name, value in self._data.items()]

    def inner(self, *names: str) -> Fields | None:
        """A nested object, or None when absent."""
        value = self.get(*names)
        return None if value is None else Fields(value, f"{self._where} {names[0]}")

    def amount(self, *names: str, currency: Currency) -> int:
        """A required amount in coins, as text; gives atomic units."""
        try:
            return parse_amount(self.get(*names), currency)
        except Rejected as error:
            raise self.refusal(names, str(error)) from error

    def number(self, *names: str, currency: Currency) -> int:
        """A required amount in coins as a node writes it, number or text; gives atomic units."""
        try:
            return parse_number(self.get(*names), currency)
        except Rejected as error:
            raise self.refusal(names, str(error)) from error

    def cents(self, *names: str) -> int:
        """A required amount in dollars, number or text; gives cents."""
        try:
            return parse_cents(self.get(*names))
        except Rejected as error:
            raise self.refusal(names, str(error)) from error

    def moment_ms(self, milliseconds: str, iso: str) -> int:
        """A point in time: `milliseconds` since 1970 if given, else the ISO-8601 text `iso`."""
        if self.get(milliseconds) is not None:
            return self.integer(milliseconds)
        try:
            moment = datetime.fromisoformat(self.text(iso))
        except ValueError as error:
            raise self.refusal((iso,), "expected an ISO-8601 time") from error
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round(aware.timestamp() * 1000)

    def refusal(self, names: tuple[str, ...], problem: str) -> Rejected:
        """The error that names the field; never shows a text's value: it may be a secret."""
        state = "missing" if self.get(*names) is None else "unusable"
        return Rejected(f"{self._where}: field {'/'.join(names)} {state}: {problem}")


def objects(data: Any, where: str) -> list[Fields]:
    """A reply that is itself a list of objects."""
    return [Fields(item, where) for item in _listed(data, where)]


def texts(data: Any, where: str) -> list[str]:
    """A reply that is itself a list of texts."""
    return [text(item, where) for item in _listed(data, where)]


def text(data: Any, where: str) -> str:
    """A reply that is itself a non-empty text."""
    if not isinstance(data, str) or not data:
        raise Rejected(f"{where}: expected a non-empty text, got {type(data).__name__}")
    return data


def _listed(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise Rejected(f"{where}: expected a list, got {type(data).__name__}")
    return data
