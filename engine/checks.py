"""Class-time refusals: every finding of a machine class at once, each with its remedy.

Run by the metaclass in `engine.definition`.  A finding reads
``file:line  name: what is wrong. What to do.``
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from typing import Any

from engine.contracts import PARAMETERS, bind, contract_of
from engine.definition import (
    Machine,
    actions_of,
    as_transitions,
    context_type,
    edges_of,
    guards_of,
    is_any_state,
    is_history,
)
from engine.errors import DefinitionError
from engine.events import ChildEnded, ChildMoved, Event, GaveUp, event_id

_FORBIDDEN_PREFIXES = ("before_", "after_", "prepare_", "on_invoke_")
_FORBIDDEN_NAMES = ("on_transition", "on_enter_state", "on_exit_state", "on_invoke_state")


def finding(machine: type, line: int, name: str, problem: str, remedy: str) -> str:
    """One line for one finding."""
    module = sys.modules.get(machine.__module__)
    file = getattr(module, "__file__", None) or machine.__module__
    return f"{file}:{line or _class_line(machine)}  {name}: {problem.rstrip('.')}. {remedy}."


def _class_line(machine: type) -> int:
    try:
        return inspect.getsourcelines(machine)[1]
    except (OSError, TypeError):
        return 0


def _line_of(function: Any) -> int:
    code = getattr(function, "__code__", None)
    return code.co_firstlineno if code else 0


def guard_names(expression: str) -> list[str]:
    """The names in a guard expression.

    Raises:
        ValueError: the expression uses anything but names, `and`, `or`, `not` and parentheses.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"cannot be read: {error.msg}") from error
    allowed = (
        ast.Expression,
        ast.BoolOp,
        ast.And,
        ast.Or,
        ast.UnaryOp,
        ast.Not,
        ast.Name,
        ast.Load,
    )
    for node in ast.walk(tree):
        if not isinstance(node, allowed):
            raise ValueError(f"uses {type(node).__name__}")
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def check_body(machine: type, attrs: dict[str, Any]) -> list[str]:
    """What can be seen in the class body before the library builds anything of it."""
    found: list[str] = []
    base_names = set(dir(Machine))
    for name, value in attrs.items():
        transitions = as_transitions(value)
        if transitions is not None:
            found += _check_event(machine, name, transitions, base_names)
        if inspect.iscoroutinefunction(value):
            found.append(
                finding(machine, _line_of(value), name, "is async", "Guards, actions and "
                        "contracts are pure; move the waiting into an effect")
            )  # fmt: skip
        if name.startswith(_FORBIDDEN_PREFIXES) or name in _FORBIDDEN_NAMES:
            found.append(
                finding(machine, _line_of(value), name, "this hook of the library is not run",
                        "Use on_<event>, on_enter_<state>, on_exit_<state> or on=")
            )  # fmt: skip
    return found


def _check_event(machine: type, name: str, transitions: list[Any], taken: set[str]) -> list[str]:
    line = getattr(transitions[0], "turtles_line", 0) if transitions else 0
    found = []
    if name in taken:
        found.append(
            finding(machine, line, name, "is an attribute of the base class", "Rename the event")
        )
    if name.startswith(("done_state_", "done_invoke_", "error_")):
        found.append(
            finding(machine, line, name, "the library gives this prefix a second, dotted id",
                    "Rename the event")
        )  # fmt: skip
    if any(is_any_state(t.source) for t in transitions):
        found.append(
            finding(machine, line, name, "from_.any() copies transitions and loses what is "
                    "attached to them", "List the source states: target.from_(a, b)")
        )  # fmt: skip
    return found


def check_machine(machine: type[Machine[Any]]) -> list[str]:
    """Everything else, once the library has built states and events."""
    return [
        *_check_context(machine),
        *_check_shape(machine),
        *_check_states(machine),
        *_check_edges(machine),
        *_check_methods(machine),
        *_check_payloads(machine),
    ]


def _check_context(machine: type[Machine[Any]]) -> list[str]:
    if context_type(machine) is not None:
        return []
    return [
        finding(machine, 0, machine.__name__, "has no context type",
                "Write class X(Machine[MyContext]) with class MyContext(Context)")
    ]  # fmt: skip


