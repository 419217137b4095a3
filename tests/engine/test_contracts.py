"""Contracts: called by the names of their parameters, and recorded with the values they saw."""

from __future__ import annotations

import enum

import msgspec
import pytest

from engine import Context, Event, Machine, Secret, State, ensures, invariant, requires
from engine.contracts import PARAMETERS, Verdict, bind, contract_of, fields_read, pack, unpack
from engine.decide import begin, decide
from engine.journal import explained
from engine.table import compile_table


class Colour(enum.Enum):
    RED = "red"


class Everything(Context):
    number: int = 1
    ratio: float = 0.5
    flag: bool = True
    nothing: int | None = None
    short: str = "abc"
    long: str = "x" * 200
    code: Secret[str] = Secret("hunter2")
    colour: Colour = Colour.RED
    many: tuple[int, ...] = (1, 2, 3)
    named: dict[str, int] = msgspec.field(default_factory=dict)
    unused: str = "unused"


class Go(Event, tag="go"):
    step: int = 1
    pin: Secret[str] = Secret("0000")


class Judged(Machine[Everything]):
    idle = State(initial=True, waits=True)
    end = State(final=True)
    go = idle.to(end, cond="first or second")

    def first(self, context: Everything, event: Go) -> bool:
        return context.number == 0 and event.step == 1

    def second(self, context: Everything) -> bool:
        return context.flag

    @requires(go)
    def sees_all(self, context: Everything, event: Go) -> bool:
        return bool(
            (context.number, context.ratio, context.flag, context.nothing, context.short,
             context.long, context.code, context.colour, context.many, context.named, event.pin)
        )  # fmt: skip

    @requires("go")
    def at_night(self, now_ms: int) -> bool:
        return now_ms > 0

    def on_go(self, context: Everything, event: Go) -> Everything:
        return self.but(context, number=context.number + event.step)

    @ensures(go)
    def grew(self, old: Everything, new: Everything, event: Go) -> bool:
        return new.number == old.number + event.step

    @invariant
    def small(self, context: Everything) -> bool:
        return context.number < 100


def verdicts():
    """Of one step, with the values they saw, as a journal is shown."""
    table = compile_table(Judged)
    begun = begin(table, run_id="r1", context=Everything(), now_ms=1)
    entries = [begun.entry, decide(table, begun.after, "go", Go(step=2), 5).entry]
    return {v.clause: v for v in explained(table, entries)[-1].verdicts}


def test_each_clause_is_recorded_with_its_kind():
    kinds = {name: verdict.kind for name, verdict in verdicts().items()}
    assert kinds == {
        "first or second": "guard", "sees_all": "requires", "at_night": "requires",
        "grew": "ensures", "small": "invariant",
    }  # fmt: skip


def test_values_are_recorded_as_plain_data_and_secrets_as_stars():
    saw = verdicts()["sees_all"].saw
    assert saw == {
        "context.number": 1,
        "context.ratio": 0.5,
        "context.flag": True,
        "context.nothing": None,
        "context.short": "abc",
        "context.long": "x" * 77 + "...",
        "context.code": "***",
        "context.colour": "red",
        "context.many": "3 items",
        "context.named": "0 items",
        "event.pin": "***",
    }


def test_a_postcondition_sees_both_sides_and_an_invariant_the_new_one():
    assert verdicts()["grew"].saw == {"old.number": 1, "new.number": 3, "event.step": 2}
    assert verdicts()["small"].saw == {"context.number": 3}
    assert verdicts()["at_night"].saw == {}


def test_a_guard_shows_what_all_its_parts_read():
    assert verdicts()["first or second"].saw == {
        "context.number": 1, "event.step": 2, "context.flag": True,
    }  # fmt: skip


def test_only_a_false_clause_is_looked_into_when_it_is_judged():
    table = compile_table(Judged)
    run = begin(table, run_id="r1", context=Everything(), now_ms=1).after
    assert [v.saw for v in decide(table, run, "go", Go(step=2), 5).entry.verdicts] == [{}] * 5
    refused = decide(table, run.but(context=Everything(flag=False)), "go", Go(step=2), 5)
    (false,) = refused.verdicts
    assert (false.clause, false.ok) == ("first or second", False)
    assert false.saw == {"context.number": 1, "event.step": 2, "context.flag": False}
    broken = decide(table, run.but(context=Everything(number=99)), "go", Go(step=2), 5)
    assert [v.saw for v in broken.verdicts if not v.ok] == [{"context.number": 101}]


def test_verdicts_are_packed_as_short_texts():
    given = (
        Verdict("last", "guard", False, {"context.number": 3}),
        Verdict("forwards", "requires", True),
        Verdict("grew+more-", "ensures", True),
        Verdict("größer als 0", "invariant", False),
    )
    packed = pack(given)
    assert packed == '["g-last","r+forwards","e+grew+more-","i-größer als 0"]'.encode()
    assert unpack(packed) == tuple(msgspec.structs.replace(one, saw={}) for one in given)
    assert (pack(()), unpack(b"[]")) == (b"[]", ())


@pytest.mark.parametrize(
    "body", [b"", b"[", b"{}", b"[1]", b'[""]', b'["g"]', b'["x+enough"]', b'["g enough"]', b"null"]
)
def test_what_pack_does_not_write_is_refused(body):
    with pytest.raises(msgspec.MsgspecError):
        unpack(body)


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (lambda: "none", "none"),
        (lambda context: context, 1),
        (lambda now_ms, context: (now_ms, context), (3, 1)),
        (lambda event, now_ms, context: (event, now_ms, context), (2, 3, 1)),
        (lambda self, event: (self, event), ("me", 2)),
        (lambda self: self, "me"),
    ],
)
def test_parameters_are_given_by_name(function, answer):
    values = {"context": 1, "event": 2, "now_ms": 3}
    assert bind(function, "me", PARAMETERS["guard"])(values) == answer


def test_another_parameter_is_refused_with_what_is_allowed():
    with pytest.raises(TypeError, match="parameter 'old' is none of context, event, now_ms"):
        bind(lambda old: True, None, PARAMETERS["guard"])


def test_decorators_mark_and_leave_the_function_alone():
    def clause(context):
        return True

    assert contract_of(clause) is None
    assert requires("a", "b")(clause) is clause
    assert contract_of(clause) == ("requires", ("a", "b"))
    assert contract_of(invariant(lambda: True)) == ("invariant", ())
    assert contract_of(ensures("a")(lambda: True)) == ("ensures", ("a",))


def test_only_named_fields_count_as_read():
    shapes = {"context": ("number", "short"), "event": ("step",)}
    assert fields_read(lambda context: context.number, shapes) == (("context", "number"),)
    assert fields_read(lambda context, event: None, shapes) == ()
    assert fields_read(len, shapes) == ()
