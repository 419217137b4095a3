"""Guards for all values: what small values cannot reach is found, what is right is proved."""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import pytest

from engine import Context, Event, Machine, State, invariant, requires, seconds
from engine.contracts import PARAMETERS, bind
from engine.definition import methods_of
from engine.table import Table, compile_table
from engine.verification.lint import Report, lint
from engine.verification.static import prove, trying
from engine.verification.static.symbolic import INT_MAX
from engine.verification.static.watch import TookTooLong, Watch
from machines.app import MACHINES

if TYPE_CHECKING:
    from decimal import Decimal as Nowhere

FAR = 48_611


class Coin(enum.Enum):
    BTC = "btc"
    XMR = "xmr"
    ETH = "eth"


class Level(enum.StrEnum):
    LOW = "low"
    HIGH = "high"


class Inner(msgspec.Struct, frozen=True):
    depth: int = 0
    coin: Coin = Coin.BTC

    @property
    def doubled(self) -> int:
        return self.depth * 2

    def above(self, bound: int) -> bool:
        return self.depth > bound


class Bill(Context):
    price: int = 10
    paid: int = 0
    limit: int | None = None
    open: bool = False
    coin: Coin = Coin.BTC
    level: Level = Level.LOW
    mode: Literal["fast", "slow"] = "fast"
    name: str = "a"
    inner: Inner | None = None
    share: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    parts: tuple[int, ...] = ()
    rate: float = 1.0

    @property
    def rest(self) -> int:
        return self.price - self.paid

    @property
    def total(self) -> int:
        return sum(self.parts)


class Paid(Event, tag="paid"):
    amount: int
    note: str = ""
    inner: Inner | None = None


class Shop(Machine[Bill]):
    """Two guards, `one` and `other`, that each test replaces, and a last edge."""

    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True, failure=True)
    late = unpaid.to(gone)
    paid = unpaid.to(done, cond="one") | unpaid.to(gone, cond="other") | unpaid.to.itself()

    def one(self, context: Bill, event: Paid) -> bool:
        return event.amount > context.price

    def other(self, context: Bill, event: Paid) -> bool:
        return event.amount < context.price


def shop(*given: Callable[..., Any], last: bool = True, machine: Any = Shop) -> Table:
    """The shop with other guards; `last`: with the edge that has none."""
    table = compile_table(machine)
    edges = list(table.edges["unpaid", "paid"])
    for number, guard in enumerate(given):
        call = bind(guard, methods_of(machine), PARAMETERS["guard"])
        clause = replace(edges[number].guards[0], name=guard.__name__, call=call, reads=())
        edges[number] = replace(edges[number], guards=(clause,), guard_text=guard.__name__)
    kept = tuple(edges if last else edges[:-1])
    return replace(table, edges={**table.edges, ("unpaid", "paid"): kept})


def only(report: Report, code: str) -> Any:
    (one,) = [found for found in report.findings if found.code == code]
    return one


