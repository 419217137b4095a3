"""Each oracle is silent about what is well and says what is not, whatever it is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine.contracts import Verdict
from engine.ids import idempotency_key
from engine.journal import Entry
from engine.ports import PastEffect, PastEvent, StoredRun
from engine.run import Pending, Run
from engine.table import Table, compile_table
from engine.verification import environment, oracles
from engine.verification.environment import Environment, always
from engine.verification.oracles import Breach, standing_of


@pytest.fixture(autouse=True)
def own_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is forgotten after it."""
    monkeypatch.setattr(environment, "_BY_MACHINE", dict(environment._BY_MACHINE))


@pytest.fixture
def table(zoo: Any) -> Table:
    return compile_table(zoo.Shop)


@pytest.fixture
def order(zoo: Any) -> Any:
    return zoo.Order(amount=5)


def entry(
    seq: int, event: str, source: str, target: str, context: Any = None, **more: Any
) -> Entry:
    fields = {"payload": None, "verdicts": (), "status": "waiting", "at_ms": seq} | more
    return Entry(
        run_id="r", seq=seq, event=event, source=source, target=target, context=context, **fields
    )


def stored(**changes: Any) -> StoredRun:
    own = {name: changes.pop(name) for name in ("fence", "due_ms", "owner") if name in changes}
    fields: dict[str, Any] = {
        "run_id": "r", "machine": "Shop", "version": "v", "key": None, "state": "packing",
        "status": "waiting", "seq": 2, "entered_seq": 2, "context": None, "created_ms": 1,
    }  # fmt: skip
    rest = {"fence": 3, "owner": None, "due_ms": None, "stalls": 0, "updated_ms": 2, "output": None}
    return StoredRun(run=Run(**(fields | changes)), **(rest | own))


def record(seq: int, effect: str, **changes: Any) -> PastEffect:
    fields: dict[str, Any] = {
        "run_id": "r", "seq": seq, "name": effect, "key": idempotency_key("r", seq, effect),
        "attempts": 1, "open": False, "next_ms": 0, "status": "done", "undo_of": None,
        "last_error": None, "calls": 1, "closed_seq": seq + 1,
    }  # fmt: skip
    return PastEffect(**(fields | changes))


def said(breaches: Any) -> list[str]:
    return [breach.rule for breach in breaches]


WAY = [entry(1, "$start", "", "charging"), entry(2, "charged", "charging", "packing")]


def test_a_run_of_any_store_is_read_by_the_same_names() -> None:
    pending = Pending(
        seq=2, name="refund", key="k", attempts=0, open=False, next_ms=0, undo_of="charging"
    )
    row = standing_of(stored(effect=pending, status="cancelled", last_error="e"))
    assert (row.undo_of, row.live, row.last_error) == ("charging", False, "e")
    assert oracles.ended([row]) == {"r": ("packing", "cancelled", 2, None)}
    assert standing_of(stored()).live


def test_folding_compares_where_the_journal_ends() -> None:
    assert said(oracles.check_fold(standing_of(stored()), WAY)) == []
    (breach,) = oracles.check_fold(standing_of(stored(seq=3, state="done")), WAY)
    assert breach == Breach(
        "journal", "stored at seq 3 in done, but the journal ends at seq 2 in packing"
    )
    assert said(oracles.check_fold(standing_of(stored()), WAY[1:])) == ["journal"]
    assert said(oracles.check_fold(standing_of(stored()), [])) == ["journal"]


def test_the_context_is_the_last_entrys() -> None:
    ends = [entry(1, "$start", "", "charging", b"{}")]
    assert said(oracles.check_context(b"{}", ends)) == []
    assert said(oracles.check_context(b"{ }", ends)) == ["journal"]


def test_deciding_again(table: Table, order: Any) -> None:
    verdict = Verdict("amount_positive", "invariant", True, {"context.amount": 5})
    start = entry(1, "$start", "", "charging", order, verdicts=(verdict,), status="pending")
    assert said(oracles.check_replay(table, [start])) == []
    forgotten = msgspec.structs.replace(start, verdicts=())
    (breach,) = oracles.check_journal(
        standing_of(stored(state="charging", seq=1)), table, [forgotten]
    )
    assert breach.rule == "replay"
    assert "decides otherwise than recorded: entry 1" in breach.problem
    assert said(oracles.check_replay(table, [])) == []  # that is for `check_fold` to say


def test_nothing_follows_the_end() -> None:
    end = entry(2, "charged", "charging", "done", status="completed")
    row = standing_of(stored(status="completed"))
    assert said(oracles.check_after_end(row, [WAY[0], end])) == []
    more = entry(3, "noted", "done", "done", status="completed")
    assert said(oracles.check_after_end(row, [WAY[0], end, more])) == ["moved after end"]
    assert said(oracles.check_after_end(row, WAY)) == ["moved after end"]
    assert said(oracles.check_after_end(standing_of(stored()), [WAY[0], end])) == [
        "moved after end"
    ]
    held = standing_of(stored(status="quarantined"))
    assert said(oracles.check_after_end(held, WAY)) == []  # bookkeeping, not an end


