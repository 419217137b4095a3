"""A layer of flow 13: what it is asked for, what it has so far, and what it reports.

Its events are in `layer_events`, its calls to the outside in `layer_calls`, and what it says to the
engine inside its sandbox, and hears of it, in `layer_wire`.
"""

from __future__ import annotations

from engine.clock import seconds
from engine.events import Context
from engine.secrets import Secret
from machines.clients.ports import Record
from machines.flows import evidence

PAYMENT_MILESTONES = ("paying", "confirming", "settling")
"""States of Payment that end create_invoice, send_payment, poll_confirmation."""

DEPTH_MAX = 8
"""The deepest chain that one run may be asked for (paper, Flow 13: 8 slots at tier 32)."""

LAYER_LATENCY_MS = 500
"""What a layer is expected to add to an operation (paper, Flow 13)."""

LOST_MAX = 20
"""So many sandboxes that died one after another mean that the next one will not live either."""

STDOUT_CHARACTERS_MAX = 2 * evidence.EVIDENCE_BYTES_MAX
"""What a sandbox says is not trusted; a greeting is shorter than this."""


ZEROTRUST, SEMITRUSTED = "zerotrust", "semitrusted"
"""Network modes of a child sandbox: none at all; the platform's proxy, which leads to itself.

A chain of `semitrusted` sandboxes is nested: the next layer is an engine inside.  What is in a
`zerotrust` one reaches nothing, so the next layer is a run beside this one: the chain is flat.
"""


class Step(Record, array_like=True):
    """One transition in the journal of an engine, as it is told to the layer above it."""

    run: str
    machine: str
    seq: int
    event: str
    source: str
    target: str
    at_ms: int


class Twig(Record):
    """One run of an engine further down, as `turtles tree` draws it.

    `depth` is the layer's that the engine builds; `parent` names another twig of it, or is empty.
    """

    depth: int
    run: str
    parent: str
    machine: str
    state: str
    status: str
    paid_cents: int = 0
    session_id: str = ""


class LayerReport(Record):
    """One finished layer, without its secret.

    `sibling` and `no_sibling` say what came of the try to make a sandbox from inside one that
    reaches nothing; `journal` is that of the engine inside this layer's sandbox, fetched there;
    `latency_ms` what it took to execute inside: an inspection, or to have an engine that works.
    """

    depth: int
    public_key: str
    paid_cents: int
    txids: tuple[str, ...]
    session_id: str
    stdout: str
    latency_ms: int
    awareness: str
    profile: str | None
    sibling: str = ""
    no_sibling: str = ""
    journal: tuple[Step, ...] = ()


class Layers(Record):
    """The output of a layer's run: its own report and those of the layers below it.

    `card_left_cents` is what was left on the gift card that this layer bought for those below it.
    """

    layers: tuple[LayerReport, ...]
    complete: bool
    refusal: str
    card_left_cents: int = 0


class Layer(Context):
    """What a layer is asked for, and what it has so far.

    Args:
        budget_cents: what this layer and all below it may spend.
        inspection: evidence gathered in the sandbox this layer lives in; None: look around here.
        network_mode: what this layer's own sandbox may reach.
        one_key: the whole chain lives on the first layer's key.
        above: the sandboxes of this key that belong to layers above.
        latency_ms_max: what all layers together may add to an operation; 0: no bound.
        latency_above_ms: what the layers above have been measured to add.
        chain: the first layer's run, for an engine inside a sandbox.
        card_code: pays for the keys of this layer (with a `chain`), and of those below.
        card_id: the card, where this layer bought it.
        incarnation: how often this layer may have lived before, in a sandbox that died.
        lost: how many sandboxes of this layer have died.
        told: the engine inside has ended and reported.
        ending: how the layer will end when its sandbox is gone; empty: well.
    """

    depth: int
    max_depth: int
    currency: str
    budget_cents: int
    tier: int = 1
    months: int = 1
    poll_ms: int = seconds(14)
    inspection: str | None = None
    session_ttl_seconds: int = 3600
    network_mode: str = ZEROTRUST
    one_key: bool = False
    above: tuple[str, ...] = ()
    latency_ms_max: int = 0
    latency_above_ms: int = 0
    chain: str = ""
    card_code: Secret[str] | None = None
    incarnation: int = 0
    awareness: str = "unknown"
    profile: str | None = None
    tools: tuple[str, ...] = ()
    price_cents: int = 0
    public_key: str = ""
    secret_key: Secret[str] | None = None
    paid_cents: int = 0
    txids: tuple[str, ...] = ()
    card_id: str = ""
    card_cents: int = 0
    card_left_cents: int = 0
    offset_ms: int = 0
    concurrency: int = 0
    tool_digest: str = ""
    session_id: str = ""
    last_session_id: str = ""
    stdout: str = ""
    latency_ms: int = 0
    lost: int = 0
    told: bool = False
    inner: tuple[LayerReport, ...] = ()
    journal: tuple[Step, ...] = ()
    twigs: tuple[Twig, ...] = ()
    ending: str = ""
    refusal: str = ""

    @property
    def nested(self) -> bool:
        """Whether the next layer is an engine inside this layer's sandbox."""
        return self.network_mode == SEMITRUSTED

    @property
    def layers_below(self) -> int:
        """How many layers are to be built below this one."""
        return max(self.max_depth - self.depth, 0)

    @property
    def keys_to_pay(self) -> int:
        """How many keys this layer and those below it still need."""
        if self.one_key:
            return 0 if self.public_key else 1
        return self.layers_below + 1

    @property
    def slots(self) -> int:
        """How many sandboxes at once this layer's key must allow."""
        return self.max_depth if self.one_key else 1


def line_of(context: Layer) -> str:
    """What is said in a layer's sandbox, for people."""
    return f"turtle {context.depth} of {context.max_depth} was here"


def expected_ms(context: Layer) -> int:
    """What an operation at the bottom is expected to take: measured above, the paper's below."""
    return context.latency_above_ms + (context.layers_below + 1) * LAYER_LATENCY_MS
