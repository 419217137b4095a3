"""What children, platform and budget may do to a layer; `turtles verify Inception` tries it all.

A flat layer is tried in full when it is the deepest (`is_alone`); it begins as if all but two of
the sandboxes that may die had died, so that both sides of that bound are near.  Where a layer
starts another real one, both get few answers, those that the upper one tells apart.  Nested layers
have an engine below them, which is a stranger here: it says what an engine may say.

Children are stand-ins; those of Discovery and Payment are made from the machines below, that show
the same milestones as the real ones but never go back: the real ones may do so without end while
their parent reads nothing, and what the parent then reads it refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from engine.definition import Machine, State
from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, ends, payloads, sometimes
from engine.verification.result import Scope
from machines.clients.ports import Currency
from machines.flows.f01_discovery import Discovered, Findings
from machines.flows.f04_authentication import Authentication, Identity, Proof
from machines.flows.f13_inception import Inception
from machines.flows.gift_card import CardClaim, CardOrder, CardReceipt, Redeemed
from machines.flows.layer import (
    DEPTH_MAX,
    LAYER_LATENCY_MS,
    LOST_MAX,
    SEMITRUSTED,
    ZEROTRUST,
    Layer,
    LayerReport,
    Step,
    line_of,
)
from machines.flows.layer_events import (
    ChildLost,
    ClearedUp,
    Created,
    Equipped,
    Executed,
    ExecutionFailed,
    InnerMoved,
    InnerOdd,
    InnerTold,
    Priced,
    Released,
    Settled,
)
from machines.flows.layer_wire import TOO_DEEP, Told
from machines.flows.purchase import Purchase, Receipt
from machines.flows.tool_calls import Installation, Installed

PRICE_CENTS = 1
ALONE_CENTS = 9
FAILURES = ("over_budget", "unavailable", "invoice_refused", "unfunded", "wallet_refused",
            "unconfirmed", "refunded")  # fmt: skip
EVIDENCE = "{}"
"""The least that a sandbox may answer, and what the next layer's Discovery gets to see."""
STEP = Step("run", "Inception", 1, "$start", "", "inside_sandbox", 0)
SANDBOX = "sandbox of the first of several"
DYING = "sandbox that ends while something is installed in it"
DAMAGED = "sandbox in which nothing can be installed"
CODE = Secret("four words of a card")


class Discovery(Machine[Findings]):
    """What a parent sees of a Discovery that finds out at once."""

    inspecting = State(initial=True, waits=True)
    searching_tools = State(waits=True, milestone=True)
    capable = State(final=True)
    unaware = State(final=True, failure=True)
    understood = inspecting.to(searching_tools) | inspecting.to(unaware)
    probed = searching_tools.to(capable) | searching_tools.to(unaware)

    def output(self, context: Findings) -> Discovered | None:
        """The environment says it."""


class Payment(Machine[Purchase]):
    """What a parent sees of a Payment that never has to go back."""

    pricing = State(initial=True, waits=True)
    invoicing = State(waits=True, milestone=True)
    paying = State(waits=True, milestone=True, cancellable=False)
    confirming = State(waits=True, milestone=True, cancellable=False)
    settling = State(waits=True, milestone=True, cancellable=False)
    key_stored = State(waits=True, milestone=True, cancellable=False)
    completed = State(final=True)
    over_budget = State(final=True, failure=True)
    invoice_refused = State(final=True, failure=True)
    unfunded = State(final=True, failure=True)
    wallet_refused = State(final=True, failure=True)
    unavailable = State(final=True, failure=True)
    unconfirmed = State(final=True, failure=True)
    refunded = State(final=True, failure=True)
    went_on = (
        pricing.to(invoicing)
        | invoicing.to(paying)
        | paying.to(confirming)
        | confirming.to(settling)
        | settling.to(key_stored)
        | key_stored.to(completed)
    )
    failed = (
        pricing.to(over_budget)
        | pricing.to(unavailable)
        | invoicing.to(invoice_refused)
        | paying.to(unfunded)
        | paying.to(wallet_refused)
        | confirming.to(unconfirmed)
        | settling.to(refunded)
    )

    def output(self, context: Purchase) -> Receipt | None:
        """The environment says it."""


class GiftCard(Machine[CardOrder]):
    """What a parent sees of a GiftCard."""

    creating = State(initial=True, waits=True)
    issued = State(final=True)
    unfunded = State(final=True, failure=True)
    ended = creating.to(issued) | creating.to(unfunded)

    def output(self, context: CardOrder) -> CardReceipt | None:
        """The environment says it."""


class Redemption(Machine[CardClaim]):
    """What a parent sees of a Redemption."""

    redeeming = State(initial=True, waits=True)
    redeemed = State(final=True)
    too_little = State(final=True, failure=True)
    ended = redeeming.to(redeemed) | redeeming.to(too_little)

    def output(self, context: CardClaim) -> Redeemed | None:
        """The environment says it."""