def test_a_false_contract_is_never_committed() -> None:
    guard = Verdict("is_welcome", "guard", False, {})
    broken = Verdict("notes_add_up", "ensures", False, {})
    assert said(oracles.check_contracts([entry(1, "a", "", "b", verdicts=(guard,))])) == []
    assert said(oracles.check_contracts([entry(1, "a", "", "b", verdicts=(broken,))])) == [
        "contract"
    ]


def test_invariants_of_machine_and_state_hold_after_every_entry(
    table: Table, zoo: Any, order: Any
) -> None:
    well = [entry(1, "$start", "", "charging", order)]
    assert said(oracles.check_invariants(table, well)) == []
    free = entry(1, "$start", "", "charging", zoo.Order(amount=0))
    done = entry(2, "shipped", "shipping", "done", order)
    problems = [one.problem for one in oracles.check_invariants(table, [free, done])]
    assert problems == [
        "after entry 1, in charging: amount_positive does not hold",
        "after entry 2, in done: has_receipt does not hold",
    ]
    odd = entry(1, "$start", "", "charging", SimpleNamespace())
    (raised,) = oracles.check_invariants(table, [odd])
    assert raised.problem.endswith("amount_positive raised AttributeError")


def test_compensations_are_complete_and_the_newest_comes_first(table: Table) -> None:
    charge, refund = record(1, "charge"), record(3, "refund", undo_of="charging")
    failed, done = standing_of(stored(status="failed")), {charge.key: 1, refund.key: 1}
    assert said(oracles.check_effects(failed, table, WAY, [charge, refund], done)) == []
    assert said(oracles.check_effects(failed, table, WAY, [charge, refund])) == []
    assert said(oracles.check_effects(failed, table, WAY, [charge], done)) == [
        "compensation skipped"
    ]
    assert said(oracles.check_effects(failed, table, WAY, [refund], done)) == ["compensation order"]


def test_the_ledger_has_what_is_recorded_as_done(table: Table) -> None:
    row, charge = standing_of(stored()), record(1, "charge")
    assert said(oracles.check_effects(row, table, WAY, [charge], {})) == ["effect never done"]
    left = record(1, "charge", status="abandoned")
    cancelled = [WAY[0], entry(2, "$cancel", "charging", "charging")]
    assert said(oracles.check_effects(row, table, cancelled, [left], {})) == []
    found = oracles.check_effects(row, table, cancelled, [left], {left.key: 1})
    assert said(found) == ["cancel lost an effect"]
    assert said(oracles.check_effects(row, table, WAY, [left], {left.key: 1})) == []


@pytest.mark.parametrize(
    "changes, seen",
    [
        ({"calls": 0}, "no attempt was counted"),
        ({"key": "another"}, "another idempotency key"),
        ({"closed_seq": 1}, "before it began"),
        ({"name": "refund", "key": idempotency_key("r", 1, "refund")}, "expected charge"),
        ({"undo_of": "packing"}, "expected none, the one of packing"),
    ],
)
def test_a_record_is_of_what_its_entry_decided(
    table: Table, changes: dict[str, Any], seen: str
) -> None:
    assert said(oracles.check_records(table, WAY, [record(1, "charge")])) == []
    (breach,) = oracles.check_records(table, WAY, [record(1, "charge", **changes)])
    assert (breach.rule, seen in breach.problem) == ("effect", True)


def test_an_effect_that_was_decided_is_recorded(table: Table) -> None:
    (breach,) = oracles.check_records(table, WAY, [])
    assert breach.problem == "entry 1 entered charging, but effect charge was not recorded"


def event(name: str, seq: int | None, key: str = "k", number: int = 1) -> PastEvent:
    status: Any = "accepted" if seq is None else "applied"
    return PastEvent(number=number, key=key, event=name, status=status, consumed_seq=seq)


def test_every_transition_has_a_cause(table: Table) -> None:
    charge = record(1, "charge")
    assert said(oracles.check_causes(table, WAY, [charge], [])) == []
    assert said(oracles.check_causes(table, WAY, [], [])) == ["no cause"]
    assert said(oracles.check_causes(table, WAY, [], [event("charged", 2)])) == []
    assert said(oracles.check_causes(table, WAY, [], [event("charged", None)])) == ["no cause"]
    assert said(oracles.check_causes(table, WAY, [charge], [event("noted", 2)])) == ["inbox"]
    twice = [event("charged", 2), event("charged", 2, number=2)]
    assert said(oracles.check_causes(table, WAY, [], twice)) == ["inbox"]
    late = entry(3, "$start", "packing", "charging")
    assert said(oracles.check_causes(table, [*WAY, late], [charge], [])) == ["no cause"]