def _check_shape(machine: type[Machine[Any]]) -> list[str]:
    found = []
    edges = edges_of(machine)
    ends: dict[str, set[str]] = {state.id: set() for state in machine.states}
    for edge in edges:
        if edge.target is not None:
            ends[edge.source.id].add(edge.target.id)
    initial = machine.initial_state
    reached = _closure(ends, [initial.id] if initial else [])
    final = {state.id for state in machine.states if state.final}
    backwards: dict[str, set[str]] = {name: set() for name in ends}
    for source, targets in ends.items():
        for target in targets:
            backwards[target].add(source)
    finishing = _closure(backwards, final)
    for state in machine.states:
        line = _state_line(state)
        if state.id not in reached:
            found.append(finding(machine, line, state.id, "cannot be reached from the initial "
                                 "state", "Add a transition to it or remove it"))  # fmt: skip
        if not state.final and not ends[state.id]:
            found.append(finding(machine, line, state.id, "has no way out and is not final",
                                 "Add a transition or final=True"))  # fmt: skip
        elif final and state.id not in finishing:
            found.append(finding(machine, line, state.id, "has no path to a final state",
                                 "Add one"))  # fmt: skip
    if not final:
        found.append(finding(machine, 0, machine.__name__, "has no final state",
                             "Mark one with final=True"))  # fmt: skip
    values = [state.value for state in machine.states]
    for state in machine.states:
        if values.count(state.value) > 1:
            found.append(finding(machine, _state_line(state), state.id, "shares its value "
                                 f"{state.value!r} with another state", "Drop value="))  # fmt: skip
    return found


def _closure(graph: dict[str, set[str]], start: Iterable[str]) -> set[str]:
    seen, todo = set(start), list(start)
    while todo:
        for target in graph[todo.pop()] - seen:
            seen.add(target)
            todo.append(target)
    return seen


def _state_line(state: Any) -> int:
    settings = getattr(state, "turtles", None)
    return settings.line if settings else 0


def _check_states(machine: type[Machine[Any]]) -> list[str]:
    found: list[str] = []
    for state in machine.states:
        settings = getattr(state, "turtles", None)
        if state.states or state.parallel or is_history(state):
            found.append(finding(machine, _state_line(state), state.id, "is nested, parallel or a "
                                 "history state", "Use a child run instead"))  # fmt: skip
        elif settings is None:
            found.append(finding(machine, 0, state.id, "is a plain library State",
                                 "Import State from engine"))  # fmt: skip
        if settings is not None:
            found += [
                finding(machine, settings.line, state.id, problem, remedy)
                for problem, remedy in _state_problems(machine, state, settings)
            ]
    return found


def _state_problems(machine: Any, state: Any, settings: Any) -> Iterable[tuple[str, str]]:
    exits = {str(event) for t in state.transitions for event in t.events}
    if settings.library:
        yield f"uses the library's {settings.library[0]}=", "Use on_enter_<state> or an effect"
    if state.final:
        if settings.effect or settings.timeout or settings.child or settings.follows_child:
            yield "is final but has an effect, a timeout or a child", "Move it to the state before"
        if state.initial:
            yield "is both initial and final", "Add the state in which something happens"
        return
    if settings.failure:
        yield "has failure=True but is not final", "Add final=True"
    has_progress = settings.effect or settings.timeout is not None or settings.child
    has_progress = has_progress or settings.follows_child
    if not has_progress and not settings.waits:
        yield (
            "has neither an effect, a timeout, a child nor an awaited event",
            "Give it one, or waits=True if an external event is expected without limit",
        )
    if (settings.timeout is None) != (settings.on_timeout is None):
        yield "timeout= and on_timeout= go together", "Give both or neither"
    if any(
        settings.on_timeout in map(str, t.events) and t.target is state for t in state.transitions
    ):
        yield (
            f"on_timeout={settings.on_timeout!r} may stay here, where the time would be up again",
            "Lead it elsewhere, or use an effect with every=",
        )
    for option in ("on_timeout", "on_exhausted", "on_child", "on_child_moved"):
        event = getattr(settings, option)
        if event is not None and event not in exits:
            yield (
                f"{option}={event!r} is no event that this state handles",
                f"Add a transition from it: {event} = {state.id}.to(...)",
            )
    if (settings.child or settings.follows_child) and not settings.on_child:
        yield "has a child but no on_child= event", "Say what its end means: on_child='...'"
    if any(e.target is state and settings.on_child in e.events for e in state.transitions):
        yield (
            f"stays after on_child={settings.on_child!r}, where no child is left to wait for",
            "Lead to another state; that one may start the next child and come back",
        )
    if settings.follows_child and settings.child:
        yield "both starts and follows a child", "Choose one"
    with_child = settings.child or settings.follows_child
    if (settings.on_child or settings.on_child_moved) and not with_child:
        yield "has on_child= without child=", "Name the method that describes the child"
    if settings.on_parent_end not in ("cancel", "abandon"):
        yield f"on_parent_end={settings.on_parent_end!r}", "Say 'cancel' or 'abandon'"
    if settings.effect and settings.child:
        yield "has both an effect and a child", "Split it into two states"
    if settings.every is not None and not settings.effect:
        yield "has every= without an effect", "Add effect="
    if settings.on_exhausted and not settings.effect:
        yield "has on_exhausted= without an effect", "Add effect="
    if settings.undoes and settings.undoes not in {other.id for other in machine.states}:
        yield f"undoes={settings.undoes!r} is no state", "Name the state whose effect is undone"
    yield from _effect_problems(settings)
    yield from _method_problems(machine, settings)


