"""What Python's operators do to symbolic values, as terms of z3: the arithmetic of `translate`.

A value is one of several cases, each under a condition; a condition is only looked at where the
path to it holds.  Where an operation would raise, that is noted with its condition, and the value
has no case.  What has no translation raises `Untranslatable`: the expression it stands in becomes
an unknown (`translate`).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, get_origin

import msgspec

from engine.verification.static.symbolic import (
    Cases,
    Fixed,
    Method,
    Record,
    Several,
    Symbols,
    Text,
    Truth,
    Unknown,
    Untranslatable,
    Value,
    Whole,
)

_ROOTS = (object, msgspec.Struct)
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.Div: operator.truediv, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
    ast.BitXor: operator.xor, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
}  # fmt: skip
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


class Operations:
    """Operators over cases, and the conditions under which they raise.

    Attributes:
        unknown: what could not be translated so far, in words.
    """

    def __init__(self, symbols: Symbols) -> None:
        self.symbols = symbols
        self.z3 = symbols.z3
        self.unknown: dict[str, None] = {}
        self._raises: list[Any] = []
        self._path: Any = self.z3.BoolVal(True)
        self._memo: dict[tuple[Any, ...], tuple[Unknown, Any]] = {}

    def _both(self, one: Any, other: Any) -> Any:
        if self.z3.is_true(one) or self.z3.is_false(other):
            return other
        if self.z3.is_true(other) or self.z3.is_false(one):
            return one
        return self.z3.And(one, other)

    def _either(self, some: list[Any]) -> Any:
        left = [one for one in some if not self.z3.is_false(one)]
        if any(self.z3.is_true(one) for one in left):
            return self.z3.BoolVal(True)
        if len(left) == 1:
            return left[0]
        return self.z3.Or(left) if left else self.z3.BoolVal(False)

    def _not(self, one: Any) -> Any:
        if self.z3.is_true(one) or self.z3.is_false(one):
            return self.z3.BoolVal(self.z3.is_false(one))
        return self.z3.Not(one)

    @contextmanager
    def _where(self, condition: Any) -> Iterator[None]:
        """What is evaluated inside is evaluated only under a condition."""
        before = self._path
        self._path = self._both(before, condition)
        try:
            yield
        finally:
            self._path = before

    def _raise(self, condition: Any) -> None:
        self._raises.append(self._both(self._path, condition))

    def _some(self, key: tuple[Any, ...], why: str, cases: tuple[Cases, ...]) -> Cases:
        """The unknown for some code over some values, which may raise."""
        seen = tuple((c.get_id(), id(v)) for one in cases for c, v in one)
        if (*key, *seen) not in self._memo:
            self.unknown[why] = None
            # The cases are kept, so that what their ids name lives as long as the memory of them.
            self._memo[*key, *seen] = (self.symbols.unknown(why), cases)
        found = self._memo[*key, *seen][0]
        self._raise(self.symbols.of_unknown(found, "raises"))
        return self._sure(found)

    def _sure(self, value: Value) -> Cases:
        return ((self.z3.BoolVal(True), value),)

    def _each(self, cases: Cases, function: Callable[[Value], Cases]) -> Cases:
        """The function's cases for every case of a value."""
        found: list[tuple[Any, Value]] = []
        for condition, value in cases:
            with self._where(condition):
                found += self._given(function(value), condition)
        return tuple(found)

    def _given(self, cases: Cases, condition: Any) -> Cases:
        if self.z3.is_true(condition):
            return cases
        return tuple((self._both(condition, c), v) for c, v in cases)

    def _signed(self, value: Value, sign: int) -> Value:
        if isinstance(value, Fixed) and isinstance(value.value, int | float):
            return Fixed(sign * value.value)
        return Whole(sign * self._whole(value))

    def _arithmetic(self, op: ast.operator, a: Value, b: Value) -> Cases:
        if isinstance(a, Fixed) and isinstance(b, Fixed):
            return self._folded(_ARITHMETIC.get(type(op)), a, b)
        if isinstance(a, Truth) and isinstance(b, Truth) and isinstance(op, ast.BitAnd | ast.BitOr):
            both = isinstance(op, ast.BitAnd)
            return self._sure(Truth((self.z3.And if both else self.z3.Or)(a.term, b.term)))
        x, y = self._whole(a), self._whole(b)
        if isinstance(op, ast.Add):
            return self._sure(Whole(x + y))
        if isinstance(op, ast.Sub):
            return self._sure(Whole(x - y))
        if isinstance(op, ast.Mult) and (isinstance(a, Fixed) or isinstance(b, Fixed)):
            return self._sure(Whole(x * y))
        if isinstance(op, ast.FloorDiv | ast.Mod) and isinstance(b, Fixed):
            return self._divided(x, int(b.value), modulo=isinstance(op, ast.Mod))
        raise Untranslatable(f"{type(op).__name__.lower()} of two variables")

    def _folded(self, function: Any, a: Fixed, b: Fixed) -> Cases:
        x, y = a.value, b.value
        simple = (int, float, str, type(None), tuple)
        if function is None or not isinstance(x, simple) or not isinstance(y, simple):
            raise Untranslatable(f"{x!r} and {y!r} in arithmetic")
        numbers = isinstance(x, int) and isinstance(y, int)
        if function is operator.mul and not numbers:
            raise Untranslatable("a text or tuple several times")
        if function in (operator.pow, operator.lshift) and not (numbers and _is_short(x, y)):
            raise Untranslatable("a large power")
        try:
            return self._sure(Fixed(function(x, y)))
        except Exception:  # noqa: BLE001 - whatever the code would raise there
            self._raise(self.z3.BoolVal(True))
            return ()

    def _divided(self, x: Any, by: int, *, modulo: bool) -> Cases:
        """Python's floor: z3's remainder is never negative, Python's has the divisor's sign."""
        if by == 0:
            self._raise(self.z3.BoolVal(True))
            return ()
        quotient = x / by if by > 0 else (-x) / (-by)
        return self._sure(Whole(x - by * quotient if modulo else quotient))

    def _whole(self, value: Value) -> Any:
        if isinstance(value, Whole):
            return value.term
        if isinstance(value, Truth):
            return self.z3.If(value.term, 1, 0)
        if isinstance(value, Fixed) and isinstance(value.value, int):
            return self.z3.IntVal(int(value.value))
        raise Untranslatable(f"{shown(value)} as a whole number")

    def _pair(self, op: ast.cmpop, a: Value, b: Value, condition: Any) -> Any:
        with self._where(condition):
            if isinstance(op, ast.Eq | ast.NotEq):
                same = self._same(a, b)
                return same if isinstance(op, ast.Eq) else self._not(same)
            if isinstance(op, ast.Is | ast.IsNot):
                same = self._identical(a, b)
                return same if isinstance(op, ast.Is) else self._not(same)
            if isinstance(op, ast.In | ast.NotIn):
                found = self._among(a, b)
                return found if isinstance(op, ast.In) else self._not(found)
            return self._ordered(_ORDER[type(op)], a, b)

    def _ordered(self, function: Callable[[Any, Any], Any], a: Value, b: Value) -> Any:
        if isinstance(a, Fixed) and isinstance(b, Fixed):
            cases = self._folded(function, a, b)
            return self._truth(cases)
        for one in (a, b):
            if isinstance(one, Fixed) and one.value is None and not _is_open(a, b):
                self._raise(self.z3.BoolVal(True))
                return self.z3.BoolVal(False)
        return function(self._whole(a), self._whole(b))

    def _same(self, a: Value, b: Value) -> Any:
        """Whether a == b."""
        if isinstance(a, Fixed) and isinstance(b, Fixed):
            return self.z3.BoolVal(_equal(a.value, b.value))
        if isinstance(a, Several) or isinstance(b, Several):
            if _is_tuple(a) and _is_tuple(b):
                return self._same_items(self._items(a), self._items(b))
            raise Untranslatable(f"{shown(a)} == {shown(b)}")
        if isinstance(a, Record) and isinstance(b, Record):
            return self._same_records(a, b)
        if _is_open(a, b):
            raise Untranslatable(f"{shown(a)} == {shown(b)}")
        if _is_number(a) and _is_number(b):
            return self._whole(a) == self._whole(b)
        if _text(a) is not None and _text(b) is not None:
            return self._text_term(a) == self._text_term(b)
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Fixed) and not _is_simple(one.value):
                raise Untranslatable(f"{shown(one)} == {shown(other)}")
        return self.z3.BoolVal(False)

    def _same_records(self, a: Record, b: Record) -> Any:
        if a is b:
            return self.z3.BoolVal(True)
        names: tuple[str, ...] = a.kind.__struct_fields__  # type: ignore[attr-defined]
        config = a.kind.__struct_config__  # type: ignore[attr-defined]
        if a.kind is not b.kind:
            return self.z3.BoolVal(False)
        if not config.eq or any("__eq__" in vars(k) for k in a.kind.__mro__ if k not in _ROOTS):
            raise Untranslatable(f"{a.kind.__name__} has its own equality")
        pairs = ((a.slot(name).cases, b.slot(name).cases) for name in names)
        return self._same_items(*(tuple(side) for side in zip(*pairs, strict=True)))

    def _same_items(self, one: tuple[Cases, ...], other: tuple[Cases, ...]) -> Any:
        if len(one) != len(other):
            return self.z3.BoolVal(False)
        found = self.z3.BoolVal(True)
        for left, right in zip(one, other, strict=True):
            found = self._both(found, self._any_pair(left, right, self._same))
        return found

    def _any_pair(self, left: Cases, right: Cases, test: Callable[[Value, Value], Any]) -> Any:
        return self._either([
            self._both(self._both(c, d), test(a, b)) for c, a in left for d, b in right
        ])  # fmt: skip

    def _items(self, value: Value) -> tuple[Cases, ...]:
        if isinstance(value, Several):
            return value.items
        if isinstance(value, Fixed) and isinstance(
            value.value, tuple | list | set | frozenset | dict
        ):
            return tuple(self._sure(Fixed(one)) for one in value.value)
        raise Untranslatable(f"the items of {shown(value)}")

    def _text_term(self, value: Value) -> Any:
        if isinstance(value, Text):
            return value.term
        text = _text(value)
        assert text is not None
        return self.z3.IntVal(self.symbols.text(text))

    def _identical(self, a: Value, b: Value) -> Any:
        for one, other in ((a, b), (b, a)):
            if not isinstance(other, Fixed):
                continue
            if other.value is None:
                return self._is_none(one)
            if isinstance(other.value, bool) and isinstance(one, Truth):
                return one.term if other.value else self._not(one.term)
            if isinstance(other.value, Enum | bool) and isinstance(one, Fixed | Record):
                return self.z3.BoolVal(isinstance(one, Fixed) and one.value is other.value)
        raise Untranslatable(f"{shown(a)} is {shown(b)}")

    def _is_none(self, value: Value) -> Any:
        if isinstance(value, Unknown) and (value.kind in (None, Any, object)):
            return self.symbols.of_unknown(value, "none")
        return self.z3.BoolVal(isinstance(value, Fixed) and value.value is None)

    def _among(self, value: Value, container: Value) -> Any:
        if isinstance(container, Fixed) and isinstance(container.value, str):
            if isinstance(value, Fixed) and isinstance(value.value, str):
                return self.z3.BoolVal(value.value in container.value)
            raise Untranslatable(f"{shown(value)} in a text")
        items = self._items(container)
        return self._either([self._any_pair(self._sure(value), one, self._same) for one in items])

    def _item(self, holder: Value, key: Value) -> Cases:
        if not isinstance(key, Fixed):
            raise Untranslatable(f"an item at {shown(key)}")
        if isinstance(holder, Several) and isinstance(key.value, int):
            if -len(holder.items) <= key.value < len(holder.items):
                return holder.items[key.value]
            self._raise(self.z3.BoolVal(True))
            return ()
        if not isinstance(holder, Fixed) or not isinstance(holder.value, tuple | list | dict):
            raise Untranslatable(f"an item of {shown(holder)}")
        try:
            return self._sure(Fixed(holder.value[key.value]))
        except (LookupError, TypeError):
            self._raise(self.z3.BoolVal(True))
            return ()

    def _abs(self, value: Value) -> Cases:
        term = self._whole(value)
        return self._sure(Whole(self.z3.If(term < 0, -term, term)))

    def _extreme(self, given: tuple[Cases, ...], better: Callable[[Any, Any], Any]) -> Cases:
        if len(given) == 1:
            ((_, one),) = given[0] if len(given[0]) == 1 else ((None, Fixed(None)),)
            given = self._items(one)
            if not given:
                raise Untranslatable("min or max of nothing")
        best = given[0]
        for other in given[1:]:
            best = self._each(best, lambda a, other=other: self._each(
                other, lambda b: self._better(a, b, better)))  # type: ignore[misc]  # fmt: skip
        return best

    def _better(self, a: Value, b: Value, better: Callable[[Any, Any], Any]) -> Cases:
        x, y = self._whole(a), self._whole(b)
        return self._sure(Whole(self.z3.If(better(y, x), y, x)))

    def _len(self, value: Value) -> Cases:
        if isinstance(value, Several) and value.kind != "set":
            return self._sure(Fixed(len(value.items)))
        if isinstance(value, Fixed) and isinstance(value.value, str | tuple | list | dict | set):
            return self._sure(Fixed(len(value.value)))
        if isinstance(value, Unknown) and value.total and _is_sized(value.kind):
            self.unknown[value.why] = None
            return self._sure(Whole(self.symbols.of_unknown(value, "len")))
        raise Untranslatable(f"len of {shown(value)}")

    def _isinstance(self, given: tuple[Cases, ...]) -> Cases:
        if len(given) != 2 or len(given[1]) != 1:
            raise Untranslatable("isinstance")
        wanted = given[1][0][1]
        options = (
            [c[0][1] for c in self._items(wanted)] if isinstance(wanted, Several) else [wanted]
        )
        kinds = tuple(
            o.value for o in options if isinstance(o, Fixed) and isinstance(o.value, type)
        )
        if len(kinds) != len(options):
            raise Untranslatable("isinstance of no class")
        return self._each(given[0], lambda v: self._sure(Truth(self.z3.BoolVal(_is_a(v, kinds)))))

    def _truth(self, cases: Cases) -> Any:
        return self._either([self._both(c, self._true(v)) for c, v in cases])

    def _true(self, value: Value) -> Any:
        if isinstance(value, Truth):
            return value.term
        if isinstance(value, Whole):
            return value.term != 0
        if isinstance(value, Text):
            return value.term != self.symbols.text("")
        if isinstance(value, Fixed):
            return self.z3.BoolVal(bool(value.value))
        if isinstance(value, Several):
            return self.z3.BoolVal(bool(value.items))
        plain = ("__bool__", "__len__")
        if isinstance(value, Record) and not any(hasattr(value.kind, name) for name in plain):
            return self.z3.BoolVal(True)
        if isinstance(value, Unknown):
            self.unknown[value.why] = None
            return self.symbols.of_unknown(value, "true")
        raise Untranslatable(f"{shown(value)} as a condition")


