"""The compiled table does what python-statemachine does; its fingerprint is the machine's shape."""

from __future__ import annotations

import dataclasses
import types
from decimal import Decimal
from typing import Any

import msgspec
import msgspec.inspect as mi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Context, Event, Machine, Secret, State, requires, seconds
from engine.decide import Decision, Rejection, Violation, begin, decide
from engine.definition import Oracle
from engine.errors import BadPayload, DefinitionError, UnknownEvent
from engine.run import Run
from engine.table import compile_table
from machines.app import MACHINES

NOW = 1_000_000


class Numbers(Context):
    x: int = 0
    y: int = 0
    trace: tuple[str, ...] = ()


class Nudge(Event, tag="e0"):
    n: int


class Poke(Event, tag="e1"):
    n: int


PAYLOADS = {"e0": Nudge, "e1": Poke}


def _action(name: str, kind: int) -> Any:
    def plain(self, context):
        return self.but(context, x=context.x + 1, trace=(*context.trace, name))

    def timed(self, context, now_ms):
        return self.but(context, y=context.y + now_ms % 7, trace=(*context.trace, name))

    def eventful(self, context, event):
        step = event.n if event is not None else 1
        return self.but(context, x=context.x + step, trace=(*context.trace, name))

    return (plain, timed, eventful)[kind]


def _guards() -> dict[str, Any]:
    def even(self, context):
        return context.x % 2 == 0

    def small(self, context, now_ms):
        return context.y < 9 + now_ms % 3

    def positive(self, event):
        return event is not None and event.n > 0

    return {"even": even, "small": small, "positive": positive}


EXPRESSIONS = st.recursive(
    st.sampled_from(["even", "small", "positive"]),
    lambda inner: st.one_of(
        st.builds("not {}".format, inner.map(lambda e: f"({e})")),
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
    ),
    max_leaves=4,
)


@st.composite
def machines(draw) -> type[Machine[Numbers]]:
    """2 to 6 states, guards with and/or/not, every kind of action, transitions to itself."""
    count = draw(st.integers(1, 5))
    states = [State(initial=i == 0, waits=True) for i in range(count)]
    end = State(final=True)
    kinds = st.integers(0, 2)
    attrs: dict[str, Any] = {f"s{i}": state for i, state in enumerate(states)}
    attrs |= {"end": end, "payloads": (Nudge, Poke), **_guards()}
    attrs |= {name: _action(name, draw(kinds)) for name in ("a0", "a1")}

    def transition(source: State, target: State) -> Any:
        options: dict[str, Any] = {}
        for option in ("cond", "unless"):
            if draw(st.booleans()):
                options[option] = draw(EXPRESSIONS)
        if draw(st.booleans()):
            options["on"] = draw(st.lists(st.sampled_from(["a0", "a1"]), min_size=1, max_size=2))
        return source.to(target, **options)

    events: dict[str, Any] = {"leave": None, "onward": None, "e0": None, "e1": None, "e2": None}
    for i, state in enumerate(states):
        leave = state.to(end)
        events["leave"] = leave if events["leave"] is None else events["leave"] | leave
        if i + 1 < count:
            onward = state.to(states[i + 1])
            events["onward"] = onward if events["onward"] is None else events["onward"] | onward
    places = st.integers(0, count - 1)
    for name in ("e0", "e1", "e2"):
        pairs = draw(st.lists(st.tuples(places, places), min_size=1, max_size=5))
        for source, target in pairs:
            more = transition(states[source], states[target])
            events[name] = more if events[name] is None else events[name] | more
    attrs |= {name: value for name, value in events.items() if value is not None}
    hooks = [f"on_{name}" for name, value in events.items() if value is not None]
    hooks += [f"on_{verb}_s{i}" for verb in ("enter", "exit") for i in range(count)]
    for hook in draw(st.lists(st.sampled_from(hooks), unique=True, max_size=6)):
        attrs[hook] = _action(hook, draw(kinds))
    return types.new_class("Drawn", (Machine[Numbers],), {}, lambda body: body.update(attrs))


def run_in(table, state: str, context: Any) -> Run:
    return Run(
        run_id="r1", machine=table.name, version=table.fingerprint, key=None, state=state,
        status="waiting", seq=1, entered_seq=1, context=context, created_ms=NOW,
    )  # fmt: skip


