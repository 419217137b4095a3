"""What every machine of this package has in common."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checks import check_machine
from engine.codec import Codec
from engine.definition import Machine, State, actions_of, edges_of
from engine.effects import Effect
from engine.errors import DefinitionError
from engine.events import Event, event_id
from engine.secrets import Secret, SecretsCodec
from engine.table import Place, Table, compile_table
from machines.app import MACHINES
from machines.flows.agent_plan import AgentReport
from machines.flows.capture import SnapshotReport
from machines.flows.code_run import ExecutionReport
from machines.flows.deployment import ServiceReport
from machines.flows.f01_discovery import Discovered, Findings
from machines.flows.f03c_confirmation import FollowReport
from machines.flows.f03w_wallet import SpendReport
from machines.flows.f04_authentication import Identity
from machines.flows.gift_card import CardPayment, CardReceipt, Redeemed
from machines.flows.inquiry import CapabilityDocument
from machines.flows.layer import Layers
from machines.flows.layer_events import (
    BoughtCard,
    KeyReceipt,
    Proof,
    RedeemedKey,
    Surroundings,
    Tool,
)
from machines.flows.publication import ImageReport
from machines.flows.purchase import Delivery, FollowResult, Receipt, SpendResult
from machines.flows.session_run import SessionReport
from machines.flows.tool_calls import Installed
from machines.flows.trial import TrustReport

TABLES = {machine.__name__: compile_table(machine) for machine in MACHINES}
CODEC = Codec(SecretsCodec(b"c" * 32), TABLES)
INT64 = 2**63
OUTPUTS = (
    AgentReport,
    CapabilityDocument,
    CardReceipt,
    Delivery,
    Discovered,
    ExecutionReport,
    FollowReport,
    Identity,
    ImageReport,
    Installed,
    Layers,
    Receipt,
    Redeemed,
    ServiceReport,
    SessionReport,
    SnapshotReport,
    SpendReport,
    TrustReport,
)
FEW = settings(max_examples=max(settings.default.max_examples // 8, 8))
each_machine = pytest.mark.parametrize("name", sorted(TABLES))


# -- definitions --------------------------------------------------------------------------------


@each_machine
def test_compiles_without_findings(name: str) -> None:
    machine = TABLES[name].machine
    assert compile_table(machine) is TABLES[name]
    assert check_machine(machine) == []


def test_the_checks_do_find_something() -> None:
    """An empty list above means that the machine is sound, not that nobody looked."""
    with pytest.raises(DefinitionError, match="has no way out"):

        class Stuck(Machine[Findings]):
            here = State(initial=True, waits=True)
            there = State(waits=True)
            home = State(final=True)
            go = here.to(there)
            leave = here.to(home)


@each_machine
def test_has_docstrings(name: str) -> None:
    """A machine says what it is for; so do its module, its context and every payload."""
    table = TABLES[name]
    module = sys.modules[table.machine.__module__]
    assert table.doc.strip().endswith(".")
    assert module.__doc__ and "::" in module.__doc__, "the protocol is drawn beside the code"
    for kind in (table.context, *table.payloads.values()):
        assert kind.__doc__ and kind.__doc__ != kind.__mro__[1].__doc__, kind


@each_machine
def test_every_effect_says_what_it_does(name: str) -> None:
    for effect in _effects(TABLES[name]):
        assert effect.perform.__doc__, effect.name
        assert effect.idempotent != (effect.ask is not None), effect.name


@each_machine
def test_every_state_ends_in_time(name: str) -> None:
    """A state is left by its effect, its time, or its child; or it says that it waits."""
    table = TABLES[name]
    for place in table.places.values():
        if place.final:
            assert not _leaving(table, place.name), place.name
            continue
        handled = [event for event in _ways_out(table, place) if _moves(table, place, event)]
        assert handled or place.waits, f"{name}.{place.name} is for ever"


def _ways_out(table: Table, place: Place) -> set[str]:
    """The events by which the engine itself can move a run out of (or on in) a state."""
    found = {place.on_timeout, place.on_child, place.on_exhausted} - {None}
    if place.effect is not None:
        found |= {event_id(kind) for kind in _answers(place.effect)}
    return {str(one) for one in found}


def _moves(table: Table, place: Place, event: str) -> bool:
    return any(not edge.stays for edge in table.edges.get((place.name, event), ()))


def _effects(table: Table) -> list[Effect]:
    places = table.places.values()
    return [e for place in places for e in (place.effect, place.compensation) if e is not None]


def _answers(effect: Effect) -> list[type[Event]]:
    """The events that an effect may return, by its annotation."""
    functions = [effect.perform, *([effect.ask] if effect.ask else [])]
    kinds = [
        kind for function in functions for kind in _options(get_type_hints(function)["return"])
    ]
    return [kind for kind in dict.fromkeys(kinds) if issubclass(kind, Event)]


def _leaving(table: Table, state: str) -> list[str]:
    return [event for source, event in table.edges if source == state]


@each_machine
def test_every_answer_of_an_effect_is_handled_where_it_can_come(name: str) -> None:
    """An outcome that its state does not handle would set the run aside."""
    table = TABLES[name]
    for place in table.places.values():
        answers = {event_id(kind) for kind in _answers(place.effect)} if place.effect else set()
        unhandled = {event for event in answers if (place.name, event) not in table.edges}
        assert unhandled == set(), f"{name}.{place.name}"


@each_machine
def test_every_event_has_a_use(name: str) -> None:
    table = TABLES[name]
    assert {event for _, event in table.edges} == set(table.events)
    assert set(table.payloads) <= set(table.events)


@each_machine
def test_an_effect_that_may_be_given_up_has_somewhere_to_go(name: str) -> None:
    """Or it is retried for so long that a person has looked, or no error leaves it."""
    for place in TABLES[name].places.values():
        if place.effect is None or place.on_exhausted is not None:
            continue
        patient = place.effect.retry.attempts >= 100
        assert patient or place.effect.name in ONLY_READS, f"{name}.{place.name}"


ONLY_READS = {"probe_platform": "every error of it is a finding"}
"""Effects whose own code lets no error out."""


@each_machine
def test_every_failure_says_why(name: str) -> None:
    """Every edge into a failure writes a reason, but for those whose state's name is the reason."""
    table = TABLES[name]
    failures = {place.name for place in table.places.values() if place.failure}
    silent = {
        edge.target.id
        for edge in edges_of(table.machine)
        if edge.target is not None
        and edge.target.id in failures
        and not _writes_a_reason(table, edge)
    }
    assert silent == NAME_SAYS_WHY[name]


