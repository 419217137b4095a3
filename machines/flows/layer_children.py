"""The runs that a layer of flow 13 starts, each with what is left for it of the layer's budget."""

from __future__ import annotations

from engine.secrets import Secret
from engine.table import Child
from machines.flows.layer import Layer
from machines.flows.layer_calls import split_answer
from machines.flows.layer_events import Furnished

SESSION_GONE = "session_gone"
"""How an installation ends whose sandbox died meanwhile."""


def discovery_for(context: Layer) -> Child:
    """Where am I, and what can orchestrate here?"""
    return Child("Discovery", {"evidence": context.inspection})


def purchase_for(context: Layer) -> Child:
    """One key, for coins; what the layers below will need is kept back."""
    reserved_cents = (context.keys_to_pay - 1) * context.price_cents
    return Child(
        "Payment",
        {
            "tier": context.tier,
            "months": context.months,
            "currency": context.currency,
            "budget_cents": context.budget_cents - reserved_cents,
            "poll_ms": context.poll_ms,
        },
    )


def redemption_for(context: Layer) -> Child:
    """One key from the card.

    The key of the redemption names the layer, not the run: a layer whose sandbox died, with its
    database, gets the same redemption, and pays no second time.
    """
    return Child(
        "Redemption",
        {
            "code": context.card_code,
            "tier": context.tier,
            "months": context.months,
            "budget_cents": context.price_cents,
            "poll_ms": context.poll_ms,
            "redemption_key": f"{context.chain}-layer-{context.depth}",
        },
    )


def authentication_for(context: Layer) -> Child:
    """The proof that the key works."""
    return Child(
        "Authentication", {"public_key": context.public_key, "secret_key": context.secret_key}
    )


def card_for(context: Layer) -> Child:
    """A card worth one key for each layer below."""
    return Child(
        "GiftCard",
        {
            "amount_cents": context.layers_below * context.price_cents,
            "currency": context.currency,
            "budget_cents": context.budget_cents - context.paid_cents,
            "poll_ms": context.poll_ms,
        },
    )


def installation_for(context: Layer) -> Child:
    """This product, in the sandbox."""
    return Child(
        "ToolInstall",
        {
            "public_key": context.public_key,
            "secret_key": context.secret_key,
            "offset_ms": context.offset_ms,
            "session_id": context.session_id,
            "digest": context.tool_digest,
        },
    )


def is_gone(event: Furnished) -> bool:
    """The installation failed because there is no sandbox any more."""
    return not event.succeeded and event.state == SESSION_GONE


def next_layer_for(context: Layer) -> Child:
    """The layer below, as a run beside this one: a fresh one, with what is left of the budget."""
    _, inspection = split_answer(context.stdout)
    shared: dict[str, str | Secret[str] | None] = (
        {"public_key": context.public_key, "secret_key": context.secret_key}
        if context.one_key
        else {}
    )
    kept = ("max_depth", "currency", "tier", "months", "poll_ms", "session_ttl_seconds",
            "network_mode", "one_key", "latency_ms_max")  # fmt: skip
    return Child(
        "Inception",
        {
            **{name: getattr(context, name) for name in kept},
            **shared,
            "depth": context.depth + 1,
            "budget_cents": context.budget_cents - context.paid_cents,
            "inspection": inspection,
            "above": (*context.above, context.session_id) if context.one_key else (),
            "latency_above_ms": context.latency_above_ms + context.latency_ms,
        },
    )
