"""Bad input at every machine's door, over a whole platform: a refusal with a name of its own.

Each is driven end to end.  In the end no coin has moved on any chain, no card has lost a cent, and
sessions, executions, services, snapshots and images are as they were before.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

import msgspec
import pytest

from engine.errors import BadPayload, Refused
from engine.secret import Secret
from machines.app import MACHINES
from machines.clients.ports import Currency, SignedTransaction
from machines.clients.signed import Signed
from machines.flows.agent_plan import Plan
from machines.flows.capture import Capture
from machines.flows.code_run import CodeRun
from machines.flows.deployment import Deployment
from machines.flows.f01_discovery import Discovery, Findings
from machines.flows.f03_payment import Payment
from machines.flows.f03b_gift_card import GiftCard, Redemption
from machines.flows.f03c_confirmation import Confirmation, Following
from machines.flows.f03w_wallet import Spend, SpendOrder
from machines.flows.f04_authentication import Authentication, Proof
from machines.flows.f05_tool_install import ToolInstall
from machines.flows.f06_execution import Execution
from machines.flows.f07_session import Session
from machines.flows.f08_service import Service
from machines.flows.f09_snapshot import Snapshot
from machines.flows.f10_image import Image
from machines.flows.f11_introspection import Introspection
from machines.flows.f12_trust import Trust
from machines.flows.f13_inception import Inception
from machines.flows.f14_agent import Agent
from machines.flows.gift_card import CardClaim, CardOrder
from machines.flows.inquiry import Inquiry
from machines.flows.layer import Layer
from machines.flows.publication import Grant, Publication, Revoke, Show, Spawn
from machines.flows.purchase import Purchase
from machines.flows.session_run import SessionRun
from machines.flows.tool_calls import Installation
from machines.flows.trial import Trial
from machines.platform import gift_cards
from machines.platform.ledger.report import ledger_report
from machines.platform.sandbox.backend import Handle, Result
from machines.platform.sandbox.fake import FakeBackend

POLL_MS = 14_000
ENDED = ("completed", "failed", "cancelled", "quarantined")


async def go(world: Any, machine: Any, context: Any, turn: Any = None) -> Any:
    """One run to its end; between its turns a block, and the pause of a poll."""
    async with world.harness() as harness:
        run_id = (await harness.app.start(machine, context)).run_id
        for _ in range(300):
            await harness.app.settle()
            found = await harness.app.get(run_id)
            if found.status in ENDED:
                return await harness.app.outcome(run_id)
            if turn is not None:
                turn(found.state)
            world.context.blocks.mine("LTC")
            world.clock.advance(POLL_MS)
            await harness.app.beat()
    raise AssertionError(f"{machine.__name__} has not ended: {found.state} {found.last_error}")


def balances(world: Any) -> list[int]:
    """What is on every card."""
    with world.context.database.reading() as sql:
        rows = sql.all("SELECT balance_cents FROM gift_card ORDER BY card_id")
    return [row["balance_cents"] for row in rows]


def footprint(world: Any) -> dict[str, Any]:
    """Everything that a refusal must leave as it was."""
    with world.context.database.reading() as sql:
        keys = sql.scalar("SELECT count(*) FROM api_key")
        locks = sql.scalar("SELECT count(*) FROM output_lock")
    assert ledger_report(world.context.database)["consistent"]
    return {
        "spends": world.spends(),
        "cards": balances(world),
        "keys": keys,
        "locks": locks,
        "living": world.left(),
    }


async def listed(world: Any, key: Any) -> dict[str, list[Any]]:
    """What the platform lists to a key, but for what has ended."""
    signed = Signed("http://platform", world.clients.transport)
    found = {}
    for kind in ("sessions", "services", "snapshots", "images", "jobs"):
        body = await signed.json(key, "GET", f"/{kind}", "doors.listed")
        found[kind] = [
            one.get("id")
            for one in body[kind]
            if one.get("status") not in ("terminated", "deleted")
        ]
    return found


def purchase(**changes: Any) -> Purchase:
    fields: dict[str, Any] = {
        "tier": 1, "months": 1, "currency": Currency.LTC, "budget_cents": 700,
    }  # fmt: skip
    return Purchase(**(fields | changes))


# -- money --------------------------------------------------------------------------------------


def other_coin(invoice: dict[str, Any]) -> dict[str, Any]:
    """As if it had been asked for in dogecoin."""
    return invoice | {"currency": "DOGE", "payment_method": "DOGE"}


def dearer(invoice: dict[str, Any]) -> dict[str, Any]:
    """A dollar more than was quoted."""
    return invoice | {"amount_usd": "8.00", "price_cents": 800, "amount_cents": 800}


def foreign_address(invoice: dict[str, Any]) -> dict[str, Any]:
    """An address of bitcoin's main net."""
    foreign = "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"
    return invoice | {"address": foreign, "payment_address": foreign}