def _writes_a_reason(table: Table, edge: Any) -> bool:
    names = [*actions_of(edge), *(f"on_{event}" for event in edge.events)]
    for name in [*names, f"on_exit_{edge.source.id}", f"on_enter_{edge.target.id}"]:
        action = getattr(table.machine, name, None)
        if action is not None and _REASONS & _constants(action.__code__):
            return True
    return False


def _constants(code: types.CodeType) -> set[str]:
    """The texts in a function, those in its tuples of keywords included."""
    return {
        text
        for one in code.co_consts
        for text in (one if isinstance(one, tuple) else (one,))
        if isinstance(text, str)
    }


_REASONS = {"reason", "refusal"}
NAME_SAYS_WHY: dict[str, set[str]] = {
    "Agent": {
        "forgotten",
        "froze_not",
        "no_sandbox",
        "program_failed",
        "sandbox_lost",
        "stuck",
    },
    "Authentication": {"unreachable"},
    "Confirmation": {"given_up", "replaced"},
    "Discovery": set(),
    "Execution": {"unreachable"},
    "GiftCard": {"unavailable"},
    "Image": {"unreachable"},
    "Inception": {"cut_short", "execution_refused", "no_slot", "no_tools"},
    "Introspection": {"unreachable"},
    "Payment": {
        "expired_unpaid",
        "over_budget",
        "refund_disputed",
        "refunded",
        "unavailable",
        "unsettled",
    },
    "Redemption": {"unavailable"},
    "Service": {"unreachable"},
    "Session": {"locked"},
    "Snapshot": {"unreachable"},
    "Spend": {"abandoned", "conflicted", "rejected", "unfunded"},
    "ToolInstall": {"unreachable"},
    "Trust": {"breached", "inconclusive", "lost", "refused"},
}
"""Failures that some edge enters without a word: the name says it, or an earlier state has said it
(those of Agent and Inception, before the sandbox ended; all those of Spend, but for an order whose
time was over at once)."""


