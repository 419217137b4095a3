"""What portal, wallet and platform may do to one purchase; `turtles verify Payment` tries it all.

Amounts are as small as the rules allow: 4 units are due and 1 more is tolerated, so that one unit
too few is topped up and two are not.  The portal is honest and slow: it may count one unit too few,
find it later, let an invoice expire with none, a part or all of the money in it, show no secret,
and refund wrongly.  It issues no key for nothing, and says that an invoice is over when it is.

The explorer tells moments apart by the power of two of what is left until then.  So there is a
short pause (`PAUSE_MS`; four and five of them, for which the portal may be late, look alike) and
one long duration (`LONG_MS`), in which any number of pauses looks alike.  The price comes only
after the first pause, so that there are few states before it.

A card is bought the plain way alone, once everybody has answered at once: what differs is how it
comes.  So is a key that is watched, whose payment then stands, sinks or loses.

Everything is tried on the plain way, with one leg.  Where another leg was opened, the portal has
only the answers that a further leg can make differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, ends, payloads, sometimes
from engine.verification.result import Scope
from machines.clients.ports import Currency, Invoice, SignedTransaction
from machines.flows.f03_payment import GENERATIONS_MAX, GRACE_POLLS, Payment
from machines.flows.f03c_confirmation import Confirmation, Following, FollowReport
from machines.flows.f03w_wallet import Spend, SpendOrder, SpendReport
from machines.flows.money import restocking_fee_atomic
from machines.flows.purchase import (
    Activated,
    Declined,
    Denied,
    FellShort,
    Invoiced,
    Issued,
    NotOffered,
    Priced,
    Proven,
    Purchase,
    RanOut,
    Refunding,
    RefundSeen,
    Regenerated,
    SankAgain,
    SecretGone,
)

DUE_ATOMIC = 4
SECRETS = 1
"""So many new secrets may still be asked for."""
PAUSE_MS = 400
LONG_MS = 1_100_000
LATEST_MS = LONG_MS + GRACE_POLLS * PAUSE_MS
"""The portal has had its time to say that the invoice is over."""
AT_LAST_MS = 2 * LONG_MS
"""What was late is over, too: there is one last look."""
INSTEAD_ATOMIC = 3
"""A leg in place of a dead one, whose rival has paid one unit to the same address."""
KEY = "key"


class OfPayment(Environment):
    """One purchase; spending and following are stand-ins."""

    machine = Payment
    scope = Scope(contexts=3, messages=0)
    stand_ins = (Spend, Confirmation)

    def contexts(self) -> Iterator[Purchase]:
        """Small money, short times; as if all but one of the new secrets had been tried.

        Then a card, and a key that is watched.
        """
        key = Purchase(
            tier=1,
            months=1,
            currency=Currency.BTC,
            budget_cents=2,
            amount_atomic_max=DUE_ATOMIC,
            tolerance_percent=25,
            passphrase=Secret("open sesame"),
            poll_ms=PAUSE_MS,
            cut_ms=PAUSE_MS,
            follow_ms=LONG_MS,
            settle_ms=LONG_MS,
            refund_ms=LONG_MS,
            silence_ms=LONG_MS,
            fee_atomic_max=1,
            generation=GENERATIONS_MAX - SECRETS,
        )
        yield key
        brief: dict[str, object] = {"passphrase": None, "silence_ms": PAUSE_MS, "poll_ms": LONG_MS}
        card = {"goods": "card", "tier": 0, "months": 0, "price_cents": 2, "refund_address": "ours"}
        yield msgspec.structs.replace(key, **brief, **card)
        yield msgspec.structs.replace(key, **brief, watch=True)

    # -- before anything is paid ------------------------------------------------------------------

    @payloads("priced")
    def prices(self, context: Purchase, now_ms: int) -> Iterator[Priced]:
        """Not at once; then what the budget just allows, and a cent more."""
        if is_brief(context):
            yield Priced(price_cents=context.price_cents or context.budget_cents)
            return
        if is_in_time(now_ms) and now_ms >= PAUSE_MS:
            yield Priced(price_cents=context.budget_cents + 1)
        if now_ms >= PAUSE_MS:
            yield Priced(price_cents=context.budget_cents)

    @payloads("no_such_quote")
    def other_quotes(self, context: Purchase) -> Iterator[NotOffered]:
        """An empty table."""
        if not is_brief(context):
            yield NotOffered(offers=0)

    @payloads("invoiced")
    def invoices(self, context: Purchase, now_ms: int) -> Iterator[Invoiced]:
        """As ordered; then one thing wrong with each."""
        good = Invoice(
            invoice_id="invoice",
            currency=context.currency,
            address="theirs",
            amount_atomic=DUE_ATOMIC,
            price_cents=context.price_cents,
            tier=context.tier,
            months=context.months,
            expires_ms=LONG_MS,
            confirmations_required=0,
        )
        yield Invoiced(invoice=good, refund_address="ours")
        if is_brief(context) or not is_in_time(now_ms):
            return  # that one is too late
        wrong: list[dict[str, object]] = [
            {"price_cents": context.price_cents + 1},
            {"amount_atomic": DUE_ATOMIC + 1},
            {"address": "ours"},
            {"expires_ms": 2 * PAUSE_MS},  # just too late after one pause
        ]
        for fields in wrong:
            invoice = msgspec.structs.replace(good, **fields)
            yield Invoiced(invoice=invoice, refund_address="ours")

    @payloads("declined")
    def refusals(self, context: Purchase) -> Iterator[Declined]:
        """The portal does not say more."""
        if not is_brief(context):
            yield Declined(reason="declined")

    # -- paying -----------------------------------------------------------------------------------

    @ends(Spend)
    def spends(self, context: SpendOrder) -> Iterator[tuple[str, SpendReport]]:
        """Every end of the first spend, two of another; the bytes pay what was ordered.

        For a card, or to be watched (nobody has locked that wallet): it is sent.
        """
        signed = SignedTransaction(
            txid=f"txid-{context.amount_atomic}",
            payload=Secret("bytes"),
            inputs=(f"input-{context.amount_atomic}",),
            fee_atomic=context.fee_atomic_max,
            amount_atomic=context.amount_atomic,
            address=context.address,
        )
        yield "broadcast", SpendReport(transaction=signed, reason="")
        if context.amount_atomic == INSTEAD_ATOMIC or context.passphrase is None:
            return
        yield "abandoned", SpendReport(transaction=None, reason="not sent")
        if context.amount_atomic == DUE_ATOMIC:
            yield "conflicted", SpendReport(transaction=signed, reason="lost")
            yield "unfunded", SpendReport(transaction=None, reason="not sent")
            yield "rejected", SpendReport(transaction=None, reason="not sent")

    @ends(Confirmation)
    def follows(self, context: Following) -> Iterator[tuple[str, FollowReport]]:
        """Just deep enough; the first also buried under a rival, or not deep when time is up.

        What is watched is given up as deep as it was, or lost.
        """
        if context.depth > 0:
            yield "given_up", followed(context.depth)
            yield "replaced", followed(0, rival_depth=context.required)
            return
        yield "deep_enough", followed(context.required)
        if context.passphrase is not None and context.transaction.amount_atomic == DUE_ATOMIC:
            yield "replaced", followed(0, rival_depth=context.required)
            yield "given_up", followed(context.required - 1)

    @payloads("sank")
    def reorganisations(self, context: Purchase, now_ms: int) -> Iterator[SankAgain]:
        """The first leg is one block short of what counts."""
        if is_plain(context) and is_in_time(now_ms) and not is_brief(context):
            yield SankAgain(number=1, confirmations=context.required - 1)

    @payloads("fell_short")
    def shortfalls(self, context: Purchase, now_ms: int) -> Iterator[FellShort]:
        """One unit of a whole payment is not counted; of one that was never sent, a rival's is.

        The latter also too late: the portal was asked in time.
        """
        if is_brief(context):
            return
        if is_plain(context):
            if is_in_time(now_ms):
                yield FellShort(received_atomic=DUE_ATOMIC - 1)
        elif was_never_sent(context) and (is_in_time(now_ms) or now_ms >= LATEST_MS):
            yield FellShort(received_atomic=DUE_ATOMIC - INSTEAD_ATOMIC)

    # -- the key ----------------------------------------------------------------------------------

    @payloads("issued")
    def keys(self, context: Purchase, state: str, now_ms: int) -> Iterator[Issued]:
        """For all that was sent: in time, or partly counted before, for one leg; late for two."""
        if state == "settling":
            delivered = is_plain(context) and is_in_time(now_ms)
            delivered = delivered and (not context.watch or now_ms < PAUSE_MS)
        elif state == "late":
            delivered = not is_plain(context) and now_ms < AT_LAST_MS
        else:
            delivered = now_ms < AT_LAST_MS
        if delivered and context.goods == "key" and counted_atomic(context) >= DUE_ATOMIC:
            yield Issued(
                public_key=KEY,
                secret_key=Secret("secret"),
                received_atomic=counted_atomic(context),
            )

    @payloads("secret_gone")
    def keys_without_secret(
        self, context: Purchase, state: str, now_ms: int
    ) -> Iterator[SecretGone]:
        """The secret was shown to nobody, and the portal does not even name the key."""
        first_ms, end_ms = AT_LAST_MS, now_ms + 1
        if state == "settling":
            first_ms, end_ms = LONG_MS, LATEST_MS
        plain = is_plain(context) and not is_brief(context)
        if plain and first_ms <= now_ms < end_ms:
            yield SecretGone(public_key=None, received_atomic=DUE_ATOMIC)

    @payloads("activated")
    def cards(self, context: Purchase, state: str, now_ms: int) -> Iterator[Activated]:
        """In time, or late, for the whole of it."""
        in_time = is_in_time(now_ms) or state != "settling"
        if context.goods == "card" and in_time:
            yield Activated(received_atomic=DUE_ATOMIC)

    @payloads("regenerated")
    def new_secrets(self, context: Purchase) -> Iterator[Regenerated]:
        """Another secret each time."""
        secret = Secret(f"secret-{context.generation + 1}")
        yield Regenerated(public_key=KEY, secret_key=secret)

    @payloads("proven")
    def proofs(self, context: Purchase) -> Iterator[Proven]:
        """The key is what was bought."""
        yield Proven(tier=context.tier)

    @payloads("denied")
    def denials(self, context: Purchase, now_ms: int) -> Iterator[Denied]:
        """Another secret may help, or nothing does."""
        if is_plain(context) and is_in_time(now_ms) and not context.watch:
            yield Denied(reason="invalid_key")
            yield Denied(reason="suspended")

    # -- the money back ---------------------------------------------------------------------------

    @payloads("ran_out")
    def expiries(self, context: Purchase, now_ms: int) -> Iterator[RanOut]:
        """With one unit too few; with none, where nothing was sent or the portal is late."""
        if is_in_time(now_ms) or context.watch:
            return
        if is_plain(context) and now_ms < LATEST_MS:
            yield RanOut(received_atomic=DUE_ATOMIC - 1)
        elif is_plain(context) or (was_never_sent(context) and now_ms < LATEST_MS):
            yield RanOut(received_atomic=0)

    @payloads("refunding")
    def refunds(self, context: Purchase, now_ms: int) -> Iterator[Refunding]:
        """Of what it has counted, or counts at last."""
        if is_plain(context) and now_ms < AT_LAST_MS and not is_brief(context):
            yield Refunding(received_atomic=DUE_ATOMIC - 1)

    @payloads("refund_seen")
    def arrivals(self, context: Purchase) -> Iterator[RefundSeen]:
        """Exact, a unit more, and first a unit less."""
        paid_atomic = context.refund_base_atomic
        due_atomic = paid_atomic - restocking_fee_atomic(paid_atomic)
        if context.refund_atomic == 0:
            yield RefundSeen(refund_atomic=due_atomic - 1)
        yield RefundSeen(refund_atomic=due_atomic)
        yield RefundSeen(refund_atomic=due_atomic + 1)

    # -- what must hold, by the ledger of the outside ---------------------------------------------

    @always
    def one_price_one_invoice(self, done: Sequence[Done]) -> bool:
        """However often the reply was lost: one price is taken, one invoice opened, in order."""
        keys = [keys_of(done, effect) for effect in ("fetch_price", "open_invoice")]
        return all(len(one) <= 1 for one in keys) and len(keys[1]) <= len(keys[0])

    @always
    def pays_the_portals_invoice(self, context: Purchase, done: Sequence[Done]) -> bool:
        """What is paid is an invoice that the portal opened."""
        opened = [one.event.invoice for one in done if isinstance(one.event, Invoiced)]
        return context.invoice is None or context.invoice in opened

    @always
    def only_a_kept_key_is_watched(self, context: Purchase, state: str) -> bool:
        """By whoever wants that; and only of a watched key a leg can be lost."""
        lost = any(leg.status == "lost" for leg in context.legs)
        watched = lost or state in ("watching", "completed_at_risk")
        return not watched or (context.watch and context.secret_key is not None)

    @always
    def secrets_are_asked_for_a_few_times(self, done: Sequence[Done]) -> bool:
        """A key whose third new secret does not work is left alone."""
        return len(keys_of(done, "regenerate")) <= SECRETS

    @always
    def a_leg_follows_the_end_of_another(self, context: Purchase) -> bool:
        """Never two live spends: a leg is opened when every earlier one is deep or dead."""
        return not any(earlier.in_flight and later.status == "open"
                       for earlier, later in pairwise(context.legs))  # fmt: skip

    # -- what should be seen ----------------------------------------------------------------------

    @sometimes
    def paid_in_two_legs(self, context: Purchase, status: str) -> bool:
        """A top-up made it whole."""
        return status == "completed" and [leg.status for leg in context.legs] == ["deep", "deep"]

    @sometimes
    def paid_after_a_dead_leg(self, context: Purchase, status: str) -> bool:
        """A double spend was answered by another leg."""
        return status == "completed" and [leg.status for leg in context.legs] == ["dead", "deep"]

    @sometimes
    def bought_without_the_top_up(self, context: Purchase, status: str) -> bool:
        """The missing unit was found after the wallet could not pay it again."""
        return status == "completed" and [leg.status for leg in context.legs] == ["deep", "unsent"]

    @sometimes
    def refunded_exactly(self, context: Purchase, state: str) -> bool:
        """Part of the money, less nine per cent."""
        return state == "refunded" and context.refund_base_atomic == DUE_ATOMIC - 1

    @sometimes
    def lost_secret_replaced(self, context: Purchase, status: str) -> bool:
        """The secret that was kept is not the first one."""
        return status == "completed" and context.generation > GENERATIONS_MAX - SECRETS

    @sometimes
    def no_secret_works(self, context: Purchase, state: str) -> bool:
        """Every new secret was refused."""
        return state == "key_refused" and context.generation == GENERATIONS_MAX

    @sometimes
    def lost_after_completion(self, context: Purchase, state: str) -> bool:
        """The key was delivered, its payment is gone."""
        return state == "completed_at_risk" and context.pledged_atomic == 0

    @sometimes
    def slow_chain_is_no_loss(self, context: Purchase, status: str) -> bool:
        """Time was up, and the payment as deep as counts."""
        return context.watch and status == "completed" and context.reason != ""

    @sometimes
    def card_delivered_late(self, context: Purchase, state: str) -> bool:
        """The portal had counted too little at first."""
        return state == "delivered" and context.passphrase is None and context.sent_ms < LONG_MS

    @sometimes
    def cancelled_while_pricing(self, state: str, status: str) -> bool:
        """Before anything is paid, somebody may think better of it."""
        return status == "cancelled" and state == "pricing"

    @sometimes
    def expired_on_the_way(self, context: Purchase, state: str, now_ms: int) -> bool:
        """A top-up was still possible a moment ago."""
        return state == "settling" and len(context.legs) == 1 and now_ms >= context.pay_by_ms


def is_brief(context: Purchase) -> bool:
    """A card, or a key that is watched: only the plain way to it is tried."""
    return context.goods == "card" or context.watch


def is_plain(context: Purchase) -> bool:
    """One leg, and it is deep: every answer is tried here."""
    return [leg.status for leg in context.legs] == ["deep"]


def is_in_time(now_ms: int) -> bool:
    """Before the one invoice expires."""
    return now_ms < LONG_MS


def was_never_sent(context: Purchase) -> bool:
    """One leg, and it is dead before its bytes were out."""
    return [(leg.status, leg.txid) for leg in context.legs] == [("dead", None)]


def counted_atomic(context: Purchase) -> int:
    """What the chain has for the portal, deep enough: ours, and a rival's unit (`shortfalls`)."""
    ours = sum(leg.amount_atomic for leg in context.legs if leg.status == "deep")
    return ours + (context.legs[-1].amount_atomic == INSTEAD_ATOMIC) * (DUE_ATOMIC - INSTEAD_ATOMIC)


def keys_of(done: Sequence[Done], effect: str) -> set[str]:
    """Under which keys the outside has done calls of an effect."""
    return {one.key for one in done if one.effect == effect}


def followed(depth: int, *, rival_depth: int = 0) -> FollowReport:
    """What following told in the end."""
    return FollowReport(
        depth=depth, depth_max=depth, reversals=0, stalls=0, rival_depth=rival_depth
    )