class ToolInstall(Machine[Installation]):
    """What a parent sees of a ToolInstall."""

    installing = State(initial=True, waits=True)
    installed = State(final=True)
    refused = State(final=True, failure=True)
    session_gone = State(final=True, failure=True)
    ended = installing.to(installed) | installing.to(refused) | installing.to(session_gone)

    def output(self, context: Installation) -> Installed | None:
        """The environment says it."""


class OfInception(Environment):
    """Flat: one alone, one above another on one key, one too deep, one too slow.

    Nested: the first of two, one alone, the last for the first time, the last after it has died.
    """

    machine = Inception
    scope = Scope(contexts=9, messages=0)
    stand_ins = (Discovery, Payment, Authentication, GiftCard, Redemption, ToolInstall)

    def contexts(self) -> Iterator[Layer]:
        """See the class.  What is below the flat one is too deep for anybody, and ends at once."""
        yield layer(depth=1, max_depth=1, budget_cents=ALONE_CENTS, lost=LOST_MAX - 2)
        shared = layer(depth=DEPTH_MAX, max_depth=DEPTH_MAX + 1, budget_cents=0, one_key=True)
        yield msgspec.structs.replace(shared, public_key="shared", secret_key=Secret("secret"))
        yield layer(depth=3, max_depth=2, budget_cents=PRICE_CENTS)
        yield layer(depth=1, max_depth=1, budget_cents=PRICE_CENTS, latency_ms_max=1)
        first = layer(depth=1, max_depth=2, budget_cents=2 * PRICE_CENTS)
        yield nested(first)
        yield nested(layer(depth=1, max_depth=1, budget_cents=PRICE_CENTS))
        last = layer(depth=2, max_depth=2, budget_cents=PRICE_CENTS)
        yield nested(last, chain="first", card_code=CODE, latency_ms_max=LAYER_LATENCY_MS)
        yield nested(last, chain="first", card_code=CODE, incarnation=1, lost=LOST_MAX - 2)

    # -- children ---------------------------------------------------------------------------------

    @ends(Discovery)
    def places(self, context: Findings) -> Iterator[tuple[str, Discovered]]:
        """Able or not; the lower layer is where the one above it has looked."""
        for state in ("capable",) if context.evidence == EVIDENCE else ("capable", "unaware"):
            yield (
                state,
                Discovered(
                    awareness="sandboxed" if state == "capable" else "unknown",
                    profile="vm",
                    confidence_percent=50,
                    tools=("un",) if state == "capable" else (),
                    missing=(),
                    reasons=1,
                    refusal="" if state == "capable" else "unaware",
                ),
            )

    @ends(Payment)
    def purchases(self, context: Purchase, state: str) -> Iterator[tuple[str, Receipt | None]]:
        """A key; to one alone also a failure on each part of the way; below, no money."""
        if state == "key_stored":
            yield "completed", receipt(context)
        if context.budget_cents == ALONE_CENTS:
            for end in FAILURES:
                yield end, None

    @ends(Authentication)
    def proofs(self, context: Proof) -> Iterator[tuple[str, Identity | None]]:
        """It works, or it does not."""
        identity = Identity(offset_ms=0, tier=1, concurrency=1, requests_per_minute=1)
        yield "authenticated", identity
        if context.public_key == key_of(ALONE_CENTS):
            yield "rejected", None

    @ends(GiftCard)
    def cards(self, context: CardOrder) -> Iterator[tuple[str, CardReceipt | None]]:
        """A card worth what was asked for, or none."""
        cents = context.amount_cents
        yield "issued", CardReceipt("card", CODE, cents, cents, ("txid of the card",))
        yield "unfunded", None

    @ends(Redemption)
    def redemptions(self, context: CardClaim) -> Iterator[tuple[str, Redeemed | None]]:
        """A key at the quoted price, or none."""
        secret = Secret("secret of the redeemed key")
        yield "redeemed", redeemed(secret, context.budget_cents)
        yield "too_little", None

    @ends(ToolInstall)
    def installations(self, context: Installation) -> Iterator[tuple[str, Installed | None]]:
        """All is there; or it cannot be; or there is no sandbox any more."""
        yield "installed", installed(context.digest)
        if context.session_id in (SANDBOX, DAMAGED):
            yield "refused", None
        if context.session_id == DYING:
            yield "session_gone", None

    # -- the portal -------------------------------------------------------------------------------

    @payloads("priced")
    def prices(self, context: Layer) -> Iterator[Priced]:
        """One that fits; to one alone and to one key also what does not."""
        yield Priced(price_cents=PRICE_CENTS, concurrency=DEPTH_MAX + 1)
        if is_alone(context) and not context.nested:
            yield Priced(price_cents=ALONE_CENTS + 1, concurrency=1)
        if context.one_key and context.layers_below:
            yield Priced(price_cents=PRICE_CENTS, concurrency=1)

    @payloads("settled")
    def rests(self, context: Layer) -> Iterator[Settled]:
        """All was spent, or nothing."""
        yield Settled(left_cents=context.card_cents if context.refusal else 0)

    # -- the platform -----------------------------------------------------------------------------

    @payloads("equipped")
    def tools(self) -> Iterator[Equipped]:
        """The one tool there is."""
        yield Equipped(digest="digest", offset_ms=0)

    @payloads("created")
    def sandboxes(self, context: Layer) -> Iterator[Created]:
        """One name for each layer's."""
        name = DYING if context.incarnation else f"sandbox-{context.depth}"
        if context.nested and is_alone(context):
            name = DAMAGED
        yield Created(session_id=SANDBOX if is_first(context) else name)

    @payloads("executed")
    def outputs(self, context: Layer) -> Iterator[Executed]:
        """An answer, from a flat layer's sandbox; to one alone also one without evidence."""
        if context.nested:
            return
        yield Executed(stdout=f"{line_of(context)}\n{EVIDENCE}", latency_ms=0)
        if is_alone(context) and context.lost < LOST_MAX - 1:
            yield Executed(stdout=line_of(context), latency_ms=0)

    @payloads("inner_moved")
    def progress(self, context: Layer) -> Iterator[InnerMoved]:
        """It is at work, and tells so once."""
        if context.nested and is_alone(context) and not context.latency_ms:
            yield InnerMoved(latency_ms=1, twigs=())

    @payloads("inner_told")
    def reports(self, context: Layer) -> Iterator[InnerTold]:
        """The bottom was reached, or it was not."""
        if not context.nested:
            return
        yield InnerTold(latency_ms=1, twigs=(), told=bottom(context))
        if is_first(context) or is_alone(context):
            yield InnerTold(latency_ms=1, twigs=(), told=stopped(context))

    @payloads("inner_odd")
    def lies(self, context: Layer) -> Iterator[InnerOdd]:
        """What it says cannot be."""
        if context.nested and is_alone(context):
            yield InnerOdd(reason="it has no journal")

    @payloads("child_lost")
    def deaths(self, context: Layer) -> Iterator[ChildLost]:
        """The sandbox died with its platform."""
        if is_alone(context) and not context.nested:
            yield ChildLost()

    @payloads("execution_failed")
    def failures(self, context: Layer) -> Iterator[ExecutionFailed]:
        """The command ran and failed."""
        if is_alone(context) and not context.nested and context.lost < LOST_MAX - 1:
            yield ExecutionFailed(exit_code=1)

    @payloads("let_go")
    def releases(self) -> Iterator[Released]:
        """It is gone."""
        yield Released()

    @payloads("cleared_up")
    def clearings(self) -> Iterator[ClearedUp]:
        """No sandbox is left."""
        yield ClearedUp()

    # -- what must hold, by the ledger of the outside ---------------------------------------------

    @always
    def no_sandbox_outlives_its_layer(
        self, status: str, context: Layer, done: Sequence[Done]
    ) -> bool:
        """When a layer has ended well, as many sandboxes were ended as were created."""
        if status != "completed":
            return True
        return count(done, "create_session") <= count(done, "delete_session")

    @always
    def one_sandbox_at_a_time(self, done: Sequence[Done]) -> bool:
        """Another is created only when the one before it is gone."""
        return count(done, "create_session") <= count(done, "delete_session") + 1

    @always
    def no_sandbox_without_a_tool(self, done: Sequence[Done]) -> bool:
        """What goes into the child is at hand before there is a child."""
        return count(done, "create_session") == 0 or count(done, "equip") == 1

    @always
    def spends_within_budget(self, context: Layer) -> bool:
        """All layers together."""
        below_cents = sum(layer.paid_cents for layer in context.inner)
        return context.paid_cents + below_cents <= context.budget_cents

    @always
    def a_card_pays_within_budget(self, context: Layer) -> bool:
        """What is put on a card is gone from the purse, spent or not."""
        spent_cents = context.paid_cents + context.card_cents
        return not context.card_cents or spent_cents <= context.budget_cents

    @always
    def what_the_card_has_left_is_known(self, context: Layer, state: str) -> bool:
        """A layer that bought a card looks at it before it ends well or falls short."""
        return state not in ("done", "cut_short") or context.card_left_cents in (
            0,
            context.card_cents,
        )

    @always
    def orphans_end_first(self, context: Layer, done: Sequence[Done]) -> bool:
        """A layer that may have lived before makes nothing until what it had is gone."""
        made = count(done, "create_session")
        return not (context.incarnation and made) or count(done, "clear_sessions") > 0

    # -- what should be seen ----------------------------------------------------------------------

    @sometimes
    def reached_the_bottom_inside(self, context: Layer, state: str) -> bool:
        """The engine inside had a key of its own, and nothing is left on the card."""
        below = state == "done" and context.nested and len(context.inner) == 1
        return below and context.card_cents > 0 and context.card_left_cents == 0

    @sometimes
    def found_the_bottom_below(self, context: Layer, state: str) -> bool:
        """The flat layer below was one too many, for anybody."""
        return state == "cut_short" and context.one_key and "too_deep" in context.refusal

    @sometimes
    def survived_a_death(self, context: Layer, state: str) -> bool:
        """The next sandbox lived."""
        return state == "done" and context.lost == LOST_MAX - 1

    @sometimes
    def left_money_on_the_card(self, context: Layer, state: str) -> bool:
        """And says how much."""
        return state == "cut_short" and context.card_left_cents > 0

    @sometimes
    def too_many_deaths(self, context: Layer, state: str) -> bool:
        """The bound is a bound."""
        return state == "execution_refused" and context.lost == LOST_MAX

    @sometimes
    def cancelled_with_a_sandbox(self, status: str, done: Sequence[Done]) -> bool:
        """What was created is ended before the run is."""
        return status == "cancelled" and count(done, "create_session") > 0