def test_fingerprints_differ() -> None:
    assert len({table.fingerprint for table in TABLES.values()}) == len(MACHINES)


def test_names_are_sorted_and_differ() -> None:
    names = [machine.__name__ for machine in MACHINES]
    assert names == sorted(set(names))


def test_every_child_is_a_machine_that_tells_what_its_parent_expects() -> None:
    """What a parent decodes is a part of what its child's `output` gives, field by field."""
    pairs = {
        Surroundings: Discovered,
        CardPayment: Delivery,
        KeyReceipt: Receipt,
        RedeemedKey: Redeemed,
        BoughtCard: CardReceipt,
        Tool: Installed,
        Proof: Identity,
        SpendResult: SpendReport,
        FollowResult: FollowReport,
    }
    for expected, given_ in pairs.items():
        theirs = get_type_hints(given_)
        for field, kind in get_type_hints(expected).items():
            assert _covers(kind, theirs[field]), f"{expected.__name__}.{field}"


def _covers(wider: Any, narrower: Any) -> bool:
    """Whether every value of the second is one of the first; literals are strings."""
    options = _options(wider)
    return all(
        one in options or (str in options and isinstance(one, str)) for one in _options(narrower)
    )


def _options(kind: Any) -> list[Any]:
    if get_origin(kind) in (Union, types.UnionType):
        return [one for part in get_args(kind) for one in _options(part)]
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [kind]


# -- stored and read back -----------------------------------------------------------------------


@each_machine
@FEW
@given(data=st.data())
def test_contexts_survive_the_codec(name: str, data: st.DataObject) -> None:
    context = data.draw(values_of(TABLES[name].context))
    assert CODEC.decode(TABLES[name].context, CODEC.encode(context), "context") == context


@each_machine
@FEW
@given(data=st.data())
def test_payloads_survive_the_codec(name: str, data: st.DataObject) -> None:
    table = TABLES[name]
    event = data.draw(st.sampled_from(sorted(table.payloads)))
    payload = data.draw(values_of(table.payloads[event]))
    stored = CODEC.seal_payload(payload, "test")
    assert CODEC.open_payload(table, event, stored, "test") == payload


@pytest.mark.parametrize("kind", OUTPUTS, ids=lambda kind: kind.__name__)
@FEW
@given(data=st.data())
def test_outputs_survive_the_codec(kind: Any, data: st.DataObject) -> None:
    output = data.draw(values_of(kind))
    assert CODEC.decode(kind, CODEC.encode(output), "output") == output


@each_machine
@FEW
@given(data=st.data())
def test_outputs_are_of_the_kinds_tested(name: str, data: st.DataObject) -> None:
    """Whatever the context is: an output is one of those above, or None."""
    table = TABLES[name]
    output = table.output({"context": data.draw(values_of(table.context))})
    assert output is None or type(output) in OUTPUTS


@settings(max_examples=50)
@given(text=st.text(max_size=40))
def test_a_secret_is_stored_sealed(text: str) -> None:
    marked = f"<<{text}>>"
    stored = CODEC.encode(KeyReceipt("pk", Secret(marked), 700, ("t",)))
    assert marked.encode() not in stored
    assert b"turtles:1:" in stored


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that contexts and payloads are made of."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        return st.builds(kind, **{name: values_of(hints[name]) for name in kind.__struct_fields__})
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(one) for one in arguments])
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is Secret:
        return values_of(arguments[0]).map(Secret)
    return _PLAIN[kind]() if kind in _PLAIN else st.sampled_from(kind)


_PLAIN: dict[Any, Callable[[], st.SearchStrategy[Any]]] = {
    int: lambda: st.one_of(st.sampled_from([0, 1, -1, INT64 - 1, -INT64]), st.integers(-9, 9)),
    str: lambda: st.text(max_size=12),
    bool: st.booleans,
    type(None): st.none,
}
