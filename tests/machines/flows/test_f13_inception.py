"""Inception over small children of the same names: every branch, and a crash at every boundary.

Inception knows its children by name, milestones and outputs; the ones here have those and nothing
else.  `Town` is the outside world: a shop that sells keys and cards, and the platform on which they
open sandboxes.  What an engine inside a sandbox says is said by the town, too.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from engine import Call, Context, Event, Machine, State, effect
from engine.app import Outcome
from engine.errors import Refused
from engine.journal import START, fold, replay
from engine.ports import Query
from engine.run import TERMINAL, Run
from engine.secrets import Secret, SecretsCodec
from engine.testing import Crash, CrashPlan, Harness, ManualClock
from engine.worker import LEASE_MS
from machines.clients.ports import (
    ClientError,
    Credentials,
    Execution,
    NotFound,
    Platform,
    Portal,
    Quote,
    Record,
    Rejected,
    ReplyLost,
    SessionInfo,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.gift_cards import CardStatus, GiftCards
from machines.flows.f13_inception import Inception
from machines.flows.keyed import PATIENT
from machines.flows.layer import LOST_MAX, STDOUT_CHARACTERS_MAX, Layer, LayerReport, line_of
from machines.flows.layer import Step as Passed
from machines.flows.layer_wire import Attended, Told, ask_from
from persistence import open_store

PRICE_CENTS = 700
EVIDENCE = json.dumps({"namespaces": {"user": 7}})
MASTER_KEY = b"m" * 32


# -- the children -------------------------------------------------------------------------------


class Step(Event, tag="step"):
    """One step of a child; `fate` names the failure it ends in, or is empty."""

    fate: str = ""


class Look(Context):
    evidence: str | None = None


class Seen(Record):
    awareness: str
    profile: str | None
    tools: tuple[str, ...]


@effect(idempotent=True)
async def look(context: Look, call: Call) -> Step:
    return Step(fate=call.resource(Town).look(context.evidence))


class Discovery(Machine[Look]):
    """Where am I?  Tells its parent when it begins to look for tools."""

    inspecting = State(initial=True, effect=look)
    searching_tools = State(effect=look, milestone=True)
    capable = State(final=True)
    unaware = State(final=True, failure=True)

    step = (
        inspecting.to(unaware, cond="is_lost")
        | inspecting.to(searching_tools)
        | searching_tools.to(unaware, cond="is_idle")
        | searching_tools.to(capable)
    )

    def is_lost(self, event: Step) -> bool:
        return event.fate == "lost"

    def is_idle(self, event: Step) -> bool:
        return event.fate == "idle"

    def output(self, context: Look) -> Seen:
        inside = context.evidence is not None
        return Seen(
            awareness="sandboxed" if inside else "not_sandboxed",
            profile="bubblewrap" if inside else "bare",
            tools=("platform_api",),
        )


class Order(Context):
    tier: int
    months: int
    currency: str
    budget_cents: int
    poll_ms: int
    number: int = 0


class Receipt(Record):
    public_key: str
    secret_key: Secret[str]
    paid_cents: int
    txids: tuple[str, ...]


class Stepped(Event, tag="stepped"):
    """The next thing in a purchase has happened, or it ends in `fate`."""

    fate: str = ""
    number: int = 0


def ask(name: str) -> Any:
    """An effect that asks the shop what this step of a purchase leads to."""

    async def asked(context: Order, call: Call) -> Stepped:
        return call.resource(Town).purchase(name, context, call)

    return effect(idempotent=True, name=name)(asked)


class Payment(Machine[Order]):
    """Buy a key, in the five steps that Inception follows."""

    payloads = (Stepped,)

    pricing = State(initial=True, effect=ask("price"))
    invoicing = State(effect=ask("invoice"), milestone=True)
    paying = State(effect=ask("pay"), milestone=True)
    confirming = State(effect=ask("confirm"), milestone=True)
    settling = State(effect=ask("settle"), milestone=True)
    completed = State(final=True)
    over_budget = State(final=True, failure=True)
    unfunded = State(final=True, failure=True)
    expired_unpaid = State(final=True, failure=True)
    unconfirmed = State(final=True, failure=True)
    unsettled = State(final=True, failure=True)

    stepped = (
        pricing.to(over_budget, cond="over")
        | pricing.to(expired_unpaid, cond="failed")
        | pricing.to(invoicing)
        | invoicing.to(unfunded, cond="short")
        | invoicing.to(expired_unpaid, cond="failed")
        | invoicing.to(paying)
        | paying.to(unfunded, cond="short")
        | paying.to(expired_unpaid, cond="failed")
        | paying.to(settling, cond="conflicted")
        | paying.to(confirming)
        | confirming.to(unconfirmed, cond="failed")
        | confirming.to(settling)
        | settling.to(unsettled, cond="failed")
        | settling.to(confirming, cond="sank")
        | settling.to(completed)
    )

    def over(self, event: Stepped) -> bool:
        return event.fate == "over_budget"

    def short(self, event: Stepped) -> bool:
        return event.fate == "unfunded"

    def conflicted(self, event: Stepped) -> bool:
        return event.fate == "conflicted"

    def sank(self, event: Stepped) -> bool:
        return event.fate == "sank"

    def failed(self, event: Stepped) -> bool:
        return event.fate == "failed"

    def on_stepped(self, context: Order, event: Stepped) -> Order:
        return self.but(context, number=event.number or context.number)

    def output(self, context: Order) -> Receipt | None:
        if not context.number:
            return None
        return Receipt(
            public_key=public_key(context.number),
            secret_key=Secret(secret_of(context.number)),
            paid_cents=PRICE_CENTS,
            txids=(f"tx-{context.number}",),
        )


class Claim(Context):
    public_key: str
    secret_key: Secret[str]


class Identity(Record):
    offset_ms: int
    concurrency: int


@effect(idempotent=True)
async def prove(context: Claim, call: Call) -> Step:
    town = call.resource(Town)
    town.check(Credentials(public_key=context.public_key, secret_key=context.secret_key))
    return Step(fate=town.proof)


class Authentication(Machine[Claim]):
    """Does the key work?"""

    verifying = State(initial=True, effect=prove)
    authenticated = State(final=True)
    rejected = State(final=True, failure=True)

    step = verifying.to(rejected, cond="refused") | verifying.to(authenticated)

    def refused(self, event: Step) -> bool:
        return event.fate == "rejected"

    def output(self, context: Claim) -> Identity:
        return Identity(offset_ms=1_234, concurrency=1)


class CardWish(Context):
    amount_cents: int
    currency: str
    budget_cents: int
    poll_ms: int


class Card(Record):
    card_id: str
    code: Secret[str]
    amount_cents: int
    paid_cents: int


@effect(idempotent=True)
async def sell_card(context: CardWish, call: Call) -> Step:
    return Step(fate=call.resource(Town).sell_card(context))


class GiftCard(Machine[CardWish]):
    """One card worth what was asked for."""

    creating = State(initial=True, effect=sell_card)
    issued = State(final=True)
    unfunded = State(final=True, failure=True)

    step = creating.to(unfunded, cond="short") | creating.to(issued)

    def short(self, event: Step) -> bool:
        return event.fate == "unfunded"

    def output(self, context: CardWish) -> Card:
        cents = context.amount_cents
        return Card(card_id="card-1", code=Secret(CODE), amount_cents=cents, paid_cents=cents)


class Spell(Context):
    code: Secret[str]
    tier: int
    months: int
    budget_cents: int
    poll_ms: int
    redemption_key: str


class FromCard(Record):
    public_key: str
    secret_key: Secret[str]
    paid_cents: int
    redemption_id: str


@effect(idempotent=True)
async def redeem(context: Spell, call: Call) -> Step:
    return Step(fate=call.resource(Town).redeem(context))


class Redemption(Machine[Spell]):
    """A key from the card."""

    redeeming = State(initial=True, effect=redeem)
    redeemed = State(final=True)
    too_little = State(final=True, failure=True)

    step = redeeming.to(too_little, cond="lacks") | redeeming.to(redeemed)

    def lacks(self, event: Step) -> bool:
        return event.fate == "too_little"

    def output(self, context: Spell) -> FromCard:
        number = CARD_KEY
        return FromCard(
            public_key=public_key(number),
            secret_key=Secret(secret_of(number)),
            paid_cents=PRICE_CENTS,
            redemption_id=context.redemption_key,
        )


class Furniture(Context):
    public_key: str
    secret_key: Secret[str]
    offset_ms: int
    session_id: str
    digest: str


class Tool(Record):
    digest: str


@effect(idempotent=True)
async def install(context: Furniture, call: Call) -> Step:
    return Step(fate=call.resource(Town).install(context))


class ToolInstall(Machine[Furniture]):
    """This product, in a sandbox."""

    installing = State(initial=True, effect=install)
    installed = State(final=True)
    refused = State(final=True, failure=True)
    session_gone = State(final=True, failure=True)

    step = (
        installing.to(session_gone, cond="is_gone")
        | installing.to(refused, cond="is_other")
        | installing.to(installed)
    )

    def is_gone(self, event: Step) -> bool:
        return event.fate == "gone"

    def is_other(self, event: Step) -> bool:
        return event.fate == "refused"

    def output(self, context: Furniture) -> Tool:
        return Tool(digest=context.digest)


CHILDREN: tuple[Any, ...] = (
    Authentication, Discovery, GiftCard, Inception, Payment, Redemption, ToolInstall,
)  # fmt: skip
CODE = "FOUR-SECRET-LITTLE-WORDS"
CARD_KEY = 77
"""The number of the key that a card buys."""


def public_key(number: int) -> str:
    return f"unsb-pk-{number}"


def secret_of(number: int) -> str:
    return f"TOP-SECRET-{number:04d}"


# -- the outside --------------------------------------------------------------------------------


class Town:
    """A shop and a platform that keep count, and misbehave as they are told.

    `fates` maps a step of a purchase to what its next callers are told; `faults` maps a method of
    the platform to the errors of its next calls (`after` the deed: a reply that got lost; `key`:
    of the n-th key alone).  `calls` counts them by method and key.
    """

    def __init__(self) -> None:
        self.places: list[str | None] = []
        self.sights: list[str] = []
        self.orders: list[Order] = []
        self.fates: dict[str, list[str]] = {}
        self.spends: list[str] = []
        self.sold: dict[str, int] = {}
        self.proof = ""
        self.tools = ("bash", "python")
        self.live: dict[str, str] = {}
        self.made: dict[str, str] = {}
        self.most: Counter[str] = Counter()
        self.ended: list[str] = []
        self.ran: dict[str, Execution] = {}
        self.executions: Counter[str] = Counter()
        self.faults: dict[str, list[tuple[Exception, bool, int | None]]] = {}
        self.calls: Counter[tuple[str, int]] = Counter()
        self.modes: list[str] = []
        self.cards: list[CardWish] = []
        self.spells: list[Spell] = []
        self.installs: list[Furniture] = []
        self.left_cents: int | ClientError = 0
        self.slots = 1
        self.priceless = False
        self.toolboxes: list[bool] = []
        self.answer: Callable[[str], Execution] = self.greet

    # the shop

    def look(self, evidence: str | None) -> str:
        self.places.append(evidence)
        return self.sights.pop(0) if self.sights else ""

    def purchase(self, step: str, order: Order, call: Call) -> Stepped:
        if step == "price":
            self.orders.append(order)
            if order.budget_cents < PRICE_CENTS:
                return Stepped(fate="over_budget")
        told = self.fates.get(step)
        fate = told.pop(0) if told else ""
        if step == "pay" and not fate and call.run_id not in self.spends:
            self.spends.append(call.run_id)
        if step == "settle" and not fate:
            return Stepped(number=self.sold.setdefault(call.run_id, len(self.sold) + 1))
        return Stepped(fate=fate)

    async def quotes(self) -> tuple[Quote, ...]:
        if self.priceless:
            return ()
        tiers = ((tier, months) for tier in (1, 3, 5, 16) for months in (1, 6))
        return tuple(
            Quote(tier=tier, months=months, price_cents=PRICE_CENTS, requests_per_minute=7,
                  concurrency=self.slots)
            for tier, months in tiers
        )  # fmt: skip

    def sell_card(self, wish: CardWish) -> str:
        told = self.fates.get("card")
        if told:
            return told.pop(0)
        if wish not in self.cards:
            self.cards.append(wish)
        return ""

    def redeem(self, spell: Spell) -> str:
        assert spell.code.reveal() == CODE
        told = self.fates.get("redeem")
        if told:
            return told.pop(0)
        if spell not in self.spells:
            self.spells.append(spell)
        self.sold[spell.redemption_key] = CARD_KEY
        return ""

    def install(self, wanted: Furniture) -> str:
        self.check(Credentials(public_key=wanted.public_key, secret_key=wanted.secret_key))
        self.installs.append(wanted)
        told = self.fates.get("install")
        fate = told.pop(0) if told else ""
        if fate == "gone":
            self.dies()
        return fate

    async def card(self, card_id: str) -> CardStatus:
        if isinstance(self.left_cents, ClientError):
            raise self.left_cents
        (sold,) = self.cards
        return CardStatus(
            card_id=card_id, standing="active", amount_cents=sold.amount_cents,
            balance_cents=self.left_cents, taken_cents=sold.amount_cents - self.left_cents,
        )  # fmt: skip

    # the platform

    async def clock_offset_ms(self) -> int:
        return 4_321

    def fail(
        self, method: str, *errors: Exception, after: bool = False, key: int | None = None
    ) -> None:
        self.faults.setdefault(method, []).extend((error, after, key) for error in errors)

    def _call(self, method: str, credentials: Credentials, act: Callable[[], Any]) -> Any:
        number = self.check(credentials)
        self.calls[method, number] += 1
        waiting = self.faults.get(method, [])
        for one in waiting:
            error, after, key = one
            if key in (None, number):
                waiting.remove(one)
                if after:
                    act()
                raise error
        return act()

    def check(self, credentials: Credentials) -> int:
        """The number of a key that was sold and shows its own secret."""
        number = int(credentials.public_key.rpartition("-")[2])
        assert credentials.secret_key.reveal() == secret_of(number)
        assert number in self.sold.values()
        return number

    async def languages(self, credentials: Credentials) -> tuple[str, ...]:
        return self._call("languages", credentials, lambda: self.tools)

    async def create_session(
        self, credentials: Credentials, *, shell: str, network_mode: str, ttl_seconds: int,
        key: str, toolbox: bool = False,
    ) -> SessionInfo:  # fmt: skip
        assert shell == "bash"
        self.toolboxes.append(toolbox)
        self.modes.append(network_mode)
        assert ttl_seconds > 0
        return self._call("create_session", credentials, lambda: self._create(credentials, key))

    def _create(self, credentials: Credentials, key: str) -> SessionInfo:
        if key not in self.made:
            self.made[key] = f"session-{len(self.made) + 1}"
            self.live[self.made[key]] = credentials.public_key
            held = Counter(self.live.values())
            self.most |= held
        return SessionInfo(session_id=self.made[key], status="running")

    async def sessions(self, credentials: Credentials) -> tuple[SessionInfo, ...]:
        mine = [one for one, owner in self.live.items() if owner == credentials.public_key]
        found = tuple(SessionInfo(session_id=one, status="running") for one in mine)
        return self._call("sessions", credentials, lambda: found)

    async def execute(
        self, credentials: Credentials, session_id: str, command: str, *, key: str
    ) -> Execution:
        return self._call(
            "execute", credentials, lambda: self._execute(credentials, session_id, command, key)
        )

    def _execute(
        self, credentials: Credentials, session_id: str, command: str, key: str
    ) -> Execution:
        if self.live.get(session_id) != credentials.public_key:
            raise NotFound(f"session {session_id}: no such session")
        if key not in self.ran:
            # An engine inside is attended again and again; an inspection is made once.
            self.executions[session_id] += " layer " not in command
            self.ran[key] = self.answer(command)
        return self.ran[key]

    @staticmethod
    def greet(command: str) -> Execution:
        """What the shell of a sandbox says to a greeting."""
        line = shlex.split(command.partition(";")[0])[1]
        return said(f"{line}\n{EVIDENCE}\n")

    async def delete_session(self, credentials: Credentials, session_id: str) -> None:
        return self._call("delete_session", credentials, lambda: self._delete(session_id))

    def _delete(self, session_id: str) -> None:
        if self.live.pop(session_id, None) is not None:
            self.ended.append(session_id)

    def dies(self) -> None:
        """The platform is killed and started again: its sandboxes are gone."""
        self.live.clear()


def said(stdout: str, exit_code: int = 0) -> Execution:
    return Execution(stdout=stdout, stderr="", exit_code=exit_code, duration_ms=7)


# -- telling stories ----------------------------------------------------------------------------


class Story:
    """One store, clock and town; processes come and go over them."""

    def __init__(self, url: str = "sqlite://") -> None:
        self.town = Town()
        self.clock = ManualClock()
        self.store = open_store(url)
        self.secrets = SecretsCodec(MASTER_KEY)

    def process(self, plan: CrashPlan | None = None) -> Harness:
        return Harness(
            CHILDREN,
            store=self.store,
            resources=dict.fromkeys((Town, Platform, Portal, GiftCards), self.town),
            clock=self.clock,
            plan=plan,
            secrets=self.secrets,
        )

    async def run(self, layer: Layer, plan: CrashPlan | None = None) -> Outcome:
        """Start the chain, or go on with it, to its end."""
        async with self.process(plan) as harness:
            started = await harness.app.start(Inception, layer, key="story")
            await harness.until_idle()
            return await harness.app.outcome(started.run_id)

    async def path(self, run_id: str) -> list[str]:
        """The states a run has passed."""
        async with self.process() as harness:
            entries = await harness.app.journal(run_id)
        return [e.target for e in entries if e.event == START or not e.event.startswith("$")]

    async def runs(self) -> list[Run]:
        """Every run there is, oldest first."""
        async with self.process() as harness:
            stored = await harness.app.runs(Query(limit=1_000))
            return [await harness.app.get(one.run.run_id) for one in reversed(stored)]

    async def layers(self) -> list[Run]:
        """The runs of Inception, the root first."""
        found = [run for run in await self.runs() if run.machine == "Inception"]
        return sorted(found, key=lambda run: run.context.depth)

    async def check(self) -> None:
        """What holds after every story, however it ended."""
        assert self.town.live == {}, "a sandbox was left behind"
        assert all(count <= 1 for count in self.town.most.values()), "a layer held two sandboxes"
        assert all(count <= 1 for count in self.town.executions.values())
        assert len(set(self.town.spends)) == len(self.town.spends)
        assert self.store.inspector.findings() == []
        async with self.process() as harness:
            for run in await self.runs():
                entries = await harness.app.journal(run.run_id)
                folded = fold(entries)
                assert (folded.seq, folded.state, folded.context, folded.status) == (
                    run.seq, run.state, run.context, run.status,
                )  # fmt: skip
                assert replay(harness.app.tables[run.machine], entries) == []
                assert run.status in TERMINAL, (run.machine, run.state, run.last_error)


@pytest.fixture
def story() -> Iterator[Story]:
    told = Story()
    yield told
    told.store.close()


def layer(depth: int = 1, *, max_depth: int = 1, **changes: Any) -> Layer:
    fields = {
        "currency": "XMR",
        "budget_cents": PRICE_CENTS * max(max_depth - depth + 1, 1),
        "poll_ms": 1_000,
        **changes,
    }
    return Layer(depth=depth, max_depth=max_depth, **fields)


async def fails(story: Story, asked: Layer, state: str, refusal: str) -> Outcome:
    """The run ends in this state with this refusal, and leaves nothing behind."""
    outcome = await story.run(asked)
    assert (outcome.state, outcome.status) == (state, "failed")
    assert refusal in outcome.context.refusal
    assert not outcome.output.complete
    assert outcome.output.refusal == outcome.context.refusal
    await story.check()
    return outcome


# -- to the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 8])
async def test_done_at_every_depth(story: Story, depth: int) -> None:
    outcome = await story.run(layer(max_depth=depth))
    assert (outcome.state, outcome.status) == ("done", "completed")
    reports = outcome.output.layers
    assert outcome.output.complete
    assert [one.depth for one in reports] == list(range(1, depth + 1))
    assert len({one.public_key for one in reports}) == depth
    assert len({one.session_id for one in reports}) == depth
    assert len({one.txids for one in reports}) == depth
    assert sum(one.paid_cents for one in reports) == PRICE_CENTS * depth
    assert [one.stdout for one in reports] == [
        f"turtle {number} of {depth} was here" for number in range(1, depth + 1)
    ]
    assert [one.latency_ms for one in reports] == [7] * depth
    assert len(story.town.spends) == depth
    await story.check()


async def test_the_named_states_in_their_order(story: Story) -> None:
    outcome = await story.run(layer(max_depth=2))
    assert await story.path(outcome.run_id) == [
        "inside_sandbox", "discover_tools", "fetch_pricing", "create_invoice", "send_payment",
        "poll_confirmation", "receive_keys", "prove_identity", "install_tools", "create_child",
        "execute_in_child", "descend", "release_child", "done",
    ]  # fmt: skip


async def test_the_deepest_layer_does_not_descend(story: Story) -> None:
    outcome = await story.run(layer())
    assert (await story.path(outcome.run_id))[-3:] == ["execute_in_child", "release_child", "done"]


async def test_the_next_layer_weighs_the_evidence_of_the_sandbox(story: Story) -> None:
    outcome = await story.run(layer(max_depth=2))
    assert set(story.town.places) == {None, EVIDENCE}
    assert [one.awareness for one in outcome.output.layers] == ["not_sandboxed", "sandboxed"]
    assert [one.profile for one in outcome.output.layers] == ["bare", "bubblewrap"]


async def test_sandboxes_end_from_the_inside_out(story: Story) -> None:
    await story.run(layer(max_depth=3))
    assert story.town.ended == ["session-3", "session-2", "session-1"]


async def test_the_budget_is_split_exactly(story: Story) -> None:
    """Each purchase may cost what the layers below do not need; the last cent is spent."""
    await story.run(layer(max_depth=4, budget_cents=4 * PRICE_CENTS + 50))
    assert [one.budget_cents for one in story.town.orders] == [750] * 4
    assert len(story.town.spends) == 4
    await story.check()


async def test_what_is_wanted_reaches_every_layer(story: Story) -> None:
    asked = layer(max_depth=2, currency="DOGE", tier=3, months=6, poll_ms=77)
    await story.run(asked)
    assert {(o.tier, o.months, o.currency, o.poll_ms) for o in story.town.orders} == {
        (3, 6, "DOGE", 77)
    }


async def test_a_finished_chain_is_not_begun_again(story: Story) -> None:
    first = await story.run(layer(max_depth=2))
    assert await story.run(layer(max_depth=2)) == first
    assert len(story.town.spends) == 2


async def test_a_payment_that_sinks_is_followed_to_its_end(story: Story) -> None:
    """Payment passes a milestone twice; nothing is lost by it."""
    story.town.fates["settle"] = ["sank"]
    assert (await story.run(layer())).state == "done"
    await story.check()


async def test_a_milestone_out_of_order_loses_no_key(story: Story) -> None:
    """A conflicted spend skips `confirming`; a later leg comes back to it."""
    story.town.fates = {"pay": ["conflicted"], "settle": ["sank"]}
    assert (await story.run(layer())).state == "done"


# -- refusals -----------------------------------------------------------------------------------


async def test_too_deep(story: Story) -> None:
    await fails(story, layer(3, max_depth=2), "too_deep", "depth 3 is below the bound 2")
    assert story.town.orders == []


async def test_too_deep_for_anybody(story: Story) -> None:
    """Nine layers are refused by the ninth, whatever was asked for; the eight above end."""
    await fails(story, layer(max_depth=9), "cut_short", "depth 9 is below the bound 8")
    assert len(story.town.spends) == 8


async def test_a_depth_below_one_cannot_begin(story: Story) -> None:
    with pytest.raises(Refused, match=r"depth_counts_from_one .*context.depth=0"):
        await story.run(layer(0))


async def test_unaware_of_where_it_is(story: Story) -> None:
    story.town.sights = ["lost"]
    await fails(story, layer(), "unaware", "no way to orchestrate")


async def test_unaware_of_any_tool(story: Story) -> None:
    story.town.sights = ["", "idle"]
    await fails(story, layer(), "unaware", "no way to orchestrate")
    assert story.town.orders == []


async def test_unaffordable_over_budget(story: Story) -> None:
    """Before anything is ordered."""
    refusal = "1 keys of 700 cents are over the budget of 699"
    await fails(story, layer(budget_cents=699), "unaffordable", refusal)
    assert (story.town.orders, story.town.spends) == ([], [])


async def test_unaffordable_for_the_layers_below(story: Story) -> None:
    """Money for three of four: nothing is begun."""
    asked = layer(max_depth=4, budget_cents=2_799)
    await fails(story, asked, "unaffordable", "4 keys of 700 cents")
    assert story.town.orders == []


async def test_unaffordable_when_the_price_rises_after_the_quote(story: Story) -> None:
    story.town.fates["price"] = ["over_budget"]
    await fails(story, layer(), "unaffordable", "the purchase ended as over_budget")
    assert story.town.spends == []


async def test_unpriceable(story: Story) -> None:
    story.town.priceless = True
    await fails(story, layer(), "unpriceable", "no key of tier 1 for 1 months")


async def test_too_few_slots_on_one_key(story: Story) -> None:
    story.town.slots = 4
    asked = layer(max_depth=5, tier=16, one_key=True)
    await fails(story, asked, "too_few_slots", "5 sandboxes at once are needed; a key of tier 16")
    assert story.town.orders == []


async def test_too_slow(story: Story) -> None:
    """Four layers of 500 ms are 2 s for each operation at the bottom (paper: 8 are 4 s)."""
    asked = layer(max_depth=4, latency_ms_max=1_999)
    await fails(story, asked, "too_slow", "2000 ms are expected")
    assert story.town.orders == []


async def test_one_key_for_all(story: Story) -> None:
    """One payment, and as many slots of one key as layers."""
    story.town.slots = 4
    outcome = await story.run(layer(max_depth=4, tier=16, one_key=True, budget_cents=PRICE_CENTS))
    assert outcome.state == "done"
    reports = outcome.output.layers
    assert [one.paid_cents for one in reports] == [PRICE_CENTS, 0, 0, 0]
    assert {one.public_key for one in reports} == {public_key(1)}
    assert story.town.most == {public_key(1): 4}
    assert len(story.town.spends) == 1
    assert story.town.ended == ["session-4", "session-3", "session-2", "session-1"]


async def test_one_key_clearing_up_leaves_the_layers_above_alone(story: Story) -> None:
    story.town.slots = 2
    story.town.fail("create_session", ReplyLost("cut off"), after=True)
    story.town.fail("create_session", Rejected("no more"))
    asked = layer(max_depth=2, tier=5, one_key=True)
    deeper = story.town.faults.pop("create_session")
    story.town.answer = lambda command: (
        story.town.faults.update(create_session=deeper),
        Town.greet(command),
    )[1]
    await story.run(asked)
    assert story.town.ended == ["session-2", "session-1"]


@pytest.mark.parametrize("step", ["invoice", "pay"])
async def test_unaffordable_unfunded(story: Story, step: str) -> None:
    story.town.fates[step] = ["unfunded"]
    await fails(story, layer(), "unaffordable", "ended as unfunded")


@pytest.mark.parametrize(
    ("step", "end"),
    [
        ("price", "expired_unpaid"),
        ("invoice", "expired_unpaid"),
        ("pay", "expired_unpaid"),
        ("confirm", "unconfirmed"),
        ("settle", "unsettled"),
    ],
)
async def test_payment_failed(story: Story, step: str, end: str) -> None:
    story.town.fates[step] = ["failed"]
    await fails(story, layer(), "payment_failed", f"the purchase ended as {end}")


async def test_unproven(story: Story) -> None:
    story.town.proof = "rejected"
    await fails(story, layer(), "unproven", "the new key is rejected")
    assert story.town.made == {}


async def test_no_tools_on_the_platform(story: Story) -> None:
    story.town.tools = ("bash", "ruby")
    await fails(story, layer(), "no_tools", "no python; it has bash, ruby")


async def test_no_tools_for_a_refused_key(story: Story) -> None:
    story.town.fail("languages", Unauthorized("key suspended", reason="suspended"))
    await fails(story, layer(), "no_tools", "key suspended")


async def test_no_slot_when_the_platform_refuses(story: Story) -> None:
    story.town.fail("create_session", Rejected("tier 1: no sandboxes today"))
    await fails(story, layer(), "no_slot", "no sandboxes today")


async def test_no_slot_when_none_becomes_free(story: Story) -> None:
    busy = Unavailable("no slot", kind="concurrency")
    story.town.fail("create_session", *[busy] * PATIENT.attempts)
    await fails(story, layer(), "no_slot", "no slot")


async def test_a_slot_that_becomes_free_is_waited_for(story: Story) -> None:
    busy = Unavailable("no slot", kind="concurrency", retry_after_ms=60_000)
    story.town.fail("create_session", busy, busy)
    before_ms = story.clock.now_ms()
    assert (await story.run(layer())).state == "done"
    assert story.clock.now_ms() >= before_ms + 120_000
    await story.check()


async def test_no_slot_after_a_lost_reply_leaves_no_sandbox(story: Story) -> None:
    """The first attempt made a sandbox and its reply was lost; the second one is refused."""
    story.town.fail("create_session", ReplyLost("cut off"), after=True)
    story.town.fail("create_session", Rejected("shell not offered any more"))
    await fails(story, layer(), "no_slot", "not offered any more")
    assert story.town.ended == ["session-1"]


async def test_no_slot_says_that_clearing_up_failed(story: Story) -> None:
    story.town.fail("create_session", Rejected("no"))
    story.town.fail("sessions", Unauthorized("key expired", reason="expired"))
    await fails(story, layer(), "no_slot", "no; clearing up failed: key expired")


async def test_a_lost_reply_makes_no_second_sandbox(story: Story) -> None:
    story.town.fail("create_session", ReplyLost("cut off"), after=True)
    assert (await story.run(layer())).state == "done"
    assert len(story.town.made) == 1
    await story.check()


# -- in the sandbox -----------------------------------------------------------------------------


async def test_execution_refused_by_exit_code(story: Story) -> None:
    story.town.answer = lambda command: said("python3: not found\n", exit_code=127)
    outcome = await fails(story, layer(), "execution_refused", "exited 127")
    assert story.town.ended == [outcome.context.last_session_id]


async def test_execution_refused_when_stuck(story: Story) -> None:
    """The command never ends; after an hour the sandbox is destroyed by its compensation."""
    still_busy = Unavailable("still busy", retry_after_ms=60_000)
    story.town.fail("execute", *[still_busy] * PATIENT.attempts)
    await fails(story, layer(), "execution_refused", "did not end in time")
    assert story.town.ended == ["session-1"]


async def test_execution_refused_by_the_platform(story: Story) -> None:
    story.town.fail("execute", Rejected("command too long"))
    await fails(story, layer(), "execution_refused", "command too long")
    assert story.town.ended == ["session-1"]


@pytest.mark.parametrize(
    "stdout",
    [
        "",
        "turtle 1 of 1 was here",
        "turtle 1 of 1 was here\nTraceback (most recent call last):\n",
        "turtle 2 of 9 was here\n{}\n",
        "x" * 1_000_000,
    ],
    ids=["nothing", "no evidence", "traceback", "another turtle", "a flood"],
)
async def test_execution_refused_when_the_child_does_not_answer(story: Story, stdout: str) -> None:
    """What a sandbox says is not our code's fault, however odd."""
    story.town.answer = lambda command: said(stdout)
    outcome = await fails(story, layer(), "execution_refused", "did not answer")
    assert outcome.output.layers[0].stdout == ""
    assert story.town.ended == ["session-1"]


