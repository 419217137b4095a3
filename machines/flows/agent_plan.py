"""An agent's plan: what is wanted, what has happened so far, and every event that may move it.

The machine is in `f14_agent`, its calls to the outside in `agent_calls`.
"""

from __future__ import annotations

from typing import Literal

from engine.clock import hours, minutes, seconds
from engine.events import ChildEnded, Context, Event, GaveUp
from engine.secret import Secret
from machines.clients.ports import Record
from machines.clients.ports.executions import NetworkMode

Trouble = Literal["", "program_failed", "not_frozen", "forgotten", "lost", "stuck"]
"""What went wrong in a sandbox that is still to be ended."""


class Plan(Context):
    """What to do (first fourteen), and what has come of it.

    Args:
        currency: to pay with; not looked at when there is a card.
        gift_code: the four words of a card to redeem instead of paying.
        budget_cents: a dearer key is not bought.
        first_code: is run before the freeze.
        second_code: is run after it.
        expected: what the second has to print, if the first is remembered.
        program_ms: how long each may take.
        overdue_ms: how long it may take with all that the platform may be down meanwhile.
        silence_ms: how long the portal may tell no prices.
        trouble: why the sandbox is ended before its time; empty if it is not.
        refusal: the same, and whatever else ended the run, in words.
    """

    currency: str
    budget_cents: int
    tier: int = 1
    months: int = 1
    gift_code: Secret[str] | None = None
    network_mode: NetworkMode = "zerotrust"
    first_code: str = "x = 42"
    second_code: str = "print(x)"
    expected: str = "42"
    poll_ms: int = seconds(14)
    program_ms: int = minutes(1)
    overdue_ms: int = minutes(30)
    silence_ms: int = hours(1)
    session_ttl_seconds: int = 3_600
    price_cents: int = 0
    public_key: str = ""
    secret_key: Secret[str] | None = None
    paid_cents: int = 0
    offset_ms: int = 0
    session_id: str = ""
    last_session_id: str = ""
    first_stdout: str = ""
    second_stdout: str = ""
    freezes: int = 0
    trouble: Trouble = ""
    refusal: str = ""


class KeyReceipt(Record):
    """What a finished Payment or Redemption reports, as far as the plan needs it."""

    public_key: str
    secret_key: Secret[str]
    paid_cents: int


class Place(Record):
    """What a finished Discovery reports, as far as the plan needs it."""

    tools: tuple[str, ...]


class Identity(Record):
    """What a finished Authentication reports, as far as the plan needs it."""

    offset_ms: int


class AgentReport(Record):
    """What came of a plan, without the secret."""

    public_key: str
    paid_cents: int
    session_id: str
    first_stdout: str
    second_stdout: str
    freezes: int


class Discovered(ChildEnded, tag="discovered"):
    """Discovery has ended."""

    output: Place | None = None


class Priced(Event, tag="priced"):
    """What such a key costs."""

    price_cents: int


class NotOffered(Event, tag="not_offered"):
    """No such key is sold."""


class Provisioned(ChildEnded, tag="provisioned"):
    """Buying the key, or redeeming the card, has ended."""

    output: KeyReceipt | None = None


class Proven(ChildEnded, tag="proven"):
    """Authentication has ended."""

    output: Identity | None = None


class Opened(Event, tag="opened"):
    """There is a sandbox, and it is ours."""

    session_id: str


class NotOpened(GaveUp, tag="not_opened"):
    """The platform gave no sandbox."""


class Cleared(Event, tag="cleared"):
    """This plan's key owns no sandbox."""


class NotCleared(GaveUp, tag="not_cleared"):
    """Nobody can say whether it owns one; one that there is ends with its time."""


class Ran(Event, tag="ran"):
    """A program ran to its end."""

    stdout: str
    exit_code: int


class NotRun(GaveUp, tag="not_run"):
    """The platform would not run it."""


class Frozen(Event, tag="frozen"):
    """The sandbox stands still and holds no slot."""


class NotFrozen(GaveUp, tag="not_frozen"):
    """The platform would not freeze it, or would not let it go on."""


class Woken(Event, tag="woken"):
    """The sandbox goes on."""


class Lost(Event, tag="lost"):
    """The sandbox is gone; it died with its platform, or somebody ended it."""


class Ended(Event, tag="ended"):
    """The sandbox is gone, on purpose."""
