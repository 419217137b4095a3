"""What a purchase asks of the outside: the portal, the wallet, and once the platform.

Reading the status is destructive: the first `completed` reply carries the secret.  So exactly two
effects read it (`claim`, `claim_after_expiry`), each in states in which an event with the secret
can be kept at once.  What a status means is decided by pure functions below them.

Reads that a deadline ends take every error of a port as "try again": with money on its way, a page
of HTML in place of JSON must not end the run.
"""

from __future__ import annotations

from engine.effects import Again, Call, effect
from engine.errors import Transient
from engine.retry import Retry
from engine.secret import Secret
from machines.clients.ports import (
    Credentials,
    KeyInfo,
    NotFound,
    PaymentStatus,
    Platform,
    Rejected,
    Unauthorized,
    Wallet,
    WalletLocked,
)
from machines.flows.money import (
    LEGS_MAX,
    PATIENT,
    UNLOCK_SECONDS,
    Wallets,
    asking,
    platform_of,
    portal_of,
    watching,
)
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


@effect(idempotent=True, retry=PATIENT)
async def fetch_price(context: Purchase, call: Call) -> Priced | NotOffered:
    """The price of one tier and duration; of what is offered already, the one agreed to."""
    if context.offer is not None:
        return Priced(price_cents=context.price_cents)
    with watching("pricing"):
        quotes = await portal_of(call).quotes()
    for quote in quotes:
        if (quote.tier, quote.months) == (context.tier, context.months):
            return Priced(price_cents=quote.price_cents)
    return NotOffered(offers=len(quotes))


@effect(idempotent=True, retry=PATIENT)  # the same key gives the same invoice
async def open_invoice(context: Purchase, call: Call) -> Invoiced | Declined:
    """Open an invoice that would be refunded to a fresh address of our own wallet; or the offer."""
    wallet = call.resource(Wallets)[context.currency]
    if context.offer is not None:
        return Invoiced(invoice=context.offer, refund_address=context.refund_address)
    refund_address = await refund_address_of(wallet, context.passphrase, f"refund-{call.key}")
    with asking("invoice"):
        try:
            invoice = await portal_of(call).create_invoice(
                tier=context.tier,
                months=context.months,
                currency=context.currency,
                refund_address=refund_address,
                key=call.key,
            )
        except (Rejected, NotFound, Unauthorized) as error:
            return Declined(reason=str(error))
    return Invoiced(invoice=invoice, refund_address=refund_address)


async def refund_address_of(wallet: Wallet, passphrase: Secret[str] | None, label: str) -> str:
    """An address of our own wallet, the same one for the same label; unlocks it if it must.

    Raises:
        Transient: the wallet does not answer, or is locked and nobody said how to open it.
    """
    with watching("refund address"):
        try:
            return await wallet.new_address(label)
        except WalletLocked:
            if passphrase is None:
                raise
            await wallet.unlock(passphrase, seconds=UNLOCK_SECONDS)
            return await wallet.new_address(label)


Settlement = Issued | SecretGone | Activated | FellShort | RanOut


# Reading twice is not the same as reading once, hence not `idempotent`; but a lost secret is asked
# for anew, so the way to find out what a lost reply said is to read again.
@effect(retry=PATIENT)
async def claim(context: Purchase, call: Call) -> Settlement | SankAgain | Again:
    """Check the depth at our own node, then read the portal's status."""
    sunk = await _sunk(context, call)
    if sunk is not None:
        return sunk
    return _settlement(context, await _status(context, call), call.now_ms) or Again()


@claim.reconcile
async def claim_again(context: Purchase, call: Call) -> Settlement | SankAgain | Again:
    """The same read."""
    return await claim.perform(context, call)  # type: ignore[return-value]


@effect(retry=PATIENT)
async def claim_after_expiry(
    context: Purchase, call: Call
) -> Issued | SecretGone | Activated | Refunding | Again:
    """Read the status of an invoice that has expired with our money in it."""
    status = await _status(context, call)
    goods = _goods(context, status)
    if goods is not None:
        return goods
    if status.status in ("refund_pending", "refunded") and status.received_atomic > 0:
        return Refunding(received_atomic=status.received_atomic)
    return Again()


@claim_after_expiry.reconcile
async def claim_after_expiry_again(
    context: Purchase, call: Call
) -> Issued | SecretGone | Activated | Refunding | Again:
    """The same read."""
    return await claim_after_expiry.perform(context, call)  # type: ignore[return-value]