async def test_a_flood_behind_the_greeting_is_cut(story: Story) -> None:
    story.town.answer = lambda command: said(Town.greet(command).stdout + "y" * 1_000_000)
    outcome = await story.run(layer())
    assert outcome.state == "done"
    assert len(outcome.context.stdout) == STDOUT_CHARACTERS_MAX
    await story.check()


async def test_a_sandbox_that_died_is_buried_and_created_again(story: Story) -> None:
    def die_once(command: str) -> Execution:
        story.town.answer = Town.greet
        story.town.dies()
        raise Unavailable("the platform was killed")

    story.town.answer = die_once
    outcome = await story.run(layer())
    assert outcome.state == "done"
    assert outcome.context.lost == 1
    assert outcome.output.layers[0].session_id == "session-2"
    assert len(story.town.made) == 2, "the second one has another key"
    assert (await story.path(outcome.run_id))[-6:] == [
        "execute_in_child", "bury_child", "create_child", "execute_in_child", "release_child",
        "done",
    ]  # fmt: skip
    assert len(story.town.spends) == 1
    await story.check()


async def test_sandboxes_that_never_live_end_the_layer(story: Story) -> None:
    def die(command: str) -> Execution:
        story.town.dies()
        raise NotFound("gone")

    story.town.answer = die
    await fails(story, layer(), "execution_refused", f"{LOST_MAX} sandboxes died")
    assert len(story.town.made) == LOST_MAX


