"""Contracts: what must hold before a transition, after it, and while a state lasts.

- `@requires(pay)`: a precondition; when it is false the event is rejected and nothing changes.
- `@ensures(pay)`: a postcondition over `old`, `new` and `event`; when false, our own code is
  wrong: nothing is committed but the evidence, and the run is quarantined.
- `@invariant`: must hold in every state of the machine; `State(invariant=...)` in that state.

Functions are called by the names of their parameters: `context` (before), `old` (the same),
`new` (after), `event` (the payload) and `now_ms`.  Every evaluation gives a `Verdict`; one that is
false has the values the clause looked at: those fields of context and event that its code names.
The journal keeps contexts and payloads, so `engine.journal.explained` finds the values of all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeVar

import msgspec

from engine.secret import Secret

Kind = Literal["guard", "requires", "ensures", "invariant"]
F = TypeVar("F", bound=Callable[..., Any])

PARAMETERS: dict[str, tuple[str, ...]] = {
    "guard": ("context", "event", "now_ms"),
    "action": ("context", "event", "now_ms"),
    "requires": ("context", "event", "now_ms"),
    "ensures": ("old", "new", "event", "now_ms"),
    "invariant": ("context",),
    "timeout": ("context", "now_ms"),
    "every": ("context",),
    "child": ("context",),
    "output": ("context",),
}
"""Which values a function of each kind may ask for, by parameter name."""


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The result of one clause, with the values it saw if they were looked up."""

    clause: str
    kind: str
    ok: bool
    saw: dict[str, Any] = {}


_KINDS = {kind[0]: kind for kind in ("guard", "requires", "ensures", "invariant")}


def pack(verdicts: Iterable[Verdict]) -> bytes:
    """Verdicts as a journal keeps them, JSON: `["g-last", "r+forwards"]`."""
    return _ENCODER.encode([f"{v.kind[0]}{'+' if v.ok else '-'}{v.clause}" for v in verdicts])


def unpack(body: bytes) -> tuple[Verdict, ...]:
    """Verdicts out of a journal, without the values they saw.

    Raises:
        msgspec.MsgspecError: not what `pack` writes.
    """
    return tuple(map(_unpacked, _DECODER.decode(body)))


def _unpacked(text: str) -> Verdict:
    if text[:1] not in _KINDS or text[1:2] not in ("+", "-"):
        raise msgspec.ValidationError(f"expected a verdict such as r+enough, got {text!r}")
    return Verdict(text[2:], _KINDS[text[0]], text[1] == "+")


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(list[str])


@dataclass(frozen=True, slots=True)
class Clause:
    """A contract function, compiled: call it with the mapping of available values."""

    name: str
    kind: Kind
    call: Callable[[Mapping[str, Any]], Any]
    reads: tuple[tuple[str, str], ...]
    line: int
    holds: Verdict = field(init=False, repr=False)
    fails: Verdict = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", Verdict(self.name, self.kind, True))
        object.__setattr__(self, "fails", Verdict(self.name, self.kind, False))

    def judge(self, values: Mapping[str, Any]) -> Verdict:
        """Evaluate.  An exception in the clause propagates to the caller."""
        return self.holds if self.call(values) else self.refusal(values)

    def refusal(self, values: Mapping[str, Any]) -> Verdict:
        """What it says when it is false: with the values it looks at."""
        return Verdict(self.name, self.kind, False, self.seen(values))

    def seen(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields the clause reads, as plain values; secrets as `***`."""
        saw: dict[str, Any] = {}
        for holder, name in self.reads:
            value = getattr(values.get(holder), name, _ABSENT)
            if value is not _ABSENT:
                saw[f"{holder}.{name}"] = _plain(value)
        return saw


_ABSENT = object()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Secret):
        return "***"
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value if len(value) <= 80 else f"{value[:77]}..."
    if isinstance(value, tuple | list | dict | set | frozenset):
        return f"{len(value)} items"
    return type(value).__name__


def requires(*events: Any) -> Callable[[F], F]:
    """Decorator: a precondition of the given transitions (class attributes or event names)."""
    return _mark("requires", events)


def ensures(*events: Any) -> Callable[[F], F]:
    """Decorator: a postcondition of the given transitions (class attributes or event names)."""
    return _mark("ensures", events)


def invariant(function: F) -> F:
    """Decorator: must hold after every transition of the machine."""
    function.__dict__["__turtles_contract__"] = ("invariant", ())
    return function


def _mark(kind: Kind, events: tuple[Any, ...]) -> Callable[[F], F]:
    def mark(function: F) -> F:
        function.__dict__["__turtles_contract__"] = (kind, events)
        return function

    return mark


def contract_of(value: Any) -> tuple[Kind, tuple[Any, ...]] | None:
    """What a decorator above recorded on a function, if anything."""
    found: tuple[Kind, tuple[Any, ...]] | None = getattr(value, "__turtles_contract__", None)
    return found


def bind(function: Callable[..., Any], owner: Any, allowed: tuple[str, ...]) -> Any:
    """A callable over the mapping of values, passing those the function's parameters name.

    Args:
        function: a method (first parameter `self`) or a plain function.
        owner: what `self` will be.
        allowed: the names it may ask for.

    Raises:
        TypeError: a parameter has another name; says which are allowed.
    """
    names = list(inspect.signature(function).parameters)
    takes_self = bool(names) and names[0] == "self"
    wanted = names[1:] if takes_self else names
    unknown = [name for name in wanted if name not in allowed]
    if unknown:
        raise TypeError(f"parameter {unknown[0]!r} is none of {', '.join(allowed)}")
    return _caller(function.__get__(owner) if takes_self else function, tuple(wanted))


def _caller(call: Callable[..., Any], wanted: tuple[str, ...]) -> Any:
    match wanted:
        case ():
            return lambda values: call()
        case (a,):
            return lambda values: call(values[a])
        case (a, b):
            return lambda values: call(values[a], values[b])
        case _:
            return lambda values: call(*[values[name] for name in wanted])


def fields_read(
    function: Callable[..., Any], shapes: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[str, str], ...]:
    """Which (holder, field) pairs the function's code names; `shapes` maps holder to fields."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ()
    parameters = code.co_varnames[: code.co_argcount]
    named = set(code.co_names)
    return tuple(
        (holder, field)
        for holder in parameters
        for field in shapes.get(holder, ())
        if field in named
    )