def layer(
    *,
    depth: int,
    max_depth: int,
    budget_cents: int,
    lost: int = 0,
    one_key: bool = False,
    latency_ms_max: int = 0,
) -> Layer:
    """A flat one.  Its pause is for Payment only; without it, an hour changes nothing."""
    return Layer(
        depth=depth,
        max_depth=max_depth,
        currency=Currency.BTC.value,
        budget_cents=budget_cents,
        poll_ms=0,
        lost=lost,
        network_mode=ZEROTRUST,
        one_key=one_key,
        latency_ms_max=latency_ms_max,
    )


def nested(flat: Layer, **changes: Any) -> Layer:
    """The same, with the layer below in its sandbox."""
    return msgspec.structs.replace(flat, network_mode=SEMITRUSTED, tool_digest="digest", **changes)


def is_alone(context: Layer) -> bool:
    """No other layer above or below it."""
    return context.max_depth == 1


def is_first(context: Layer) -> bool:
    """A nested layer that pays for one more in its sandbox."""
    return context.nested and context.layers_below > 0


def key_of(budget_cents: int) -> str:
    """Layers differ in what is left for them, and so do their keys."""
    return f"key-{budget_cents}"


def receipt(context: Purchase) -> Receipt:
    """One key for one cent."""
    key = key_of(context.budget_cents)
    return Receipt(
        public_key=key,
        secret_key=Secret(f"secret of {key}"),
        paid_cents=PRICE_CENTS,
        paid_atomic=1,
        fee_atomic=0,
        currency=context.currency,
        txids=(f"txid of {key}",),
        tier=context.tier,
        months=context.months,
        invoice_id=f"invoice of {key}",
    )


