"""Each check finds a machine with exactly that defect, and leaves a clean one alone."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from time import time as moment
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from engine import (
    Again,
    Call,
    Context,
    Event,
    GaveUp,
    Machine,
    Retry,
    State,
    effect,
    ensures,
    invariant,
    requires,
    seconds,
)
from engine.contracts import Clause
from engine.events import ChildEnded
from engine.table import Child, Table, compile_table
from engine.verification.lint import lint

# -- a clean machine, and its table with one thing changed ----------------------------------------


class Order(Context):
    price: int = 10
    paid: int = 0
    tries: int = 0


class Paid(Event, tag="paid"):
    amount: int


class Charged(Event, tag="charged"):
    amount: int


class Declined(Event, tag="declined"):
    """The card was refused."""


class GivenUp(GaveUp, tag="given_up"):
    """No answer from the bank."""


@effect(idempotent=True)
async def charge(context: Order, call: Call) -> Charged | Declined:
    return Declined()


@effect(idempotent=True)
async def poll(context: Order, call: Call) -> Charged | Again:
    return Again()


class Clean(Machine[Order]):
    """Nothing to find here."""

    payloads = (GivenUp,)

    charging = State(
        initial=True,
        effect=charge,
        on_exhausted="given_up",
        timeout=seconds(60),
        on_timeout="time_up",
    )
    done = State(final=True, invariant="is_paid")
    failed = State(final=True, failure=True)

    charged = charging.to(done, cond="is_enough") | charging.to(failed)
    declined = charging.to(failed)
    given_up = charging.to(failed)
    time_up = charging.to(failed)

    def is_enough(self, context: Order, event: Charged) -> bool:
        return event.amount >= context.price

    def on_charged(self, context: Order, event: Charged) -> Order:
        return self.but(context, paid=event.amount)

    @requires(charged)
    def is_positive(self, event: Charged) -> bool:
        return event.amount > 0

    @ensures(charged)
    def is_counted(self, new: Order, event: Charged) -> bool:
        return new.paid == event.amount

    @invariant
    def costs_something(self, context: Order) -> bool:
        return context.price > 0

    def is_paid(self, context: Order) -> bool:
        return context.paid >= context.price


CLEAN = compile_table(Clean)


def with_place(name: str, table: Table = CLEAN, **changes: Any) -> Table:
    """The table with one state changed."""
    places = {**table.places, name: replace(table.places[name], **changes)}
    return replace(table, places=places)


def without(*pairs: tuple[str, str], table: Table = CLEAN) -> Table:
    """The table without the edges of some (state, event)."""
    return replace(table, edges={k: v for k, v in table.edges.items() if k not in pairs})


def found(*machines: Any, known: Any = ()) -> list[tuple[str, str]]:
    """(code, state) of what is found, in order."""
    return [(one.code, one.state or "") for one in lint(machines, known=known).findings]


def codes(*machines: Any) -> set[str]:
    return {code for code, _ in found(*machines)}


def the(code: str, *machines: Any) -> Any:
    """The one finding, which is of this code."""
    (one,) = lint(machines).findings
    assert one.code == code, one
    return one


def test_a_clean_machine_has_no_findings():
    report = lint([Clean])
    assert report.findings == () and report.ok and report.ignored == ()
    assert (report.machines, report.checks) == (("Clean",), 16)


# -- shape, over tables changed in memory (a class like that is refused when it is made) -----------


def test_v001_unreachable_and_v016_its_invariant():
    edges = {k: v for k, v in CLEAN.edges.items() if k != ("charging", "charged")}
    edges["charging", "charged"] = (CLEAN.edges["charging", "charged"][1],)
    table = replace(CLEAN, edges=edges)
    assert set(found(table)) == {("V001", "done"), ("V016", "")}


def test_v002_dead_end():
    table = without(*[(s, e) for s, e in CLEAN.edges], table=CLEAN)
    assert ("V002", "charging") in found(table)
    staying = replace(CLEAN.edges["charging", "declined"][0], target="charging")
    table = replace(table, edges={("charging", "declined"): (staying,)})
    assert ("V002", "charging") in found(table)


def test_v003_no_path_to_a_final_state():
    assert ("V003", "charging") in found(with_place("failed", with_place("done", final=False),
                                                    final=False))  # fmt: skip


class Round(Machine[Order]):
    """Declares what may come from outside in one of two states only."""

    waiting = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    checking = State(effect=charge)
    done = State(final=True)
    late = waiting.to(checking)
    paid = waiting.to(done)
    charged = checking.to(done)
    declined = checking.to(done)


class Settled(Round):
    """The same, handled."""

    waiting = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    checking = State(effect=charge)
    done = State(final=True)
    late = waiting.to(checking)
    paid = waiting.to(done) | checking.to.itself()
    charged = checking.to(done)
    declined = checking.to(done)


def test_v004_an_event_from_outside_that_a_timer_may_outrun():
    one = the("V004", Round)
    assert (one.severity, one.event) == ("warning", "paid") and "checking" in one.problem
    assert found(Settled) == []


# -- guards ---------------------------------------------------------------------------------------


class Till(Machine[Order]):
    """Base of the machines below: pays in `unpaid`, and is done."""

    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True, failure=True)
    late = unpaid.to(gone)
    paid = unpaid.to(done, cond="is_enough") | unpaid.to(gone)

    def is_enough(self, context: Order, event: Paid) -> bool:
        return event.amount >= context.price


class Overlap(Machine[Order]):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True, failure=True)
    late = unpaid.to(gone)
    paid = unpaid.to(done, cond="is_enough") | unpaid.to(gone, cond="is_huge") | unpaid.to.itself()

    def is_enough(self, context: Order, event: Paid) -> bool:
        return event.amount >= context.price

    def is_huge(self, event: Paid) -> bool:
        return event.amount > 1000


class Refining(Machine[Order]):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True, failure=True)
    late = unpaid.to(gone)
    paid = (
        unpaid.to(done, cond="is_enough and is_huge")
        | unpaid.to(gone, cond="is_huge")
        | (unpaid.to.itself())
    )
    is_enough = Overlap.is_enough
    is_huge = Overlap.is_huge


class Exclusive(Overlap):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True, failure=True)
    late = unpaid.to(gone)
    paid = (
        unpaid.to(done, cond="is_enough and not is_huge")
        | unpaid.to(gone, cond="is_huge")
        | (unpaid.to.itself())
    )


def test_v005_overlapping_guards_with_a_witness():
    one = the("V005", Overlap)
    assert (one.severity, one.method) == ("error", "checked")
    assert one.edge == "unpaid --paid [is_huge]--> gone"
    assert (
        one.witness["event.amount"] > 1000
        and one.witness["event.amount"] >= (one.witness["context.price"])
    )


def test_v005_neither_exclusion_nor_a_fallback_is_an_overlap():
    assert found(Exclusive) == found(Refining) == found(Till) == []


def test_v005_values_that_a_precondition_refuses_do_not_count():
    call = lambda values: values["event"].amount <= 1000  # noqa: E731
    refuse = Clause("is_small", "requires", call, (), 0)
    table = compile_table(Overlap)
    pay = tuple(replace(e, requires=(refuse,)) for e in table.edges["unpaid", "paid"])
    assert "V005" not in codes(replace(table, edges={**table.edges, ("unpaid", "paid"): pay}))


def test_v006_a_gap_for_somebody_outside_is_a_warning():
    table = compile_table(Till)
    table = replace(
        table, edges={**table.edges, ("unpaid", "paid"): table.edges["unpaid", "paid"][:1]}
    )
    one = the("V006", table)
    assert one.severity == "warning"
    assert one.witness["event.amount"] < one.witness["context.price"]


def test_v006_a_gap_for_an_effect_is_an_error_unless_a_precondition_refuses_first():
    charged = CLEAN.edges["charging", "charged"][:1]
    table = replace(CLEAN, edges={**CLEAN.edges, ("charging", "charged"): charged})
    one = the("V006", table)
    assert one.severity == "error" and one.witness["event.amount"] > 0


class Raising(Machine[Order]):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    late = unpaid.to(done)
    paid = unpaid.to(done, cond="is_half") | unpaid.to.itself()

    def is_half(self, context: Order, event: Paid) -> bool:
        return context.price / event.amount > 2


def test_a_guard_that_raises_is_a_finding():
    one = the("V006", Raising)
    assert "is_half raises ZeroDivisionError" in one.problem
    assert one.witness["event.amount"] == 0


class Never(Machine[Order]):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True)
    late = unpaid.to(done)
    paid = unpaid.to(gone, cond="is_both") | unpaid.to(done)

    def is_both(self, event: Paid) -> bool:
        return event.amount > 500 and event.amount < 400


class Told(Event, tag="told"):
    text: str


class Listening(Machine[Order]):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True)
    late = unpaid.to(done)
    told = (
        unpaid.to(gone, unless="is_greeting")
        | unpaid.to(done, cond="is_cheap")
        | (unpaid.to.itself())
    )

    def is_greeting(self, event: Told) -> bool:
        first, _, rest = event.text.partition(" of ")
        return first == "hello" and rest.startswith("{")

    def is_cheap(self, context: Order) -> bool:
        return context.price < 5


def test_v007_is_not_said_where_few_forms_of_a_text_were_tried():
    assert {(f.code, f.severity) for f in lint([Listening]).findings} == {("V005", "error")}


class Lately(Machine[Order]):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True)
    late = unpaid.to(done)
    paid = unpaid.to(gone, cond="is_late") | unpaid.to(done)

    def is_late(self, now_ms: int) -> bool:
        return now_ms == 86_400_001


def test_v007_moments_are_tried_like_other_numbers():
    assert found(Lately) == []


class Excluded(Machine[Order]):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True)
    late = unpaid.to(done)
    paid = unpaid.to(gone, cond="is_free") | unpaid.to(done)

    def is_free(self, context: Order) -> bool:
        return context.price == 0

    @invariant
    def costs(self, context: Order) -> bool:
        return context.price > 0


class Hidden(Machine[Order]):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True)
    late = unpaid.to(done) | unpaid.to(gone)
    paid = unpaid.to(done, cond="is_some") | unpaid.to(gone, cond="is_more") | unpaid.to(gone)

    def is_some(self, event: Paid) -> bool:
        return event.amount > 5

    def is_more(self, event: Paid) -> bool:
        return event.amount > 50


def test_v007_a_guard_that_is_never_true():
    assert "is false for every" in the("V007", Never).problem
    assert "invariants of unpaid" in the("V007", Excluded).problem


def test_v007_an_edge_behind_another():
    problems = [one.problem for one in lint([Hidden]).findings if one.code == "V007"]
    assert len(problems) == 2
    assert any("has no guard and comes before it" in one for one in problems)
    assert any("whenever its guard holds" in one for one in problems)


# -- cycles, waiting, effects ---------------------------------------------------------------------


class Hot(Machine[Order]):
    one = State(initial=True, effect=charge)
    other = State(effect=charge)
    done = State(final=True)
    charged = one.to(other) | other.to(done)
    declined = one.to(done) | other.to(one)


class Counted(Machine[Order]):
    one = State(initial=True, effect=charge)
    other = State(effect=charge)
    done = State(final=True)
    charged = one.to(other) | other.to(done)
    declined = one.to(done) | other.to(one, cond="may_try") | other.to(done)

    def may_try(self, context: Order) -> bool:
        return context.tries < 3

    def on_declined(self, context: Order) -> Order:
        return self.but(context, tries=context.tries + 1)


def test_v008_a_hot_cycle():
    one = the("V008", Hot)
    assert "one -> other" in one.problem
    assert found(Counted) == []


def test_v008_polling_and_timers_break_the_cycle():
    table = compile_table(Hot)
    assert found(with_place("one", table, every=lambda values: 5)) == []
    assert found(with_place("other", table, every=lambda values: 5)) == []


def test_v009_waiting_without_a_limit():
    table = compile_table(Till)
    one = the("V009", with_place("unpaid", table, timeout=None, on_timeout=None))
    assert one.severity == "warning"
    polling = with_place("charging", effect=poll, timeout=None, on_timeout=None)
    assert found(polling) == [("V009", "charging")]
    patient = replace_effect(charge, retry=Retry(attempts=10**9))
    assert found(with_place("charging", effect=patient, timeout=None)) == [("V009", "charging")]
    assert found(with_place("charging", timeout=None, on_timeout=None)) == []


def replace_effect(one: Any, **changes: Any) -> Any:
    return replace(one, **changes)


def test_v010_an_effect_that_nobody_can_ask_about():
    risky = replace_effect(charge, idempotent=False)
    assert the("V010", with_place("charging", effect=risky)).state == "charging"

    async def ask(context: Order, call: Call) -> Charged:
        return Charged(amount=1)

    ask.__annotations__["return"] = Charged
    assert found(with_place("charging", effect=replace_effect(risky, ask=ask))) == []


def test_v011_an_outcome_that_the_state_does_not_handle():
    one = the("V011", without(("charging", "declined")))
    assert "Declined" in one.problem and "quarantined" in one.problem
    exhausted = the("V011", without(("charging", "given_up")))
    assert "on_exhausted='given_up'" in exhausted.problem


def test_v011_an_effect_that_says_nothing():
    async def silent(context: Order, call: Call):
        return Declined()

    table = with_place("charging", effect=replace_effect(charge, perform=silent))
    assert the("V011", table).severity == "warning"


class ChildDone(ChildEnded, tag="child_done"):
    """The inner run has ended."""


class Layer(Context):
    depth: int = 0
    other: int = 0


class Endless(Machine[Layer]):
    inner = State(initial=True, child="next_layer", on_child="child_done")
    done = State(final=True)
    child_done = inner.to(done)

    def next_layer(self, context: Layer) -> Child:
        return Child("Endless", {"depth": context.depth + 1})


class Bounded(Machine[Layer]):
    choosing = State(initial=True, waits=True, timeout=seconds(1), on_timeout="go")
    inner = State(child="next_layer", on_child="child_done")
    done = State(final=True)
    go = choosing.to(inner, cond="goes_deeper") | choosing.to(done)
    child_done = inner.to(done)

    def goes_deeper(self, context: Layer) -> bool:
        return context.depth < 5

    def next_layer(self, context: Layer) -> Child:
        return Child("Bounded", Layer(depth=context.depth + 1))


class Ping(Machine[Layer]):
    inner = State(initial=True, child="pong", on_child="child_done")
    done = State(final=True)
    child_done = inner.to(done)

    def pong(self, context: Layer) -> Child:
        return Child("Pong", {})


class Pong(Machine[Layer]):
    inner = State(initial=True, child="ping", on_child="child_done")
    done = State(final=True)
    child_done = inner.to(done)

    def ping(self, context: Layer) -> Child:
        return Child("Ping", {})


def test_v012_recursion_without_a_bound():
    assert the("V012", Endless).state == "inner"
    assert found(Bounded) == []
    assert found(Ping, Pong) == [("V012", "inner"), ("V012", "inner")]
    assert found(Ping) == [("V009", "inner")]  # a child that nobody here knows


# -- purity ---------------------------------------------------------------------------------------

SEEN: list[int] = []
TIMES: dict[str, int] = {}


def by_helper(amount: int) -> bool:
    return amount > moment()


def reads_clock(self, event: Paid) -> bool:
    return event.amount > time.time()


def reads_clock_through_a_helper(self, event: Paid) -> bool:
    return by_helper(event.amount)


def reads_date(self, event: Paid) -> bool:
    return event.amount > datetime.now(UTC).year


def draws(self, event: Paid) -> bool:
    return event.amount > random.random()


def names_itself(self, event: Paid) -> bool:
    return uuid4().int > event.amount


def looks_around(self, event: Paid) -> bool:
    return os.environ.get("SHOP") is not None or event.amount > 1


def opens(self, event: Paid) -> bool:
    with open("/dev/null") as file:  # noqa: PTH123 - the defect
        return event.amount > len(file.read())


def prints(self, event: Paid) -> bool:
    print(event)
    return event.amount > 1


def hashes(self, event: Paid) -> bool:
    return hash("a") > event.amount


def remembers(self, event: Paid) -> bool:
    SEEN.append(event.amount)
    return event.amount > 1


def counts(self, event: Paid) -> bool:
    TIMES["paid"] = event.amount
    return event.amount > 1


def keeps(self, event: Paid) -> bool:
    self.last = event.amount
    return event.amount > 1


def goes_through_a_set(self, event: Paid) -> bool:
    return "".join(one for one in {"a", "b"}) == "ab" and event.amount > 1


IMPURE = (
    reads_clock,
    reads_clock_through_a_helper,
    reads_date,
    draws,
    names_itself,
    looks_around,
    opens,
    prints,
    hashes,
    remembers,
    counts,
    keeps,
    goes_through_a_set,
)


def till_with(guard: Callable[..., bool]) -> Table:
    """The till with another guard."""
    from engine.contracts import PARAMETERS, bind
    from engine.definition import methods_of

    table = compile_table(Till)
    first, *rest = table.edges["unpaid", "paid"]
    call = bind(guard, methods_of(Till), PARAMETERS["guard"])
    clause = replace(first.guards[0], name=guard.__name__, call=call, reads=())
    edges = {**table.edges, ("unpaid", "paid"): (replace(first, guards=(clause,)), *rest)}
    return replace(table, edges=edges)


@pytest.mark.parametrize("guard", IMPURE, ids=lambda guard: guard.__name__)
def test_v013_a_guard_that_is_no_function_of_its_arguments(guard, capsys):
    report = lint([till_with(guard)])
    lines = {one.line for one in report.findings if one.code == "V013"}
    first = by_helper if guard is reads_clock_through_a_helper else guard
    assert lines & set(range(first.__code__.co_firstlineno, first.__code__.co_firstlineno + 4))
    assert not report.ok


def pure(self, context: Order, event: Paid, now_ms: int) -> bool:
    """Everything here is allowed."""
    time = {"now": now_ms}
    known = {"a", "b"}
    names = sorted({"b", "a"})
    names.append("c")
    time["then"] = 5
    local = os.path.join("a", "b")  # noqa: PTH118 - pure
    return len(known | set(names)) == 3 and bool(local) and event.amount > time["then"]


def test_v013_what_is_pure_stays_unmentioned():
    assert found(till_with(pure)) == []


def test_v013_a_guard_that_answers_otherwise_the_second_time():
    answers = iter(range(10**6))

    class Fickle:
        def __call__(self, values: Any) -> bool:
            return next(answers) % 2 == 0

    table = compile_table(Till)
    first, *rest = table.edges["unpaid", "paid"]
    clause = replace(first.guards[0], name="fickle", call=Fickle())
    edges = {**table.edges, ("unpaid", "paid"): (replace(first, guards=(clause,)), *rest)}
    findings = lint([replace(table, edges=edges)]).findings
    assert any(f.code == "V013" and "two answers" in f.problem for f in findings)


# -- storing, timers, contracts -------------------------------------------------------------------


class Opaque:
    """Nothing that can be stored."""


class Holding(Context):
    thing: Any = None
    price: int = 1


class WithThing(Context):
    thing: Opaque


class Unstored(Machine[WithThing]):
    unpaid = State(initial=True, waits=True, timeout=seconds(1), on_timeout="late")
    done = State(final=True)
    late = unpaid.to(done, cond="is_there") | unpaid.to(done)

    def is_there(self, context: WithThing) -> bool:
        return context.thing is not None


def explode() -> int:
    raise RuntimeError("no price today")


class Exploding(Context):
    price: int = msgspec.field(default_factory=explode)


class Broken(Machine[Exploding]):
    unpaid = State(initial=True, waits=True, timeout=seconds(1), on_timeout="late")
    done = State(final=True)
    late = unpaid.to(done)


class Strict(Context):
    price: int = 1

    def __post_init__(self) -> None:
        if self.price != 2:
            raise RuntimeError("only two will do")


class Choosy(Machine[Strict]):
    unpaid = State(initial=True, waits=True, timeout=seconds(1), on_timeout="late")
    done = State(final=True)
    late = unpaid.to(done, cond="is_two") | unpaid.to(done)

    def is_two(self, context: Strict) -> bool:
        return context.price == 2


def test_code_that_raises_where_nobody_expects_it_is_a_finding():
    findings = lint([Broken]).findings
    assert {one.code for one in findings} == {"V000"}
    assert "no price today" in findings[0].problem and findings[0].file == __file__
    assert found(Choosy) == []


class Blurred(Context, eq=False):
    price: int = 1


class Changed(Machine[Blurred]):
    unpaid = State(initial=True, waits=True, timeout=seconds(1), on_timeout="late")
    done = State(final=True)
    late = unpaid.to(done)


def test_v014_a_context_that_cannot_be_stored():
    findings = {one.code: one for one in lint([Unstored]).findings}
    assert "thing" in findings["V014"].problem and "Opaque" in findings["V014"].problem
    assert findings["V014"].line == WithThing_line()


def WithThing_line() -> int:  # noqa: N802 - after the class
    import inspect

    return inspect.getsourcelines(WithThing)[1]


def test_v014_a_context_that_comes_back_as_something_else():
    assert "something else" in the("V014", Changed).problem


class Ticking(Machine[Order]):
    unpaid = State(initial=True, waits=True, timeout=seconds(1), on_timeout="late")
    done = State(final=True)
    gone = State(final=True, failure=True)
    late = unpaid.to(done, cond="is_paid") | unpaid.to(gone)

    def is_paid(self, context: Order) -> bool:
        return context.paid > 0


def ticking() -> Table:
    """The class is refused with such an edge, so the table is changed in memory."""
    table = compile_table(Ticking)
    paid, _ = table.edges["unpaid", "late"]
    stays = replace(table.edges["unpaid", "late"][1], target="unpaid")
    return replace(table, edges={**table.edges, ("unpaid", "late"): (paid, stays)})


def test_v015_a_timer_that_fires_for_ever():
    (one,) = [found for found in lint([ticking()]).findings if found.code == "V015"]
    assert one.severity == "error" and one.edge == "unpaid --late--> unpaid"


def test_v016_a_contract_that_was_detached():
    edges = {k: tuple(replace(e, ensures=()) for e in v) for k, v in CLEAN.edges.items()}
    assert "is_counted" in the("V016", replace(CLEAN, edges=edges)).problem
    assert "costs_something" in the("V016", replace(CLEAN, invariants=())).problem


# -- ignoring -------------------------------------------------------------------------------------


class Ignoring(Machine[Order]):
    first = State(initial=True, waits=True)  # turtles: ignore[V009] an operator looks daily
    second = State(waits=True)  # turtles: ignore[V009]
    # turtles: ignore[V009] on a line of its own
    third = State(waits=True)
    fourth = State(waits=True, timeout=5, on_timeout="go")  # turtles: ignore[V009] unneeded
    done = State(final=True)  # turtles: ignore[V999] no such code
    go = first.to(second) | second.to(third) | third.to(fourth) | fourth.to(done)


def test_v000_an_ignore_needs_a_reason_a_code_and_something_to_ignore():
    report = lint([Ignoring])
    assert [(i.finding.state, i.reason) for i in report.ignored] == [
        ("first", "an operator looks daily"),
        ("third", "on a line of its own"),
    ]
    shown = [(f.code, f.severity, f.state) for f in report.findings]
    assert shown == [
        ("V000", "error", None),
        ("V009", "warning", "second"),
        ("V000", "warning", None),
        ("V000", "error", None),
    ]


def test_findings_say_where_and_are_sorted():
    report = lint([Overlap, Hot, Round])
    assert {one.file for one in report.findings} == {__file__}
    assert [one.line for one in report.findings] == sorted(one.line for one in report.findings)
    assert all(one.remedy and one.problem for one in report.findings)
