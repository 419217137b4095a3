"""Images: archives that outlive their source and can be shared (platform-api.md, section 8)."""

from __future__ import annotations

from typing import Literal, Protocol

from machines.clients.ports import Credentials, Record
from machines.clients.ports.snapshots import CopyInfo, Kind

Visibility = Literal["private", "unlisted", "public"]
"""Its owner alone; its owner and the keys it was granted to; everybody."""
Access = Literal["owned", "shared", "public"]
"""How a key reaches an image."""


class ImageInfo(Record):
    """An image, as one key sees it.  `trusted`: whom it is granted to, told to its owner only."""

    image_id: str
    owner_key: str
    access: Access
    visibility: Visibility
    level: str
    locked: bool
    trusted: tuple[str, ...]


class Images(Protocol):
    """Publish, share, give away, spawn.  The same `key` makes one thing."""

    async def publish(
        self,
        credentials: Credentials,
        *,
        source_type: str,
        source_id: str,
        name: str,
        description: str,
        key: str,
    ) -> ImageInfo:
        """Make an image of a session, service or snapshot; it is private."""

    async def image(self, credentials: Credentials, image_id: str) -> ImageInfo:
        """One image that this key reaches."""

    async def set_visibility(
        self, credentials: Credentials, image_id: str, visibility: Visibility
    ) -> ImageInfo:
        """Say who may use it."""

    async def set_trusted(
        self, credentials: Credentials, image_id: str, public_key: str, *, trusted: bool
    ) -> None:
        """Grant it to a key, or take that back; either twice is either once."""

    async def transfer(self, credentials: Credentials, image_id: str, public_key: str) -> None:
        """Give it to another key, which owns it from then on."""

    async def spawn(
        self, credentials: Credentials, image_id: str, *, kind: Kind, name: str, key: str
    ) -> CopyInfo:
        """A new session, or a new service called `name`, that holds what is in it."""

    async def remove(self, credentials: Credentials, image_id: str) -> None:
        """Delete it; one that is gone is no error."""

    async def remove_spawn(self, credentials: Credentials, kind: Kind, copy_id: str) -> None:
        """End what was made of it; one that is gone is no error."""
