"""What children, platform and budget may do to a layer; `turtles verify Inception` tries it all.

Everything is tried with a layer that is the deepest (`is_alone`).  It begins as if all but two of
the sandboxes that may die had died, so that both sides of that bound are near.  Where a layer
starts another real one, both get few answers, those that the upper one tells apart.

Children are stand-ins; those of Discovery and Payment are made from the machines below, that show
the same milestones as the real ones but never go back: the real ones may do so without end while
their parent reads nothing, and what the parent then reads it refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from engine.definition import Machine, State
from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, ends, payloads, sometimes
from engine.verification.result import Scope
from machines.clients.ports import Currency
from machines.flows.f01_discovery import Discovered, Findings
from machines.flows.f04_authentication import Authentication, Identity, Proof
from machines.flows.f13_inception import Inception
from machines.flows.layer import (
    LOST_MAX,
    SEMITRUSTED,
    ZEROTRUST,
    ChildLost,
    ClearedUp,
    Created,
    Equipped,
    Executed,
    ExecutionFailed,
    Layer,
    Released,
)
from machines.flows.layer_calls import line_of
from machines.flows.purchase import Purchase, Receipt

PRICE_CENTS = 1
ALONE_CENTS = 3
FAILURES = ("over_budget", "unavailable", "invoice_refused", "unfunded", "wallet_refused",
            "unconfirmed", "refunded")  # fmt: skip
EVIDENCE = "{}"
"""The least that a sandbox may answer, and what the next layer's Discovery gets to see."""
SIBLING = '{"sibling":"beside"}'
"""What code inside a semitrusted one says when it made another."""


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


class OfInception(Environment):
    """One layer, two layers, and one that is asked for too deep."""

    machine = Inception
    scope = Scope(contexts=3, messages=0)
    stand_ins = (Discovery, Payment, Authentication)
    reasons: ClassVar[dict[str, str]] = {
        "create_invoice --bought--> unaffordable": "in create_invoice the price was affordable "
        "and no wallet was asked yet: a lack of money shows before or later, and in order"
    }

    def contexts(self) -> Iterator[Layer]:
        """A layer alone, that is semitrusted; one with another below it; one below its bound."""
        yield layer(
            depth=1,
            max_depth=1,
            budget_cents=ALONE_CENTS,
            lost=LOST_MAX - 2,
            network_mode=SEMITRUSTED,
        )
        yield layer(depth=1, max_depth=2, budget_cents=2 * PRICE_CENTS)
        yield layer(depth=3, max_depth=2, budget_cents=PRICE_CENTS)

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
        elif context.budget_cents == PRICE_CENTS:
            yield "over_budget", None

    @ends(Authentication)
    def proofs(self, context: Proof) -> Iterator[tuple[str, Identity | None]]:
        """It works, or it does not."""
        identity = Identity(offset_ms=0, tier=1, concurrency=1, requests_per_minute=1)
        yield "authenticated", identity
        if context.public_key == key_of(ALONE_CENTS):
            yield "rejected", None

    # -- the platform -----------------------------------------------------------------------------

    @payloads("equipped")
    def scripts(self) -> Iterator[Equipped]:
        """The one script there is."""
        yield Equipped(digest="digest")

    @payloads("created")
    def sandboxes(self, context: Layer) -> Iterator[Created]:
        """One name for each layer's."""
        yield Created(session_id=f"sandbox-{context.depth}")

    @payloads("executed")
    def outputs(self, context: Layer) -> Iterator[Executed]:
        """An answer; to one alone also one without evidence, and one without a sibling."""
        answer = f"{line_of(context)}\n{EVIDENCE}"
        made = f"{answer}\n{SIBLING}" if context.network_mode == SEMITRUSTED else answer
        yield Executed(stdout=made, latency_ms=0)
        if is_alone(context) and context.lost < LOST_MAX - 1:
            yield Executed(stdout=line_of(context), latency_ms=0)
            yield Executed(stdout=answer, latency_ms=0)

    @payloads("child_lost")
    def deaths(self, context: Layer) -> Iterator[ChildLost]:
        """The sandbox died with its platform."""
        if is_alone(context):
            yield ChildLost()

    @payloads("execution_failed")
    def failures(self, context: Layer) -> Iterator[ExecutionFailed]:
        """The command ran and failed."""
        if is_alone(context) and context.lost < LOST_MAX - 1:
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

    # -- what should be seen ----------------------------------------------------------------------

    @sometimes
    def reached_the_bottom(self, context: Layer, state: str) -> bool:
        """Both layers bought, proved and answered."""
        return state == "done" and len(context.inner) == 1

    @sometimes
    def survived_a_death(self, context: Layer, state: str) -> bool:
        """The next sandbox lived."""
        return state == "done" and context.lost == LOST_MAX - 1

    @sometimes
    def money_ran_out_below(self, context: Layer, state: str) -> bool:
        """The layer below could not pay."""
        return state == "cut_short" and "over_budget" in context.refusal

    @sometimes
    def could_not_recurse(self, context: Layer, state: str) -> bool:
        """The child answered, and made no sibling although it should have."""
        return state == "execution_refused" and "sibling" in context.refusal

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
    network_mode: str = ZEROTRUST,
) -> Layer:
    """A first context.  Its pause is for Payment only; without it, an hour changes nothing."""
    return Layer(
        depth=depth,
        max_depth=max_depth,
        currency=Currency.BTC.value,
        budget_cents=budget_cents,
        poll_ms=0,
        lost=lost,
        network_mode=network_mode,
    )


def is_alone(context: Layer) -> bool:
    """No other layer above or below it."""
    return context.max_depth == 1


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


def count(done: Sequence[Done], effect: str) -> int:
    """Under how many keys the outside has done calls of an effect."""
    return len({one.key for one in done if one.effect == effect})
