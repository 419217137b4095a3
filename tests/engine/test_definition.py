"""The thin layer over python-statemachine: what a class body gives, and the oracle."""

from __future__ import annotations

import pytest

from engine import Context, Machine, State
from engine.definition import (
    Oracle,
    actions_of,
    as_transitions,
    context_type,
    edges_of,
    guards_of,
    methods_of,
)
from engine.errors import DefinitionError


class Steps(Context):
    trace: tuple[str, ...] = ()


class Path(Machine[Steps]):
    """Walk."""

    start = State(initial=True, waits=True)
    middle = State(waits=True)
    end = State(final=True)

    walk = start.to(middle, cond="willing", unless="tired", on=["a", "b"]) | middle.to(end)
    rest = middle.to.itself(on="a") | end.from_(start, cond="tired")

    def willing(self) -> bool:
        return True

    def tired(self, context: Steps) -> bool:
        return len(context.trace) > 50

    def _note(self, context: Steps, name: str) -> Steps:
        return self.but(context, trace=(*context.trace, name))

    def a(self, context: Steps) -> Steps:
        return self._note(context, "a")

    def b(self, context: Steps) -> Steps:
        return self._note(context, "b")

    def on_walk(self, context: Steps) -> Steps:
        return self._note(context, "on_walk")

    def on_exit_start(self, context: Steps) -> Steps:
        return self._note(context, "exit start")

    def on_enter_middle(self, context: Steps) -> Steps:
        return self._note(context, "enter middle")

    def on_exit_middle(self, context: Steps) -> Steps:
        return self._note(context, "exit middle")


def test_transitions_remember_their_line():
    lines = {(e.source.id, e.target.id): e.turtles_line for e in edges_of(Path)}
    first = Path.start.turtles.line
    assert lines[("start", "middle")] == lines[("middle", "end")] == first + 4
    assert lines[("middle", "middle")] == first + 5
    assert lines[("start", "end")] == first + 5


def test_guards_and_actions_are_read_as_written():
    (walk,) = [e for e in edges_of(Path) if e.source.id == "start" and e.target.id == "middle"]
    assert sorted(guards_of(walk)) == [("tired", False), ("willing", True)]
    assert actions_of(walk) == ["a", "b"]


def test_a_transition_to_itself_stays():
    (rest,) = [e for e in edges_of(Path) if e.source.id == e.target.id]
    assert rest.internal
    oracle = Oracle(Path, "middle", Steps())
    assert oracle.send("rest", None, 0)
    assert oracle.context.trace == ("a",)


def test_the_oracle_walks():
    oracle = Oracle(Path, "start", Steps())
    assert oracle.send("walk", None, 0)
    assert (oracle.state, oracle.context.trace) == (
        "middle", ("exit start", "a", "b", "on_walk", "enter middle"),
    )  # fmt: skip
    assert oracle.send("walk", None, 0)
    assert oracle.state == "end"
    assert not oracle.send("walk", None, 0)


def test_the_context_type_is_the_one_in_brackets():
    assert context_type(Path) is Steps
    assert context_type(Machine) is None


def test_methods_need_no_library_state():
    owner = methods_of(Path)
    assert owner.a(Steps()) == Steps(trace=("a",))
    assert owner.output(Steps()) is None
    assert Machine.but(Steps(), trace=("x",)) == Steps(trace=("x",))


def test_what_is_a_transition():
    assert [t.target.id for t in as_transitions(Path.walk)] == ["middle", "end"]
    assert as_transitions(Path.start) is None
    assert as_transitions("walk") is None


def test_a_class_without_states_is_a_base_and_no_machine():
    class Base(Machine[Steps]):
        def helper(self) -> int:
            return 7

    class Derived(Base):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)

    assert context_type(Derived) is Steps
    assert methods_of(Derived).helper() == 7


def test_what_the_library_refuses_is_a_finding_too():
    with pytest.raises(DefinitionError, match="python-statemachine's guide"):

        class Bad(Machine[Steps]):
            one = State(initial=True, waits=True)
            two = State(initial=True, waits=True)
            end = State(final=True)
            close = one.to(end) | two.to(end)
