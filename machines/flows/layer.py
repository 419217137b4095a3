"""A layer of flow 13: what it is asked for, what moves it, and what it reports."""

from __future__ import annotations

from engine.clock import seconds
from engine.events import ChildEnded, ChildMoved, Context, Event, GaveUp
from engine.secrets import Secret
from machines.clients.ports import (
    Record,
)
from machines.flows import evidence

PAYMENT_MILESTONES = ("invoicing", "paying", "confirming", "settling")
"""States of Payment that end fetch_pricing, create_invoice, send_payment, poll_confirmation."""

DEPTH_MAX = 8
"""The deepest chain that one run may be asked for (paper, Flow 13: 8 slots at tier 32)."""

LOST_MAX = 20
"""So many sandboxes that died one after another mean that the next one will not live either."""

STDOUT_CHARACTERS_MAX = 2 * evidence.EVIDENCE_BYTES_MAX
"""What a sandbox says is not trusted; a greeting is shorter than this."""


ZEROTRUST, SEMITRUSTED = "zerotrust", "semitrusted"
"""Network modes of a child sandbox: none at all; the platform's proxy, which leads to itself."""


class KeyReceipt(Record):
    """What a finished Payment reports, as far as a layer needs it."""

    public_key: str
    secret_key: Secret[str]
    paid_cents: int
    txids: tuple[str, ...]


class Surroundings(Record):
    """What a finished Discovery reports, as far as a layer needs it."""

    awareness: str
    profile: str | None
    tools: tuple[str, ...]


class Proof(Record):
    """What a finished Authentication reports."""

    offset_ms: int
    concurrency: int


class LayerReport(Record):
    """One finished layer, without its secret.

    `sibling` is the sandbox that code in the layer's own one made (and ended) through the
    platform's proxy, `no_sibling` why there was none.
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


class Layers(Record):
    """The output of a layer's run: its own report and those of the layers below it."""

    layers: tuple[LayerReport, ...]
    complete: bool
    refusal: str


class Layer(Context):
    """What a layer is asked for, and what it has so far.

    `budget_cents` is what this layer and all below it may spend; `inspection` is the evidence
    gathered in the sandbox this layer lives in (None: look around here); `network_mode` what its
    own sandbox may reach.
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
    awareness: str = "unknown"
    profile: str | None = None
    tools: tuple[str, ...] = ()
    public_key: str = ""
    secret_key: Secret[str] | None = None
    paid_cents: int = 0
    txids: tuple[str, ...] = ()
    offset_ms: int = 0
    concurrency: int = 0
    tool_digest: str = ""
    session_id: str = ""
    last_session_id: str = ""
    stdout: str = ""
    latency_ms: int = 0
    lost: int = 0
    inner: tuple[LayerReport, ...] = ()
    refusal: str = ""


class Looked(ChildMoved, tag="looked"):
    """Discovery knows where it is and is looking for tools."""


class Discovered(ChildEnded, tag="discovered"):
    """Discovery has ended."""

    output: Surroundings | None = None


class PaymentMoved(ChildMoved, tag="payment_moved"):
    """The purchase has come a step further."""


class Bought(ChildEnded, tag="bought"):
    """The purchase has ended."""

    output: KeyReceipt | None = None


class Proven(ChildEnded, tag="proven"):
    """Authentication has ended."""

    output: Proof | None = None


class Equipped(Event, tag="equipped"):
    """The tool that goes into the child is at hand, and the platform can run it."""

    digest: str


class EquippedNot(GaveUp, tag="equipped_not"):
    """The platform cannot run what the child needs."""


class Created(Event, tag="created"):
    """A child sandbox exists."""

    session_id: str


class NoSlot(GaveUp, tag="no_slot_left"):
    """The platform gave no sandbox."""


class Executed(Event, tag="executed"):
    """The inspection ran inside the child."""

    stdout: str
    latency_ms: int


class ChildLost(Event, tag="child_lost"):
    """The sandbox is gone; it died with its platform or was ended."""


class ExecutionFailed(Event, tag="execution_failed"):
    """The command ran and failed."""

    exit_code: int


class ExecutionGivenUp(GaveUp, tag="execution_given_up"):
    """The platform would not run the command."""


class ClearedUp(Event, tag="cleared_up"):
    """This layer's key owns no sandbox."""


class NotClearedUp(GaveUp, tag="not_cleared_up"):
    """Nobody can say whether the key owns a sandbox; one that there is ends with its time."""


class Released(Event, tag="let_go"):
    """The child sandbox is gone, on purpose."""


class InnerEnded(ChildEnded, tag="inner_ended"):
    """The next layer has ended."""

    output: Layers | None = None
