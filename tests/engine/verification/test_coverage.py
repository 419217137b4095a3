"""What counts as touched, by who sends the event."""

from __future__ import annotations

from engine import Call, Context, Event, Machine, NotDone, State, effect, seconds
from engine.table import compile_table
from engine.verification.coverage import Coverage, cell_named, fault_named, named


class Empty(Context):
    pass


class Made(Event, tag="made"):
    number: int


@effect()
async def make(context: Empty, call: Call) -> Made:
    raise AssertionError("never called")


@make.reconcile
async def find(context: Empty, call: Call) -> Made | NotDone:
    raise AssertionError("never called")


class Maker(Machine[Empty]):
    making = State(initial=True, effect=make, on_exhausted="no_luck")
    waiting = State(waits=True, timeout=seconds(5), on_timeout="over")
    done = State(final=True)
    late = State(final=True, failure=True)
    made = making.to(waiting)
    no_luck = making.to(late)
    collect = waiting.to(done)
    over = waiting.to(late)


TABLE = compile_table(Maker)
MADE = ("making", "made", "waiting")
COLLECT = ("waiting", "collect", "done")


def faults_of(coverage: Coverage, event: str) -> set[str]:
    return {fault for (_, name, _), fault in coverage.all_faults if name == event}


def test_faults_depend_on_who_sends_the_event() -> None:
    coverage = Coverage(TABLE)
    assert faults_of(coverage, "made") == {
        "dies after it", "dies in the call", "answer lost", "run lost",
    }  # fmt: skip
    assert faults_of(coverage, "collect") == {"dies after it", "dies before it", "event twice"}
    assert faults_of(coverage, "over") == {"dies after it", "dies before it"}
    assert faults_of(coverage, "no_luck") == {"dies after it"}


def test_what_was_tried_is_no_gap_any_more() -> None:
    coverage = Coverage(TABLE)
    assert coverage.lacks(COLLECT, "event twice")
    coverage.failed(COLLECT, "event twice")
    assert not coverage.lacks(COLLECT, "event twice")
    assert (COLLECT, "event twice") not in coverage.missing_faults


def test_a_fault_that_cannot_be_is_not_counted() -> None:
    coverage = Coverage(TABLE)
    coverage.failed(MADE, "event twice")
    assert coverage.faults == set()
    assert not coverage.lacks(MADE, "event twice")


def test_complete_needs_every_transition_cell_and_mark_and_almost_every_fault() -> None:
    coverage = Coverage(TABLE, marks=["seen once"])
    assert not coverage.complete
    coverage.transitions.update(coverage.all_transitions)
    coverage.cells.update(coverage.all_cells)
    coverage.faults.update(coverage.all_faults)
    assert not coverage.complete and coverage.missing_marks == ["seen once"]
    coverage.seen.add("seen once")
    assert coverage.complete
    coverage.faults.clear()
    assert not coverage.complete


def test_reasons_close_gaps_and_only_needed_ones_are_told() -> None:
    reasons = {
        named(COLLECT): "nobody collects",
        cell_named(("waiting", "made")): "made once",
        fault_named((MADE, "run lost")): "one worker",
    }
    coverage = Coverage(TABLE, reasons=reasons)
    assert COLLECT not in coverage.missing_transitions
    assert ("waiting", "made") not in coverage.missing_cells
    assert (MADE, "run lost") not in coverage.missing_faults
    assert (COLLECT, "event twice") not in coverage.missing_faults
    assert coverage.excused == reasons
    coverage.transitions.add(COLLECT)
    assert named(COLLECT) not in coverage.excused


def test_names() -> None:
    assert named(MADE) == "making --made--> waiting"
    assert cell_named(("waiting", "made")) == "made in waiting"
    assert fault_named((MADE, "answer lost")) == "making --made--> waiting x answer lost"