def test_timers_and_waiting_cancels_need_no_event(table: Table) -> None:
    charge = [record(1, "charge")]
    timer = entry(3, "expire", "packing", "expired")
    assert said(oracles.check_causes(table, [*WAY, timer], charge, [])) == []
    asked = [*WAY, entry(3, "$cancel", "packing", "packing")]
    assert said(oracles.check_causes(table, asked, charge, [event("$cancel", 3)])) == []
    later = [*asked, entry(4, "$cancel", "packing", "packing")]
    assert said(oracles.check_causes(table, later, charge, [event("$cancel", 3)])) == []
    own = [*WAY, entry(3, "cancel", "packing", "expired")]
    assert said(oracles.check_causes(table, own, charge, [event("$cancel", 3)])) == []
    assert said(oracles.check_causes(table, own, charge, [])) == ["no cause"]
    closing = [*WAY, entry(3, "$child_ended", "packing", "packing")]
    told = [event("back", 3, key="child:c:ended")]
    assert said(oracles.check_causes(table, closing, charge, told)) == []
    assert said(oracles.check_causes(table, closing, charge, [event("back", 3)])) == ["inbox"]


def test_a_fence_only_grows_and_is_of_one_worker() -> None:
    way = [*WAY, entry(3, "noted", "packing", "packing", worker="b")]
    assert said(oracles.check_fences(stored(), way, [0, 0, 3])) == []
    assert said(oracles.check_fences(stored(), way, [0, 3, 2])) == ["fence"]
    assert said(oracles.check_fences(stored(), way, [0, 3, 3])) == ["fence"]
    assert said(oracles.check_fences(stored(fence=1), way, [0, 2, 3])) == ["fence"]


def test_a_run_is_due_no_later_than_its_timer() -> None:
    assert said(oracles.check_due(stored(deadline_ms=9, due_ms=9))) == []
    assert said(oracles.check_due(stored(deadline_ms=9, due_ms=4))) == []
    assert said(oracles.check_due(stored(deadline_ms=9, due_ms=10))) == ["due"]
    assert said(oracles.check_due(stored(deadline_ms=9))) == ["due"]
    assert said(oracles.check_due(stored(deadline_ms=9, status="paused"))) == []


def test_only_faults_set_a_run_aside(table: Table) -> None:
    def of(reason: str | None, state: str = "packing") -> Any:
        return standing_of(stored(status="quarantined", last_error=reason, state=state))

    def rules(row: Any) -> list[str]:
        return said(oracles.check_quarantine(row, table))

    assert rules(standing_of(stored())) == []
    assert rules(of("effect charge given up: no")) == []
    assert rules(of("effect charge given up: no", "charging")) == ["quarantined"]
    assert rules(of("effect charge given up: no", "forgotten")) == []
    assert rules(of("outcome of effect charge unknown: no")) == []
    assert rules(of("outcome of effect charge: guard x is false")) == []
    assert rules(of("event noted: ensures y does not hold")) == ["quarantined"]
    assert rules(of(None)) == ["quarantined"]
    assert said(oracles.check_reason(of(None))) == ["no reason"]
    assert said(oracles.check_reason(of("why"))) == []


def test_a_run_that_has_ended_stays_as_it_was() -> None:
    row = standing_of(stored(status="completed"))
    before = oracles.ended([row])
    assert said(oracles.check_ended([row], before)) == []
    moved = standing_of(stored(status="completed", seq=3))
    assert said(oracles.check_ended([moved], before)) == ["ended run moved"]
    assert said(oracles.check_ended([], before)) == ["ended run moved"]


def test_an_authors_own_properties_hold_after_every_entry(zoo: Any, order: Any) -> None:
    class OfShop(Environment):
        machine = zoo.Shop

        @always
        def cheap(self, context: Any) -> bool:
            return context.amount < 5

        @always
        def charged_before_packing(self, state: str, done: list[Any]) -> bool:
            return state != "packing" or [one.effect for one in done] == ["charge"]

        @always
        def told(self, done: list[Any]) -> bool:
            return all(one.event is not None for one in done)

    charged = zoo.Charged(receipt="x")
    way = [
        entry(1, "$start", "", "charging", zoo.Order(amount=1)),
        entry(2, "charged", "charging", "packing", order, payload=charged),
        entry(3, "noted", "packing", "packing", order),
    ]
    found = [one.problem for one in oracles.check_always(OfShop(), way, [record(1, "charge")])]
    assert found == ["after entry 2, in packing: cheap"]
    unpaid = [one.problem for one in oracles.check_always(OfShop(), way, [])]
    assert "after entry 2, in packing: charged_before_packing" in unpaid


def test_a_property_that_raises_is_a_breach_and_not_a_crash(zoo: Any, order: Any) -> None:
    class Raising(Environment):
        machine = zoo.Errand

        @always
        def divides(self, context: Any) -> bool:
            return bool(1 // (context.amount - 5))

    (breach,) = oracles.check_always(Raising(), [entry(1, "$start", "", "fetching", order)], [])
    assert breach.problem == "after entry 1, in fetching: a property raised ZeroDivisionError"
