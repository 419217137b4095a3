"""Machines are python-statemachine classes; this thin layer adds what the library lacks.

::

    class Payment(Machine[Invoice]):
        \"\"\"Pay one invoice, once.\"\"\"

        broadcasting = State(effect=broadcast)
        confirming = State(effect=poll, every=seconds(14), timeout=hours(2), on_timeout="stall")
        settled = State(final=True, invariant=paid_in_full)
        ...
        sent = broadcasting.to(confirming)
        confirm = confirming.to(settled, cond="deep_enough") | confirming.to.itself()
        stall = confirming.to(stalled)

        def deep_enough(self, context: Invoice, event: Confirmed) -> bool: ...
        def on_confirm(self, context: Invoice, event: Confirmed) -> Invoice: ...

        @requires(confirm)
        def depth_never_negative(self, event: Confirmed) -> bool: ...

Guards (`cond=`, `unless=`: names, with `and`, `or`, `not`) choose; actions (`on=`, `on_<event>`,
`on_exit_<state>`, `on_enter_<state>`) return the new context; both are methods without side
effects, called by parameter names (`context`, `event`, `now_ms`).  `self` has no state: it gives
access to the class's other methods, and nothing else.

A transition from a state to itself stays there: neither left nor entered, so `on_exit_<state>` and
`on_enter_<state>` are not called and the state's time goes on.

This is the only file that imports python-statemachine.  The library validates and stays the
oracle: `Oracle` runs a machine through it, and a test proves that the compiled table does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin

import statemachine
from statemachine.callbacks import CallbackGroup, CallbackSpec
from statemachine.exceptions import InvalidDefinition, TransitionNotAllowed
from statemachine.factory import StateMachineMetaclass
from statemachine.state import AnyState, HistoryState, _FromState, _ToState
from statemachine.transition import Transition
from statemachine.transition_list import TransitionList

from engine.contracts import PARAMETERS, bind
from engine.effects import Effect
from engine.errors import DefinitionError
from engine.events import Context, Event

C = TypeVar("C", bound=Context)


class _To(_ToState):
    """Remembers the line on which each transition was written, and lets self transitions stay."""

    def __call__(self, *states: Any, **kwargs: Any) -> TransitionList:
        return _with_line(super().__call__(*states, **kwargs), _caller_line())

    def itself(self, **kwargs: Any) -> TransitionList:
        """A transition from the state to itself."""
        return _with_line(super().__call__(self._state, **kwargs), _caller_line())


class _From(_FromState):
    def __call__(self, *states: Any, **kwargs: Any) -> TransitionList:
        return _with_line(super().__call__(*states, **kwargs), _caller_line())


def _caller_line() -> int:
    frame = sys._getframe(2)
    return frame.f_lineno


def _with_line(transitions: TransitionList, line: int) -> TransitionList:
    for transition in transitions:
        transition.turtles_line = line
        # The library leaves and enters the state anew unless a self transition is internal.
        transition.internal = transition.internal or transition.is_self
    return transitions


class State(statemachine.State):
    """A state, with what happens while a run is in it.

    Args:
        effect: the external action performed on entering (`engine.effects`).
        every: pause before the effect is performed again (after `Again`, or after an event that
            stays in this state), milliseconds, or the name of a method `(context) -> int`.
        timeout: how long a run may stay, milliseconds, or the name of a method
            `(context, now_ms) -> int` that tells it on entering.
        on_timeout: the event sent when the time is up.
        on_exhausted: the event sent when the effect is given up (see `events.GaveUp`).
        child: the name of a method `(context) -> Child` that names the child run to start.
        follows_child: the child started by an earlier state goes on living here.
        on_parent_end: `cancel` (default) or `abandon` the child when this run leaves it behind.
        on_child: the event sent when the child has ended (payload: a `ChildEnded`).
        on_child_moved: the event sent when the child passes a milestone (a `ChildMoved`).
        milestone: tell the parent run when this state is entered.
        waits: an external event is expected here, without a time limit.
        invariant: a function of the context, or the name of a method, that must hold here.
        compensation: the effect that undoes this state's effect.  It is remembered when the effect
            returns any event: an effect that made nothing raises (`Permanent`) instead.  Whatever
            event it returns itself means that it is done.
        undoes: the name of the state whose effect this state's effect undoes, so that no
            compensation is left to run for it.
        cancellable: a cancel request may stop the run here (default); otherwise it waits.
        failure: with `final=True`: the run ended without reaching its purpose.
    """

    def __init__(
        self,
        name: str = "",
        *,
        initial: bool = False,
        final: bool = False,
        effect: Effect | None = None,
        every: int | str | None = None,
        timeout: int | str | None = None,
        on_timeout: str | None = None,
        on_exhausted: str | None = None,
        child: str | None = None,
        follows_child: bool = False,
        on_parent_end: str = "cancel",
        on_child: str | None = None,
        on_child_moved: str | None = None,
        milestone: bool = False,
        waits: bool = False,
        invariant: Callable[..., bool] | str | None = None,
        compensation: Effect | None = None,
        undoes: str | None = None,
        cancellable: bool = True,
        failure: bool = False,
        **library: Any,
    ) -> None:
        super().__init__(name, initial=initial, final=final, **library)
        self.turtles = SimpleNamespace(
            effect=effect,
            every=every,
            timeout=timeout,
            on_timeout=on_timeout,
            on_exhausted=on_exhausted,
            child=child,
            follows_child=follows_child,
            on_parent_end=on_parent_end,
            on_child=on_child,
            on_child_moved=on_child_moved,
            milestone=milestone,
            waits=waits,
            invariant=invariant,
            compensation=compensation,
            undoes=undoes,
            cancellable=cancellable,
            failure=failure,
            line=sys._getframe(1).f_lineno,
            library=tuple(library),
        )

    @property
    def to(self) -> _To:
        """Transitions from this state."""
        return _To(self)

    @property
    def from_(self) -> _From:
        """Transitions to this state."""
        return _From(self)


class MachineMeta(StateMachineMetaclass):
    """Runs our class-time checks after the library's own, and reports every finding at once."""

    # Our checks say the same, but all at once and with file and line.
    validate_disconnected_states = False
    validate_trap_states = False
    validate_final_reachability = False

    def __init__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> None:  # noqa: N805 - a metaclass
        if not any(isinstance(value, statemachine.State) for value in attrs.values()):
            super().__init__(name, cast(Any, bases), attrs)
            return
        from engine.checks import check_body, check_machine, finding

        findings = check_body(cls, attrs)
        try:
            super().__init__(name, cast(Any, bases), attrs)
        except InvalidDefinition as error:
            findings.append(finding(cls, 0, name, str(error), "see python-statemachine's guide"))
        else:
            findings += check_machine(cast("type[Machine[Any]]", cls))
        if findings:
            listed = "\n".join(f"  {line}" for line in dict.fromkeys(findings))
            raise DefinitionError(f"machine {name}: {len(set(findings))} finding(s)\n{listed}")


