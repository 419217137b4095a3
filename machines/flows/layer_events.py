"""What moves a layer of flow 13, and what of its children's reports it reads."""

from __future__ import annotations

from hashlib import sha256

from engine.events import ChildEnded, ChildMoved, Event, GaveUp
from engine.secrets import Secret
from machines.clients.ports import Record
from machines.flows.layer import Layers, Twig
from machines.flows.layer_wire import Told


class KeyReceipt(Record):
    """What a finished Payment reports, as far as a layer needs it."""

    public_key: str
    secret_key: Secret[str]
    paid_cents: int
    txids: tuple[str, ...]


class RedeemedKey(Record):
    """What a finished Redemption reports, as far as a layer needs it."""

    public_key: str
    secret_key: Secret[str]
    paid_cents: int
    redemption_id: str

    @property
    def receipt(self) -> str:
        """What names the redemption to people; its id opens the key, so it is told to nobody."""
        return f"redemption {sha256(self.redemption_id.encode()).hexdigest()[:16]}"


class BoughtCard(Record):
    """What a finished GiftCard reports, as far as a layer needs it."""

    card_id: str
    code: Secret[str]
    amount_cents: int
    paid_cents: int


class Surroundings(Record):
    """What a finished Discovery reports, as far as a layer needs it."""

    awareness: str
    profile: str | None
    tools: tuple[str, ...]


class Proof(Record):
    """What a finished Authentication reports."""

    offset_ms: int
    concurrency: int


class Tool(Record):
    """What a finished ToolInstall reports, as far as a layer needs it."""

    digest: str


class Looked(ChildMoved, tag="looked"):
    """Discovery knows where it is and is looking for tools."""


class Discovered(ChildEnded, tag="discovered"):
    """Discovery has ended."""

    output: Surroundings | None = None


class Priced(Event, tag="priced"):
    """What a key costs, and how many sandboxes at once it allows."""

    price_cents: int
    concurrency: int


class Unpriced(GaveUp, tag="unpriced"):
    """The portal names no price for such a key."""


class PaymentMoved(ChildMoved, tag="payment_moved"):
    """The purchase has come a step further."""


class Bought(ChildEnded, tag="bought"):
    """The purchase has ended."""

    output: KeyReceipt | None = None


class Redeemed(ChildEnded, tag="redeemed"):
    """The redemption has ended."""

    output: RedeemedKey | None = None


class Proven(ChildEnded, tag="proven"):
    """Authentication has ended."""

    output: Proof | None = None


class CardBought(ChildEnded, tag="card_bought"):
    """The purchase of the card has ended."""

    output: BoughtCard | None = None


class Equipped(Event, tag="equipped"):
    """The tool that goes into the child is at hand; `offset_ms`: what our clock lacks."""

    digest: str
    offset_ms: int


class EquippedNot(GaveUp, tag="equipped_not"):
    """There is no tool for the child."""


class Created(Event, tag="created"):
    """A child sandbox exists."""

    session_id: str


class NoSlot(GaveUp, tag="no_slot_left"):
    """The platform gave no sandbox."""


class Furnished(ChildEnded, tag="furnished"):
    """The installation in the child has ended."""

    output: Tool | None = None


class Executed(Event, tag="executed"):
    """The inspection ran inside the child."""

    stdout: str
    latency_ms: int


class InnerMoved(Event, tag="inner_moved"):
    """The engine inside is at work, and so far."""

    latency_ms: int
    twigs: tuple[Twig, ...]


class InnerTold(Event, tag="inner_told"):
    """The engine inside has ended, and this is its report."""

    latency_ms: int
    twigs: tuple[Twig, ...]
    told: Told


class InnerOdd(Event, tag="inner_odd"):
    """What came from inside is not what an engine of ours says."""

    reason: str


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
    """The next layer, a run beside this one, has ended."""

    output: Layers | None = None


class Settled(Event, tag="settled"):
    """What is left on the card of the layers below."""

    left_cents: int


class NotSettled(GaveUp, tag="not_settled"):
    """Nobody can say what is left on the card."""