@pytest.fixture
def no_z3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the extra were not installed."""
    monkeypatch.setitem(sys.modules, "z3", None)
    yield


def far(event: Paid) -> bool:
    """True for 48611 alone, a number that is not written here."""
    return event.amount * 7 == 340_277


def not_far(event: Paid) -> bool:
    return not far(event)


def large(event: Paid) -> bool:
    return event.amount > 40_000


def nowhere(event: Paid) -> bool:
    return event.amount * 7 == 340_278


# -- what small values cannot reach ---------------------------------------------------------------


def test_an_overlap_far_away():
    one = only(lint([shop(far, large)]), "V005")
    assert (one.method, one.severity) == ("proved", "error")
    assert one.witness == {"event.amount": FAR}


def test_without_z3_the_same_overlap_is_not_seen_and_everything_is_checked(no_z3):
    assert prove.installed() is None
    report = lint([shop(far, large)])
    assert [f.code for f in report.findings] == ["V007"]
    assert report.findings[0].method == "checked"
    assert {(e.answer, e.method, e.why) for e in report.guards} == {("no", "checked", "")}


def test_who_is_in_a_hurry_does_not_ask_z3():
    assert {e.method for e in lint([Shop], prove=False).guards} == {"checked"}
    assert {e.method for e in lint([Shop]).guards} == {"proved"}


def test_a_gap_far_away():
    one = only(lint([shop(not_far, nowhere, last=False)]), "V006")
    assert (one.method, one.witness) == ("proved", {"event.amount": FAR})


def test_a_guard_that_only_a_far_number_makes_true_is_no_dead_edge():
    assert lint([shop(far, not_far)]).findings == ()


def test_that_guard_was_called_dead_by_small_values(no_z3):
    assert [f.code for f in lint([shop(far, not_far)]).findings] == ["V007"]


def test_a_guard_that_no_number_makes_true():
    one = only(lint([shop(nowhere)]), "V007")
    assert (one.method, one.severity) == ("proved", "error")
    assert one.problem == "guard nowhere is false for every value"


def test_whole_numbers_are_those_of_64_bits():
    def beyond(event: Paid) -> bool:
        return event.amount > INT_MAX

    assert "false for every value" in only(lint([shop(beyond)]), "V007").problem


class Guarded(Shop):
    unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
    done = State(final=True)
    gone = State(final=True, failure=True)
    late = unpaid.to(gone)
    paid = unpaid.to(done, cond="one") | unpaid.to(gone, cond="other") | unpaid.to.itself()

    @invariant
    def price_is_far(self, context: Bill) -> bool:
        return context.price * 7 == 340_277

    @requires(paid)
    def is_paid(self, event: Paid) -> bool:
        return event.amount > 0


def test_invariants_that_no_small_context_fulfils():
    def cheap(context: Bill) -> bool:
        return context.price < 1_000

    def dear(context: Bill) -> bool:
        return context.price > 1_000

    assert "exclude its guard" in only(lint([shop(cheap, dear, machine=Guarded)]), "V007").problem

    def exact(context: Bill, event: Paid) -> bool:
        return event.amount == context.price

    one = only(lint([shop(exact, dear, machine=Guarded)]), "V005")
    assert one.severity == "error"
    assert one.witness == {"context.price": FAR, "event.amount": FAR}


def test_an_edge_that_an_earlier_one_always_takes():
    def positive(event: Paid) -> bool:
        return event.amount > 0

    one = only(lint([shop(positive, large)]), "V007")
    assert "an edge tried before it is taken" in one.problem
    assert one.method == "proved" and one.witness["event.amount"] > 40_000


def test_a_guard_that_raises_far_away():
    def divides(event: Paid) -> bool:
        return event.amount * 7 == 340_277 and event.inner.depth > 2

    one = only(lint([shop(divides)]), "V006")
    assert "divides raises AttributeError" in one.problem and one.method == "proved"
    assert one.witness["event.amount"] == FAR


# -- proofs ---------------------------------------------------------------------------------------


def test_guards_that_exclude_one_another_are_proved():
    report = lint([Shop])
    assert report.findings == ()
    assert [(e.question, e.edges, e.answer, e.method) for e in report.guards] == [
        ("overlap", ("one", "other"), "no", "proved")
    ]


def test_no_gap_is_proved():
    def rest(context: Bill, event: Paid) -> bool:
        return event.amount <= context.price

    report = lint([shop(Shop.one, rest, last=False)])
    assert {(e.question, e.answer, e.method) for e in report.guards} == {
        ("overlap", "no", "proved"),
        ("gap", "no", "proved"),
    }


@pytest.mark.acceptance
def test_our_own_machines_have_no_pair_that_is_only_checked():
    report = lint(MACHINES)
    assert [e for e in report.guards if e.answer == "no" and e.method != "proved"] == []
    assert sum(e.answer == "no" for e in report.guards) >= 17


# -- the translation says what the code says ------------------------------------------------------

EXPRESSIONS = """
event.amount // 3 == -1
event.amount // -3 == 1
event.amount % 3 == 2
event.amount % -3 == -2
event.amount // 0 == 1
-event.amount + 2 * context.price - 1 > +3
abs(event.amount) <= 2
min(event.amount, context.price, 2) == 2
max(event.amount, context.price) > min([4, 3])
0 < event.amount <= context.price < 9
event.amount in (1, 2, context.price)
event.amount not in {1, 2}
event.amount == 1 == True
context.open == 1
context.open + 1 == 2
context.open and event.amount
event.amount or context.open
not (context.open or event.amount > 2)
context.coin is Coin.BTC
context.coin == Coin.XMR or context.coin is not Coin.ETH
context.coin == "btc"
context.coin.value == "btc"
context.coin in (Coin.BTC, Coin.XMR)
TABLE[context.coin] > event.amount
context.level == "high"
context.level == event.note
context.mode == "slow"
context.name
context.name == event.note
context.name in ("b", "") and context.name != "zz"
context.limit is None
context.limit is not None and context.limit > event.amount
context.limit > event.amount
context.limit == event.amount
context.limit or event.amount == 1
context.inner is None or context.inner.depth > 1
context.inner.depth > 1
context.inner == event.inner
context.inner and context.inner.doubled == 4
context.inner is not None and context.inner.above(event.amount)
(context.inner or event.inner) is None
(context.coin, event.amount) == (Coin.BTC, 1)
(context.price if context.open else event.amount) > 1
context.rest > 1
helper(event.amount, low=context.price)
chain(context, event)
self.one(context, event)
isinstance(event.inner, Inner)
bool(event.amount) is True
int(context.open) == 1
len((1, event.amount)) == 2
LIMITS[1] > event.amount
now_ms > 5 and now_ms - 3 > event.amount
[1, event.amount] == [1, 1]
(1, 2) < (event.amount, 3)
event.amount == 1.0
context.rate > 1
math.floor(event.amount) == 1
context.total > 3
len(context.parts) > 1
any(part > 1 for part in context.parts)
sum(context.parts) == 0
context.name.startswith("b")
context.name + "b" == "ab"
event.amount * context.price > 4
event.amount ** 2 == 4
f"{event.amount}" == "1"
event.amount / 2 == 1
event.amount & 1 == 1
~event.amount == -2
(lambda x: x)(event.amount) == 1
[n for n in (1, 2)][0] == event.amount
(n := event.amount) > 1 and n < 3
loops(event.amount) == 3
recursive(event.amount) == 0
starred(*[event.amount]) == 1
dict(a=event.amount)["a"] == 1
context.parts[0] == 1
context.name[0:1] == "a"
UNSURE[0] == event.amount
""".strip().splitlines()

HEADER = """
import math
from collections import namedtuple

