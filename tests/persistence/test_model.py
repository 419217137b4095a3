"""Random use of a store against a model of plain dictionaries.

Hypothesis plays starts, claims, steps, deliveries, deaths of workers and stale writes in any
order.  After every step the store must say what the model says, and no storage rule may be broken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.journal import Entry, fold
from engine.ports import Consumed, Delivery, InboxEvent, Query
from engine.run import HELD, Run

WORKERS = ("w1", "w2", "w3")
PICK = st.integers(0, 7)
"""A run, by its place in the list of runs, round and round."""


@dataclass
class Event:
    event: str
    payload: bytes | None
    at_ms: int
    status: str
    seq: int | None = None
    reason: str | None = None


@dataclass
class Model:
    """What the store should hold of one run."""

    run: Run
    due_ms: int | None
    fence: int = 0
    owner: str | None = None
    stalls: int = 0
    output: bytes | None = None
    entries: list[Entry] = field(default_factory=list)
    effects: dict[str, str] = field(default_factory=dict)
    inbox: dict[str, Event] = field(default_factory=dict)

    def waiting(self) -> list[str]:
        return [key for key, event in self.inbox.items() if event.status == "accepted"]

    def wakeful(self) -> bool:
        events = [self.inbox[key].event for key in self.waiting()]
        held = self.run.status in HELD
        return any(not held or event.startswith("$") for event in events)

    def deliver(self, one: Delivery) -> bool:
        """Whether it was new."""
        if one.key in self.inbox:
            return False
        event = Event(one.event, one.payload, one.at_ms, "accepted")
        self.inbox[one.key] = event
        if self.run.terminal:
            event.status, event.reason = "rejected", f"the run is {self.run.status}"
        elif self.run.status not in HELD or one.event.startswith("$"):
            self.wake(one.at_ms)
        return True

    def wake(self, at_ms: int) -> None:
        self.due_ms = at_ms if self.due_ms is None else min(self.due_ms, at_ms)


class StoreMachine(RuleBasedStateMachine):
    """The rules.  `opener` and `make` are set by the test."""

    opener = None
    make = None

    @initialize()
    def open(self):
        self.store = self.opener()
        self.models: dict[str, Model] = {}
        self.keys: dict[str, str] = {}
        self.leases: dict[str, int] = {}
        self.now_ms = 1000
        # Begin in the middle of things: Hypothesis seldom gets there by itself.
        self.beat("w1")
        self.beat("w2")
        for due in (True, False, False, True):
            self.start(None, due)
        for run_id in ("r0", "r1", "r2"):
            self.claim_one("w1", run_id)

    def teardown(self):
        if hasattr(self, "store"):
            self._compare_histories()
            self.store.close()

    def _pick(self, place: int | str) -> str:
        known = list(self.models)
        return place if isinstance(place, str) else known[place % len(known)]

    # -- starts -----------------------------------------------------------------------------

    @rule(key=st.sampled_from([None, "a", "b"]), due=st.booleans())
    def start(self, key, due):
        run_id = f"r{len(self.models)}"
        kind = self.make.due if due else self.make.start
        values = {"created_ms": self.now_ms, "key": key}
        start = kind(run_id, self.now_ms + 50, **values) if due else kind(run_id, **values)
        (answer,) = self.store.runs.start([start])
        if key in self.keys:
            assert (answer.run_id, answer.created) == (self.keys[key], False)
            return
        assert (answer.run_id, answer.created) == (run_id, True)
        if key is not None:
            self.keys[key] = run_id
        self._accepted(start)

    def _accepted(self, start):
        run = start.run
        model = Model(run, run.due_ms, entries=[start.entry])
        if run.effect:
            model.effects[run.effect.key] = "pending"
        self.models[run.run_id] = model

    # -- workers ----------------------------------------------------------------------------

    @rule(by_ms=st.sampled_from([1, 40, 500]))
    def time_passes(self, by_ms):
        self.now_ms += by_ms

    @rule(worker_id=st.sampled_from(WORKERS))
    def beat(self, worker_id):
        until = self.now_ms + 1000
        self.store.workers.beat(self.make.worker(worker_id), self.now_ms, lease_until_ms=until)
        self.leases[worker_id] = until

    @rule(dead=st.sampled_from([(), (), (), *((who,) for who in WORKERS)]))
    def reap(self, dead):
        gone = {who for who, until in self.leases.items() if until <= self.now_ms or who in dead}
        freed = self.store.workers.reap(self.now_ms, dead=lambda one: one.worker_id in dead)
        assert freed == sum(model.owner in gone for model in self.models.values())
        self._forget(gone)

    @rule(worker_id=st.sampled_from(WORKERS))
    def retire(self, worker_id):
        self.store.workers.retire(worker_id)
        self._forget({worker_id})

    def _forget(self, gone):
        for who in gone:
            self.leases.pop(who, None)
        for model in self.models.values():
            model.owner = None if model.owner in gone else model.owner

    @rule(worker_id=st.sampled_from(WORKERS), limit=st.integers(1, 3))
    def claim_due(self, worker_id, limit):
        due = [
            (model.due_ms, run_id)
            for run_id, model in self.models.items()
            if model.due_ms is not None and model.owner is None and model.due_ms <= self.now_ms
        ]
        claimed = self.store.runs.claim(worker_id, self.now_ms, limit=limit, versions=["v1"])
        taken = [(self.models[one.run.run_id].due_ms, one.run.run_id) for one in claimed]
        assert len(taken) == (min(limit, len(due)) if worker_id in self.leases else 0)
        assert set(taken) <= set(due)
        # Overdue timers and new work share the places, so the oldest need not be among them.
        assert [at for at, _ in taken] == sorted(at for at, _ in taken)
        self._claimed(worker_id, claimed)

    @rule(worker_id=st.sampled_from(WORKERS), run=PICK)
    def claim_one(self, worker_id, run):
        run_id = self._pick(run)
        model = self.models[run_id]
        free = model.owner is None and not model.run.terminal and worker_id in self.leases
        claimed = self.store.runs.claim(
            worker_id, self.now_ms, limit=1, versions=["v1"], run_id=run_id
        )
        assert [one.run.run_id for one in claimed] == [run_id] * free
        self._claimed(worker_id, claimed)

    def _claimed(self, worker_id, claimed):
        for one in claimed:
            model = self.models[one.run.run_id]
            model.owner, model.fence, model.stalls = worker_id, model.fence + 1, model.stalls + 1
            assert (one.run, one.fence, one.stalls) == (model.run, model.fence, model.stalls)
            assert self._seen(one.inbox) == self._expected(model)

    # -- events -----------------------------------------------------------------------------

    @rule(
        runs=st.lists(PICK, min_size=1, max_size=3),
        key=st.sampled_from("xyz"),
        event=st.sampled_from(["go", "$pause"]),
        payload=st.sampled_from([None, b"{}"]),
    )
    def deliver(self, runs, key, event, payload):
        sent = [
            Delivery(run_id=run_id, key=key, event=event, payload=payload, at_ms=self.now_ms)
            for run_id in map(self._pick, runs)
        ]
        for one, receipt in zip(sent, self.store.inbox.deliver(sent), strict=True):
            new = self.models[one.run_id].deliver(one)
            first = self.models[one.run_id].inbox[one.key]
            assert receipt.duplicate is not new
            assert receipt.same is ((first.event, first.payload) == (event, payload))
            assert (receipt.status, receipt.seq) == (first.status, first.seq)

    # -- writes -----------------------------------------------------------------------------

    @precondition(lambda self: any(model.owner for model in self.models.values()))
    @rule(data=st.data())
    def write_owned(self, data):
        """Mostly, workers write what they own."""
        self._write(data, [run_id for run_id, model in self.models.items() if model.owner])

    @rule(data=st.data(), runs=st.lists(PICK, min_size=1, max_size=4))
    def write_any(self, data, runs):
        """Zombies write what they have lost."""
        run_ids = dict.fromkeys(map(self._pick, runs))
        self._write(data, [one for one in run_ids if not self.models[one].run.terminal])

    def _write(self, data, run_ids):
        writes, expected = [], []
        for run_id in run_ids:
            model = self.models[run_id]
            stale = data.draw(
                st.sampled_from([None] * 9 + ["fence", "seq", "event"]), label="stale"
            )
            writes.append(self._draw_write(data, model, stale))
            lost = stale in ("fence", "seq") or any(
                one.number == 10**6 for one in writes[-1].consumed
            )
            expected.append(model.owner is not None and not lost)
        written = self.store.runs.commit(writes)
        assert [one.ok for one in written] == expected
        done = [write for write, ok in zip(writes, expected, strict=True) if ok]
        for write in done:
            self._apply(write)
        self._told(done)
        for write, one in zip(writes, written, strict=True):
            model = self.models[write.before.run_id]
            if one.ok:
                assert self._seen(one.arrived) == self._expected(model)

    def _draw_write(self, data, model, stale):
        run, fence, now_ms = model.run, model.fence, self.now_ms
        if stale == "fence":
            fence -= 1
        if stale == "seq":
            run = run.but(seq=run.seq - 1)
        common = {
            "release": data.draw(st.sampled_from([False, False, True]), label="release"),
            "at_ms": now_ms,
        }
        kinds = ["wait", "work", "pause", "end", "spawn", "release", *["try"] * bool(run.effect)]
        kind = data.draw(st.sampled_from(kinds), label="kind")
        if kind == "release":
            return self.make.note(run, fence, **{**common, "release": True})
        if kind == "try":
            tried = msgspec.structs.replace(
                run.effect, attempts=run.effect.attempts + 1, calls=run.effect.calls + 1,
                open=not run.effect.open, next_ms=now_ms + 100,
            )  # fmt: skip
            return self.make.note(run, fence, effect=tried, **common)
        keys = model.waiting()
        count = data.draw(st.integers(0, len(keys)), label="consumed")
        waiting = {one.key: one for one in self.store.inbox.waiting(run.run_id)}
        common["consumed"] = tuple(
            Consumed(number=waiting[key].number, status="applied") for key in keys[:count]
        )
        if stale == "event":
            common["consumed"] += (Consumed(number=10**6, status="applied"),)
        common["outcome"] = data.draw(st.sampled_from([None, "done", "given_up"]))
        return self._transition(kind, run, fence, common)

    def _transition(self, kind, run, fence, common):
        run_id, seq = run.run_id, run.seq + 1
        idle = {"state": "idle", "status": "waiting", "effect": None, "child": None}
        if kind == "wait":
            return self.make.step(run, fence, **idle, **common)
        if kind == "work":
            effect = self.make.effect(run_id, seq, attempts=1, open=True, next_ms=self.now_ms)
            values = {**idle, "state": "busy", "status": "running", "effect": effect}
            return self.make.step(run, fence, **values, **common)
        if kind == "pause":
            held = {"status": "paused", "held_from": run.status}
            return self.make.step(run, fence, **held, **common)
        if kind == "spawn":
            child = self.make.start(
                f"c{run_id}.{seq}", parent=self.make.parent(run_id), created_ms=self.now_ms
            )
            values = {**idle, "state": "busy", "child": child.run.run_id}
            return self.make.step(run, fence, **values, starts=(child,), **common)
        told = ()
        if run.parent:
            told = (
                Delivery(
                    run_id=run.parent.run_id, key=f"child:{run_id}", event="ended",
                    payload=None, at_ms=self.now_ms,
                ),
            )  # fmt: skip
        ended = {**idle, "state": "done", "status": "completed"}
        return self.make.step(run, fence, **ended, sends=told, output=b"1", **common)

    def _apply(self, write):
        model, after = self.models[write.before.run_id], write.after
        old, new = model.run.effect, after.effect
        if old and (new is None or new.key != old.key):
            model.effects[old.key] = write.outcome or "abandoned"
        if new and (old is None or new.key != old.key):
            model.effects[new.key] = "pending"
        numbers = [one.number for one in write.consumed]
        for key in model.waiting()[: len(numbers)]:
            model.inbox[key].status, model.inbox[key].seq = "applied", after.seq
        model.run, model.due_ms = after, after.due_ms
        model.output = write.output or model.output
        if write.release or after.terminal:
            model.owner = None
        if write.entry:
            model.entries.append(write.entry)
            model.stalls = 0
        for start in write.starts:
            self._accepted(start)

    def _told(self, writes):
        for write in writes:
            for one in write.sends:
                self.models[one.run_id].deliver(one)
        for write in writes:
            model = self.models[write.before.run_id]
            if model.run.terminal:
                for key in model.waiting():
                    event = model.inbox[key]
                    event.status, event.reason = "rejected", f"the run is {model.run.status}"
            elif model.wakeful():
                model.wake(self.now_ms)

    def _seen(self, events: tuple[InboxEvent, ...]):
        return {one.key: (one.event, one.payload, one.at_ms) for one in events}

    def _expected(self, model):
        return {
            key: (model.inbox[key].event, model.inbox[key].payload, model.inbox[key].at_ms)
            for key in model.waiting()
        }

    # -- after every step -------------------------------------------------------------------

    @invariant()
    def runs_are_as_expected(self):
        stored = {one.run.run_id: one for one in self.store.runs.select(Query(limit=1000))}
        assert stored.keys() == self.models.keys()
        for run_id, model in self.models.items():
            one = stored[run_id]
            assert one.run == model.run
            assert (one.owner, one.fence, one.stalls, one.due_ms, one.output) == (
                model.owner,
                model.fence,
                model.stalls,
                model.due_ms,
                model.output,
            )

    @invariant()
    def no_rule_is_broken(self):
        assert self.store.inspector.findings() == []
        assert {one.worker_id: until for one, until in self.store.workers.all()} == self.leases

    def _compare_histories(self):
        for run_id, model in self.models.items():
            assert self.store.runs.get(run_id).run == model.run
            entries = self.store.journal.read(run_id)
            assert entries == model.entries
            assert fold(entries).context == model.run.context
            effects = {one.key: one.status for one in self.store.effects.read(run_id)}
            assert effects == model.effects
            for key, event in model.inbox.items():
                receipt = self.store.inbox.receipt(run_id, key)
                assert (receipt.status, receipt.seq, receipt.reason) == (
                    event.status,
                    event.seq,
                    event.reason,
                )


def test_random_use_does_what_the_model_does(fresh, make):
    opener, examples = fresh
    machine = type("Checked", (StoreMachine,), {"opener": staticmethod(opener), "make": make})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