class Machine(statemachine.StateChart[Any], Generic[C], metaclass=MachineMeta):
    """Base of every machine: `class Payment(Machine[Invoice])`.

    Instances are not used: the engine compiles the class to a table (`engine.table`).
    """

    allow_event_without_transition = False
    enable_self_transition_entries = False
    atomic_configuration_update = True
    catch_errors_as_events = False
    validate_disconnected_states = False
    validate_trap_states = False
    validate_final_reachability = False

    payloads: ClassVar[tuple[type[Event], ...]] = ()
    """Payload types that no guard, action, contract or effect of the class mentions."""

    def output(self, context: C) -> Any:
        """What a parent run receives when this run ends: a struct, or None."""
        return None

    @staticmethod
    def but(context: C, **changes: Any) -> C:
        """A copy of the context with some fields changed."""
        import msgspec

        return msgspec.structs.replace(context, **changes)


def context_type(machine: type[Machine[Any]]) -> type[Context] | None:
    """The context struct named in `Machine[...]`."""
    for base in machine.__mro__:
        for origin in getattr(base, "__orig_bases__", ()):
            if get_origin(origin) is Machine:
                (argument,) = get_args(origin)
                if isinstance(argument, type) and issubclass(argument, Context):
                    return argument
    return None


def methods_of(machine: type[Machine[Any]]) -> Any:
    """An object whose methods are the machine's, without any library state behind it."""
    return object.__new__(machine)