def _is_open(*values: Value) -> bool:
    """Whether one of them may be anything."""
    return any(isinstance(one, Unknown | Method) for one in values)


def _is_short(base: Any, power: Any) -> bool:
    return bool(abs(base) < 2**64 and 0 <= power < 500)


def _is_number(value: Value) -> bool:
    return isinstance(value, Whole | Truth) or (
        isinstance(value, Fixed) and isinstance(value.value, int)
    )


def _text(value: Value) -> str | None:
    """The text of a constant; something that is no constant for a variable text."""
    if isinstance(value, Text):
        return ""
    if isinstance(value, Fixed) and isinstance(value.value, str):
        return str(value.value.value) if isinstance(value.value, Enum) else value.value
    return None


def _is_tuple(value: Value) -> bool:
    if isinstance(value, Several):
        return value.kind == "tuple"
    return isinstance(value, Fixed) and type(value.value) is tuple


def _is_simple(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | str | Enum | tuple | type)


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception as error:
        raise Untranslatable(f"{one!r} == {other!r}") from error


def _is_sized(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, tuple | list | dict | set | frozenset
                                                   | bytes)  # fmt: skip


def _is_a(value: Value, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, Fixed):
        return isinstance(value.value, kinds)
    found: dict[type, type] = {Whole: int, Truth: bool, Text: str}
    kind = value.kind if isinstance(value, Record) else found.get(type(value))
    if kind is None:
        raise Untranslatable(f"the class of {shown(value)}")
    return issubclass(kind, kinds)


def shown(value: Value) -> str:
    if isinstance(value, Unknown):
        return value.why
    if isinstance(value, Fixed):
        return repr(value.value)
    return value.kind.__name__ if isinstance(value, Record) else type(value).__name__.lower()