# -- from inside --------------------------------------------------------------------------------


def ask_of(command: str) -> dict[str, str]:
    """What the script of a greeting is told by standard input."""
    found: dict[str, str] = json.loads(command.rpartition("<<'TURTLES'\n")[2].splitlines()[0])
    return found


async def test_a_zerotrust_child_is_given_no_key_and_says_why_it_made_none(story: Story) -> None:
    asked: list[dict[str, str]] = []

    def cannot(command: str) -> Execution:
        asked.append(ask_of(command))
        line = json.dumps({"sibling": "", "reason": "URLError: no name"})
        return said(f"{Town.greet(command).stdout}{line}\n")

    story.town.answer = cannot
    outcome = await story.run(layer())
    assert outcome.state == "done"
    assert story.town.modes == ["zerotrust"]
    assert asked == [{"url": "http://platform.turtles"}]
    (report,) = outcome.output.layers
    assert (report.sibling, report.no_sibling) == ("", "URLError: no name")
    await story.check()


# -- one layer down -----------------------------------------------------------------------------


async def test_cut_short_by_a_failure_below(story: Story) -> None:
    """The price rises before the second purchase: the first layer releases its sandbox."""
    story.town.fates["price"] = ["", "over_budget"]
    outcome = await fails(
        story, layer(max_depth=2), "cut_short",
        "layer 2 ended as unaffordable: the purchase ended as over_budget",
    )  # fmt: skip
    assert [one.depth for one in outcome.output.layers] == [1]
    assert story.town.ended == ["session-1"]