def edges_of(machine: type[Machine[Any]]) -> list[Transition]:
    """Every transition in the order in which the library tries them."""
    return [t for state in machine.states for t in state.transitions if not t.initial]


def names_in(transition: Transition, group: CallbackGroup) -> list[CallbackSpec]:
    """The inline (not conventional) callbacks of a transition in one group."""
    return [s for s in transition._specs if s.group == group and not s.is_convention]


def guards_of(transition: Transition) -> list[tuple[str, bool]]:
    """(expression, expected value) of each `cond=` and `unless=`."""
    specs = names_in(transition, CallbackGroup.COND)
    return [(str(s.func), s.expected_value is not False) for s in specs]


def actions_of(transition: Transition) -> list[str]:
    """Names given with `on=`."""
    return [str(s.func) for s in names_in(transition, CallbackGroup.ON)]


def is_any_state(state: object) -> bool:
    """Whether a transition was made with `from_.any()`."""
    return isinstance(state, AnyState)


def is_history(state: object) -> bool:
    """Whether this is a history pseudo-state."""
    return isinstance(state, HistoryState)


def as_transitions(value: object) -> list[Transition] | None:
    """The transitions behind a class attribute, or None if it is something else."""
    if isinstance(value, TransitionList):
        return list(value)
    if isinstance(value, Transition):
        return [value]
    if isinstance(value, statemachine.Event) and value._transitions is not None:
        return list(value._transitions)
    return None


def _target_id(edge: Transition) -> str:
    return edge.target.id if edge.target is not None else ""


class _Model:
    def __init__(self, state: str, context: Any) -> None:
        self.state = state
        self.context = context
        self.payload: Any = None
        self.now_ms = 0


class Oracle:
    """Runs a machine through python-statemachine itself, with our calling convention.

    The library finds guards and actions on a listener made here; the machine's own methods are
    hidden from it, because their parameters (`context`, `event`) mean something else there.
    """

    def __init__(self, machine: type[Machine[Any]], state: str, context: Any) -> None:
        self._model = _Model(state, context)
        hidden = self._adapters(machine)
        kept = set(machine._protected_attrs)
        machine._protected_attrs = kept | set(vars(hidden))
        try:
            self._chart = machine(model=self._model, listeners=[hidden])
        finally:
            machine._protected_attrs = kept

    def _adapters(self, machine: type[Machine[Any]]) -> SimpleNamespace:
        from engine.checks import guard_names

        owner, adapters = methods_of(machine), SimpleNamespace()
        for edge in edges_of(machine):
            for expression, _expected in guards_of(edge):
                for name in guard_names(expression):
                    setattr(adapters, name, self._guard(getattr(machine, name), owner))
            conventional = [f"on_{event}" for event in edge.events]
            conventional += [f"on_exit_{edge.source.id}", f"on_enter_{_target_id(edge)}"]
            for name in actions_of(edge) + conventional:
                if hasattr(machine, name):
                    setattr(adapters, name, self._action(getattr(machine, name), owner))
        return adapters

    def _values(self) -> dict[str, Any]:
        model = self._model
        return {"context": model.context, "event": model.payload, "now_ms": model.now_ms}

    def _guard(self, function: Any, owner: Any) -> Callable[[], bool]:
        bound = bind(function, owner, PARAMETERS["guard"])

        def guard() -> bool:
            return bool(bound(self._values()))

        guard.__qualname__ = f"guard-{id(guard)}"
        return guard

    def _action(self, function: Any, owner: Any) -> Callable[[], None]:
        bound = bind(function, owner, PARAMETERS["action"])

        def action() -> None:
            self._model.context = bound(self._values())

        action.__qualname__ = f"action-{id(action)}"
        return action

    @property
    def state(self) -> str:
        """The id of the current state."""
        return self._model.state

    @property
    def context(self) -> Any:
        """The current context."""
        return self._model.context

    def send(self, event: str, payload: Any, now_ms: int) -> bool:
        """Send an event; False when the library does not allow it in this state."""
        self._model.payload, self._model.now_ms = payload, now_ms
        try:
            self._chart.send(event)
        except TransitionNotAllowed:
            return False
        return True