def _effect_problems(settings: Any) -> Iterable[tuple[str, str]]:
    for option in ("effect", "compensation"):
        one = getattr(settings, option)
        if one is None:
            continue
        if not hasattr(one, "perform"):
            yield f"{option}= is no effect: {one!r}", "Decorate the function with @effect(...)"
        elif not one.idempotent and one.ask is None:
            yield (
                f"{option} {one.name!r} is neither idempotent nor has a reconcile",
                "Say @effect(idempotent=True), or add @name.reconcile to find out what happened",
            )
    if settings.undoes and not settings.effect:
        yield "has undoes= without an effect", "Name the effect that does the undoing"
    if settings.compensation and not settings.effect:
        yield "has a compensation without an effect", "There is nothing to undo; remove it"


def _method_problems(machine: Any, settings: Any) -> Iterable[tuple[str, str]]:
    if isinstance(settings.timeout, bool) or (
        isinstance(settings.timeout, int) and settings.timeout <= 0
    ):
        yield f"timeout={settings.timeout!r}", "Give a positive duration: seconds(14)"
    named = [(kind, getattr(settings, kind)) for kind in ("timeout", "every", "child")]
    named.append(("invariant", settings.invariant))
    for kind, value in named:
        if isinstance(value, str) and not callable(getattr(machine, value, None)):
            yield f"{kind}={value!r} names no method of the class", f"Define def {value}(self, ...)"
            continue
        function = getattr(machine, value) if isinstance(value, str) else value
        if callable(function):
            try:
                bind(function, machine, PARAMETERS[kind])
            except TypeError as error:
                yield f"{kind} {function.__name__!r}: {error}", "Rename the parameter"


def _check_edges(machine: type[Machine[Any]]) -> list[str]:
    found: list[str] = []
    for edge in edges_of(machine):
        line = getattr(edge, "turtles_line", 0)
        name = f"{edge.source.id} -> {edge.target.id if edge.target else None}"
        found += [
            finding(machine, line, name, problem, remedy)
            for problem, remedy in _edge_problems(machine, edge)
        ]
    return found


def _edge_problems(machine: Any, edge: Any) -> Iterable[tuple[str, str]]:
    if edge.is_eventless:
        yield "has no event", "Assign it to a class attribute: name = a.to(b)"
    if edge.target is None or len(edge.targets) != 1:
        yield "has no single target", "Write a.to(b)"
    for event in edge.events:
        if "." in str(event):
            # the library matches "pay" against "pay.now": an event could stand for another
            yield (
                f"event {str(event)!r} has a dot, and the library takes dots as hierarchy",
                "Rename the event",
            )
        if getattr(event, "delay", 0):
            yield f"event {event} has delay=", "Use a state with timeout= and on_timeout="
    unused = [s for s in edge._specs if not s.is_convention and s.group.name not in ("COND", "ON")]
    if unused:
        yield f"has {unused[0].group.name.lower()} callbacks", "Use cond=, unless= and on= only"
    for expression, _expected in guards_of(edge):
        yield from _guard_problems(machine, expression)
    for action in actions_of(edge):
        if not callable(getattr(machine, action, None)):
            yield f"on={action!r} names no method of the class", f"Define def {action}(self, ...)"


