"""The pure step: the order of evaluation, and that nothing happens unless all of it holds."""

from __future__ import annotations

import pytest

from engine import Context, Event, Machine, State, ensures, invariant, requires
from engine.decide import Decision, Rejection, Violation, begin, decide
from engine.errors import BadPayload, UnknownEvent
from engine.ids import child_run_id, idempotency_key
from engine.table import Child, compile_table

CALLED: list[str] = []


class Counter(Context):
    count: int = 0
    break_at: str = ""


class Add(Event, tag="add"):
    number: int


def _called(name: str, context: Counter) -> bool:
    CALLED.append(name)
    if context.break_at == f"raise {name}":
        raise ValueError("the secret is 1234")
    return context.break_at != name


class Trace(Machine[Counter]):
    """Every clause and action says when it was called, and breaks when told."""

    low = State(initial=True, waits=True)
    high = State(waits=True, invariant="in_high")
    end = State(final=True)

    add = low.to(high, cond="first and second", on="inline") | low.to.itself(unless="first")
    stop = high.to(end)

    def first(self, context: Counter) -> bool:
        return _called("first", context)

    def second(self, context: Counter) -> bool:
        return _called("second", context)

    @requires(add)
    def needed(self, context: Counter, event: Add) -> bool:
        return _called("needed", context)

    def on_exit_low(self, context: Counter) -> Counter:
        _called("exit", context)
        return context

    def inline(self, context: Counter, event: Add) -> Counter:
        _called("inline", context)
        return self.but(context, count=context.count + event.number)

    def on_add(self, context: Counter) -> Counter:
        _called("on", context)
        return self.but(context, count=context.count * 10)

    def on_enter_high(self, context: Counter) -> Counter:
        _called("enter", context)
        return None if context.break_at == "enter" else context

    @ensures(add)
    def grown(self, old: Counter, new: Counter, event: Add) -> bool:
        return _called("grown", new)

    def in_high(self, context: Counter) -> bool:
        return _called("in_high", context)

    @invariant
    def always(self, context: Counter) -> bool:
        return _called("always", context)


TABLE = compile_table(Trace)
NOW = 1_000


def run_of(context: Counter = Counter()):  # noqa: B008 - immutable
    begun = begin(TABLE, run_id="r1", context=Counter(), now_ms=NOW)
    assert isinstance(begun, Decision)
    CALLED.clear()
    return begun.after.but(context=context)


def test_order_of_evaluation():
    result = decide(TABLE, run_of(), "add", Add(number=2), NOW)
    assert CALLED == [
        "first", "second", "needed", "exit", "inline", "on", "enter", "grown", "in_high", "always",
    ]  # fmt: skip
    assert isinstance(result, Decision)
    assert (result.after.state, result.after.seq, result.after.context.count) == ("high", 2, 20)
    assert [(v.kind, v.clause, v.ok) for v in result.entry.verdicts] == [
        ("guard", "first and second", True),
        ("requires", "needed", True),
        ("ensures", "grown", True),
        ("invariant", "in_high", True),
        ("invariant", "always", True),
    ]
    assert result.entry.source == "low"
    assert result.entry.payload == Add(number=2)
    assert result.entry.context == result.after.context


def test_a_guard_decides_between_transitions():
    result = decide(TABLE, run_of(Counter(break_at="first")), "add", Add(number=1), NOW)
    assert isinstance(result, Decision)
    assert result.after.state == "low"
    assert "exit" not in CALLED


@pytest.mark.parametrize(
    ("break_at", "reason"),
    [
        ("second", "guard first and second is false (nothing to see); guard not (first) is"),
        ("needed", "precondition needed does not hold (nothing to see)"),
    ],
)
def test_refusal_changes_nothing_and_says_which_clause(break_at, reason):
    run = run_of(Counter(break_at=break_at))
    result = decide(TABLE, run, "add", Add(number=1), NOW)
    assert isinstance(result, Rejection)
    assert result.reason.startswith(reason)
    assert "exit" not in CALLED
    assert run == run_of(Counter(break_at=break_at))


def test_an_event_of_another_state_is_refused_with_what_is_handled():
    result = decide(TABLE, run_of(), "stop", None, NOW)
    assert isinstance(result, Rejection)
    assert result.reason == "state 'low' does not handle it (it handles: add)"


def test_unknown_event_and_wrong_payload_are_the_callers_mistakes():
    with pytest.raises(UnknownEvent, match=r"no event 'nope'.*add, stop"):
        decide(TABLE, run_of(), "nope", None, NOW)
    with pytest.raises(BadPayload, match=r"expects Add\(number\), got NoneType"):
        decide(TABLE, run_of(), "add", None, NOW)
    with pytest.raises(BadPayload, match="carries no payload, got Add"):
        decide(TABLE, run_of().but(state="high"), "stop", Add(number=1), NOW)


@pytest.mark.parametrize("clause", ["grown", "in_high", "always"])
def test_a_broken_promise_is_a_violation(clause):
    result = decide(TABLE, run_of(Counter(break_at=clause)), "add", Add(number=1), NOW)
    assert isinstance(result, Violation)
    assert f"{clause} does not hold" in result.reason
    assert not next(v for v in result.verdicts if v.clause == clause).ok


@pytest.mark.parametrize(
    "name", ["first", "second", "needed", "exit", "inline", "on", "enter", "grown", "always"]
)
def test_an_exception_is_a_violation_and_its_message_stays_inside(name):
    result = decide(TABLE, run_of(Counter(break_at=f"raise {name}")), "add", Add(number=1), NOW)
    assert isinstance(result, Violation)
    assert "ValueError at line" in result.reason
    assert "1234" not in repr(result)


