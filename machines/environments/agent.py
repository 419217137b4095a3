"""What children, portal and platform may do to a plan; `turtles verify Agent` tries it all.

Two first contexts: coins, and a card.  Everything that can go wrong in the sandbox is tried with
the coins; the card's plan ends with its key, well or ill.

Children are stand-ins, made from the small machines below: a plan waits for their ends alone, and
what the real ones pass on their way would only multiply what there is to try.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.definition import Machine, State
from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, ends, payloads, sometimes
from engine.verification.result import Scope
from machines.clients.ports import Currency
from machines.flows.agent_plan import Opened, Plan, Priced, Ran
from machines.flows.f01_discovery import Discovered, Findings
from machines.flows.f04_authentication import Authentication, Identity, Proof
from machines.flows.f14_agent import Agent
from machines.flows.gift_card import CardClaim, Redeemed
from machines.flows.purchase import Purchase, Receipt

PRICE_CENTS = 2
PATIENCE_MS = 200
"""Over before the second attempt."""
PAID, CARD = "coins", "card"
"""Public keys by what they were bought with."""
IN_THE_SANDBOX = ("executing", "freezing", "unfreezing", "executing_again", "ending")
ENDS = ("program_failed", "froze_not", "forgotten", "sandbox_lost", "stuck", "done")


class Discovery(Machine[Findings]):
    """What a parent sees of a Discovery."""

    inspecting = State(initial=True, waits=True)
    capable = State(final=True)
    unaware = State(final=True, failure=True)
    looked = inspecting.to(capable)
    lost = inspecting.to(unaware)

    def output(self, context: Findings) -> Discovered | None:
        """The environment says it."""


class Payment(Machine[Purchase]):
    """What a parent sees of a Payment that nobody follows."""

    pricing = State(initial=True, waits=True)
    completed = State(final=True)
    unfunded = State(final=True, failure=True)
    expired_unpaid = State(final=True, failure=True)
    bought = pricing.to(completed)
    lacked = pricing.to(unfunded)
    waited = pricing.to(expired_unpaid)

    def output(self, context: Purchase) -> Receipt | None:
        """The environment says it."""


class Redemption(Machine[CardClaim]):
    """What a parent sees of a Redemption that nobody follows."""

    checking_balance = State(initial=True, waits=True)
    redeemed = State(final=True)
    denied = State(final=True, failure=True)
    took = checking_balance.to(redeemed)
    refused = checking_balance.to(denied)

    def output(self, context: CardClaim) -> Redeemed | None:
        """The environment says it."""


class OfAgent(Environment):
    """A place, a shop and a platform, none of them reliable."""

    machine = Agent
    scope = Scope(contexts=2, messages=0, attempts=2)
    stand_ins = (Discovery, Payment, Redemption, Authentication)

    def contexts(self) -> Iterator[Plan]:
        """Coins, and a card."""
        yield plan()
        yield plan(gift_code=Secret("four-words-of-card"))

    # -- children ---------------------------------------------------------------------------------

    @ends(Discovery)
    def places(self, context: Findings) -> Iterator[tuple[str, Discovered]]:
        """Able or not."""
        for state in ("capable", "unaware"):
            able = state == "capable"
            yield (
                state,
                Discovered(
                    awareness="sandboxed" if able else "unknown",
                    profile="vm",
                    confidence_percent=50,
                    tools=("un",) if able else (),
                    missing=(),
                    reasons=1,
                    refusal="" if able else "unaware",
                ),
            )

    @ends(Payment)
    def purchases(self, context: Purchase) -> Iterator[tuple[str, Receipt | None]]:
        """A key, no money, or something else."""
        yield "completed", receipt()
        yield "unfunded", None
        yield "expired_unpaid", None

    @ends(Redemption)
    def redemptions(self, context: CardClaim) -> Iterator[tuple[str, Redeemed | None]]:
        """A key, or none."""
        yield (
            "redeemed",
            Redeemed(
                public_key=CARD,
                secret_key=Secret("secret"),
                paid_cents=PRICE_CENTS,
                balance_cents=0,
                redemption_id="redemption",
            ),
        )
        yield "denied", None

    @ends(Authentication)
    def proofs(self, context: Proof) -> Iterator[tuple[str, Identity | None]]:
        """It works, or it does not; a card's never does, for what follows is the same."""
        if context.public_key == PAID:
            identity = Identity(offset_ms=0, tier=1, concurrency=1, requests_per_minute=1)
            yield "authenticated", identity
        yield "rejected", None

    # -- portal and platform ----------------------------------------------------------------------

    @payloads("priced")
    def prices(self, context: Plan) -> Iterator[Priced]:
        """As dear as may be; one cent more."""
        yield Priced(price_cents=context.budget_cents)
        yield Priced(price_cents=context.budget_cents + 1)

    @payloads("opened")
    def sandboxes(self) -> Iterator[Opened]:
        """One."""
        yield Opened(session_id="sandbox")

    @payloads("ran")
    def programs(self, context: Plan, state: str) -> Iterator[Ran]:
        """Well, ill, and with a memory or without."""
        yield Ran(stdout=f"{context.expected}\n", exit_code=0)
        yield Ran(stdout="", exit_code=1)
        if state == "executing_again":
            yield Ran(stdout="another", exit_code=0)

    # -- what must hold ---------------------------------------------------------------------------

    @always
    def is_done_by_what_it_saw(self, state: str, done: Sequence[Done]) -> bool:
        """Done means frozen, woken, and remembered; the platform said so."""
        ran = [one.event for one in done if isinstance(one.event, Ran)]
        return state != "done" or (
            {"freeze", "unfreeze"} <= {one.effect for one in done}
            and all(one.exit_code == 0 for one in ran)
            and ran[-1].stdout.strip() == "42"
        )

    @always
    def leaves_no_sandbox(self, state: str, context: Plan, done: Sequence[Done]) -> bool:
        """Where it has come to an end of its own, what was opened was ended."""
        opened = any(isinstance(one.event, Opened) for one in done)
        ended = any(one.effect == "end_session" for one in done)
        return state not in ENDS or (opened and ended and context.session_id == "")

    @always
    def acts_with_a_key_only(self, state: str, context: Plan) -> bool:
        """And within the budget."""
        has_key = context.secret_key is not None
        return state not in IN_THE_SANDBOX or (
            has_key and 0 < context.paid_cents <= context.budget_cents
        )

    @always
    def says_why(self, state: str, context: Plan) -> bool:
        """A refusal has words."""
        failed = state in (*ENDS[:-1], "incapable", "not_sold", "unaffordable", "unpriced",
                           "unfunded", "card_refused", "not_provisioned", "unproven",
                           "no_sandbox")  # fmt: skip
        return not failed or context.refusal != ""

    @sometimes
    def is_done(self, state: str) -> bool:
        """What it is for."""
        return state == "done"

    @sometimes
    def clears_up_after_a_lost_reply(self, state: str, done: Sequence[Done]) -> bool:
        """No reply told of a sandbox, and it was looked for."""
        return state == "no_sandbox" and any(one.effect == "clear_sessions" for one in done)

    @sometimes
    def is_refused_a_card(self, state: str) -> bool:
        """The one way that only cards go."""
        return state == "card_refused"


def plan(**changes: object) -> Plan:
    """A plan that can afford one key, and no cent more."""
    fields: dict[str, object] = {
        "currency": Currency.LTC.value,
        "budget_cents": PRICE_CENTS,
        "poll_ms": 0,
        "silence_ms": PATIENCE_MS,
        "overdue_ms": PATIENCE_MS,
    }
    return Plan(**(fields | changes))  # type: ignore[arg-type]


def receipt() -> Receipt:
    """What buying with coins gives."""
    return Receipt(
        public_key=PAID,
        secret_key=Secret("secret"),
        paid_cents=PRICE_CENTS,
        paid_atomic=1,
        fee_atomic=1,
        currency=Currency.LTC,
        txids=("txid",),
        tier=1,
        months=1,
        invoice_id="invoice",
    )
