"""Every class-time refusal, with file, line, name and remedy; all of a class at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import statemachine

from engine import (
    ChildEnded,
    Context,
    Event,
    GaveUp,
    Machine,
    State,
    effect,
    ensures,
    invariant,
    requires,
)
from engine.checks import guard_names
from engine.errors import DefinitionError


class Box(Context):
    number: int = 0


class Timed(Event, tag="late"):
    number: int


class Spare(Event, tag="nowhere"):
    number: int


class NotGaveUp(Event, tag="lost"):
    number: int


class NotChildEnded(Event, tag="ended"):
    number: int


class Ended(ChildEnded, tag="ended"):
    """As it should be."""


class Lost(GaveUp, tag="lost"):
    """As it should be."""


@effect(idempotent=True)
async def work(context: Box, call: object) -> Event:
    return Event()


@effect()
async def guess(context: Box, call: object) -> Event:
    return Event()


class Good(Machine[Box]):
    """What the cases below begin from."""

    idle = State(initial=True, waits=True)
    end = State(final=True)
    close = idle.to(end)


def eventless():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)
        idle.to(end)  # here


def from_any():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)
        stop = end.from_.any()


def async_guard():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end, cond="ready")

        async def ready(self) -> bool:  # here
            return True


def duplicate_values():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True, value=1)  # here
        end = State(final=True, value=1)
        close = idle.to(end)


def event_named_like_an_attribute():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        send = idle.to(end)  # here


def event_with_the_librarys_prefix():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        error_found = idle.to(end)  # here


def dotted_event():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end, event="close.now")  # here


def delayed_event():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = statemachine.Event(idle.to(end), delay=100)  # here


def invoking_state():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True, invoke="anything")  # here
        end = State(final=True)
        close = idle.to(end)


def librarys_enter_hook():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True, enter="anything")  # here
        end = State(final=True)
        close = idle.to(end)


def nested_states():
    class Bad(Machine[Box]):
        class idle(State.Compound, initial=True):  # noqa: N801 - a state
            inner = State(initial=True, waits=True)
            back = statemachine.HistoryState()
            rest = State(final=True)
            go = inner.to(rest)

        end = State(final=True)
        close = idle.to(end)


def plain_library_state():
    class Bad(Machine[Box]):
        idle = statemachine.State(initial=True)
        end = State(final=True)
        close = idle.to(end)


def timeout_without_transition():
    class Bad(Machine[Box]):
        idle = State(initial=True, timeout=5, on_timeout="late")  # here
        end = State(final=True)
        close = idle.to(end)


def timeout_without_event():
    class Bad(Machine[Box]):
        idle = State(initial=True, timeout=5)  # here
        end = State(final=True)
        close = idle.to(end)


def timeout_of_zero():
    class Bad(Machine[Box]):
        idle = State(initial=True, timeout=0, on_timeout="close")  # here
        end = State(final=True)
        close = idle.to(end)


def timeout_with_a_payload():
    class Bad(Machine[Box]):
        payloads = (Timed,)
        idle = State(initial=True, timeout=5, on_timeout="late")  # here
        end = State(final=True)
        late = idle.to(end)


def exhausted_with_another_payload():
    class Bad(Machine[Box]):
        payloads = (NotGaveUp,)
        idle = State(initial=True, effect=work, on_exhausted="lost")  # here
        end = State(final=True)
        lost = idle.to(end)


def child_with_another_payload():
    class Bad(Machine[Box]):
        payloads = (NotChildEnded,)
        idle = State(initial=True, child="kid", on_child="ended")  # here
        end = State(final=True)
        ended = idle.to(end)

        def kid(self, context):
            return None


def moved_with_another_payload():
    class Bad(Machine[Box]):
        payloads = (Ended, Spare)
        idle = State(  # here
            initial=True, child="kid", on_child="ended", on_child_moved="nowhere"
        )
        end = State(final=True)
        ended = idle.to(end)
        nowhere = idle.to.itself()

        def kid(self, context):
            return None


def two_payloads_for_one_event():
    class Bad(Machine[Box]):
        payloads = (NotGaveUp, Lost)
        idle = State(initial=True, waits=True)
        end = State(final=True)
        lost = idle.to(end)


def nothing_happens_here():
    class Bad(Machine[Box]):
        idle = State(initial=True)  # here
        end = State(final=True)
        close = idle.to(end)


def unreachable():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        island = State(waits=True)  # here
        end = State(final=True)
        close = idle.to(end) | island.to(end)


def dead_end():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        pit = State(waits=True)  # here
        end = State(final=True)
        close = idle.to(end)
        fall = idle.to(pit)


def no_path_to_an_end():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        pit = State(waits=True)  # here
        hole = State(waits=True)
        end = State(final=True)
        close = idle.to(end)
        fall = idle.to(pit) | pit.to(hole) | hole.to(pit)


def no_final_state():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        other = State(waits=True)
        close = idle.to(other) | other.to(idle)


def initial_and_final():
    class Bad(Machine[Box]):
        idle = State(initial=True, final=True)  # here


def final_with_effect():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True, effect=work)  # here
        close = idle.to(end)


def final_following_a_child():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True, follows_child=True)  # here
        close = idle.to(end)


def failure_that_is_not_final():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True, failure=True)  # here
        end = State(final=True)
        close = idle.to(end)


def exhausted_without_effect():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True, on_exhausted="close")  # here
        end = State(final=True)
        close = idle.to(end)


def every_without_effect():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True, every=5)  # here
        end = State(final=True)
        close = idle.to(end)


def effect_that_is_none():
    class Bad(Machine[Box]):
        idle = State(initial=True, effect=print)  # here
        end = State(final=True)
        close = idle.to(end)


def effect_that_can_only_guess():
    class Bad(Machine[Box]):
        idle = State(initial=True, effect=guess)  # here
        end = State(final=True)
        close = idle.to(end)


def compensation_that_can_only_guess():
    class Bad(Machine[Box]):
        idle = State(initial=True, effect=work, compensation=guess)  # here
        end = State(final=True)
        close = idle.to(end)


def compensation_of_nothing():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True, compensation=work)  # here
        end = State(final=True)
        close = idle.to(end)


def undoes_without_effect():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True, undoes="end")  # here
        end = State(final=True)
        close = idle.to(end)


def undoes_no_state():
    class Bad(Machine[Box]):
        idle = State(initial=True, effect=work, undoes="nothing")  # here
        end = State(final=True)
        close = idle.to(end)


def child_without_end():
    class Bad(Machine[Box]):
        idle = State(initial=True, child="kid")  # here
        end = State(final=True)
        close = idle.to(end)

        def kid(self, context):
            return None


def end_without_child():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True, on_child="close")  # here
        end = State(final=True)
        close = idle.to(end)


def child_without_method():
    class Bad(Machine[Box]):
        idle = State(initial=True, child="kid", on_child="close")  # here
        end = State(final=True)
        close = idle.to(end)


def two_children():
    class Bad(Machine[Box]):
        idle = State(initial=True, child="kid", follows_child=True, on_child="close")  # here
        end = State(final=True)
        close = idle.to(end)

        def kid(self, context):
            return None


def child_and_effect():
    class Bad(Machine[Box]):
        idle = State(initial=True, child="kid", on_child="close", effect=work)  # here
        end = State(final=True)
        close = idle.to(end)

        def kid(self, context):
            return None


def childs_end_that_stays():
    class Bad(Machine[Box]):
        idle = State(initial=True, child="kid", on_child="close")  # here
        end = State(final=True)
        close = idle.to(end, cond="good") | idle.to.itself()

        def kid(self, context):
            return None

        def good(self):
            return True


def odd_parent_end():
    class Bad(Machine[Box]):
        idle = State(  # here
            initial=True, child="kid", on_child="close", on_parent_end="forget"
        )
        end = State(final=True)
        close = idle.to(end)

        def kid(self, context):
            return None


def guard_without_method():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end, cond="redy")  # here


def guard_with_a_comparison():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end, cond="number > 3")  # here

        def number(self):
            return 1


def action_without_method():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end, on="wave")  # here


def before_callback():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end, before="wave")  # here

        def wave(self):
            return None


def before_hook():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)

        def before_close(self):  # here
            return None


def generic_hook():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)

        def on_transition(self):  # here
            return None


def hook_of_nothing():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)

        def on_enter_opne(self, context):  # here
            return context


def parameter_of_another_name():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end, cond="ready")

        def ready(self, invoice):  # here
            return True


def timeout_parameter_of_another_name():
    class Bad(Machine[Box]):
        idle = State(initial=True, timeout="long", on_timeout="close")  # here
        end = State(final=True)
        close = idle.to(end)

        def long(self, invoice):
            return 5


def contract_without_event():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)

        @requires()  # here
        def something(self, context):
            return True


def contract_of_an_unknown_event():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)

        @ensures("closed")  # here
        def something(self, old, new):
            return True


def invariant_with_an_event():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)

        @invariant  # here
        def something(self, event):
            return True


def payload_of_an_unknown_event():
    class Bad(Machine[Box]):
        payloads = (Spare,)
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)


def no_context():
    class Bad(Machine):
        idle = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end)


def two_initial_states():
    class Bad(Machine[Box]):
        idle = State(initial=True, waits=True)
        other = State(initial=True, waits=True)
        end = State(final=True)
        close = idle.to(end) | other.to(end)


CASES: list[tuple[Callable[[], None], str, str, str]] = [
    (eventless, "idle -> end", "has no event", "name = a.to(b)"),
    (from_any, "stop", "from_.any() copies transitions", "target.from_(a, b)"),
    (async_guard, "ready", "is async", "move the waiting into an effect"),
    (duplicate_values, "idle", "shares its value 1", "Drop value="),
    (event_named_like_an_attribute, "send", "is an attribute of the base class", "Rename"),
    (event_with_the_librarys_prefix, "error_found", "second, dotted id", "Rename the event"),
    (dotted_event, "idle -> end", "close.now' has a dot", "Rename the event"),
    (delayed_event, "idle -> end", "event close has delay=", "on_timeout="),
    (invoking_state, "idle", "uses the library's invoke=", "an effect"),
    (librarys_enter_hook, "idle", "uses the library's enter=", "on_enter_<state>"),
    (nested_states, "idle", "is nested, parallel or a history state", "Use a child run"),
    (plain_library_state, "idle", "is a plain library State", "Import State from engine"),
    (timeout_without_transition, "idle", "on_timeout='late' is no event", "late = idle.to(...)"),
    (timeout_without_event, "idle", "timeout= and on_timeout= go together", "Give both"),
    (timeout_of_zero, "idle", "timeout=0", "positive duration"),
    (timeout_with_a_payload, "idle", "on_timeout='late' carries Timed", "another event"),
    (exhausted_with_another_payload, "idle", "a subclass of GaveUp", "payload's base"),
    (child_with_another_payload, "idle", "a subclass of ChildEnded", "payload's base"),
    (moved_with_another_payload, "idle", "a subclass of ChildMoved", "payload's base"),
    (two_payloads_for_one_event, "Bad", "event 'lost' has two payload types", "Keep one"),
    (nothing_happens_here, "idle", "neither an effect, a timeout, a child", "waits=True"),
    (unreachable, "island", "cannot be reached", "Add a transition to it"),
    (dead_end, "pit", "has no way out", "final=True"),
    (no_path_to_an_end, "pit", "has no path to a final state", "Add one"),
    (no_final_state, "Bad", "has no final state", "final=True"),
    (initial_and_final, "idle", "is both initial and final", "Add the state"),
    (final_with_effect, "end", "is final but has an effect", "the state before"),
    (final_following_a_child, "end", "is final but has an effect", "the state before"),
    (failure_that_is_not_final, "idle", "failure=True but is not final", "Add final=True"),
    (exhausted_without_effect, "idle", "has on_exhausted= without an effect", "Add effect="),
    (every_without_effect, "idle", "has every= without an effect", "Add effect="),
    (effect_that_is_none, "idle", "effect= is no effect", "@effect(...)"),
    (effect_that_can_only_guess, "idle", "'guess' is neither idempotent nor", "reconcile"),
    (compensation_that_can_only_guess, "idle", "compensation 'guess' is neither", "reconcile"),
    (compensation_of_nothing, "idle", "has a compensation without an effect", "remove it"),
    (undoes_without_effect, "idle", "has undoes= without an effect", "Name the effect"),
    (undoes_no_state, "idle", "undoes='nothing' is no state", "Name the state"),
    (child_without_end, "idle", "has a child but no on_child=", "on_child='...'"),
    (end_without_child, "idle", "has on_child= without child=", "Name the method"),
    (child_without_method, "idle", "child='kid' names no method", "Define def kid"),
    (two_children, "idle", "both starts and follows a child", "Choose one"),
    (child_and_effect, "idle", "has both an effect and a child", "two states"),
    (childs_end_that_stays, "idle", "stays after on_child='close'", "another state"),
    (odd_parent_end, "idle", "on_parent_end='forget'", "Say 'cancel' or 'abandon'"),
    (guard_without_method, "idle -> end", "guard 'redy' names no method", "Define def redy"),
    (guard_with_a_comparison, "idle -> end", "uses Compare", "joined by and, or, not"),
    (action_without_method, "idle -> end", "on='wave' names no method", "Define def wave"),
    (before_callback, "idle -> end", "has before callbacks", "cond=, unless= and on= only"),
    (before_hook, "before_close", "this hook of the library is not run", "Use on_<event>"),
    (generic_hook, "on_transition", "this hook of the library is not run", "Use on_<event>"),
    (hook_of_nothing, "on_enter_opne", "is never called", "Correct the name"),
    (parameter_of_another_name, "ready", "parameter 'invoice' is none of", "Rename"),
    (timeout_parameter_of_another_name, "idle", "parameter 'invoice' is none of", "Rename"),
    (contract_without_event, "something", "@requires names no event", "@requires(event)"),
    (contract_of_an_unknown_event, "something", "no event 'closed' here", "Use one of: close"),
    (invariant_with_an_event, "something", "parameter 'event' is none of context", "Rename"),
    (payload_of_an_unknown_event, "Spare", "its tag 'nowhere' is no event", "Correct tag="),
    (no_context, "Bad", "has no context type", "Machine[MyContext]"),
    (two_initial_states, "Bad", "initial state", "python-statemachine's guide"),
]


def refusal_of(make: Callable[[], None]) -> str:
    with pytest.raises(DefinitionError) as caught:
        make()
    return str(caught.value)


def marked_line(make: Callable[[], None]) -> int | None:
    lines, first = inspect.getsourcelines(make)
    return next((first + i for i, line in enumerate(lines) if line.endswith("# here\n")), None)


@pytest.mark.parametrize(
    ("make", "name", "problem", "remedy"), CASES, ids=lambda c: getattr(c, "__name__", "")
)
def test_refused_at_class_time(make, name, problem, remedy):
    message = refusal_of(make)
    assert message.startswith("machine Bad: ")
    finding = next((line for line in message.splitlines()[1:] if problem in line), message)
    where, _, what = finding.strip().partition("  ")
    file, _, line = where.rpartition(":")
    assert what.startswith(f"{name}: ")
    assert problem in what
    assert remedy in what
    assert file == __file__
    if marked_line(make) is not None:
        assert int(line) == marked_line(make)
    assert int(line) > 0


def test_the_marks_are_read():
    assert sum(marked_line(make) is not None for make, *_ in CASES) > 35


def test_all_findings_of_a_class_at_once():
    def make():
        class Bad(Machine[Box]):
            idle = State(initial=True)
            island = State(timeout=-1)
            end = State(final=True, effect=work)
            send = idle.to(end, cond="redy", on="wave")
            gone = island.to(end)

    lines = refusal_of(make).splitlines()
    assert lines[0] == f"machine Bad: {len(lines) - 1} finding(s)"
    for part in ("send: is an attr", "idle: has neither", "island: cannot", "timeout=-1", "'redy'",
                 "'wave'", "timeout= and on_timeout=", "end: is final"):  # fmt: skip
        assert any(part in line for line in lines), part


def test_what_is_right_is_accepted():
    class Whole(Machine[Box]):
        payloads = (Lost, Ended)
        idle = State(initial=True, effect=work, on_exhausted="lost", timeout=5, on_timeout="late")
        busy = State(child="kid", on_child="ended")
        end = State(final=True)
        late = idle.to(busy, cond="(a and not b) or b")
        lost = idle.to(end)
        ended = busy.to(end, cond="a") | busy.to(idle)

        def a(self):
            return True

        def b(self):
            return False

        def kid(self, context):
            return None

        @requires(late, "lost")
        def fine(self, context, event, now_ms):
            return True

    assert [state.id for state in Whole.states] == ["idle", "busy", "end"]


@pytest.mark.parametrize(
    ("expression", "names"),
    [("a", ["a"]), ("a and not b", ["a", "b"]), ("(a or b) and c", ["c", "a", "b"])],
)
def test_guard_names(expression, names):
    assert sorted(guard_names(expression)) == sorted(names)


@pytest.mark.parametrize(
    ("expression", "seen"),
    [("a > 1", "Compare"), ("a()", "Call"), ("a and", "cannot be read"), ("1", "Constant"),
     ("a.b", "Attribute"), ("", "cannot be read"), ("a if b else c", "IfExp")],
)  # fmt: skip
def test_guards_are_names_and_connectives_only(expression, seen):
    with pytest.raises(ValueError, match=seen):
        guard_names(expression)