def nine_decimals(invoice: dict[str, Any]) -> dict[str, Any]:
    """A tenth of a litoshi too fine."""
    return invoice | {"amount": invoice["amount"].ljust(10, "0")[:10] + "1"}


def not_a_number(invoice: dict[str, Any]) -> dict[str, Any]:
    """No amount at all."""
    return invoice | {"amount": "NaN"}


INVOICES = {
    other_coin: ("invoice_refused", "LTC"),
    dearer: ("price_changed", "800"),
    foreign_address: ("wallet_refused", ""),
    nine_decimals: ("invoice_refused", "decimal"),
    not_a_number: ("invoice_refused", "amount"),
}


async def test_an_invoice_that_is_not_as_agreed(embed: Any) -> None:
    world = await embed()
    before = footprint(world)
    for change, (state, says) in INVOICES.items():
        world.wire.changes["/api/invoices"] = change
        outcome = await go(world, Payment, purchase())
        assert (outcome.state, outcome.status) == (state, "failed"), change
        assert says in outcome.context.reason
        assert footprint(world) == before, change


async def test_a_currency_that_nobody_has(embed: Any) -> None:
    """At the door already: such a run cannot be written down."""
    with pytest.raises(msgspec.ValidationError, match="EUR"):
        msgspec.convert({"tier": 1, "months": 1, "currency": "EUR", "budget_cents": 700}, Purchase)
    world = await embed()
    async with world.harness() as harness:
        with pytest.raises(BadPayload, match="Purchase"):
            await harness.app.start(Payment, Trial(public_key="", secret_key=Secret("")))


ORDERS: list[tuple[dict[str, Any], str]] = [
    ({"budget_cents": 699}, "over_budget"),
    ({"tier": 33}, "not_offered"),
    ({"months": 2}, "not_offered"),
    ({"amount_atomic_max": 1}, "invoice_refused"),
]


async def test_an_order_that_cannot_be_filled(embed: Any) -> None:
    world = await embed()
    before = footprint(world)
    for changes, state in ORDERS:
        outcome = await go(world, Payment, purchase(**changes))
        assert (outcome.state, outcome.status) == (state, "failed"), changes
        assert footprint(world) == before, changes


# -- gift cards ---------------------------------------------------------------------------------


async def a_card(world: Any, **changes: Any) -> Any:
    """A card of 50 dollars, paid."""
    fields: dict[str, Any] = {
        "amount_cents": 5_000, "budget_cents": 5_000, "currency": Currency.LTC,
    }  # fmt: skip
    outcome = await go(world, GiftCard, CardOrder(**(fields | changes)))
    assert outcome.state == "issued"
    return outcome.output


def claim(code: Secret[str], **changes: Any) -> CardClaim:
    fields: dict[str, Any] = {"tier": 1, "months": 3, "budget_cents": 5_000}
    return CardClaim(code=code, **(fields | changes))


async def test_a_gift_card_code_misspelt(embed: Any, capsys: Any) -> None:
    world = await embed()
    card = await a_card(world)
    before = footprint(world)
    first, *words = card.code.reveal().split("-")
    misspelt = "-".join([first[::-1], *words])
    outcome = await go(world, Redemption, claim(Secret(misspelt)))
    assert (outcome.state, outcome.status) == ("unknown_code", "failed")
    assert footprint(world) == before
    assert before["cards"] == [5_000]
    said = "".join(capsys.readouterr())
    assert misspelt not in said and card.code.reveal() not in said


