"""What flow 10 is asked for, and what moves it: one image, and the orders it obeys."""

from __future__ import annotations

from typing import Literal

from engine.events import Event, GaveUp
from machines.clients.ports import Record
from machines.clients.ports.images import Access, Visibility
from machines.clients.ports.snapshots import CopyInfo, Kind
from machines.flows.errands import Errand, Order

Cause = Literal["not_granted", "not_owner", "source_gone", "source_idle", "no_slot", "refused"]
"""Why the platform declines.  `not_granted`: this key does not reach the image, or not any more."""


class Show(Order, tag="show", kw_only=True):
    """Say who may use it."""

    visibility: Visibility


class Grant(Order, tag="grant", kw_only=True):
    """Let another key use it."""

    to_key: str


class Revoke(Order, tag="revoke", kw_only=True):
    """Do not let that key use it any more."""

    from_key: str


class Transfer(Order, tag="transfer", kw_only=True):
    """Give it to another key, and end."""

    to_key: str


class Spawn(Order, tag="spawn"):
    """Make a session or a service of it; a service needs a name."""

    kind: Kind = "session"
    name: str = ""


class Remove(Order, tag="remove"):
    """Delete it, and end."""


class Keep(Order, tag="keep"):
    """Leave it on the platform, on purpose, and end."""


ImageOrder = Show | Grant | Revoke | Transfer | Spawn | Remove | Keep


class Publication(Errand, kw_only=True):
    """What to make an image of, or which image to use, and what to do with it.

    Args:
        source_type: `session`, `service` or `snapshot`; of no meaning with an `image_id`.
        image_id: an image that is there, of this key or of another; empty: make one.
        then: what to do when the script is done: keep it, remove it, or wait for messages.
        keep: leave what was made also when the run fails or is cancelled.
        access: how this key reaches it.
        trusted: whom this run has granted it to, and not revoked.
        receiver: whom it is being given or granted to, or taken from.
        wanted: what is being spawned.
    """

    source_type: Literal["session", "service", "snapshot"] = "session"
    source_id: str = ""
    image_id: str = ""
    name: str = ""
    description: str = ""
    script: tuple[ImageOrder, ...] = ()
    then: Literal["keep", "remove", "wait"] = "keep"
    keep: bool = False
    made: bool = False
    access: Access = "owned"
    visibility: Visibility = "private"
    asked: Visibility = "private"
    receiver: str = ""
    trusted: tuple[str, ...] = ()
    wanted: Spawn = Spawn()
    spawned: tuple[CopyInfo, ...] = ()


class ImageReport(Record):
    """What a finished run tells."""

    image_id: str
    visibility: Visibility
    trusted: tuple[str, ...]
    spawned: tuple[CopyInfo, ...]
    reason: str


class FoundSource(Event, tag="found_source"):
    """An image is to be made."""


class FoundImage(Event, tag="found_image"):
    """The image is there, and this key reaches it."""

    access: Access
    visibility: Visibility


class Published(Event, tag="published"):
    """There is an image."""

    image_id: str
    visibility: Visibility


class Shown(Event, tag="shown"):
    """Its visibility is another."""

    visibility: Visibility


class Granted(Event, tag="granted"):
    """Another key may use it."""


class Revoked(Event, tag="revoked"):
    """That key may not use it any more, unless everybody may."""


class Given(Event, tag="given"):
    """It belongs to another key."""


class Spawned(Event, tag="spawned_it"):
    """There is a session or service more."""

    copy: CopyInfo


class Removed(Event, tag="removed_it"):
    """It is gone."""


class Declined(Event, tag="declined"):
    """The platform says that this cannot be."""

    cause: Cause
    detail: str


class Barred(Event, tag="barred"):
    """The script asks for what only the owner may do."""

    detail: str


class ClearedUp(Event, tag="cleared_up"):
    """What may have been made without our knowing is gone."""


class NotClearedUp(GaveUp, tag="not_cleared_up"):
    """Nobody can say whether something was made."""
