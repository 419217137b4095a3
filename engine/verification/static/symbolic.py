"""Values that stand for all values of a type, as terms of z3: what a field may hold.

::

    Slot(type, path)          context.invoice: Invoice | None
      cases                     tag = 0 -> None
                                tag = 1 -> Record(Invoice)  -> its fields are slots again, made late
      bind(value)               the terms that say: the slot holds this very value
      pick(model, base)         the value that a model means; fields nobody read stay as in `base`

Whole numbers are those of 64 bits.  A text is a number: each text that the code writes has its
own, every other number is some other text, so texts can be told apart and nothing else.  Enums and
literals are one case for each member.  What has no translation is `Unknown`: it may hold anything,
so that a proof made with it is one for every value it may have.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

import msgspec

from engine.verification.values import Hints, OutOfScope, columns_of, values_of

MEMBERS_MAX = 40
INT_MIN, INT_MAX = -(2**63), 2**63 - 1


class Untranslatable(Exception):
    """Code or a type that has no translation; says which."""


class Unconfirmed(Exception):
    """No value could be made of a model."""


@dataclass(eq=False, slots=True)
class Whole:
    """A whole number."""

    term: Any


@dataclass(eq=False, slots=True)
class Truth:
    """True or False."""

    term: Any


@dataclass(eq=False, slots=True)
class Text:
    """A text, by its number."""

    term: Any


@dataclass(eq=False, slots=True)
class Fixed:
    """A constant of the program."""

    value: Any


@dataclass(eq=False, slots=True)
class Several:
    """A `tuple`, `list` or `set` that the code writes down."""

    items: tuple[Cases, ...]
    kind: str


@dataclass(eq=False, slots=True)
class Method:
    """A method of a record, not yet called."""

    function: Any
    owner: Record


@dataclass(eq=False, slots=True)
class Unknown:
    """Anything: `why` says what could not be translated.

    Args:
        kind: the type of the field it is, None for what the code computes.
        total: computing it cannot raise.
    """

    why: str
    number: int
    kind: Any = None
    total: bool = False


class Record:
    """A struct whose fields are made when they are read."""

    def __init__(self, kind: type, path: str, symbols: Symbols) -> None:
        self.kind = kind
        self.path = path
        self.symbols = symbols
        self.slots: dict[str, Slot] = {}

    def slot(self, name: str) -> Slot:
        """The slot of a field."""
        if name not in self.slots:
            found = {f.name: f.type for f in msgspec.structs.fields(self.kind)}
            self.slots[name] = Slot(found[name], f"{self.path}.{name}", self.symbols)
        return self.slots[name]

    def bind(self, value: Any) -> Iterator[tuple[Any, Any]]:
        """What the terms of this record are if it is `value`."""
        for name, slot in self.slots.items():
            yield from slot.bind(getattr(value, name))

    def pick(self, model: Any, base: Any) -> Any:
        """The struct that a model means.

        Args:
            base: a struct of this kind, from which the fields come that nobody read; or None.

        Raises:
            Unconfirmed: there is no such struct.
        """
        fields: dict[str, Any] = {}
        for name in self.kind.__struct_fields__:  # type: ignore[attr-defined]
            old = getattr(base, name, None)
            if name in self.slots:
                fields[name] = self.slots[name].pick(model, old)
            elif base is not None:
                fields[name] = old
            else:
                fields[name] = _first_of_field(self.kind, name)
        try:
            return self.kind(**fields)
        except Exception as error:
            raise Unconfirmed(f"{self.kind.__name__} refuses {sorted(fields)}") from error


Value = Whole | Truth | Text | Fixed | Several | Method | Unknown | Record
Cases = tuple[tuple[Any, Value], ...]
"""What a value may be, each under a condition; where none holds, the code has raised."""


@dataclass
class Symbols:
    """The variables of one question, and what is known of them whatever the code does."""

    z3: Any
    facts: list[Any] = field(default_factory=list)
    numbers: list[Any] = field(default_factory=list)
    _texts: dict[str, int] = field(default_factory=dict)
    _made: dict[tuple[int, str], Any] = field(default_factory=dict)
    _count: int = 0

    def text(self, value: str) -> int:
        """The number of a text."""
        return self._texts.setdefault(value, len(self._texts))

    def text_of(self, number: int) -> str:
        """The text of a number; one that the code does not mention for any other number."""
        for text, known in self._texts.items():
            if known == number:
                return text
        other = f"other{abs(number)}{'' if number >= 0 else 'm'}"
        return other if other not in self._texts else f"{other}~"

    def unknown(self, why: str, kind: Any = None, *, total: bool = False) -> Unknown:
        """Something new of which nothing is known."""
        self._count += 1
        return Unknown(why, self._count, kind, total)

    def of_unknown(self, unknown: Unknown, aspect: str) -> Any:
        """A free variable for one aspect of an unknown: `raises`, `true`, `int`, `len`, `text`."""
        key = (unknown.number, aspect)
        if key not in self._made:
            make = self.z3.Bool if aspect in ("raises", "true", "none") else self.z3.Int
            self._made[key] = make(f"?{unknown.number}.{aspect}")
            if aspect == "len":
                self.facts.append(self._made[key] >= 0)
        return self._made[key]

    def number(self, name: str, low: int = INT_MIN, high: int = INT_MAX) -> Any:
        """A new variable for a whole number."""
        term = self.z3.Int(name)
        self.facts += [term >= low, term <= high]
        self.numbers.append(term)
        return term


class Slot:
    """One place for a value of a type."""

    def __init__(self, kind: Any, path: str, symbols: Symbols) -> None:
        self.symbols = symbols
        self.kind = kind
        self.tag: Any = None
        self.options: list[tuple[Any, Value]] = []
        """(type or constant, value), chosen by the tag if there are several."""
        z3 = symbols.z3
        for option in _flat(kind):
            self._add(option, f"{path}#{len(self.options)}" if self.options else path)
        if len(self.options) == 1:
            self.cases: Cases = ((z3.BoolVal(True), self.options[0][1]),)
            return
        self.tag = z3.Int(f"{path}?")
        symbols.facts += [self.tag >= 0, self.tag < len(self.options)]
        self.cases = tuple((self.tag == i, v) for i, (_, v) in enumerate(self.options))

    def _add(self, kind: Any, path: str) -> None:
        symbols, bare, metas = self.symbols, kind, ()
        if get_origin(kind) is Annotated:
            bare, *rest = get_args(kind)
            metas = tuple(rest)
        if get_origin(bare) is Literal:
            self.options += [(one, Fixed(one)) for one in get_args(bare)]
        elif bare is None or bare is type(None):
            self.options.append((None, Fixed(None)))
        elif isinstance(bare, type) and issubclass(bare, Enum) and len(bare) <= MEMBERS_MAX:
            self.options += [(one, Fixed(one)) for one in bare]
        elif bare is bool:
            self.options.append((kind, Truth(symbols.z3.Bool(path))))
        elif bare is int:
            self.options.append((kind, Whole(self._bounded(path, metas))))
        elif bare is str:
            self.options.append((kind, Text(symbols.z3.Int(path))))
        elif isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            self.options.append((kind, Record(bare, path, symbols)))
        else:
            why = f"{path} is of type {getattr(bare, '__name__', bare)}"
            self.options.append((kind, symbols.unknown(why, kind, total=True)))

    def _bounded(self, path: str, metas: tuple[Any, ...]) -> Any:
        term = self.symbols.number(path)
        for meta in metas:
            for name, fact in (("ge", term.__ge__), ("gt", term.__gt__), ("le", term.__le__),
                               ("lt", term.__lt__)):  # fmt: skip
                bound = getattr(meta, name, None)
                if isinstance(bound, int):
                    self.symbols.facts.append(fact(bound))
        return term

    def bind(self, value: Any) -> Iterator[tuple[Any, Any]]:
        """What the terms of this slot are if it holds `value`."""
        z3 = self.symbols.z3
        for index, (_, option) in enumerate(self.options):
            if _accepts(option, value):
                if self.tag is not None:
                    yield self.tag, z3.IntVal(index)
                if isinstance(option, Whole):
                    yield option.term, z3.IntVal(value)
                elif isinstance(option, Truth):
                    yield option.term, z3.BoolVal(value)
                elif isinstance(option, Text):
                    yield option.term, z3.IntVal(self.symbols.text(value))
                elif isinstance(option, Record):
                    yield from option.bind(value)
                return
        raise Unconfirmed(f"a {type(value).__name__} is no {self.kind}")

    def pick(self, model: Any, base: Any) -> Any:
        """The value that a model means.

        Raises:
            Unconfirmed: none can be made.
        """
        index = 0
        if self.tag is not None:
            index = model.eval(self.tag, model_completion=True).as_long()
        kind, option = self.options[index]
        if isinstance(option, Record):
            return option.pick(model, base if type(base) is option.kind else None)
        if isinstance(option, Unknown):
            return base if base is not None else _first_of(kind)
        return _within(kind, _meant(option, model, self.symbols))


def _meant(value: Value, model: Any, symbols: Symbols) -> Any:
    if isinstance(value, Fixed):
        return value.value
    assert isinstance(value, Whole | Truth | Text)
    term = model.eval(value.term, model_completion=True)
    if isinstance(value, Truth):
        return symbols.z3.is_true(term)
    number = term.as_long()
    return symbols.text_of(number) if isinstance(value, Text) else number


def _accepts(option: Value, value: Any) -> bool:
    if isinstance(option, Fixed):
        return type(value) is type(option.value) and bool(value == option.value)
    if isinstance(option, Unknown):
        return value is not None or option.kind in (Any, object)
    if isinstance(option, Record):
        return type(value) is option.kind
    kinds: dict[type, type] = {Whole: int, Truth: bool, Text: str}
    return type(value) is kinds.get(type(option))


def _flat(kind: Any) -> list[Any]:
    """The types a union is made of."""
    if isinstance(kind, NewType):
        return _flat(kind.__supertype__)
    if hasattr(kind, "__value__"):  # type X = ...
        return _flat(kind.__value__)
    if get_origin(kind) in (Union, types.UnionType):
        return [one for option in get_args(kind) for one in _flat(option)]
    if get_origin(kind) is Annotated:
        flat = _flat(get_args(kind)[0])
        return [kind] if len(flat) == 1 else flat
    return [kind]


def _within(kind: Any, value: Any) -> Any:
    """The value, if the constraints of `Annotated[..., msgspec.Meta(...)]` allow it."""
    if get_origin(kind) is not Annotated:
        return value
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Unconfirmed(str(error)) from error


def _first_of(kind: Any) -> Any:
    try:
        return next(iter(values_of(kind, limit=1)))
    except (OutOfScope, StopIteration) as error:
        raise Unconfirmed(f"no value of {kind} is known") from error


def _first_of_field(kind: type, name: str) -> Any:
    try:
        return columns_of(kind, Hints(names=frozenset()))[name][0]
    except OutOfScope as error:
        raise Unconfirmed(str(error)) from error