def test_an_action_must_return_the_context():
    result = decide(TABLE, run_of(Counter(break_at="enter")), "add", Add(number=1), NOW)
    assert isinstance(result, Violation)
    assert "returned NoneType, expected Counter; return the new context" in result.reason


def test_the_same_input_gives_the_same_output():
    run = run_of()
    first = decide(TABLE, run, "add", Add(number=7), NOW)
    assert all(decide(TABLE, run, "add", Add(number=7), NOW) == first for _ in range(5))
    assert run.context == Counter()


def test_begin_refuses_a_context_that_breaks_an_invariant():
    result = begin(TABLE, run_id="r1", context=Counter(break_at="always"), now_ms=NOW)
    assert isinstance(result, Violation)
    assert result.reason.startswith("invariant always does not hold")


# -- what entering a state arms -----------------------------------------------------------------


def test_entering_arms_the_effect_with_a_derived_key(zoo):
    begun = begin(compile_table(zoo.Shop), run_id="r1", context=zoo.Order(), now_ms=NOW)
    assert begun.before is None
    assert begun.after.status == "pending"
    effect = begun.after.effect
    assert (effect.name, effect.seq, effect.attempts, effect.open) == ("charge", 1, 0, False)
    assert effect.key == idempotency_key("r1", 1, "charge")
    assert (begun.entry.event, begun.entry.source, begun.entry.target) == ("$start", "", "charging")


def test_entering_sets_the_timer_and_staying_keeps_it(zoo):
    table = compile_table(zoo.Shop)
    run = begin(table, run_id="r1", context=zoo.Order(), now_ms=NOW).after
    paid = decide(table, run, "charged", zoo.Charged(receipt="x"), NOW, from_effect=True).after
    assert (paid.deadline_ms, paid.undo, paid.status) == (NOW + 3_600_000, ("charging",), "waiting")
    later = decide(table, paid, "noted", zoo.Noted(count=1), NOW + 5).after
    assert (later.deadline_ms, later.entered_seq, later.seq) == (paid.deadline_ms, 2, 3)


def test_only_the_effects_own_success_has_to_be_undone(zoo):
    table = compile_table(zoo.Shop)
    run = begin(table, run_id="r1", context=zoo.Order(), now_ms=NOW).after
    told = decide(table, run, "charged", zoo.Charged(receipt="x"), NOW).after
    assert told.undo == ()


def test_a_repeated_effect_waits_for_every(zoo):
    table = compile_table(zoo.Shop)
    run = begin(table, run_id="r1", context=zoo.Order(), now_ms=NOW).after
    own = decide(table, run, "noted", zoo.Noted(count=1), NOW, from_effect=True).after
    assert (own.effect.next_ms, own.effect.seq, own.status) == (NOW + 5_000, 2, "waiting")
    other = decide(table, run, "noted", zoo.Noted(count=1), NOW).after
    assert other.effect == run.effect


def test_a_failed_end_first_undoes(zoo):
    table = compile_table(zoo.Shop)
    run = begin(table, run_id="r1", context=zoo.Order(), now_ms=NOW).after
    paid = decide(table, run, "charged", zoo.Charged(receipt="x"), NOW, from_effect=True).after
    result = decide(table, paid, "expire", None, NOW + 3_600_000)
    assert (result.after.state, result.after.closing, result.after.status) == (
        "expired", "failed", "running",
    )  # fmt: skip
    assert (result.after.effect.name, result.after.effect.undo_of) == ("refund", "charging")
    refused = decide(table, result.after, "expire", None, NOW)
    assert refused.reason == "the run is closing as failed"


class Family(Machine[Counter]):
    """A state with a child, one that keeps it, one that leaves it."""

    raising = State(initial=True, child="kid", on_child="grown_up")
    watching = State(follows_child=True, on_child="grown_up")
    alone = State(waits=True)
    lonely = State(waits=True)
    end = State(final=True)

    watch = raising.to(watching)
    leave = watching.to(alone)
    cling = alone.to(watching)
    grown_up = raising.to(end) | watching.to(end)
    done = alone.to(lonely) | lonely.to(end)

    def kid(self, context: Counter) -> Child:
        if context.break_at == "kid":
            raise ValueError("the secret is 1234")
        return Child("Trace", Counter(count=context.count))


def test_a_child_is_named_after_the_step_that_starts_it():
    table = compile_table(Family)
    begun = begin(table, run_id="r1", context=Counter(count=3), now_ms=NOW)
    assert begun.child.run_id == begun.after.child == child_run_id("r1", 1)
    assert begun.child.child.context == Counter(count=3)
    watching = decide(table, begun.after, "watch", None, NOW)
    assert (watching.child, watching.after.child) == (None, begun.after.child)
    alone = decide(table, watching.after, "leave", None, NOW).after
    assert alone.child is None
    broken = decide(table, alone, "cling", None, NOW)
    assert isinstance(broken, Violation)
    assert broken.reason == "state watching follows a child, but none is alive"


def test_a_child_that_cannot_be_described_is_a_violation():
    result = begin(compile_table(Family), run_id="r1", context=Counter(break_at="kid"), now_ms=NOW)
    assert isinstance(result, Violation)
    assert "the child of raising raised ValueError" in result.reason
    assert "1234" not in result.reason