async def test_an_approval_that_is_denied(embed: Any) -> None:
    world = await embed()
    card = await a_card(world, require_approval=True, email="buyer@example.org")
    before = footprint(world)
    seen: list[Any] = []

    def deny(state: str) -> None:
        if state == "pending_approval" and not seen:
            seen.append(balances(world))
            with world.context.database.transaction() as sql:
                text = gift_cards.letters(sql, world.context.codec)[-1].text
                (token,) = re.findall(r"/gift-cards/deny/(\S+)", text)
                gift_cards.decide(sql, token, False, world.clock.now_ms())

    outcome = await go(world, Redemption, claim(card.code), deny)
    assert (outcome.state, outcome.context.taken_cents) == ("denied", 0)
    assert seen == [[5_000 - 1_953]], "held while the buyer was asked"
    assert footprint(world) == before


CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"budget_cents": 1_952}, "over_budget"),
    ({"tier": 4}, "over_budget"),
    ({"tier": 4, "budget_cents": 9_000}, "too_little"),
    ({"months": 4}, "not_offered"),
]


async def test_a_card_that_cannot_buy_this(embed: Any) -> None:
    world = await embed()
    card = await a_card(world)
    before = footprint(world)
    for changes, state in CLAIMS:
        outcome = await go(world, Redemption, claim(card.code, **changes))
        assert (outcome.state, outcome.status) == (state, "failed"), changes
        assert footprint(world) == before, changes


CARDS = [
    (699, 699, "below_minimum"), (10**9, 10**9, "above_maximum"), (5_001, 5_000, "over_budget"),
]  # fmt: skip


async def test_a_card_that_is_not_made(embed: Any) -> None:
    world = await embed()
    before = footprint(world)
    for cents, budget_cents, state in CARDS:
        order = CardOrder(amount_cents=cents, budget_cents=budget_cents, currency=Currency.LTC)
        outcome = await go(world, GiftCard, order)
        assert (outcome.state, outcome.status) == (state, "failed"), cents
        assert footprint(world) == before, cents


# -- code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_code_that_cannot_be_run(embed: Any, mode: str) -> None:
    world = await embed()
    key = world.key()
    before = footprint(world)
    fields: dict[str, Any] = {**_keyed(key), "code": "print(1)", "language": "python"}
    doors: list[tuple[dict[str, Any], str]] = [
        ({"language": "klingon"}, "unknown_language"),
        ({"language": "cobol"}, "language_missing"),
        ({"ttl_seconds": 901}, "out_of_range"),
        ({"vcpu": 9}, "rejected"),
        ({"secret_key": Secret("unsb-sk-of-nobody")}, "unauthorized"),
    ]
    for changes, state in doors:
        outcome = await go(world, Execution, CodeRun(**(fields | {"mode": mode} | changes)))
        assert (outcome.state, outcome.status) == (state, "failed"), changes
        assert footprint(world) == before


# -- snapshots ----------------------------------------------------------------------------------


async def a_session(world: Any, key: Any) -> str:
    """A session that runs."""
    made = await world.clients.platform.create_session(  # noqa: S604 - the name of a shell
        key, shell="bash", network_mode="zerotrust", ttl_seconds=3_600, key="a-session"
    )
    return made.session_id


@pytest.mark.parametrize("source", ["terminated", "never was", "somebody else's"])
async def test_a_snapshot_of_a_session_that_is_not_there(embed: Any, source: str) -> None:
    world = await embed()
    key = world.key()
    owner = world.key() if source == "somebody else's" else key
    session_id = "unsb-session-0000" if source == "never was" else await a_session(world, owner)
    if source == "terminated":
        await world.clients.platform.delete_session(key, session_id)
    before, shown = footprint(world), await listed(world, key)
    assert not any(shown.values())
    capture = Capture(
        public_key=key.public_key,
        secret_key=key.secret_key,
        source_type="session",
        source_id=session_id,
    )
    outcome = await go(world, Snapshot, capture)
    assert (outcome.state, outcome.status) == ("source_gone", "failed")
    assert outcome.context.reason
    assert (footprint(world), await listed(world, key)) == (before, shown)


