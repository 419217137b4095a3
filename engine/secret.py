"""`Secret[T]`: a value that no log, journal, repr or traceback may show."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, get_args, get_origin

import msgspec

T = TypeVar("T")


class Secret(Generic[T]):
    """Holds a value and shows it to nobody; `reveal()` is the one way in."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """The value itself.  Never pass the result to a logger or an exception."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret[T]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret cannot be pickled; store it through the secrets codec")


def is_secret_type(kind: Any) -> bool:
    """Whether a field annotation is `Secret` or `Secret[...]`, also inside a union."""
    if kind is Secret or get_origin(kind) is Secret:
        return True
    return any(is_secret_type(argument) for argument in get_args(kind))


def secret_of(kind: Any, value: Any) -> Secret[Any]:
    """What somebody gives for a field of such a type: a secret, or the plain value to keep as one.

    Raises:
        TypeError: a value of another type; says the types, never the value.
    """
    if isinstance(value, Secret):
        return value
    inner = _inner_of(kind)
    try:
        return Secret(msgspec.convert(value, inner))
    except msgspec.ValidationError:
        expected = inner.__name__ if isinstance(inner, type) else "a value of its type"
        # The cause is cut off on purpose: it may show what was given.
        raise TypeError(f"Expected {expected}, got {type(value).__name__}") from None


def _inner_of(kind: Any) -> Any:
    if kind is Secret:
        return Any
    if get_origin(kind) is Secret:
        return get_args(kind)[0]
    return next(_inner_of(one) for one in get_args(kind) if is_secret_type(one))
