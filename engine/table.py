"""A machine class compiled to plain data, and the fingerprint of its shape.

`compile_table(Payment)` gives a `Table`: for each (state, event) the edges in the order in which
they are tried, each with its guards, contracts and actions already bound.  `engine.decide` needs
nothing else.  A test proves for every machine that the table does what python-statemachine does.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args, get_type_hints

import msgspec

from engine.contracts import PARAMETERS, Clause, bind, contract_of, fields_read
from engine.definition import (
    Machine,
    actions_of,
    as_transitions,
    context_type,
    edges_of,
    guards_of,
    methods_of,
)
from engine.effects import Effect
from engine.errors import BadPayload, DefinitionError, UnknownEvent
from engine.events import ChildEnded, ChildMoved, Context, Event, GaveUp, event_id

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Edge:
    """One transition: chosen when its guards hold, legal when `requires` hold."""

    index: int
    event: str
    source: str
    target: str
    guards: tuple[Clause, ...]
    requires: tuple[Clause, ...]
    ensures: tuple[Clause, ...]
    actions: tuple[Callable[[Values], Any], ...]
    guard_text: str

    @property
    def stays(self) -> bool:
        """Whether the run stays in its state."""
        return self.source == self.target


@dataclass(frozen=True, slots=True)
class Place:
    """One state, with what happens while a run is in it (see `engine.definition.State`)."""

    name: str
    final: bool
    failure: bool
    effect: Effect | None
    every: Callable[[Values], int] | None
    timeout: Callable[[Values], int] | None
    timeout_text: str
    on_timeout: str | None
    on_exhausted: str | None
    child: Callable[[Values], Child] | None
    follows_child: bool
    on_parent_end: str
    on_child: str | None
    on_child_moved: str | None
    milestone: bool
    waits: bool
    invariants: tuple[Clause, ...]
    compensation: Effect | None
    undoes: str | None
    cancellable: bool


@dataclass(frozen=True, slots=True)
class Child:
    """The child run that a state starts.

    Args:
        machine: name of the child's machine.
        context: its first context, or the fields of it (a machine that may not import the
            child's context type names them).
    """

    machine: str
    context: Context | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A machine as data."""

    name: str
    doc: str
    context: type[Context]
    initial: str
    places: Mapping[str, Place]
    edges: Mapping[tuple[str, str], tuple[Edge, ...]]
    payloads: Mapping[str, type[Event]]
    events: tuple[str, ...]
    invariants: tuple[Clause, ...]
    output: Callable[[Values], Any]
    fingerprint: str
    shape: Mapping[str, Any]
    machine: type[Machine[Any]] = field(repr=False)

    def all_edges(self) -> list[Edge]:
        """Every edge, in the order of declaration."""
        return sorted((e for some in self.edges.values() for e in some), key=lambda e: e.index)

    def check_payload(self, event: str, payload: Event | None) -> None:
        """Refuse an event that the machine does not know, or a payload of another shape.

        Raises:
            UnknownEvent: names the machine's events.
            BadPayload: names the type expected and the one seen.
        """
        if event not in self.events:
            raise UnknownEvent(
                f"machine {self.name} has no event {event!r}. "
                f"Its events: {', '.join(sorted(self.events))}."
            )
        expected = self.payloads.get(event)
        if expected is None and payload is not None:
            raise BadPayload(
                f"event {event!r} of {self.name} carries no payload, got {type(payload).__name__}."
            )
        if expected is not None and type(payload) is not expected:
            raise BadPayload(
                f"event {event!r} of {self.name} expects {expected.__name__}"
                f"({', '.join(_fields(expected))}), got {type(payload).__name__}."
            )


def _fields(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    return struct.__struct_fields__


@cache
def compile_table(machine: type[Machine[Any]]) -> Table:
    """Compile a machine class.  The result is cached for the class.

    Raises:
        DefinitionError: two payload types claim the same event.
    """
    return _Compiler(machine).table()


def payloads_of(machine: type[Machine[Any]]) -> dict[str, type[Event]]:
    """The payload type of each event that carries one.

    Raises:
        DefinitionError: two payload types claim the same event.
    """
    return _Compiler(machine).payloads


class _Compiler:
    def __init__(self, machine: type[Machine[Any]]) -> None:
        self.machine = machine
        self.owner = methods_of(machine)
        self.context = context_type(machine) or Context
        self.transitions = edges_of(machine)
        self.events = tuple(str(event) for event in machine._events)
        self.payloads = self._payloads()

    def table(self) -> Table:
        edges: dict[tuple[str, str], list[Edge]] = {}
        index = 0
        for transition in self.transitions:
            for event in transition.events:
                edge = self._edge(index, str(event), transition)
                edges.setdefault((edge.source, edge.event), []).append(edge)
                index += 1
        places = {state.id: self._place(state) for state in self.machine.states}
        invariants = self._machine_invariants()
        shape = _shape(self.machine.__name__, places, edges, invariants, self.payloads)
        initial = self.machine.initial_state
        assert initial is not None
        return Table(
            name=self.machine.__name__,
            doc=self.machine.__doc__ or "",
            context=self.context,
            initial=initial.id,
            places=places,
            edges={key: tuple(some) for key, some in edges.items()},
            payloads=self.payloads,
            events=self.events,
            invariants=invariants,
            output=bind(self.machine.output, self.owner, PARAMETERS["output"]),
            fingerprint=hashlib.sha256(msgspec.json.encode(shape, order="sorted")).hexdigest()[:16],
            shape=shape,
            machine=self.machine,
        )

    def _edge(self, index: int, event: str, transition: Any) -> Edge:
        guards = guards_of(transition)
        names = [*actions_of(transition), f"on_{event}"]
        source, target = transition.source.id, transition.target.id
        if source != target:
            names = [f"on_exit_{source}", *names, f"on_enter_{target}"]
        return Edge(
            index=index,
            event=event,
            source=source,
            target=target,
            guards=tuple(self._guard(text, expected) for text, expected in guards),
            requires=self._contracts("requires", event, transition),
            ensures=self._contracts("ensures", event, transition),
            actions=tuple(
                bind(getattr(self.machine, name), self.owner, PARAMETERS["action"])
                for name in names
                if hasattr(self.machine, name)
            ),
            guard_text=" and ".join(t if e else f"not ({t})" for t, e in guards),
        )

    def _guard(self, expression: str, expected: bool) -> Clause:
        tree = ast.parse(expression.strip(), mode="eval").body
        reads: dict[tuple[str, str], None] = {}
        call = self._evaluator(tree, reads)
        if not expected:
            return Clause(f"not ({expression})", "guard", _negated(call), tuple(reads), 0)
        return Clause(expression, "guard", call, tuple(reads), 0)

    def _evaluator(self, node: ast.expr, reads: dict[tuple[str, str], None]) -> Any:
        if isinstance(node, ast.Name):
            function = getattr(self.machine, node.id)
            reads.update(dict.fromkeys(self._reads(function)))
            return bind(function, self.owner, PARAMETERS["guard"])
        if isinstance(node, ast.UnaryOp):
            return _negated(self._evaluator(node.operand, reads))
        assert isinstance(node, ast.BoolOp)
        parts = [self._evaluator(value, reads) for value in node.values]
        if isinstance(node.op, ast.And):
            return lambda values: all(part(values) for part in parts)
        return lambda values: any(part(values) for part in parts)

    def _reads(self, function: Any, event: str | None = None) -> tuple[tuple[str, str], ...]:
        fields = _fields(self.context)
        kinds = [self.payloads[event]] if event in self.payloads else list(self.payloads.values())
        of_event = tuple(dict.fromkeys(name for kind in kinds for name in _fields(kind)))
        shapes = {"context": fields, "old": fields, "new": fields, "event": of_event}
        return fields_read(function, shapes)

    def _contracts(self, kind: str, event: str, transition: Any) -> tuple[Clause, ...]:
        found = []
        for name, function in _members(self.machine):
            contract = contract_of(function)
            if contract and contract[0] == kind and _covers(contract[1], event, transition):
                found.append(self._clause(name, function, event))
        return tuple(found)

    def _clause(self, name: str, function: Any, event: str | None = None) -> Clause:
        kind = (contract_of(function) or ("invariant", ()))[0]
        return Clause(
            name=name,
            kind=kind,
            call=bind(function, self.owner, PARAMETERS[kind]),
            reads=self._reads(function, event),
            line=(getattr(function, "__code__", None) and function.__code__.co_firstlineno) or 0,
        )

    def _machine_invariants(self) -> tuple[Clause, ...]:
        return tuple(
            self._clause(name, function)
            for name, function in _members(self.machine)
            if (contract_of(function) or ("", ()))[0] == "invariant"
        )

    def _place(self, state: Any) -> Place:
        settings = state.turtles
        return Place(
            name=state.id,
            final=state.final,
            failure=settings.failure,
            effect=settings.effect,
            every=self._duration("every", settings.every),
            timeout=self._duration("timeout", settings.timeout),
            timeout_text="" if settings.timeout is None else str(settings.timeout),
            on_timeout=settings.on_timeout,
            on_exhausted=settings.on_exhausted,
            child=self._method("child", settings.child),
            follows_child=settings.follows_child,
            on_parent_end=settings.on_parent_end,
            on_child=settings.on_child,
            on_child_moved=settings.on_child_moved,
            milestone=settings.milestone,
            waits=settings.waits,
            invariants=self._state_invariants(settings.invariant),
            compensation=settings.compensation,
            undoes=settings.undoes,
            cancellable=settings.cancellable,
        )

    def _duration(self, kind: str, value: int | str | None) -> Callable[[Values], int] | None:
        if isinstance(value, int):
            return lambda values: value
        named: Callable[[Values], int] | None = self._method(kind, value)
        return named

    def _method(self, kind: str, name: str | None) -> Any:
        if name is None:
            return None
        return bind(getattr(self.machine, name), self.owner, PARAMETERS[kind])

    def _state_invariants(self, value: Any) -> tuple[Clause, ...]:
        if value is None:
            return ()
        function = getattr(self.machine, value) if isinstance(value, str) else value
        return (self._clause(function.__name__, function),)

    def _payloads(self) -> dict[str, type[Event]]:
        found: dict[str, type[Event]] = {}
        for kind in [*self.machine.payloads, *self._mentioned()]:
            event = event_id(kind)
            if event not in self.events:
                continue
            if found.setdefault(event, kind) is not kind:
                raise DefinitionError(
                    f"machine {self.machine.__name__}: event {event!r} has two payload types, "
                    f"{found[event].__name__} and {kind.__name__}. Keep one."
                )
        return found

    def _mentioned(self) -> list[type[Event]]:
        functions = [f for _, f in _members(self.machine)]
        for state in self.machine.states:
            for one in (state.turtles.effect, state.turtles.compensation):
                functions += [one.perform, one.ask] if one else []
        kinds = [k for f in functions if f is not None for k in _event_types(f)]
        return [k for k in kinds if k not in (Event, ChildEnded, ChildMoved, GaveUp)]


def _negated(call: Callable[[Values], Any]) -> Callable[[Values], bool]:
    return lambda values: not call(values)


def _members(machine: type[Machine[Any]]) -> list[tuple[str, Any]]:
    found: dict[str, Any] = {}
    for base in reversed(machine.__mro__[: machine.__mro__.index(Machine)]):
        found.update(
            {k: v for k, v in vars(base).items() if callable(v) and hasattr(v, "__code__")}
        )
    return list(found.items())


def _event_types(function: Any) -> list[type[Event]]:
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):
        return []
    found = []
    for name, hint in hints.items():
        if name in ("event", "return"):
            options = get_args(hint) or (hint,)
            found += [o for o in options if isinstance(o, type) and issubclass(o, Event)]
    return found


def _covers(events: tuple[Any, ...], event: str, transition: Any) -> bool:
    for one in events:
        if isinstance(one, str) and not hasattr(one, "_transitions"):
            if one == event:
                return True
        elif any(t is transition for t in as_transitions(one) or ()):
            return True
    return False


def _shape(
    name: str,
    places: Mapping[str, Place],
    edges: Mapping[tuple[str, str], list[Edge]],
    invariants: tuple[Clause, ...],
    payloads: Mapping[str, type[Event]],
) -> dict[str, Any]:
    """What the fingerprint is made of: names and edges, never code."""
    return {
        "machine": name,
        "states": [
            {
                "name": p.name,
                "final": p.final,
                "failure": p.failure,
                "waits": p.waits,
                "effect": p.effect.name if p.effect else None,
                "compensation": p.compensation.name if p.compensation else None,
                "undoes": p.undoes,
                "timeout": p.timeout_text,
                "on_timeout": p.on_timeout,
                "on_exhausted": p.on_exhausted,
                "child": p.child is not None,
                "follows_child": p.follows_child,
                "invariants": [c.name for c in p.invariants],
            }
            for p in places.values()
        ],
        "edges": [
            {
                "source": e.source,
                "event": e.event,
                "target": e.target,
                "guards": e.guard_text,
                "requires": [c.name for c in e.requires],
                "ensures": [c.name for c in e.ensures],
            }
            for some in edges.values()
            for e in some
        ],
        "invariants": [c.name for c in invariants],
        "payloads": {event: list(_fields(kind)) for event, kind in sorted(payloads.items())},
    }