LIMITS = (1, 2, 3)
UNSURE = [1]
TABLE = {}
Coin = Inner = None

def helper(amount, *, low=1):
    half, rest = amount // 2, amount % 2
    if half > low:
        return True
    elif rest:
        return low == 1
    assert amount != 6
    return None

def chain(context, event):
    found = context.inner
    if found is None:
        raise ValueError("none")
    depth: int = found.depth
    return depth == event.amount

def loops(amount) -> int:
    for n in range(3):
        amount += 1
    return amount

def recursive(amount) -> int:
    return 0 if amount <= 0 else recursive(amount - 1)

def starred(*some):
    return some[0]
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every expression as a guard, in a file, since the source is read."""
    path = tmp_path_factory.mktemp("guards") / "written.py"
    lines = [
        f"def guard{n}(self, context, event, now_ms):\n    return {text}\n"
        for n, text in enumerate(EXPRESSIONS)
    ]
    path.write_text(HEADER + "\n".join(lines))
    space: dict[str, Any] = {"__name__": "written"}
    exec(compile(path.read_text(), str(path), "exec"), space)  # noqa: S102 - written above
    space["Coin"], space["Inner"] = Coin, Inner
    space["TABLE"].update({Coin.BTC: 1, Coin.XMR: 3})
    return space


def rows() -> list[dict[str, Any]]:
    """Values of which each expression tells some apart."""
    inners = (None, Inner(depth=2), Inner(depth=1, coin=Coin.XMR))
    bills = [
        Bill(price=2, paid=1, parts=(2, 2)),
        Bill(price=7, limit=0, open=True, coin=Coin.XMR, level=Level.HIGH, mode="slow", name=""),
        Bill(price=-1, limit=3, inner=inners[1], coin=Coin.ETH, name="b", parts=(1,), rate=2.0),
        Bill(price=1, limit=1, inner=inners[2], name="high", open=True),
    ]
    amounts = (-4, -3, -1, 0, 1, 2, 3, 6, 7)
    notes = ("", "high", "b")
    return [
        {"context": b, "event": Paid(amount=a, note=n, inner=i), "now_ms": max(a, 0) * 2}
        for b, a, (n, i) in product(bills, amounts, zip(notes, inners, strict=True))
    ]


@pytest.mark.parametrize("number", range(len(EXPRESSIONS)), ids=EXPRESSIONS)
def test_a_translation_agrees_with_the_code(number, compiled):
    """Every answer it gives is that of the code; what it cannot translate, it leaves open."""
    table = shop(compiled[f"guard{number}"])
    edges = table.edges["unpaid", "paid"][:1]
    proof = prove.Proof(prove.installed(), table, edges, [])
    assert proof.trouble == ""
    z3, said = proof.z3, 0
    for row in rows():
        try:
            real: bool | None = bool(edges[0].guards[0].call(row))
        except Exception:  # noqa: BLE001 - whatever the expression raises
            real = None
        pairs = proof._bound(row)
        raises = proof._said(proof.raised[0], pairs)
        enabled = proof._said(proof.enabled[0], pairs)
        assert raises in (None, real is None), row
        assert enabled in (None, real is True), row
        said += enabled is not None
        if raises is not None and (raises or enabled is not None):
            continue
        # What is left open must allow what the code does.
        wanted = proof.raised[0] if real is None else proof.enabled[0]
        wanted = wanted if real is not False else z3.Not(wanted)
        solver = z3.Solver()
        solver.add(*proof.symbols.facts, *(a == b for a, b in pairs), wanted)
        assert solver.check() == z3.sat, row
    assert said or proof.translator.unknown


def test_what_a_translation_leaves_open_is_checked_with_the_reason():
    def rooted(event: Paid) -> bool:
        return math.sqrt(abs(event.amount)) > 3

    def unrooted(event: Paid) -> bool:
        return math.sqrt(abs(event.amount)) <= 3

    report = lint([shop(rooted, unrooted)])
    (pair,) = report.guards
    assert (pair.answer, pair.method) == ("no", "checked")
    assert pair.why.startswith("not translatable: math.sqrt")
    assert [f.method for f in report.findings if f.code in ("V005", "V006")] == []


def test_an_unknown_part_does_not_hinder_a_proof():
    def sums(context: Bill, event: Paid) -> bool:
        return context.total > event.amount

    def sums_not(context: Bill, event: Paid) -> bool:
        return not context.total > event.amount and math.sqrt(4) == 2

    (pair,) = lint([shop(sums, sums_not)]).guards
    assert (pair.answer, pair.method) == ("no", "proved")


def test_no_answer_in_time_is_checked(monkeypatch):
    solver = prove.Proof._solver

    def hurried(self: Any) -> Any:
        found = solver(self)
        found.set("rlimit", 1)
        return found

    monkeypatch.setattr(prove.Proof, "_solver", hurried)
    (pair,) = lint([Shop]).guards
    assert (pair.answer, pair.method) == ("no", "checked")
    assert "did not answer" in pair.why


def test_a_translation_that_disagrees_with_the_code_is_not_used(monkeypatch):
    table = shop(far)
    true = prove.Translator._truth
    monkeypatch.setattr(prove.Translator, "_truth", lambda self, c: self._not(true(self, c)))
    (pair,) = lint([table]).guards
    assert pair.method == "checked" and "disagrees with the code" in pair.why


def test_a_witness_is_tried_on_the_code_before_it_is_told(monkeypatch):
    """Were the translation wrong where no small value shows it, nothing would be reported."""
    monkeypatch.setattr(prove, "SAMPLE_ROWS", 0)
    monkeypatch.setattr(prove.Translator, "_ordered", lambda self, f, a, b: self.z3.BoolVal(True))
    (pair,) = lint([Shop]).guards
    assert (pair.answer, pair.method) == ("no", "checked")
    assert "was not confirmed" in pair.why


def test_invariants_that_exclude_one_another_prove_nothing():
    def negative(context: Bill) -> bool:
        return context.price < 0

    table = shop(machine=Guarded)
    call = bind(negative, methods_of(Guarded), PARAMETERS["invariant"])
    more = replace(table.invariants[0], name="negative", call=call)
    report = lint([replace(table, invariants=(*table.invariants, more))])
    assert {e.method for e in report.guards} == {"checked"}
    assert "exclude one another" in report.guards[0].why


# -- guards that do not come back, and payloads that nobody knows ---------------------------------


def turns(event: Paid) -> bool:
    while event.amount > 2:
        pass
    return event.amount > 1


def swallows(event: Paid) -> bool:
    while event.amount > 2:
        try:
            list(range(10))
        except Exception:  # noqa: BLE001, S112 - the defect
            continue
    return event.amount > 1


@pytest.mark.parametrize("guard", [turns, swallows])
def test_a_guard_that_does_not_come_back(guard, monkeypatch):
    monkeypatch.setattr(trying, "CALL_SECONDS", 0.2)
    one = only(lint([shop(guard)]), "V006")
    assert one.severity == "error" and one.witness["event.amount"] > 2
    assert f"guard {guard.__name__} did not answer within 0.2 s" in one.problem


def test_an_invariant_that_does_not_come_back(monkeypatch):
    monkeypatch.setattr("engine.verification.lint.STEP_SECONDS", 0.2)

    def endless(context: Bill) -> bool:
        while True:
            pass

    table = shop(machine=Guarded)
    call = bind(endless, methods_of(Guarded), PARAMETERS["invariant"])
    changed = replace(table.invariants[0], name="endless", call=call)
    findings = lint([replace(table, invariants=(changed,))]).findings
    assert any(f.code == "V000" and "endless did not come back" in f.problem for f in findings)


def test_a_watch_lets_a_section_in_time_alone():
    watch = Watch(limit_seconds=5)
    assert watch.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        Watch(limit_seconds=5).run(lambda: 1 // 0)
    with pytest.raises(TookTooLong):
        Watch(limit_seconds=0.05).run(lambda: [None for _ in iter(int, 1)])


def test_a_watch_works_in_any_thread():
    def section() -> str:
        try:
            Watch(limit_seconds=0.05).run(lambda: [None for _ in iter(int, 1)])
        except TookTooLong:
            return "ended"
        return "not ended"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(section).result() == "ended"


def unknown_payloads(kind: str) -> Any:
    """Machines whose guards ask for a payload of which the engine learns nothing."""

    class Hidden(Event, tag="paid"):
        amount: int

    if kind == "local":

        class Local(Machine[Bill]):
            unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
            done = State(final=True)
            late = unpaid.to(done)
            paid = unpaid.to(done, cond="enough") | unpaid.to.itself()

            def enough(self, event: Hidden) -> bool:
                return event.amount > 1

        return Local

    class Typed(Machine[Bill]):
        unpaid = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
        done = State(final=True)
        late = unpaid.to(done)
        paid = unpaid.to(done, cond="enough") | unpaid.to.itself()

        def enough(self, event: Paid, context: Nowhere) -> bool:
            return event.amount > context

    return Typed


@pytest.mark.parametrize(("kind", "parameter", "name"), [
    ("local", "event", "'Hidden'"), ("typed", "context", "'Nowhere'"),
])  # fmt: skip
def test_an_annotation_that_cannot_be_resolved_is_named(kind, parameter, name):
    one = only(lint([unknown_payloads(kind)]), "V000")
    assert one.severity == "error" and one.file == __file__
    assert f"parameter {parameter} of enough: annotation {name} cannot be resolved" in one.problem
    assert "event 'paid' is taken to carry no payload" in one.problem