# -- images -------------------------------------------------------------------------------------


async def an_image(world: Any, owner: Any, script: Any = ()) -> str:
    """A private image of a session that is gone; images outlive what they were made of."""
    session_id = await a_session(world, owner)
    order = Publication(**_keyed(owner), source_id=session_id, name="box", script=script)
    outcome = await go(world, Image, order)
    assert outcome.state == "kept", outcome
    await world.clients.platform.delete_session(owner, session_id)
    return outcome.output.image_id


@pytest.mark.parametrize("then", ["never granted", "revoked", "not there"])
async def test_an_image_without_a_grant(embed: Any, then: str) -> None:
    world = await embed()
    owner, guest = world.key(), world.key()
    lent = (Grant(to_key=guest.public_key), Revoke(from_key=guest.public_key))
    image_id = await an_image(world, owner, lent if then == "revoked" else ())
    if then == "not there":
        image_id = "unsb-image-aaaa-bbbb-cccc-dddd"
    before, shown = footprint(world), await listed(world, guest)
    assert before["living"] == {"images": 1} and not any(shown.values())
    order = Publication(**_keyed(guest), image_id=image_id, script=(Spawn(name="mine"),))
    outcome = await go(world, Image, order)
    assert (outcome.state, outcome.status) == ("not_granted", "failed")
    assert (footprint(world), await listed(world, guest)) == (before, shown)


async def test_a_guest_does_not_show_an_image_to_others(embed: Any) -> None:
    world = await embed()
    owner, guest = world.key(), world.key()
    image_id = await an_image(world, owner, (Grant(to_key=guest.public_key),))
    before = footprint(world)
    script = (Show(visibility="public"),)
    outcome = await go(world, Image, Publication(**_keyed(guest), image_id=image_id, script=script))
    assert (outcome.state, outcome.status) == ("not_owner", "failed")
    assert footprint(world) == before


@pytest.mark.parametrize("source", ["terminated", "never was"])
async def test_an_image_of_a_session_that_is_not_there(embed: Any, source: str) -> None:
    world = await embed()
    key = world.key()
    session_id = "unsb-session-0000" if source == "never was" else await a_session(world, key)
    await world.clients.platform.delete_session(key, session_id)
    before = footprint(world)
    outcome = await go(world, Image, Publication(**_keyed(key), source_id=session_id))
    assert (outcome.state, outcome.status) == ("source_gone", "failed")
    assert footprint(world) == before


# -- one at each other door ---------------------------------------------------------------------


def _keyed(key: Any) -> dict[str, Any]:
    return {"public_key": key.public_key, "secret_key": key.secret_key}


def wrong_secret(world: Any, key: Any) -> Any:
    """Of a key that there is."""
    return Proof(public_key=key.public_key, secret_key=Secret("unsb-sk-wrong"))


def nonsense(world: Any, key: Any) -> Any:
    """A child that tells of its walls in verse."""
    return Findings(evidence="O wall, O sweet and lovely wall")


def foreign_payee(world: Any, key: Any) -> Any:
    """To an address of another chain."""
    return SpendOrder(
        currency=Currency.LTC,
        address="1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",
        amount_atomic=1_000_000,
        pay_by_ms=world.clock.now_ms() + 3_600_000,
        confirmations=6,
        poll_ms=POLL_MS,
        fee_atomic_max=10_000_000,
    )


def never_sent(world: Any, key: Any) -> Any:
    """A transaction that no node has heard of."""
    transaction = SignedTransaction(
        txid="ab" * 32,
        payload=Secret("00"),
        inputs=(f"{'cd' * 32}:0",),
        fee_atomic=1,
        amount_atomic=1,
        address="nowhere",
    )
    now_ms = world.clock.now_ms()
    return Following(
        currency=Currency.LTC,
        transaction=transaction,
        required=6,
        poll_ms=POLL_MS,
        stall_ms=60_000,
        since_ms=now_ms,
        give_up_ms=now_ms + 600_000,
    )


