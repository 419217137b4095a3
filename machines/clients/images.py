"""Images over HTTP: every call signed, publishing and spawning by key.

Source: platform-api.md, section 8.
"""

from __future__ import annotations

from typing import Any, cast

from machines.clients.fields import Fields, texts
from machines.clients.ports import Credentials, Rejected
from machines.clients.ports.images import Access, ImageInfo, Visibility
from machines.clients.ports.snapshots import CopyInfo, Kind
from machines.clients.signed import Signed
from machines.clients.snapshots import ARCHIVE_SECONDS, copy_of, removed
from machines.clients.transport import Transport, segment

VISIBILITIES = ("private", "unlisted", "public")
ACCESSES = ("owned", "shared", "public")


class HttpImages:
    """`Images` over one base URL."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._signed = Signed(base_url, transport)

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
        """Make an image, or get again the one that this key made."""
        call = "images.publish"
        wanted = {"source_type": source_type, "source_id": source_id}
        data = await self._signed.json(
            credentials,
            "POST",
            "/images",
            call,
            body=wanted | {"name": name, "description": description},
            key=key,
            read_seconds=ARCHIVE_SECONDS,
        )
        return _image(Fields(data, call), call)

    async def image(self, credentials: Credentials, image_id: str) -> ImageInfo:
        """One image that this key reaches."""
        call = "images.image"
        path = f"/images/{segment(image_id)}"
        data = await self._signed.json(credentials, "GET", path, call)
        return _image(Fields(data, call), call)

    async def set_visibility(
        self, credentials: Credentials, image_id: str, visibility: Visibility
    ) -> ImageInfo:
        """Say who may use it."""
        call = "images.set_visibility"
        data = await self._change(
            credentials, image_id, "visibility", call, {"visibility": visibility}
        )
        return _image(Fields(data, call), call)

    async def set_trusted(
        self, credentials: Credentials, image_id: str, public_key: str, *, trusted: bool
    ) -> None:
        """Grant it to a key, or take that back."""
        verb = "grant" if trusted else "revoke"
        body = {"trusted_api_key": public_key}
        await self._change(credentials, image_id, verb, f"images.{verb}", body)

    async def transfer(self, credentials: Credentials, image_id: str, public_key: str) -> None:
        """Give it to another key."""
        body = {"to_api_key": public_key}
        await self._change(credentials, image_id, "transfer", "images.transfer", body)

    async def _change(
        self, credentials: Credentials, image_id: str, verb: str, call: str, body: dict[str, Any]
    ) -> Any:
        path = f"/images/{segment(image_id)}/{verb}"
        return await self._signed.json(credentials, "POST", path, call, body=body, repeatable=True)

    async def spawn(
        self, credentials: Credentials, image_id: str, *, kind: Kind, name: str, key: str
    ) -> CopyInfo:
        """A new session or service, or get again the one that this key made."""
        call = "images.spawn"
        data = await self._signed.json(
            credentials,
            "POST",
            f"/images/{segment(image_id)}/spawn",
            call,
            body={"type": kind} | ({"name": name} if name else {}),
            key=key,
            read_seconds=ARCHIVE_SECONDS,
        )
        return copy_of(Fields(data, call), kind)

    async def remove(self, credentials: Credentials, image_id: str) -> None:
        """Delete it; one that is gone is no error."""
        await removed(self._signed, credentials, f"/images/{segment(image_id)}", "images.remove")

    async def remove_spawn(self, credentials: Credentials, kind: Kind, copy_id: str) -> None:
        """End what was made of it; one that is gone is no error."""
        path = f"/{kind}s/{segment(copy_id)}"
        await removed(self._signed, credentials, path, "images.remove_spawn")


def _image(fields: Fields, call: str) -> ImageInfo:
    return ImageInfo(
        image_id=fields.text("image_id", "id"),
        owner_key=fields.text("owner_api_key", "owner_key"),
        access=cast(Access, _one_of(fields, "access", ACCESSES)),
        visibility=cast(Visibility, _one_of(fields, "visibility", VISIBILITIES)),
        level=fields.optional_text("level") or "",
        locked=bool(fields.get("locked")),
        trusted=tuple(texts(fields.get("trusted_keys", "trusted") or [], call)),
    )


def _one_of(fields: Fields, name: str, words: tuple[str, ...]) -> str:
    said = fields.text(name)
    if said not in words:
        raise Rejected(f"images: field {name} {said[:40]!r}: expected one of {', '.join(words)}")
    return said
