"""Random sequences of everything that may happen to runs, and what must hold after each step.

Events legal and illegal, keys used twice, controls, the clock forwards and back, an outside world
that loses answers, and the death of the process at a random boundary of whatever comes next.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine import Child, ChildEnded, Context, Machine, State, minutes
from engine.errors import KeyConflict
from engine.ports import Query
from engine.run import HELD, TERMINAL
from engine.testing import Crash, CrashPlan
from engine.worker import LEASE_MS


class Errands(Context):
    amount: int = 1
    ended: int = 0


class Returned(ChildEnded, tag="returned"):
    """The shop run has ended."""


class Errander(Machine[Errands]):
    """Sends a child shopping; may lose patience, and may send another one."""

    sending = State(initial=True, child="shop", on_child="returned", timeout=minutes(90),
                    on_timeout="late")  # fmt: skip
    waiting = State(follows_child=True, on_child="returned")
    again = State(child="shop", on_child="returned", on_parent_end="abandon")
    home = State(final=True)
    empty = State(final=True, failure=True)

    look = sending.to(waiting)
    late = sending.to(again)
    returned = (
        sending.to(home, cond="good")
        | sending.to(again)
        | waiting.to(home, cond="good")
        | waiting.to(empty)
        | again.to(home, cond="good")
        | again.to(empty)
    )
    give_up = waiting.to(empty) | again.to(empty)

    def shop(self, context: Errands) -> Child:
        return Child("Shop", {"amount": context.amount})

    def good(self, event: Returned) -> bool:
        return event.succeeded

    def on_returned(self, context: Errands, event: Returned) -> Errands:
        return self.but(context, ended=context.ended + 1)


MISBEHAVIOUR = ["lost", "unsent", "ok", "later", "later 9000", "again", "never", "broken"]


class World(RuleBasedStateMachine):
    """Drives a few runs through one harness after another, over one store."""

    make_bench: Any
    zoo: Any

    def __init__(self) -> None:
        super().__init__()
        # Random ids would change the order of ties, and with it what a drawn sequence means.
        self.numbers = itertools.count(1)
        self.bench = self.make_bench()
        self.loop = asyncio.new_event_loop()
        self.sent: dict[tuple[str, str], Any] = {}
        self.runs: list[str] = []
        self.open()
        for machine in ("Shop", "Errander"):  # so that no drawn sequence is about nothing
            kind = self.harness.app.tables[machine].context
            self.do(self.harness.app.start(machine, kind()))

    def open(self, plan: CrashPlan | None = None) -> None:
        self.harness = self.bench.harness(
            self.zoo.Shop,
            self.zoo.Errand,
            Errander,
            plan=plan,
            new_id=lambda now_ms: f"r{next(self.numbers):025x}",
        )
        self.loop.run_until_complete(self.harness.app.open())

    def do(self, work: Any) -> Any:
        """Await; when the process dies in it, another one takes over after the lease."""
        try:
            return self.loop.run_until_complete(work)
        except Crash as crash:
            note(f"crashed: {crash}")
            self.bench.clock.advance(LEASE_MS)
            self.open()
            return None

    def teardown(self) -> None:
        """The world is well again: whatever was set aside goes on, and nothing is stuck."""
        try:
            self.bench.ledger.script = []
            self.bench.ledger.answers = []
            self.do(self.harness.app.beat())
            self.harness.plan.at = None
            for _ in range(60):  # each round, one event that breaks a promise may be in the way
                self.do(self.harness.until_idle())
                held = [s.run for s in self.all_runs() if s.run.status in HELD]
                if not held:
                    break
                for run in held:
                    self.do(self.harness.app.resume(run.run_id))
            self.holds()
            assert held == []
            live = {s.run.run_id: s.run for s in self.all_runs() if not s.run.terminal}
            for run in live.values():
                assert run.child in live or (run.state, run.status) == ("shipping", "waiting"), run
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.bench.store.close()

    def all_runs(self) -> list[Any]:
        return self.bench.store.runs.select(Query(limit=500))

    def pick(self, data: Any) -> str:
        return data.draw(st.sampled_from(sorted(s.run.run_id for s in self.all_runs())))

    # -- what may happen ------------------------------------------------------------------------

    @rule(
        machine=st.sampled_from(["Shop", "Errand", "Errander"]),
        key=st.sampled_from(["a", "b", None]),
        amount=st.integers(1, 2),
    )
    def start(self, machine, key, amount):
        kind = self.harness.app.tables[machine].context
        try:
            ref = self.do(self.harness.app.start(machine, kind(amount=amount), key=key))
        except KeyConflict:
            assert self.do(self.harness.app.find(machine, key)) is not None
            return
        if ref is not None:
            assert ref.created == (ref.run_id not in self.runs) or key is not None
            self.runs.append(ref.run_id)

    @precondition(lambda self: self.all_runs())
    @rule(
        data=st.data(),
        event=st.sampled_from(
            ["pack", "expire", "noted 1", "noted -1", "noted 13", "shipped 1", "shipped 0", "look",
             "late", "give_up", "charged", "no_charge"]
        ),
        key=st.sampled_from([None, "k1", "k2"]),
    )  # fmt: skip
    def send(self, data, event, key):
        run_id = self.pick(data)
        table = self.harness.app.tables[self.do(self.harness.app.get(run_id)).machine]
        name, _, number = event.partition(" ")
        if name not in table.events:
            return
        payload = {
            "noted": lambda: self.zoo.Noted(count=int(number)),
            "shipped": lambda: self.zoo.Shipped(parcels=int(number)),
            "charged": lambda: self.zoo.Charged(receipt="by hand"),
            "no_charge": lambda: self.zoo.NoCharge(effect="charge", reason="by hand", attempts=0),
        }.get(name, lambda: name)()
        try:
            receipt = self.do(self.harness.app.send(run_id, payload, key=key))
        except KeyConflict:
            # None: the process died after the first delivery, before this test heard of it.
            assert self.sent.get((run_id, key)) != payload
            return
        if receipt is not None and key is not None:
            first = self.sent.setdefault((run_id, key), payload)
            assert first == payload
            assert receipt.key == key

    @precondition(lambda self: self.all_runs())
    @rule(data=st.data(), control=st.sampled_from(["pause", "resume", "resume", "cancel"]))
    def control(self, data, control):
        run_id = self.pick(data)
        self.do(getattr(self.harness.app, control)(run_id))

    @rule(
        script=st.lists(st.sampled_from(MISBEHAVIOUR), max_size=3),
        answers=st.lists(st.just("unknown"), max_size=2),
    )
    def work(self, script, answers):
        self.bench.ledger.script += script
        self.bench.ledger.answers += answers
        before = {s.run.run_id: s.run for s in self.all_runs()}
        self.do(self.harness.app.settle())
        for stored in self.all_runs():
            run, old = stored.run, before.get(stored.run.run_id)
            if old is not None and run.seq == old.seq:
                assert (run.state, run.context) == (old.state, old.context)
            if old is not None and old.status in TERMINAL:
                assert run == old

    @rule(after_ms=st.sampled_from([1, 1_000, 9_000, minutes(5), minutes(60), minutes(90), -5_000]))
    def time_goes_by(self, after_ms):
        self.bench.clock.advance(after_ms)
        self.do(self.harness.app.open())

    @rule(soon=st.integers(1, 15))
    def die_soon(self, soon):
        plan = self.harness.plan
        if plan.at is None:
            plan.at = len(plan.passed) + soon

    # -- what must hold -------------------------------------------------------------------------

    @invariant()
    def holds(self):
        self.loop.run_until_complete(self.bench.sound(self.harness))
        self.charged_once()
        for stored in self.all_runs():
            assert stored.owner is None

    def charged_once(self):
        """An Errand's effect is idempotent by its key; every other key is charged once."""
        idempotent = {
            effect.key
            for stored in self.all_runs()
            for effect in self.bench.store.effects.read(stored.run.run_id)
            if effect.name == "fetch"
        }
        counts = Counter(key for key in self.bench.ledger.charged if key not in idempotent)
        assert [key for key, count in counts.items() if count > 1] == []
        assert max(Counter(self.bench.ledger.refunded).values(), default=1) == 1


def test_whatever_happens(make_bench, zoo):
    fixtures = {"make_bench": staticmethod(make_bench)}
    machine = type("Driven", (World,), {**fixtures, "zoo": zoo})
    # Shrinking takes minutes here; the sequence as it was found says enough to begin with.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    chosen = settings(
        max_examples=settings.default.max_examples * 3 // 4,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )
    run_state_machine_as_test(machine, settings=chosen)
