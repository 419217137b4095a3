"""What a layer of flow 13 reports when it has ended."""

from __future__ import annotations

from machines.flows.layer import Layer, LayerReport, Layers
from machines.flows.layer_calls import Sibling, sibling_of, split_answer


def report_of(context: Layer) -> Layers:
    """This layer's report, if it had a key, and those from below."""
    tried = sibling_of(context.stdout) if context.stdout and not context.nested else Sibling()
    own = LayerReport(
        depth=context.depth,
        public_key=context.public_key,
        paid_cents=context.paid_cents,
        txids=context.txids,
        session_id=context.last_session_id,
        stdout=split_answer(context.stdout)[0],
        latency_ms=context.latency_ms,
        awareness=context.awareness,
        profile=context.profile,
        sibling=tried.sibling,
        no_sibling=tried.reason,
        journal=context.journal,
    )
    return Layers(
        layers=(own, *context.inner) if context.public_key else context.inner,
        complete=not context.refusal and bool(context.stdout),
        refusal=context.refusal,
        card_left_cents=context.card_left_cents,
    )