@given(machines(), st.data())
@settings(max_examples=settings.default.max_examples * 5)
def test_table_is_the_library_for_random_machines(machine, data):
    table = compile_table.__wrapped__(machine)
    run = begin(table, run_id="r1", context=Numbers(), now_ms=NOW).after
    oracle = Oracle(machine, run.state, run.context)
    for step in range(data.draw(st.integers(1, 12))):
        event = data.draw(st.sampled_from(sorted(table.events)))
        kind = PAYLOADS.get(event)
        payload = kind(n=data.draw(st.integers(-2, 3))) if kind else None
        result = decide(table, run, event, payload, NOW + step)
        accepted = oracle.send(event, payload, NOW + step)
        assert isinstance(result, Decision) == accepted, (run.state, event, result)
        if isinstance(result, Decision):
            run = result.after
        assert (run.state, run.context) == (oracle.state, oracle.context)
        if run.terminal:
            return


# -- every machine of the repository ------------------------------------------------------------


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Random values of a msgspec-typed field; enough of the type system for our machines."""
    match kind:
        case mi.NoneType():
            return st.none()
        case mi.BoolType():
            return st.booleans()
        case mi.IntType():
            low = kind.ge if kind.ge is not None else (kind.gt + 1 if kind.gt is not None else -3)
            return st.integers(low, max(low, kind.le if kind.le is not None else low + 2_000))
        case mi.FloatType():
            return st.floats(0, 10)
        case mi.DecimalType():
            return st.integers(0, 100).map(Decimal)
        case mi.StrType():
            return st.sampled_from(["", "a", "XMR", "BTC", "mined", "0" * 64])
        case mi.BytesType():
            return st.binary(max_size=4)
        case mi.LiteralType():
            return st.sampled_from(kind.values)
        case mi.EnumType():
            return st.sampled_from(list(kind.cls))
        case mi.UnionType():
            return st.one_of([values_of(one) for one in kind.types])
        case mi.VarTupleType() | mi.ListType() | mi.SetType() | mi.FrozenSetType():
            makers = {mi.ListType: list, mi.SetType: set, mi.FrozenSetType: frozenset}
            items = st.lists(values_of(kind.item_type), max_size=2)
            return items.map(makers.get(type(kind), tuple))
        case mi.TupleType():
            return st.tuples(*[values_of(one) for one in kind.item_types])
        case mi.DictType():
            return st.dictionaries(values_of(kind.key_type), values_of(kind.value_type), max_size=2)
        case mi.StructType():
            fields = {field.name: values_of(field.type) for field in kind.fields}
            return st.builds(kind.cls, **fields)
        case mi.CustomType() if kind.cls is Secret:
            return st.sampled_from(["", "s3cret"]).map(Secret)
    raise AssertionError(f"no strategy for {kind!r}; add one to tests/engine/test_table.py")


def structs(kind: type) -> st.SearchStrategy[Any]:
    return values_of(mi.type_info(kind))


def without_contracts(table):
    """The library knows neither contracts nor what a state arms; only choice and actions remain."""
    return dataclasses.replace(
        table,
        invariants=(),
        places={
            name: dataclasses.replace(
                place, invariants=(), child=None, follows_child=False, timeout=None, every=None
            )
            for name, place in table.places.items()
        },
        edges={
            key: tuple(dataclasses.replace(edge, requires=(), ensures=()) for edge in some)
            for key, some in table.edges.items()
        },
    )


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
@given(st.data())
@settings(max_examples=max(settings.default.max_examples // 2, 10))
def test_table_is_the_library_for_our_machines(machine, data):
    table = without_contracts(compile_table(machine))
    live = [name for name, place in table.places.items() if not place.final]
    run = run_in(table, data.draw(st.sampled_from(live)), data.draw(structs(table.context)))
    oracle = Oracle(machine, run.state, run.context)
    for step in range(data.draw(st.integers(1, 5))):
        legal = sorted({event for state, event in table.edges if state == run.state})
        event = data.draw(st.sampled_from(legal * 3 + sorted(table.events)))
        kind = table.payloads.get(event)
        payload = data.draw(structs(kind)) if kind else None
        result = decide(table, run, event, payload, NOW + step)
        if isinstance(result, Violation):
            assert " raised " in result.reason
            with pytest.raises(Exception):  # noqa: B017 - whatever the machine's code raises
                oracle.send(event, payload, NOW + step)
            return
        assert oracle.send(event, payload, NOW + step) == isinstance(result, Decision)
        if isinstance(result, Decision):
            run = result.after.but(closing=None)
        assert (run.state, run.context) == (oracle.state, oracle.context)
        if table.places[run.state].final:
            return


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_the_oracle_leaves_the_machine_as_it_was(machine):
    table = compile_table(machine)
    before = set(machine._protected_attrs)
    Oracle(machine, table.initial, structs(table.context).example)
    assert set(machine._protected_attrs) == before


# -- the fingerprint ----------------------------------------------------------------------------


def variant(**changes: Any) -> type[Machine[Numbers]]:
    def body(attrs: dict[str, Any]) -> None:
        idle = State(initial=True, timeout=changes.get("timeout", 5), on_timeout="late")
        end = State(final=True, failure=changes.get("failure", False))
        other = State(final=True)
        attrs["idle"], attrs["end"] = idle, end
        attrs["late"] = idle.to(end)
        attrs["e0"] = idle.to(end, cond=changes.get("cond", "even"))
        if changes.get("more"):
            attrs["other"], attrs["stop"] = other, idle.to(other)
        attrs |= _guards()
        if changes.get("code"):
            attrs["even"] = lambda self, context: context.x % 4 == 0
        if changes.get("contract"):
            attrs["needed"] = requires("e0")(lambda self, context: True)
        if changes.get("payload"):
            attrs["payloads"] = (Nudge,)

    return types.new_class("Variant", (Machine[Numbers],), {}, body)


def fingerprint(**changes: Any) -> str:
    return compile_table.__wrapped__(variant(**changes)).fingerprint


def test_fingerprint_is_the_same_for_the_same_shape():
    assert fingerprint() == fingerprint() == fingerprint(code=True)
    assert len(fingerprint()) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"timeout": 6}, {"timeout": seconds(5)}, {"failure": True}, {"cond": "small"},
        {"cond": "not even"}, {"more": True}, {"contract": True}, {"payload": True},
    ],
    ids=str,
)  # fmt: skip
def test_fingerprint_changes_with_the_shape(change):
    assert fingerprint(**change) != fingerprint()


def test_fingerprints_of_our_machines_differ():
    prints = [compile_table(machine).fingerprint for machine in MACHINES]
    assert len(set(prints)) == len(prints)
    assert prints == [compile_table.__wrapped__(machine).fingerprint for machine in MACHINES]


# -- what else the table holds ------------------------------------------------------------------


def test_compiling_is_done_once(zoo):
    assert compile_table(zoo.Shop) is compile_table(zoo.Shop)


def test_payloads_are_found_where_they_are_mentioned(zoo):
    table = compile_table(zoo.Shop)
    assert table.payloads == {
        "charged": zoo.Charged, "noted": zoo.Noted, "shipped": zoo.Shipped,
        "no_charge": zoo.NoCharge,
    }  # fmt: skip


def test_all_edges_are_in_the_order_of_declaration(zoo):
    edges = compile_table(zoo.Shop).all_edges()
    assert [edge.index for edge in edges] == list(range(len(edges)))
    assert {edge.source for edge in edges if edge.stays} == {"charging", "packing"}


def test_check_payload_says_what_was_expected(zoo):
    table = compile_table(zoo.Shop)
    with pytest.raises(UnknownEvent, match=r"machine Shop has no event 'x'. Its events: charged"):
        table.check_payload("x", None)
    with pytest.raises(BadPayload, match=r"expects Noted\(count\), got Shipped"):
        table.check_payload("noted", zoo.Shipped(parcels=1))
    with pytest.raises(BadPayload, match="'pack' of Shop carries no payload"):
        table.check_payload("pack", zoo.Shipped(parcels=1))


def test_shape_is_plain_data(zoo):
    shape = compile_table(zoo.Shop).shape
    assert msgspec.json.decode(msgspec.json.encode(shape)) == shape
    assert [s["name"] for s in shape["states"] if s["waits"]] == ["shipping"]


def test_an_unknown_type_needs_a_strategy():
    with pytest.raises(AssertionError, match="no strategy for"):
        values_of(mi.AnyType())


def test_two_payloads_for_one_event_are_refused():
    class Other(Event, tag="e0"):
        m: int

    with pytest.raises(DefinitionError, match="event 'e0' has two payload types"):
        types.new_class(
            "Twice",
            (Machine[Numbers],),
            {},
            lambda body: body.update(
                idle=(idle := State(initial=True, waits=True)),
                end=(end := State(final=True)),
                e0=idle.to(end),
                payloads=(Nudge, Other),
            ),
        )


def test_rejections_say_which_guard(zoo):
    table = compile_table(zoo.Shop)
    run = run_in(table, "packing", zoo.Order())
    result = decide(table, run, "noted", zoo.Noted(count=-1), NOW)
    assert isinstance(result, Rejection)
    assert result.reason == "guard is_welcome is false (event.count=-1)"
