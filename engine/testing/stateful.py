"""A Hypothesis state machine for any machine: everything that may happen to it is a rule.

::

    class TestPayment(machine_test(Payment).TestCase):        # pytest collects it
        settings = settings(max_examples=200)

    def test_payment():                                       # or in one line
        run_machine(machine_test(Payment))

    class MyPayment(machine_test(Payment)):                   # with rules and values of your own
        def payloads(self, event, context):
            if event == "refund":
                return st.builds(Refund, amount=st.integers(0, context.captured))
            return super().payloads(event, context)

        @rule()
        def ask_twice(self):
            self.send("refund", Refund(amount=1))
            self.send("refund", Refund(amount=1))

The generated class has a rule for each event that comes from outside, and rules for events in
states that do not take them, duplicates, cancel, pause and resume, time, work, answers of calls
(lost, late and refused ones, too) and deaths after any commit.  After each step all that must hold
is checked; at the end of a run everything must come to rest.

Everything is done in steps of the explorer (`take`), so a failure is made smaller by our own
reducer, which gets further and is much faster than shrinking; it is printed with its token.  Only
Hypothesis' public interface is used.
"""

from __future__ import annotations

import random
import unittest
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.control import CANCEL
from engine.definition import Machine
from engine.errors import TurtlesError, UsageError
from engine.events import Context, Event
from engine.ports import Store
from engine.table import Table, compile_table
from engine.testing.stores import memory_store
from engine.testing.strategies import Strategy, strategy_for
from engine.verification.bench import silence
from engine.verification.chances import Chances
from engine.verification.coverage import Coverage, cell_named, fault_named, named
from engine.verification.drawing import near_of
from engine.verification.environment import Environment, environment_of
from engine.verification.explore import Rig, repeat
from engine.verification.faulted import Faulted
from engine.verification.oracles import Breach
from engine.verification.outside import FAULTS, Choice
from engine.verification.reduce import reduce_way
from engine.verification.result import Failure, Scope, Step
from engine.verification.scope import contexts_of
from engine.verification.sequences import CONTEXTS_MAX, FINISH_STEPS_MAX, wide_scope
from engine.verification.snapshot import Row
from engine.verification.tokens import said_with_states, token_of
from engine.verification.walk import take

CRASH_COMMITS_MAX = 4
PAUSES_MAX = 2
MOMENTS_MAX = 4
SIMPLER_SECONDS = 2.0
SHOWN_MAX = 12
Kind = type["MachineTest"]
Settings = settings


class MachineFailed(AssertionError):
    """Something does not hold; the message has the way there, and how to go it again.

    Attributes:
        failure: rule, problem and steps.
    """

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass
class _Seat:
    """What all runs of one generated class share: the rig is reset for each of them."""

    rig: Rig
    store: Store
    chances: Chances
    faulted: Faulted
    policies: list[tuple[Any, Any]]
    stuck: dict[Any, bool]
    """Fingerprints of moments, and whether nothing leads on from there."""

    @property
    def bench(self) -> Any:
        """Where everything happens."""
        return self.rig.bench


def _deaths(first: int) -> Strategy:
    """Mostly none; else after so many commits."""
    none = st.none()
    return st.one_of(none, none, none, st.integers(first, CRASH_COMMITS_MAX))