async def test_cut_short_reports_every_layer_that_has_a_key(story: Story) -> None:
    greetings = iter([Town.greet, lambda command: said("", exit_code=9)])
    story.town.answer = lambda command: next(greetings)(command)
    outcome = await fails(
        story, layer(max_depth=3), "cut_short", "layer 2 ended as execution_refused: the command"
    )
    reports = outcome.output.layers
    assert [(one.depth, one.public_key) for one in reports] == [
        (1, public_key(1)), (2, public_key(2)),
    ]  # fmt: skip
    assert [bool(one.stdout) for one in reports] == [True, False]
    assert sorted(story.town.ended) == ["session-1", "session-2"]


async def test_cut_short_tells_the_whole_way_down(story: Story) -> None:
    story.town.fates["price"] = ["", "", "over_budget"]
    outcome = await fails(
        story, layer(max_depth=3), "cut_short",
        "layer 2 ended as cut_short: layer 3 ended as unaffordable: ",
    )  # fmt: skip
    assert len(outcome.output.layers) == 2


# -- nested -------------------------------------------------------------------------------------


class Inside:
    """What the engines inside the sandboxes of a story say, one answer for each attending."""

    def __init__(self, story: Story, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.stops = 0
        story.town.answer = self.answer

    def answer(self, command: str) -> Execution:
        if " layer stop " in command:
            self.stops += 1
            return said("")
        assert " layer attend " in command
        self.asked.append(command)
        return said(self.answers.pop(0))

    @property
    def asks(self) -> list[Any]:
        return [ask_from(one.split("<<'TURTLES'\n")[1].splitlines()[0]) for one in self.asked]


PASSED = Passed("run", "Inception", 1, "$start", "", "inside_sandbox", 5)


def running() -> str:
    return msgspec.json.encode(Attended(latency_ms=400, twigs=())).decode()


def told(context: Layer, state: str, *layers: LayerReport, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "said": line_of(context), "state": state, "status": "completed", "complete": bool(layers),
        "refusal": "" if layers else "no", "layers": layers, "journal": (PASSED,), **changes,
    }  # fmt: skip
    return msgspec.json.encode(Attended(latency_ms=500, twigs=(), told=Told(**fields))).decode()


def report(depth: int, **changes: Any) -> LayerReport:
    fields: dict[str, Any] = {
        "depth": depth, "public_key": f"key of layer {depth}", "paid_cents": PRICE_CENTS,
        "txids": ("r",), "session_id": f"inside {depth}", "stdout": "hello", "latency_ms": 1,
        "awareness": "sandboxed", "profile": "bubblewrap", "journal": (PASSED,), **changes,
    }  # fmt: skip
    return LayerReport(**fields)


def nested(depth: int = 1, *, max_depth: int = 1, **changes: Any) -> Layer:
    fields = {"network_mode": "semitrusted", "tool_digest": "d" * 64, **changes}
    return layer(depth, max_depth=max_depth, **fields)


def inner(depth: int, *, max_depth: int, **changes: Any) -> Layer:
    return nested(depth, max_depth=max_depth, chain="root", card_code=Secret(CODE), **changes)


async def test_nested_the_first_layer_pays_and_hands_down_a_card(story: Story) -> None:
    asked = nested(max_depth=3)
    inside = Inside(story, running(), told(asked, "done", report(2), report(3)))
    outcome = await story.run(asked)
    assert (outcome.state, outcome.output.card_left_cents) == ("done", 0)
    assert [one.amount_cents for one in story.town.cards] == [2 * PRICE_CENTS]
    assert [one.budget_cents for one in story.town.cards] == [2 * PRICE_CENTS]
    assert (story.town.modes, story.town.toolboxes) == (["semitrusted"], [True])
    assert [one.depth for one in outcome.output.layers] == [1, 2, 3]
    assert [one.journal for one in outcome.output.layers] == [(PASSED,)] * 3
    assert outcome.output.layers[0].latency_ms == 500
    assert len(inside.asked) == 2 and inside.asked[0] == inside.asked[1]
    ask = inside.asks[0]
    assert (ask.depth, ask.max_depth, ask.chain) == (2, 3, outcome.run_id)
    assert ask.code.reveal() == CODE
    assert (ask.budget_cents, ask.incarnation) == (2 * PRICE_CENTS, 0)
    assert secret_of(1) not in inside.asked[0], "no key is handed down"
    assert (await story.path(outcome.run_id))[6:] == [
        "receive_keys", "buy_card", "install_tools", "create_child", "equip_child",
        "execute_in_child", "execute_in_child", "release_child", "settle_card", "done",
    ]  # fmt: skip
    assert inside.stops == 0
    await story.check()


async def test_nested_a_layer_inside_redeems_a_key_of_its_own(story: Story) -> None:
    asked = inner(2, max_depth=3)
    Inside(story, told(asked, "done", report(3)))
    outcome = await story.run(asked)
    assert outcome.state == "done"
    assert [one.redemption_key for one in story.town.spells] == ["root-layer-2"]
    (paid_by,) = outcome.output.layers[0].txids
    assert paid_by.startswith("redemption ") and "root-layer-2" not in paid_by
    assert (story.town.orders, story.town.cards) == ([], [])
    assert ("sessions", CARD_KEY) not in story.town.calls, "nothing is looked for the first time"
    assert outcome.context.offset_ms == 4_321
    await story.check()


async def test_nested_a_layer_that_died_gets_the_same_redemption_and_ends_its_orphans(
    story: Story,
) -> None:
    asked = inner(2, max_depth=2, incarnation=1)
    story.town.live["of an earlier life"] = public_key(CARD_KEY)
    Inside(story, told(asked, "too_deep"))
    outcome = await story.run(asked)
    assert outcome.state == "done"
    assert story.town.ended[0] == "of an earlier life"
    assert [one.redemption_key for one in story.town.spells] == ["root-layer-2"]
    await story.check()


async def test_nested_the_turtles_stop_where_it_is_too_deep(story: Story) -> None:
    outcome = await story.run(inner(3, max_depth=2))
    assert (outcome.state, outcome.context.refusal) == ("too_deep", "depth 3 is below the bound 2")
    assert (story.town.spells, story.town.made) == ([], {})


async def test_nested_card_refused(story: Story) -> None:
    story.town.fates["redeem"] = ["too_little"]
    refusal = "the redemption ended as too_little"
    await fails(story, inner(2, max_depth=2), "card_refused", refusal)


async def test_nested_no_card(story: Story) -> None:
    story.town.fates["card"] = ["unfunded"]
    await fails(story, nested(max_depth=2), "no_card", "the gift card ended as unfunded")
    assert story.town.made == {}


async def test_nested_no_tools_without_a_wheel(story: Story) -> None:
    await fails(story, nested(tool_digest=""), "no_tools", "nobody said which wheel")


async def test_nested_no_tools_when_the_wheel_is_another(story: Story) -> None:
    """The sandbox ends, and what is on the card is told."""
    story.town.fates["install"] = ["refused"]
    story.town.left_cents = PRICE_CENTS
    inside = Inside(story)
    outcome = await fails(story, nested(max_depth=2), "no_tools", "in the child ended as refused")
    assert outcome.output.card_left_cents == PRICE_CENTS
    assert inside.stops == 1, "nobody knows that there is no engine"


async def test_nested_a_sandbox_that_dies_while_it_is_furnished_is_made_again(
    story: Story,
) -> None:
    asked = nested()
    story.town.fates["install"] = ["gone", ""]
    inside = Inside(story, told(asked, "too_deep"))
    outcome = await story.run(asked)
    assert (outcome.state, outcome.context.lost) == ("done", 1)
    assert [one.session_id for one in story.town.installs] == ["session-1", "session-2"]
    assert [one.incarnation for one in inside.asks] == [1]
    await story.check()


async def test_nested_no_tools_when_every_sandbox_dies_while_it_is_furnished(story: Story) -> None:
    story.town.fates["install"] = ["gone"] * LOST_MAX
    await fails(story, nested(), "no_tools", f"{LOST_MAX} sandboxes died")


async def test_nested_no_slot_leaves_the_money_on_the_card(story: Story) -> None:
    story.town.fail("create_session", Rejected("no sandboxes today"))
    story.town.left_cents = PRICE_CENTS
    outcome = await fails(story, nested(max_depth=2), "no_slot", "no sandboxes today")
    assert outcome.output.card_left_cents == PRICE_CENTS


async def test_nested_unsettled_when_nobody_tells_what_is_left(story: Story) -> None:
    asked = nested(max_depth=2)
    Inside(story, told(asked, "done", report(2)))
    story.town.left_cents = Rejected("the portal forgot the card")
    outcome = await fails(story, asked, "unsettled", "the portal forgot the card")
    assert outcome.output.card_left_cents == PRICE_CENTS, "as far as anybody knows"


async def test_nested_cut_short_by_an_engine_that_got_nowhere(story: Story) -> None:
    asked = nested(max_depth=2)
    Inside(story, told(asked, "card_refused", refusal="the redemption ended as denied"))
    story.town.left_cents = PRICE_CENTS
    outcome = await fails(
        story, asked, "cut_short", "layer 2 ended as card_refused: the redemption ended as denied"
    )
    assert outcome.output.card_left_cents == PRICE_CENTS


ODD = {
    "silence": ("", "not an engine's"),
    "noise": ("Segmentation fault", "not an engine's"),
    "a flood": ("x" * 200_000, "200000 characters"),
    "another turtle": ({"said": "turtle 7 of 9 was here"}, "turtle 7 of 9"),
    "a layer too many": ({"layers": (report(2), report(3))}, "reports of layers [2, 3]"),
    "a layer too few": ({"layers": (), "complete": True}, "reports of layers []"),
    "our own key": ({"layers": (report(2, public_key=public_key(1)),)}, "the same key"),
    "a gift": ({"layers": (report(2, paid_cents=-1),)}, "was paid for its key"),
    "too much": ({"layers": (report(2, paid_cents=701),)}, "spent 701 cents"),
    "no journal": ({"journal": ()}, "no journal"),
    "a long journal": ({"journal": (PASSED,) * 101}, "over 100 steps"),
    "escapes": ({"refusal": "\x1b[2J"}, "unprintable"),
    "a long text": ({"refusal": "x" * 401}, "over 400 characters"),
}


@pytest.mark.parametrize("what", ODD)
async def test_nested_execution_refused_when_what_is_said_is_odd(story: Story, what: str) -> None:
    """A sandbox may say anything; it is not believed, and nothing of it is kept."""
    said_, refusal = ODD[what]
    asked = nested(max_depth=2)
    answer = said_
    if isinstance(said_, dict):
        fields = {"layers": (report(2),), "complete": True, **said_}
        layers = fields.pop("layers")
        answer = told(asked, "done", *layers, **fields)
    Inside(story, str(answer))
    outcome = await fails(story, asked, "execution_refused", refusal)
    assert outcome.output.layers[0].journal == ()
    assert outcome.context.inner == ()


async def test_nested_cancel_stops_the_engine_before_its_sandbox_ends(story: Story) -> None:
    """Only the engine inside has the keys of what is below."""
    asked = nested(max_depth=2)
    inside = Inside(story, *[running()] * 100)
    async with story.process() as harness:
        root = await harness.app.start(Inception, asked, key="story")
        await until(harness, story, lambda: len(inside.asked) > 1)
        await harness.app.cancel(root.run_id)
        await harness.until_idle()
        assert (await harness.app.get(root.run_id)).status == "cancelled"
    assert (inside.stops, story.town.ended) == (1, ["session-1"])
    await story.check()


async def test_nested_the_code_is_in_no_journal(story: Story) -> None:
    asked = nested(max_depth=2)
    Inside(story, told(asked, "done", report(2)))
    with capture_logs() as logs, every_log_level():
        outcome = await story.run(asked)
    async with story.process() as harness:
        journal = repr(await harness.app.journal(outcome.run_id))
    assert CODE not in repr(logs) + journal + repr(outcome)


# -- cancel, pause ------------------------------------------------------------------------------


async def until(harness: Harness, story: Story, reached: Callable[[], bool]) -> None:
    """Move what is due, and the clock by quarters of a second, until the town looks so."""
    for _ in range(200):
        await harness.app.settle()
        if reached():
            return
        story.clock.advance(250)
        await harness.app.beat()
    raise AssertionError("never reached")


async def test_cancel_while_layer_two_waits_for_a_slot(story: Story) -> None:
    """The child ends first; then what the root had made is undone."""
    story.town.fail("create_session", *[Unavailable("busy")] * 100, key=2)
    async with story.process() as harness:
        root = await harness.app.start(Inception, layer(max_depth=2), key="story")
        await until(harness, story, lambda: story.town.calls["create_session", 2] > 1)
        assert [run.state for run in await story.layers()] == ["descend", "create_child"]
        await harness.app.cancel(root.run_id)
        await harness.until_idle()
        entries = [entry.event for entry in await harness.app.journal(root.run_id)]
    assert [run.status for run in await story.layers()] == ["cancelled", "cancelled"]
    assert entries[-3:] == ["$cancel", "$child_ended", "$undone"]
    assert story.town.ended == ["session-1"]
    await story.check()


async def test_cancel_while_nobody_knows_whether_layer_two_has_a_sandbox(story: Story) -> None:
    """The cancel waits until the sandbox is known; it is destroyed before the root's own."""
    story.town.fail("create_session", ReplyLost("cut off"), after=True, key=2)
    async with story.process() as harness:
        root = await harness.app.start(Inception, layer(max_depth=2), key="story")
        await until(harness, story, lambda: len(story.town.made) == 2)
        inner = (await story.layers())[1]
        assert inner.effect is not None
        assert inner.effect.open
        await harness.app.cancel(root.run_id)
        await harness.until_idle()
    outer, inner = await story.layers()
    assert outer.status == "cancelled"
    assert inner.status == "cancelled"
    assert story.town.ended == ["session-2", "session-1"]
    await story.check()


async def test_cancel_in_the_middle_of_a_purchase(story: Story) -> None:
    async with story.process() as harness:
        root = await harness.app.start(Inception, layer(), key="story")
        await harness.app.cancel(root.run_id)
        await harness.until_idle()
    assert [run.status for run in await story.layers()] == ["cancelled"]
    assert story.town.spends == []
    await story.check()


async def test_pause_and_resume_in_the_middle_of_an_execution(story: Story) -> None:
    story.town.fail("execute", *[Unavailable("wait")] * 3)
    async with story.process() as harness:
        root = await harness.app.start(Inception, layer(), key="story")
        await until(harness, story, lambda: story.town.calls["execute", 1] == 2)
        await harness.app.pause(root.run_id)
        await harness.until_idle()
        assert story.town.calls["execute", 1] == 2, "nothing moves a paused run"
        await harness.app.resume(root.run_id)
        await harness.until_idle()
        assert (await harness.app.get(root.run_id)).state == "done"
    await story.check()


async def test_a_layer_that_ends_while_its_parent_is_paused_is_heard_on_resume(
    story: Story,
) -> None:
    story.town.fail("execute", *[Unavailable("wait")] * 3, key=2)
    async with story.process() as harness:
        root = await harness.app.start(Inception, layer(max_depth=2), key="story")
        await until(harness, story, lambda: story.town.calls["execute", 2] == 1)
        await harness.app.pause(root.run_id)
        await harness.until_idle()
        outer, inner = await story.layers()
        assert (outer.state, outer.status) == ("descend", "paused")
        assert (inner.state, inner.status) == ("done", "completed")
        await harness.app.resume(root.run_id)
        await harness.until_idle()
        assert (await harness.app.get(root.run_id)).state == "done"
    await story.check()


# -- secrets ------------------------------------------------------------------------------------


@contextlib.contextmanager
def every_log_level() -> Iterator[None]:
    """Debug lines too, whatever an earlier test has set."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))
    yield
    structlog.configure(wrapper_class=before)


def _everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


async def test_no_secret_in_file_output_or_log(tmp_path: Path) -> None:
    story = Story(f"sqlite:///{tmp_path / 'runs.db'}")
    seen: list[str] = []
    with capture_logs() as logs, every_log_level():
        story.town.fail("create_session", ReplyLost("cut off"), after=True)
        story.town.fail("execute", Unavailable("wait"))
        outcome = await story.run(layer(max_depth=2))
        async with story.process() as harness:
            for run in await story.runs():
                seen.append(repr(run))
                seen.append(repr(await harness.app.journal(run.run_id)))
                seen.append(repr(await harness.app.effects(run.run_id)))
                seen.append(repr(await harness.app.allowed(run.run_id)))
    stored = story.store.runs.get(outcome.run_id)
    assert stored is not None
    assert stored.output is not None
    story.store.close()
    seen += [repr(logs), repr(outcome), stored.output.decode()]
    files = _everything_in(tmp_path)
    assert any(entry["event"] == "run.moved" for entry in logs)
    assert public_key(2).encode() in files, "the file is readable, so a secret would be found"
    assert b"turtles:1:" in files
    for secret in (secret_of(1), secret_of(2)):
        assert secret.encode() not in files
        assert not [text for text in seen if secret in text]
    assert "secret" not in stored.output.decode()


# -- crashes ------------------------------------------------------------------------------------


async def _with_crash(at: int | None) -> tuple[CrashPlan, Story, Outcome]:
    story, plan = Story(), CrashPlan(at=at)
    asked = layer(max_depth=2)
    try:
        outcome = await story.run(asked, plan)
    except Crash:
        story.clock.advance(LEASE_MS + 1)
        outcome = await story.run(asked)
    return plan, story, outcome


async def _boundaries() -> int:
    plan, story, _ = await _with_crash(None)
    story.store.close()
    return len(plan.passed)


@pytest.mark.parametrize("shard", range(4))
async def test_a_crash_at_every_boundary(shard: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever dies where: each layer paid once, no sandbox is left, and the chain is done."""
    boundaries = await _boundaries()
    numbers = range(1 + shard, boundaries + 1, 4)
    for number in numbers:
        plan, story, outcome = await _with_crash(number)
        where = plan.passed[number - 1].name
        assert plan.dead, where
        assert outcome.state == "done", (where, outcome)
        assert len(story.town.spends) == len(story.town.sold) == 2, where
        assert len(story.town.made) == 2, where
        await story.check()
        story.store.close()
    with capsys.disabled():
        print(f"\ninception over fakes: {boundaries} boundaries, {len(numbers)} crashes here")