def odd_duration(world: Any, key: Any) -> Any:
    """A key for two months is not sold."""
    return Plan(currency="LTC", budget_cents=5_000, months=2)


def odd_name(world: Any, key: Any) -> Any:
    """No host has such a name."""
    return Deployment(**_keyed(key), name="../Etc", ports=(80,), bootstrap="exec true")


def no_session(world: Any, key: Any) -> Any:
    """Into a sandbox that is not there."""
    return Installation(**_keyed(key), session_id="unsb-session-0000")


def too_long(world: Any, key: Any) -> Any:
    """A session of more than a day."""
    return SessionRun(**_keyed(key), ttl_seconds=86_401)


def odd_shell(world: Any, key: Any) -> Any:
    """A session in a shell that nobody knows."""
    return SessionRun(**_keyed(key), shell="clamshell")  # noqa: S604 - a name


def too_deep(world: Any, key: Any) -> Any:
    """A layer below its own bound."""
    return Layer(depth=3, max_depth=2, currency="LTC", budget_cents=5_000)


def nobody(world: Any, key: Any) -> Any:
    """A platform that has gone."""
    world.wire.is_cut = True
    return Inquiry(**_keyed(key))


DOORS: list[tuple[Any, Any, str]] = [
    (Authentication, wrong_secret, "rejected"),
    (Discovery, nonsense, "unaware"),
    (Spend, foreign_payee, "rejected"),
    (Confirmation, never_sent, "given_up"),
    (Agent, odd_duration, "not_sold"),
    (Service, odd_name, "refused"),
    (ToolInstall, no_session, "session_gone"),
    (Session, too_long, "out_of_range"),
    (Session, odd_shell, "rejected"),
    (Inception, too_deep, "too_deep"),
    (Introspection, nobody, "unreachable"),
]  # the last one cuts the wire


async def test_nothing_comes_of_it(embed: Any) -> None:
    world = await embed()
    key = world.key(tier=32)
    before = footprint(world)
    for machine, bad, state in DOORS:
        outcome = await go(world, machine, bad(world, key))
        assert (outcome.state, outcome.status) == (state, "failed"), machine
        assert footprint(world) == before, machine


KNOCKED_AT = {
    Agent, Authentication, Confirmation, Discovery, Execution, GiftCard, Image, Inception,
    Introspection, Payment, Redemption, Service, Session, Snapshot, Spend, ToolInstall, Trust,
}  # fmt: skip


def test_no_door_is_left_out() -> None:
    """A machine that is added gets a bad input of its own here."""
    assert set(MACHINES) == KNOCKED_AT


# -- walls --------------------------------------------------------------------------------------


class Traitor(FakeBackend):
    """Runs what it is given on the host, without a wall, whatever was promised."""

    def cell(self, handle: Handle, language: str, code: str, **_options: Any) -> Result:
        done = subprocess.run([language, "-c", code], capture_output=True, check=False, timeout=30)
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("backend", "state"), [(Traitor, "breached"), (FakeBackend, "inconclusive")]
)
async def test_a_trust_probe_that_fails(embed: Any, backend: Any, state: str) -> None:
    world = await embed(backend())
    key = world.key()
    before = footprint(world)
    shown = await listed(world, key)
    trial = Trial(public_key=key.public_key, secret_key=key.secret_key)
    outcome = await go(world, Trust, trial)
    assert (outcome.state, outcome.status) == (state, "failed")
    assert outcome.context.reason
    assert (footprint(world), await listed(world, key)) == (before, shown)


async def test_a_level_of_trust_that_contradicts_itself(embed: Any) -> None:
    world = await embed()
    before = footprint(world)
    trial = Trial(public_key="pk", secret_key=Secret("sk"), trust="zerotrust", needs_platform=True)
    with pytest.raises(Refused, match="wanted_is_possible"):
        await go(world, Trust, trial)
    assert footprint(world) == before
