"""What each event of a layer of flow 13 writes down; `Inception` says when."""

from __future__ import annotations

from msgspec.structs import replace

from machines.flows.layer import DEPTH_MAX, LOST_MAX, Layer, expected_ms
from machines.flows.layer_calls import is_answer
from machines.flows.layer_children import is_gone
from machines.flows.layer_events import (
    Bought,
    CardBought,
    Created,
    Discovered,
    Equipped,
    EquippedNot,
    Executed,
    ExecutionFailed,
    ExecutionGivenUp,
    Furnished,
    InnerEnded,
    InnerMoved,
    InnerOdd,
    InnerTold,
    NoSlot,
    NotClearedUp,
    NotSettled,
    Priced,
    Proven,
    Redeemed,
    Settled,
    Unpriced,
)
from machines.flows.layer_wire import bottom_reached


class LayerActions:
    """The actions of `Inception`, by the names of their events and states."""

    def on_discovered(self, context: Layer, event: Discovered) -> Layer:
        """Keep what the place is."""
        if event.output is None or not event.succeeded:
            return replace(context, refusal="discovery found no way to orchestrate")
        return replace(
            context,
            awareness=event.output.awareness,
            profile=event.output.profile,
            tools=event.output.tools,
        )

    def on_priced(self, context: Layer, event: Priced) -> Layer:
        """Keep the price; what it means is said where it is refused."""
        return replace(context, price_cents=event.price_cents, concurrency=event.concurrency)

    def on_unpriced(self, context: Layer, event: Unpriced) -> Layer:
        """Keep why."""
        return replace(context, refusal=event.reason)

    def on_bought(self, context: Layer, event: Bought) -> Layer:
        """Keep the key, or why there is none."""
        if event.output is None or not event.succeeded:
            return replace(context, refusal=f"the purchase ended as {event.state}")
        return replace(
            context,
            public_key=event.output.public_key,
            secret_key=event.output.secret_key,
            paid_cents=event.output.paid_cents,
            txids=event.output.txids,
        )

    def on_redeemed(self, context: Layer, event: Redeemed) -> Layer:
        """Keep the key, or why there is none."""
        if event.output is None or not event.succeeded:
            return replace(context, refusal=f"the redemption ended as {event.state}")
        return replace(
            context,
            public_key=event.output.public_key,
            secret_key=event.output.secret_key,
            paid_cents=event.output.paid_cents,
            txids=(event.output.receipt,),
        )

    def on_proven(self, context: Layer, event: Proven) -> Layer:
        """Keep what the key allows."""
        if event.output is None or not event.succeeded:
            return replace(context, refusal=f"the new key is {event.state}")
        return replace(
            context, offset_ms=event.output.offset_ms, concurrency=event.output.concurrency
        )

    def on_card_bought(self, context: Layer, event: CardBought) -> Layer:
        """Keep the card, or why there is none."""
        if event.output is None or not event.succeeded:
            return replace(context, refusal=f"the gift card ended as {event.state}")
        return replace(
            context,
            card_id=event.output.card_id,
            card_code=event.output.code,
            card_cents=event.output.amount_cents,
            card_left_cents=event.output.amount_cents,
        )

    def on_equipped(self, context: Layer, event: Equipped) -> Layer:
        """Keep the digest of what goes into the child, and how far our clock is off."""
        return replace(context, tool_digest=event.digest, offset_ms=event.offset_ms)

    def on_equipped_not(self, context: Layer, event: EquippedNot) -> Layer:
        """Keep why."""
        return replace(context, refusal=event.reason)

    def on_created(self, context: Layer, event: Created) -> Layer:
        """Keep which sandbox is ours."""
        return replace(context, session_id=event.session_id, last_session_id=event.session_id)

    def on_no_slot_left(self, context: Layer, event: NoSlot) -> Layer:
        """Keep why."""
        return replace(context, ending="no_slot", refusal=event.reason)

    def on_not_cleared_up(self, context: Layer, event: NotClearedUp) -> Layer:
        """Keep that a sandbox may live on."""
        before = f"{context.refusal}; " if context.refusal else ""
        return replace(context, refusal=f"{before}clearing up failed: {event.reason}")

    def note_no_tool(self, context: Layer, event: Furnished) -> Layer:
        """Count the dead; keep why there is no tool."""
        if is_gone(event):
            return _one_more_lost(context, "no_tools")
        refusal = f"the installation in the child ended as {event.state}"
        return replace(context, ending="no_tools", refusal=refusal)

    def on_executed(self, context: Layer, event: Executed) -> Layer:
        """Keep what the child said, if it is an answer."""
        if not is_answer(context, event.stdout):
            return _refused(context, "the child did not answer the greeting")
        return replace(context, stdout=event.stdout, latency_ms=event.latency_ms)

    def on_inner_moved(self, context: Layer, event: InnerMoved) -> Layer:
        """Keep how far the engine inside is."""
        return replace(context, latency_ms=event.latency_ms, twigs=event.twigs)

    def on_inner_told(self, context: Layer, event: InnerTold) -> Layer:
        """Keep the reports from below, and the journal of the engine inside."""
        told = event.told
        reached = told.complete or bottom_reached(context, told)
        below = f"layer {context.depth + 1} ended as {told.state}: {told.refusal}"
        return replace(
            context,
            told=True,
            stdout=told.said,
            latency_ms=event.latency_ms,
            twigs=event.twigs,
            inner=told.layers,
            journal=told.journal,
            ending="" if reached else "cut_short",
            refusal="" if reached else below,
        )

    def on_inner_odd(self, context: Layer, event: InnerOdd) -> Layer:
        """Keep what is odd."""
        return _refused(context, f"the engine in the child is not believed: {event.reason}")

    def on_child_lost(self, context: Layer) -> Layer:
        """Count the dead."""
        return _one_more_lost(context, "execution_refused")

    def on_execution_given_up(self, context: Layer, event: ExecutionGivenUp) -> Layer:
        """Keep why."""
        return _refused(context, event.reason)

    def on_execution_failed(self, context: Layer, event: ExecutionFailed) -> Layer:
        """Keep how it failed."""
        return _refused(context, f"the command in the child exited {event.exit_code}")

    def on_execution_stuck(self, context: Layer) -> Layer:
        """Keep that it never ended."""
        return _refused(context, "the command in the child did not end in time")

    def on_inner_ended(self, context: Layer, event: InnerEnded) -> Layer:
        """Keep the reports from below."""
        inner = event.output.layers if event.output else ()
        if event.succeeded and event.output is not None and event.output.complete:
            return replace(context, inner=inner)
        below = event.output.refusal if event.output else ""
        refusal = f"layer {context.depth + 1} ended as {event.state}: {below}"
        return replace(context, inner=inner, ending="cut_short", refusal=refusal)

    def on_let_go(self, context: Layer) -> Layer:
        """The sandbox is nobody's any more."""
        return replace(context, session_id="")

    def on_settled(self, context: Layer, event: Settled) -> Layer:
        """Keep what is left."""
        return replace(context, card_left_cents=event.left_cents)

    def on_not_settled(self, context: Layer, event: NotSettled) -> Layer:
        """Keep that it is unknown."""
        before = f"{context.refusal}; " if context.refusal else ""
        return replace(context, refusal=f"{before}the rest of the card: {event.reason}")

    def on_enter_too_deep(self, context: Layer) -> Layer:
        """Say which bound."""
        bound = min(context.max_depth, DEPTH_MAX)
        return replace(context, refusal=f"depth {context.depth} is below the bound {bound}")

    def note_cost(self, context: Layer, event: Priced) -> Layer:
        """Say what it would cost."""
        keys, cents = context.keys_to_pay, event.price_cents
        refusal = f"{keys} keys of {cents} cents are over the budget of {context.budget_cents}"
        return replace(context, refusal=refusal)

    def on_enter_too_few_slots(self, context: Layer) -> Layer:
        """Say how many there are."""
        refusal = (
            f"{context.slots} sandboxes at once are needed; a key of tier {context.tier} "
            f"allows {context.concurrency}"
        )
        return replace(context, refusal=refusal)

    def on_enter_too_slow(self, context: Layer) -> Layer:
        """Say how slow."""
        refusal = (
            f"{expected_ms(context)} ms are expected for each operation at the bottom "
            f"({context.latency_above_ms} measured so far), at most {context.latency_ms_max} wanted"
        )
        return replace(context, refusal=refusal)


def _refused(context: Layer, reason: str) -> Layer:
    return replace(context, ending="execution_refused", refusal=reason)


def _one_more_lost(context: Layer, ending: str) -> Layer:
    lost = context.lost + 1
    if lost < LOST_MAX:
        return replace(context, lost=lost)
    refusal = f"{lost} sandboxes died, one after another"
    return replace(context, lost=lost, ending=ending, refusal=refusal)