class MachineTest(RuleBasedStateMachine):
    """Base of generated classes; make one with `machine_test`.

    Attributes:
        machine, known, environment, scope, store_factory: as given to `machine_test`.
        rig: the machine on its bench.
        steps: what has happened so far in this run.
    """

    machine: ClassVar[type[Machine[Any]]]
    known: ClassVar[tuple[type[Machine[Any]], ...]]
    environment: ClassVar[Environment | None]
    scope: ClassVar[Scope]
    store_factory: ClassVar[Callable[[], Store]]
    generated: ClassVar[Kind]
    _seat: ClassVar[_Seat | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.seat = _seat_of(type(self))
        self.rig = self.seat.rig
        self.steps: list[Step] = []
        self.probed: set[tuple[str, str]] = set()
        self.failed = False
        self.found: list[Breach] = []
        self._open = ExitStack()
        self._open.enter_context(silence())
        self._open.callback(self.rig.bench.close)
        for effect, retry in self.seat.policies:
            effect.retry = retry

    # -- yours to override ----------------------------------------------------------------------

    def contexts(self) -> Strategy:
        """First contexts: the environment's, or small ones that the invariants allow."""
        return st.sampled_from(first_contexts(self.rig))

    def payloads(self, event: str, context: Any) -> Strategy:
        """Payloads of an event that arrives from outside, for a run with this context."""
        return self._payloads(self.rig.table, event, context)

    def answers(self, event: str, context: Any) -> Strategy:
        """Payloads with which an effect answers."""
        return self._payloads(self.rig.table, event, context)

    def _payloads(self, table: Table, event: str, context: Any) -> Strategy:
        kind = table.payloads.get(event)
        return st.none() if kind is None else strategy_for(kind, near_of(context))

    # -- yours to call --------------------------------------------------------------------------

    def send(self, event: str, payload: Event | None = None, *, number: int = 1) -> None:
        """An event arrives at a run, by its place in the order of acceptance."""
        text = "" if payload is None else self.rig.bench.codec.encode(payload).decode()
        if self.rig.bench.hand is not None:
            self.take(("call", "arrives", event, text, str(number)))
        else:
            self.take(("send", event, text, number))

    def take(self, step: Step, *, crash_at: int | None = None) -> None:
        """Take one step of the explorer; what does not hold after it ends the run.

        Args:
            crash_at: the worker dies after this commit of the move, if it makes so many.

        Raises:
            LookupError: the step is not possible here.
        """
        bench, faulted = self.rig.bench, self.seat.faulted
        self.steps.append(step)
        faulted.before(step, bench.hand)
        if step[0] == "move":
            end = bench.move(step[1], crash_at=crash_at).end
        elif step[0] == "call":
            end = bench.answer(tuple(step[1:]), crash_at=crash_at).end
        else:
            if step[0] == "probe":
                self.rig.coverage.refused(self.rig.table.name, self.root.state, step[1])
            take(bench, step)
            end = "ended"
        dead = end in ("dead", "lost")
        if end == "dead" and crash_at is not None:
            self.steps.append(("crash", crash_at))
        faulted.after(step, crash_at if dead else None)
        self.found += bench.breaches
        if bench.hand is None:
            bench.go(bench.spot(dead=dead))
            self.found += bench.breaches
        bench.breaches = []

    @property
    def root(self) -> Row:
        """The run under test, as it is stored."""
        return self.rig.bench.rows().runs[0]

    def context_of(self, row: Row) -> Any:
        """The context of a run."""
        table = self.rig.bench.app.tables[row.machine]
        return self.rig.bench.codec.decode(table.context, row.context, "context")

    # -- what is possible -----------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Whether no worker stands at a call."""
        return not self.failed and self.rig.bench.hand is None

    @property
    def may_send(self) -> bool:
        """Whether more events may come from outside."""
        return len(self.rig.bench.sent) < self.rig.scope.messages

    @property
    def held(self) -> bool:
        """Whether the run waits for a person."""
        return self.root.status in ("paused", "quarantined")

    def takes(self, event: str) -> bool:
        """Whether the run is in a state that has a use for the event."""
        row = self.root
        return self.quiet and self.may_send and row.live and (
            (row.state, event) in self.rig.table.edges
        )  # fmt: skip

    def _may_send(self, event: str) -> bool:
        return event in self.rig.options.external[self.rig.table.name] and self.takes(event)

    # -- rules ----------------------------------------------------------------------------------

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """A run is accepted."""
        bench = self.rig.bench
        bench.go(bench.empty)
        text = bench.codec.encode(data.draw(self.contexts(), label="context")).decode()
        if not bench.start(self.rig.table.name, text):
            text = bench.codec.encode(first_contexts(self.rig)[0]).decode()
            if not bench.start(self.rig.table.name, text):
                raise UsageError(
                    f"machine {self.rig.table.name}: no first context was accepted. Override "
                    "contexts() with some that fulfil the invariants of its initial state."
                )
        self.steps = [("start", self.rig.table.name, text)]
        bench.go(bench.spot())

    @rule(data=st.data())
    def live_on(self, data: st.DataObject) -> None:
        """Something that leads on, without a fault; there is always this to choose."""
        bench = self.rig.bench
        if self.failed:
            return
        if bench.hand is not None:
            self.take(self._answer(data, faults=False))
        elif bench.due():
            self.take(("move", data.draw(self._due(), label="run")))
        elif events := [event for event in self.rig.table.events if self._may_send(event)]:
            self.arrive(data, data.draw(st.sampled_from(events), label="event"))
        elif bench.moments():
            self.take(("clock", 0))

    @precondition(lambda self: self.quiet and self.rig.bench.due())
    @rule(data=st.data(), commits=_deaths(0))
    def work(self, data: st.DataObject, commits: int | None) -> None:
        """A worker takes a run that is due; it may die after so many commits."""
        number = data.draw(self._due(), label="run")
        self.take(("move", number), crash_at=commits if self.rig.scope.faults else None)

    def _due(self) -> Strategy:
        return st.sampled_from([row.number for row in self.rig.bench.due()])

    @precondition(lambda self: not self.failed and self.rig.bench.hand is not None)
    @rule(data=st.data(), commits=_deaths(1))
    def answer(self, data: st.DataObject, commits: int | None) -> None:
        """The call at which a worker stands gets an answer; it may die some commits later."""
        hand, faults = self.rig.bench.hand, self.rig.scope.faults
        assert hand is not None
        step = self._answer(data, faults=faults)
        own = step[1] in ("died", "zombie", "arrives") or hand.zombie
        dies = commits is not None and faults and not own
        self.take(step, crash_at=hand.commits + commits if commits and dies else None)

    def _answer(self, data: st.DataObject, *, faults: bool) -> Step:
        """An ordinary answer first, so that shrinking leads to it."""
        hand = self.rig.bench.hand
        assert hand is not None
        choices = [one for one in self.rig.options.answers(hand) if one[0] != "arrives"]
        ordinary = [one for one in choices if one[0] not in FAULTS]
        if ordinary:
            choices = [*ordinary, *(one for one in choices if faults and one[0] in FAULTS)]
        if self._is_said(hand.asked.job.table):
            return ("call", *data.draw(st.sampled_from(choices), label="answer"))
        kinds = list(dict.fromkeys(choice[:2] for choice in choices))
        kind = data.draw(st.sampled_from(kinds), label="answer")
        return ("call", *self._with_payload(data, kind, choices))

    def _is_said(self, table: Table) -> bool:
        """Whether an environment says what may come."""
        return self.rig.environment is not None and table is self.rig.table

    def _with_payload(self, data: st.DataObject, kind: Choice, choices: Sequence[Choice]) -> Choice:
        """One of the payloads that guards tell apart, or any."""
        hand = self.rig.bench.hand
        assert hand is not None
        known = [choice for choice in choices if choice[:2] == kind]
        job = hand.asked.job
        told = len(kind) > 1 and kind[1] in job.table.payloads
        if not told or job.table is not self.rig.table:
            return data.draw(st.sampled_from(known), label="payload")
        small = st.sampled_from([choice[2] for choice in known])
        wide = self._encoded(self.answers(kind[1], job.run.context))
        return (*kind, data.draw(st.one_of(small, wide), label="payload"))

    def _encoded(self, strategy: Strategy) -> Strategy:
        encode = self.rig.bench.codec.encode
        return strategy.map(lambda one: "" if one is None else encode(one).decode())

    @precondition(lambda self: self.rig.bench.hand is not None and self._may_interrupt())
    @rule(data=st.data())
    def meanwhile(self, data: st.DataObject) -> None:
        """An event arrives while a worker stands at a call."""
        hand = self.rig.bench.hand
        assert hand is not None
        row = self.rig.bench.row(hand.asked.call.run_id)
        assert row is not None
        events = self._interrupting(row)
        event = data.draw(st.sampled_from(events), label="event")
        text = "" if event == CANCEL else data.draw(self._texts(row, event), label="payload")
        number = "1" if event == CANCEL else str(row.number)
        self.take(("call", "arrives", event, text, number))

    def _may_interrupt(self) -> bool:
        hand = self.rig.bench.hand
        row = None if hand is None else self.rig.bench.row(hand.asked.call.run_id)
        return not self.failed and row is not None and bool(self._interrupting(row))

    def _interrupting(self, row: Row) -> list[str]:
        events = [event for event in self.rig.options.external[row.machine]
                  if self.may_send and self._has_texts(row, event)]  # fmt: skip
        if row.parent_id is None and self.rig.scope.cancels and not self.rig.bench.cancelled:
            events.append(CANCEL)
        return events

    def _has_texts(self, row: Row, event: str) -> bool:
        table = self.rig.bench.app.tables[row.machine]
        environment = self.rig.environment
        if environment is None or table is not self.rig.table:
            return True
        return event not in environment.events() or bool(
            self.rig.options.payloads.of_row(table, row, event)
        )

    def _texts(self, row: Row, event: str) -> Strategy:
        """Encoded payloads: what the environment says, or small ones and any."""
        table = self.rig.bench.app.tables[row.machine]
        small = st.sampled_from(self.rig.options.payloads.of_row(table, row, event))
        environment = self.rig.environment
        said = environment is not None and event in environment.events()
        if (said and table is self.rig.table) or event not in table.payloads:
            return small
        context = self.context_of(row)
        if table is not self.rig.table:
            return st.one_of(small, self._encoded(self._payloads(table, event, context)))
        return st.one_of(small, self._encoded(self.payloads(event, context)))

    def arrive(self, data: st.DataObject, event: str) -> None:
        """An event with a drawn payload arrives at the run under test."""
        if self._has_texts(self.root, event):
            self.take(("send", event, data.draw(self._texts(self.root, event), "payload"), 1))

    @precondition(lambda self: self.quiet and self.may_send and self._others())
    @rule(data=st.data())
    def send_to_another_run(self, data: st.DataObject) -> None:
        """An event from outside arrives at a child."""
        row, event = data.draw(st.sampled_from(self._others()), label="run and event")
        self.take(("send", event, data.draw(self._texts(row, event), label="payload"), row.number))

    def _others(self) -> list[tuple[Row, str]]:
        rows, external = self.rig.bench.rows().runs[1:], self.rig.options.external
        return [(row, event) for row in rows if row.live for event in external[row.machine]]

    @precondition(lambda self: self._may_probe())
    @rule(data=st.data())
    def send_in_wrong_state(self, data: st.DataObject) -> None:
        """An event arrives for which the state has no use, and changes nothing."""
        table, state = self.rig.table, self.root.state
        event = data.draw(st.sampled_from(self._refusing()), label="event")
        self.probed.add((state, event))
        self.take(("probe", event, self.rig.options.payloads.first(table, event)))

    def _refusing(self) -> list[str]:
        """Events for which the state has no use, each once in a run."""
        table, state = self.rig.table, self.root.state
        return [event for event in table.events
                if (state, event) not in table.edges and (state, event) not in self.probed
                ]  # fmt: skip

    def _may_probe(self) -> bool:
        if not self.quiet or self.held or not self._refusing():
            return False
        row, bench = self.root, self.rig.bench
        due = row.due_ms is not None and row.due_ms <= bench.clock.now_ms()
        waiting = any(one[0] == row.run_id for one in bench.rows().inbox)
        return not (due or waiting or bool(row.closing) or bool(row.owner))

    @precondition(lambda self: self.quiet and self._may_come_again())
    @rule(data=st.data())
    def duplicate(self, data: st.DataObject) -> None:
        """An event comes again, under its key."""
        sent = data.draw(st.sampled_from(self.rig.bench.sent), label="event")
        self.take(("again", *sent))

    def _may_come_again(self) -> bool:
        """As many times as there were events, not more."""
        again = sum(step[0] == "again" for step in self.steps)
        return bool(again < len(self.rig.bench.sent))

    @precondition(lambda self: self.quiet and self._choices_of_children())
    @rule(data=st.data())
    def child(self, data: st.DataObject) -> None:
        """A stand-in shows its next milestone, or ends."""
        self.take(data.draw(st.sampled_from(self._choices_of_children()), label="child"))

    def _choices_of_children(self) -> list[Step]:
        options = self.rig.options
        return [step for row in self.rig.bench.rows().runs if row.live
                and row.machine in options.stand_ins
                for step in options._of_stand_in(row)]  # fmt: skip

    @precondition(lambda self: self.quiet and self.rig.bench.moments())
    @rule(moment=st.integers(0, MOMENTS_MAX - 1))
    def clock(self, moment: int) -> None:
        """Time goes on to one of the moments at which something falls due."""
        self.take(("clock", min(moment, len(self.rig.bench.moments()) - 1)))

    @precondition(
        lambda self: self.quiet and self.rig.scope.cancels and self.root.live
        and not self.rig.bench.cancelled
    )  # fmt: skip
    @rule()
    def cancel(self) -> None:
        """Somebody asks the run to stop."""
        self.take(("cancel",))

    @precondition(
        lambda self: self.quiet and self.rig.scope.pauses and self.root.live and not self.held
        and self.steps.count(("pause",)) < PAUSES_MAX
    )  # fmt: skip
    @rule()
    def pause(self) -> None:
        """Somebody pauses the run."""
        self.take(("pause",))

    @precondition(lambda self: self.quiet and self.rig.scope.pauses and self.held)
    @rule()
    def resume(self) -> None:
        """Somebody lets it go on."""
        self.take(("resume",))

    # -- what must hold -------------------------------------------------------------------------

    @invariant()
    def all_holds(self) -> None:
        """The oracles, at every quiet moment."""
        if self.quiet and not self.found:
            self.found += self.rig.checking.breaches()
        if self.found and not self.failed:
            self._fail("safety", self.found[0], tuple(self.steps))

    def teardown(self) -> None:
        """Everything comes to rest; then the rig is free for the next run."""
        try:
            if self.steps and not self.failed:
                self._finish(tuple(self.steps))
        finally:
            self._open.close()

    def _finish(self, lived: tuple[Step, ...]) -> None:
        """Without faults and messages everything comes to rest."""
        chances, moment = self.seat.chances, self.rig.bench.fingerprint()
        chances.begin(random.Random(0))  # noqa: S311 - one fixed way
        chances.goal = None
        for _ in range(FINISH_STEPS_MAX):
            if self.quiet and self.rig.checking.is_settled():
                return
            step = chances.finishing()
            if step is None:
                break
            self.take(step)
            self.all_holds()
        if moment not in self.seat.stuck:
            self.seat.stuck[moment] = not self._leads_on(lived)
        if self.seat.stuck[moment]:
            states = "; ".join(f"{r.machine} {r.state} {r.status}"
                               for r in self.rig.bench.rows().runs)  # fmt: skip
            problem = f"in {states}, nothing leads to an end or to a state that awaits an event"
            self._fail("liveness", Breach("stuck", problem), lived)

    def _leads_on(self, lived: tuple[Step, ...]) -> bool:
        found = repeat(self.machine, type(self).store_factory(), lived, known=self.known,
                       environment=self.environment, liveness=True)  # fmt: skip
        return not found.breaches

    def _fail(self, kind: Any, breach: Breach, steps: tuple[Step, ...]) -> None:
        self.failed = True
        failure = Failure(
            kind=kind, rule=breach.rule, problem=breach.problem, steps=steps, found_after_ms=0
        )
        raise _exception(breach.rule)(told(type(self), failure), failure)


class _TestCase:
    """`TestCase` of a generated class: pytest and unittest run it, and it prints a short way."""

    def __get__(self, owner: Any, kind: Kind) -> type[unittest.TestCase]:
        class Case(unittest.TestCase):
            settings: ClassVar[Any] = None

            def runTest(self) -> None:  # noqa: N802 - unittest's name
                run_machine(kind, settings=self.settings)

            runTest.is_hypothesis_test = True  # type: ignore[attr-defined]

        Case.__name__ = Case.__qualname__ = f"{kind.__name__}Case"
        Case.__module__ = kind.__module__
        return Case


MachineTest.TestCase = _TestCase()  # type: ignore[assignment]


def machine_test(
    machine: type[Machine[Any]],
    *,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    scope: Scope | None = None,
    store_factory: Callable[[], Store] = memory_store,
) -> Kind:
    """A Hypothesis state machine for a machine, to be run or subclassed.

    Args:
        known: machines that it may start as children.
        environment: what the outside may do; by default the one that was defined for the machine.
        scope: what may happen at all; by default everything, and many messages.
        store_factory: opens an empty store in memory.
    """
    table = compile_table(machine)
    environment = environment or environment_of(machine)
    body: dict[str, Any] = {
        "__doc__": f"Random lives of {table.name}.",
        "machine": machine,
        "known": tuple(known),
        "environment": environment,
        "scope": scope or wide_scope(environment),
        "store_factory": staticmethod(store_factory),
        "_seat": None,
    }
    for event in table.events:
        body[f"send_{event}"] = _rule_for(event)
    # The name is Hypothesis' key for kept examples: another shape of the machine, another key.
    kind: Any = type(f"{table.name}Test_{table.fingerprint[:12]}", (MachineTest,), body)
    kind.generated = kind
    return kind  # type: ignore[no-any-return]


def _rule_for(event: str) -> Any:
    def send(self: MachineTest, data: st.DataObject) -> None:
        self.arrive(data, event)

    send.__name__ = send.__qualname__ = f"send_{event}"
    send.__doc__ = f"The event {event} arrives from outside."
    return precondition(lambda self: self._may_send(event))(rule(data=st.data())(send))


def _seat_of(kind: Kind) -> _Seat:
    """Made once for a generated class and its subclasses."""
    owner = kind.generated
    if owner._seat is None:
        store = owner.store_factory()
        rig = Rig(kind.machine, store, known=kind.known, scope=kind.scope,
                  environment=kind.environment)  # fmt: skip
        rig.bench.captures = False
        policies = [(effect, effect.retry) for effect in rig.bench._effects()]
        owner._seat = _Seat(rig, store, Chances(rig), Faulted(rig), policies, {})
    return owner._seat


def first_contexts(rig: Rig) -> list[Context]:
    """The environment's first contexts, or small ones."""
    found = rig.first_contexts(())
    if rig.environment is None or not list(rig.environment.contexts()):
        found += contexts_of(rig.table, state=rig.table.initial, limit=CONTEXTS_MAX)
    return found


_KINDS: dict[str, type[MachineFailed]] = {}


def _exception(rule_: str) -> type[MachineFailed]:
    """One type for each rule, or Hypothesis would take them for the same failure."""
    if rule_ not in _KINDS:
        _KINDS[rule_] = type("MachineFailed", (MachineFailed,), {"__module__": __name__})
    return _KINDS[rule_]


# -- running --------------------------------------------------------------------------------------


def run_machine(kind: Kind, *, settings: Settings | None = None) -> Coverage:
    """Run a generated class; what it has covered.

    Args:
        settings: Hypothesis' own; without a deadline and health checks in any case.  Without
            its shrinking unless there are rules of yours: our reducer does it, and further.

    Raises:
        MachineFailed: with the simplest way that breaks the same rule.
    """
    chosen = settings or Settings()
    phases = [one for one in chosen.phases if one not in _OURS or kind is not kind.generated]
    chosen = Settings(
        chosen,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=phases,
    )
    try:
        run_state_machine_as_test(kind, settings=chosen)
    except MachineFailed as error:
        simple = simplest(kind, error.failure)
        raise type(error)(told(kind, simple, before=error.failure), simple) from None
    return _seat_of(kind).rig.coverage


_OURS = frozenset({Phase.shrink, Phase.explain, Phase.target})
"""Phases that do worse than our reducer, and that chase what is covered already."""


def simplest(kind: Kind, failure: Failure) -> Failure:
    """The failure with a simplest way, as far as its steps alone lead there."""
    try:
        found = reduce_way(
            kind.machine, kind.store_factory, failure.steps, failure.rule, known=kind.known,
            environment=kind.environment, liveness=failure.kind == "liveness",
            budget_seconds=SIMPLER_SECONDS,
        )  # fmt: skip
    except UsageError:
        return failure
    return Failure(
        kind=failure.kind, rule=failure.rule, problem=found.problem, steps=found.steps,
        found_after_ms=failure.found_after_ms,
    )  # fmt: skip


def told(kind: Kind, failure: Failure, *, before: Failure | None = None) -> str:
    """A failure in words: what, the way there, and its token."""
    table = compile_table(kind.machine)
    lines = [f"{failure.kind}: {failure.rule}", f"  {failure.problem}"]
    steps = said_with_states(failure.steps, () if before is None else _states(kind, failure))
    for number, (text, state) in enumerate(steps, start=1):
        lines.append(f"  {number:>3}  {text}")
        lines += [f"         -> {state}"] if state else []
    if before is not None and len(before.steps) > len(failure.steps):
        lines.append(f"  (made simpler, from {len(before.steps)} steps)")
    token = token_of(table, failure, kind.environment)
    return "\n".join([*lines, f"  replay  turtles verify {table.name} --replay {token}"])


def _states(kind: Kind, failure: Failure) -> Sequence[str]:
    try:
        found = repeat(kind.machine, kind.store_factory(), failure.steps, known=kind.known,
                       environment=kind.environment)  # fmt: skip
    except TurtlesError:
        return ()
    return found.states


def coverage_lines(coverage: Coverage) -> Iterator[str]:
    """What was covered, and the first gaps, as lines to print."""
    parts = [
        ("transitions", [named(one) for one in coverage.missing_transitions],
         len(coverage.all_transitions)),
        ("cells", [cell_named(one) for one in coverage.missing_cells], len(coverage.all_cells)),
        ("transition x fault", [fault_named(one) for one in coverage.missing_faults],
         len(coverage.all_faults)),
    ]  # fmt: skip
    for name, gaps, whole in parts:
        yield f"{name:<19}{whole - len(gaps)}/{whole}"
        for gap in gaps[:SHOWN_MAX]:
            yield f"  MISSING  {gap}"
        if len(gaps) > SHOWN_MAX:
            yield f"  and {len(gaps) - SHOWN_MAX} more"
    for mark in coverage.marks:
        yield f"sometimes          {mark}: {'seen' if mark in coverage.seen else 'MISSING'}"
