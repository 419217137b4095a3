"""Mutants of a small machine: which there are, what each changes, and what notices it."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from engine import Context, Event, Machine, State, ensures, invariant, requires
from engine.clock import minutes
from engine.decide import Decision, Rejection, Violation, begin, decide
from engine.effects import Call, effect
from engine.events import GaveUp
from engine.table import compile_table
from engine.verification.mutants import as_json, lines, mutants_of, mutate
from engine.verification.mutating.operators import changes_of
from persistence.store import open_store


class Cart(Context):
    """A cart that is paid once."""

    due: int = 3
    paid: int = 0


class Paid(Event, tag="paid"):
    """Some coins."""

    amount: int


class Lost(GaveUp, tag="lost"):
    """Nobody answers."""


@effect(idempotent=True)
async def collect(context: Cart, call: Call) -> Paid:
    """Ask for coins."""
    return Paid(amount=context.due)


def _missing(context: Cart) -> int:
    return context.due - context.paid


class Till(Machine[Cart]):
    """Collects what is due."""

    payloads = (Lost,)

    asking = State(
        initial=True, effect=collect, on_exhausted="lost", timeout="patience", on_timeout="late"
    )
    settled = State(final=True, invariant="nothing_is_missing")
    given_up = State(final=True, failure=True)

    paid = asking.to(settled, cond="is_enough") | asking.to(asking)
    late = asking.to(given_up)
    lost = asking.to(given_up)

    def patience(self, context: Cart) -> int:
        return minutes(1)

    def is_enough(self, context: Cart, event: Paid) -> bool:
        return event.amount >= _missing(context)

    def on_paid(self, context: Cart, event: Paid) -> Cart:
        return self.but(context, paid=context.paid + event.amount)

    @requires(paid)
    def is_some(self, event: Paid) -> bool:
        return event.amount > 0

    @ensures(paid)
    def is_kept(self, old: Cart, new: Cart, event: Paid) -> bool:
        return new.paid > old.paid and new.paid - old.paid == event.amount

    @invariant
    def is_not_negative(self, context: Cart) -> bool:
        return context.paid >= 0

    def nothing_is_missing(self, context: Cart) -> bool:
        return _missing(context) <= 0


TABLE = compile_table(Till)
MUTANTS = {mutant.name: mutant for mutant in mutants_of(TABLE)}


def step(table, event, payload, **context):
    begun = begin(table, run_id="r", context=Cart(**context), now_ms=0)
    assert isinstance(begun, Decision), begun
    return decide(table, begun.after, event, payload, 0)


def test_every_kind_is_there_and_names_are_unique():
    kinds = Counter(mutant.kind for mutant in mutants_of(TABLE))
    assert len(MUTANTS) == sum(kinds.values())
    assert set(kinds) == {
        "edge-removed", "target", "action-dropped", "guard-dropped", "guard-negated",
        "guard-false", "guards-swapped", "timeout-removed", "timeout-doubled",
        "on_exhausted-removed", "cancellable", "milestone", "failure", "idempotent",
        "contract-dropped", "contract-negated", "contract-part-negated", "comparison",
        "arithmetic", "constant",
    }  # fmt: skip


def test_each_says_where_and_what_is_missing():
    for mutant in MUTANTS.values():
        file, line = mutant.where.rsplit(":", 1)
        assert file == __file__ and int(line) > 0, mutant
        assert mutant.says and mutant.missing
        assert mutant.table.fingerprint == TABLE.fingerprint


def test_the_machine_itself_stays_as_it_is():
    before = {name: vars(Till).get(name) for name in ("is_enough", "on_paid", "is_kept")}
    list(mutants_of(TABLE))
    assert before == {name: vars(Till).get(name) for name in before}
    assert compile_table.__wrapped__(Till).shape == TABLE.shape
    assert step(compile_table.__wrapped__(Till), "paid", Paid(amount=3)).after.state == "settled"


@pytest.mark.parametrize(
    ("name", "amount", "state"),
    [
        ("guard-dropped asking --paid [is_enough]--> settled", 3, "settled"),
        ("guard-false asking --paid [is_enough]--> settled", 3, "asking"),
        ("guard-negated asking --paid [is_enough]--> settled", 3, "asking"),
        ("target asking --paid [is_enough]--> settled (given_up)", 3, "given_up"),
        ("target asking --paid--> asking (given_up)", 1, "given_up"),
        ("comparison is_enough (event.amount >= _missing(context) with >)", 3, "asking"),
        ("comparison is_enough (event.amount >= _missing(context) with >)", 4, "settled"),
    ],
)
def test_what_a_mutant_decides(name, amount, state):
    result = step(MUTANTS[name].table, "paid", Paid(amount=amount))
    assert isinstance(result, Decision), result
    assert result.after.state == state


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("guard-dropped asking --paid [is_enough]--> settled", "nothing_is_missing"),
        ("guards-swapped asking --paid [is_enough]--> settled", "nothing_is_missing"),
        ("arithmetic _missing (- to +)", "nothing_is_missing"),
        ("action-dropped asking --paid [is_enough]--> settled (1)", "is_kept"),
        ("arithmetic on_paid (+ to -)", "is_kept"),
        ("contract-negated is_kept", "is_kept"),
        ("contract-part-negated is_kept (new.paid > old.paid is negated)", "is_kept"),
        ("contract-negated nothing_is_missing", None),
    ],
)
def test_a_contract_notices(name, reason):
    amount = 2 if name.startswith("guard") else 3
    result = step(MUTANTS[name].table, "paid", Paid(amount=amount))
    assert isinstance(result, Violation), result
    assert (reason or "nothing_is_missing") in result.reason


def test_a_precondition_that_is_not_asked():
    result = step(TABLE, "paid", Paid(amount=0), due=0)
    assert isinstance(result, Rejection)
    dropped = step(MUTANTS["contract-dropped is_some"].table, "paid", Paid(amount=0), due=0)
    assert isinstance(dropped, Violation), "then the postcondition speaks"


@pytest.mark.parametrize(
    ("name", "deadline_ms"), [("timeout-removed asking", None), ("timeout-doubled asking", 120_000)]
)
def test_the_time_of_a_state(name, deadline_ms):
    begun = begin(MUTANTS[name].table, run_id="r", context=Cart(), now_ms=0)
    assert begun.after.deadline_ms == deadline_ms


def test_postconditions_and_invariants_are_only_made_stricter():
    of_contracts = {n for n in MUTANTS if "is_kept" in n or "nothing_is_missing" in n}
    assert of_contracts == {
        "contract-negated is_kept",
        "contract-part-negated is_kept (new.paid > old.paid is negated)",
        "contract-part-negated is_kept (new.paid - old.paid == event.amount is negated)",
        "contract-negated nothing_is_missing",
        "comparison nothing_is_missing (_missing(context) <= 0 with <)",
    }


def changes(source, *, stricter=False):
    import ast

    (function,) = ast.parse(source).body
    return [change.says for change in changes_of(function, stricter=stricter)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a < b <= 3", ["a < b with <=", "b <= 3 with <", "3 to 4"]),
        ("return a is None and not b", ["and to or", "a is None with is not", "not b to b"]),
        ("return min(a, b) + 1", ["+ to -", "min to max", "1 to 2"]),
        ("return 1 if a else 2", ["if a to if not", "1 to 2", "2 to 3"]),
        ("assert a < 3\n    return f'{a + 1}'", []),
        ("return True", ["True to False"]),
    ],
)
def test_changes_of_code(body, expected):
    assert changes(f"def f(a: int = 3, b=4):\n    {body}") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a < 3 and b", ["a < 3 is negated", "b is negated"]),
        ("return not a < 3", ["a < 3 is negated", "a < 3 with <="]),
        ("return all(x >= 1 for x in a)", ["x >= 1 is negated", "x >= 1 with >"]),
        ("c = a or b\n    return c + 1 == 3",
         ["c + 1 == 3 is negated", "a is negated", "b is negated"]),
    ],
)  # fmt: skip
def test_changes_of_a_contract(body, expected):
    found = changes(f"def f(a, b):\n    {body}", stricter=True)
    assert sorted(found) == sorted(expected)


def test_what_is_noticed_without_any_test():
    told = []
    kinds = ("guard-dropped", "edge-removed", "guard-false", "cancellable")
    report = mutate(Till, lambda: open_store("sqlite://"), budget_seconds=0.5, kinds=kinds,
                    each=told.append)  # fmt: skip
    assert tuple(told) == report.fates
    assert {one.kind for one in report.fates} == set(kinds)
    by = {one.name: one.by for one in report.fates}
    assert by["edge-removed asking --late--> given_up"] == "lint"
    assert by["guard-dropped asking --paid [is_enough]--> settled"] != "survived"
    assert by["cancellable asking"] == "survived"
    assert report.killed == report.judged - len(report.survivors)
    (survivor,) = (one for one in report.survivors if one.kind == "cancellable")
    text = "\n".join(lines(report))
    assert f"{report.killed} of {report.judged} killed" in text
    assert survivor.where in text and "no test cancels a run in asking" in text
    data = msgspec.json.decode(msgspec.json.encode(as_json(report)))
    assert (data["machine"], data["killed"]) == ("Till", report.killed)
    assert len(data["fates"]) == len(report.fates)


def test_a_table_has_mutants_too():
    report = mutate(TABLE, lambda: open_store("sqlite://"), budget_seconds=0.3, kinds=["milestone"])
    assert [one.name for one in report.fates] == ["milestone asking"]