def redeemed(secret: Secret[str], paid_cents: int) -> Redeemed:
    """One key from the card."""
    return Redeemed(
        public_key="key from the card",
        secret_key=secret,
        paid_cents=paid_cents,
        balance_cents=0,
        redemption_id="redemption",
    )


def installed(digest: str) -> Installed:
    """All of it."""
    return Installed(digest=digest, version="1", tools=59, path="/root/.turtles/bin/turtles")


def bottom(context: Layer) -> Told:
    """What is said when every layer from there on has ended well."""
    if not context.layers_below:
        return _told(context, TOO_DEEP, "depth 3 is below the bound 2", ())
    below = LayerReport(
        depth=context.depth + 1,
        public_key="key of the next layer",
        paid_cents=PRICE_CENTS,
        txids=("redemption",),
        session_id="sandbox of the next layer",
        stdout="turtle 2 of 2 was here",
        latency_ms=1,
        awareness="sandboxed",
        profile="bubblewrap",
        journal=(STEP,),
    )
    return _told(context, "done", "", (below,))


def stopped(context: Layer) -> Told:
    """What is said when the next layer got nowhere."""
    return _told(context, "unaware", "no way", ())


def _told(context: Layer, state: str, refusal: str, layers: tuple[LayerReport, ...]) -> Told:
    return Told(
        said=line_of(context),
        state=state,
        status="failed" if refusal else "completed",
        complete=not refusal,
        refusal=refusal,
        layers=layers,
        journal=(STEP,),
    )


def count(done: Sequence[Done], effect: str) -> int:
    """Under how many keys the outside has done calls of an effect."""
    return len({one.key for one in done if one.effect == effect})