def _guard_problems(machine: Any, expression: str) -> Iterable[tuple[str, str]]:
    try:
        names = guard_names(expression)
    except ValueError as error:
        yield (
            f"guard {expression!r} {error}",
            "Name methods of the class, joined by and, or, not: cond='paid and not late'",
        )
        return
    for name in names:
        if not callable(getattr(machine, name, None)):
            yield f"guard {name!r} names no method of the class", f"Define def {name}(self, ...)"


def _check_methods(machine: type[Machine[Any]]) -> list[str]:
    found: list[str] = []
    events = {str(event) for event in machine._events}
    for name, kind in _called(machine).items():
        function = getattr(machine, name, None)
        if callable(function):
            try:
                bind(function, machine, PARAMETERS[kind])
            except TypeError as error:
                found.append(finding(machine, _line_of(function), name, f"{kind}: {error}",
                                     "Rename the parameter"))  # fmt: skip
    for name, value in vars(machine).items():
        contract = contract_of(value)
        if contract and contract[0] != "invariant" and not contract[1]:
            found.append(finding(machine, _line_of(value), name, f"@{contract[0]} names no event",
                                 f"Write @{contract[0]}(event)"))  # fmt: skip
        for event in contract[1] if contract else ():
            if isinstance(event, str) and event not in events:
                found.append(finding(machine, _line_of(value), name, f"no event {event!r} here",
                                     f"Use one of: {', '.join(sorted(events))}"))  # fmt: skip
    hooks = {f"on_{event}" for event in events}
    hooks |= {f"on_{verb}_{state.id}" for verb in ("enter", "exit") for state in machine.states}
    hooks |= {name for edge in edges_of(machine) for name in actions_of(edge)}
    for name, value in vars(machine).items():
        if name.startswith("on_") and hasattr(value, "__code__") and name not in hooks:
            found.append(finding(machine, _line_of(value), name, "is never called: no event and "
                                 "no state of that name", "Correct the name"))  # fmt: skip
    for payload in machine.payloads:
        if event_id(payload) not in events:
            found.append(finding(machine, 0, payload.__name__, f"its tag {event_id(payload)!r} is "
                                 "no event of the machine", "Correct tag="))  # fmt: skip
    return found


def _check_payloads(machine: type[Machine[Any]]) -> list[str]:
    """What the engine itself sends must fit the payload types of the machine."""
    from engine.table import payloads_of

    if not all(_is_readable(state) for state in machine.states):
        return []  # reported already
    try:
        payloads = payloads_of(machine)
    except DefinitionError as error:
        return [finding(machine, 0, machine.__name__, str(error), "Correct tag=")]
    found: list[str] = []
    for state in machine.states:
        settings = getattr(state, "turtles", None)
        for option, base in _SENT_BY_ENGINE.items():
            event = getattr(settings, option, None)
            kind = payloads.get(event) if event is not None else None
            if kind is not None and (base is None or not issubclass(kind, base)):
                expected = f"a subclass of {base.__name__}" if base else "no payload"
                found.append(
                    finding(machine, _state_line(state), state.id, f"{option}={event!r} carries "
                            f"{kind.__name__}, the engine sends {expected}",
                            "Correct the payload's base, or use another event")
                )  # fmt: skip
    return found


def _is_readable(state: Any) -> bool:
    settings = getattr(state, "turtles", None)
    effects = (settings.effect, settings.compensation) if settings else ()
    return settings is not None and all(e is None or hasattr(e, "perform") for e in effects)


_SENT_BY_ENGINE: dict[str, type[Event] | None] = {
    "on_timeout": None,
    "on_exhausted": GaveUp,
    "on_child": ChildEnded,
    "on_child_moved": ChildMoved,
}


def _called(machine: type[Machine[Any]]) -> dict[str, str]:
    """Method name -> the kind of function the engine will call it as."""
    called: dict[str, str] = {}
    for edge in edges_of(machine):
        for expression, _expected in guards_of(edge):
            try:
                called.update(dict.fromkeys(guard_names(expression), "guard"))
            except ValueError:
                continue
        called.update(dict.fromkeys(actions_of(edge), "action"))
    for name, value in vars(machine).items():
        contract = contract_of(value)
        if contract:
            called[name] = contract[0]
        elif name.startswith("on_") and callable(value) and name not in _FORBIDDEN_NAMES:
            called[name] = "action"
    return called