async def _sunk(context: Purchase, call: Call) -> SankAgain | None:
    wallet = call.resource(Wallets)[context.currency]
    for leg in context.legs:
        if leg.live and leg.transaction is not None:
            with watching("look"):
                sighting = await wallet.look(leg.transaction)
            depth = sighting.confirmations if sighting.where == "mined" else 0
            if depth < context.required:
                return SankAgain(number=leg.number, confirmations=depth)
    return None


async def _status(context: Purchase, call: Call) -> PaymentStatus:
    if context.invoice is None:
        raise Transient("status: no invoice in the context")
    with watching("status"):
        return await portal_of(call).payment_status(context.invoice.invoice_id)


def _goods(context: Purchase, status: PaymentStatus) -> Issued | SecretGone | Activated | None:
    if status.status != "completed":
        return None
    received = status.received_atomic
    if context.goods == "card":
        return Activated(received_atomic=received)
    if status.secret_key is None or status.public_key is None:
        return SecretGone(public_key=status.public_key, received_atomic=received)
    return Issued(
        public_key=status.public_key, secret_key=status.secret_key, received_atomic=received
    )


def _settlement(context: Purchase, status: PaymentStatus, now_ms: int) -> Settlement | None:
    """What a status means while the invoice may still be paid; None for nothing.  Pure."""
    goods = _goods(context, status)
    if goods is not None:
        return goods
    received = status.received_atomic
    if status.status in ("expired", "refund_pending", "refunded"):
        return RanOut(received_atomic=received)
    short = status.status in ("pending", "partial")
    if short and top_up_allowed(context, received, now_ms):
        return FellShort(received_atomic=received)
    return None


def top_up_allowed(context: Purchase, received_atomic: int, now_ms: int) -> bool:
    """Whether another leg may be opened for what the portal does not count.  Pure.

    Never for money that is on its way, and never twice for the same count: a portal that has not
    yet noticed a leg looks like one that was paid too little.
    """
    gap = context.due_atomic - received_atomic
    last = context.legs[-1] if context.legs else None
    answered = (
        last is None or last.status == "dead" or received_atomic > last.received_before_atomic
    )
    return (
        not context.top_ups_closed
        and now_ms < context.pay_by_ms
        and len(context.legs) < LEGS_MAX
        and not any(leg.in_flight for leg in context.legs)
        and answered
        and gap > 0
        and context.pledged_atomic + gap <= context.due_atomic + context.tolerance_atomic
    )


@effect(idempotent=True, retry=PATIENT)  # only the newest secret lives
async def regenerate(context: Purchase, call: Call) -> Regenerated:
    """Ask for a new secret; free of charge."""
    if context.invoice is None:
        raise Transient("regenerate: no invoice in the context")
    with watching("regenerate"):
        made = await portal_of(call).regenerate_secret(context.invoice.invoice_id)
    return Regenerated(public_key=made.public_key, secret_key=made.secret_key)


@effect(idempotent=True, retry=Retry(attempts=8, max_ms=15_000))
async def prove_key(context: Purchase, call: Call) -> Proven | Denied:
    """Sign one call with the stored secret.  Our clock may be wrong: then by the server's."""
    return await proof_of(context.public_key, context.secret_key, call)


async def proof_of(
    public_key: str | None, secret_key: Secret[str] | None, call: Call
) -> Proven | Denied:
    """What the platform says to one call signed with this key.

    Raises:
        Transient: nothing that counts; to be asked again.
    """
    if public_key is None or secret_key is None:
        return Denied(reason="no secret is stored")
    credentials = Credentials(public_key=public_key, secret_key=secret_key)
    with asking("key test"):
        try:
            known = await _validated(platform_of(call), credentials, call.now_ms)
        except Unauthorized as error:
            return Denied(reason=error.reason)
        except (Rejected, NotFound) as error:
            raise Transient(f"key test: {error}") from error
    return Proven(tier=known.tier) if known.valid else Denied(reason=known.reason or "not valid")


async def _validated(platform: Platform, credentials: Credentials, now_ms: int) -> KeyInfo:
    try:
        return await platform.validate_key(credentials)
    except Unauthorized as error:
        if error.reason != "invalid_timestamp" or error.server_ms is None:
            raise
        offset_ms = error.server_ms - now_ms
        return await platform.validate_key(credentials, offset_ms=offset_ms)


@effect(idempotent=True, retry=PATIENT)
async def watch_refund(context: Purchase, call: Call) -> RefundSeen | Again:
    """Look at our own address, at the depth that counts."""
    with watching("refund"):
        arrived = await call.resource(Wallets)[context.currency].received_atomic(
            context.refund_address, confirmations=context.required
        )
    return Again() if arrived == context.refund_atomic else RefundSeen(refund_atomic=arrived)
