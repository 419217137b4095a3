"""Images: snapshots that outlive their source and can be shared (wire facts, section 8).

Also `POST /image` (section 9, pictures from a text), which this platform does not offer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from starlette.responses import Response

from machines.platform import archive_orders, copies
from machines.platform.archive_documents import IMAGE_SCHEMA, image_document
from machines.platform.copies import COPY_SCHEMA
from machines.platform.endpoints.snapshots import COPIED, copied
from machines.platform.image_rows import Access
from machines.platform.images import ImageOrder
from machines.platform.replies import Problem, bad_field, int_field, reply, text_field
from machines.platform.wire import (
    BOOLEAN,
    INTEGER,
    TEXT,
    Call,
    Endpoint,
    Feature,
    Handler,
    Schema,
    an_object,
    array,
    integer,
    one_of,
)

if TYPE_CHECKING:
    from machines.platform.api import Api
    from persistence.database import Row

_PROMPT_CHARACTERS_MAX = 32_000
_SIZES = ("1024x1024", "512x512")
_QUALITIES = ("standard", "hd")
_LIST = an_object(("images", "count"), images=array(IMAGE_SCHEMA), count=INTEGER)
_TRUSTED = an_object(
    ("trusted_keys", "trusted", "count"),
    trusted_keys=array(TEXT),
    trusted=array(TEXT),
    count=INTEGER,
)
_OWNERS = frozenset({403, 404})
_PUBLISHING = frozenset({404, 409, 410})
Aliases = tuple[tuple[str, str], ...]


class ImageEndpoints(Feature):
    """`/images`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (
            Endpoint(
                method="POST",
                path="/images",
                aliases=(("POST", "/images/publish"),),
                handler=self._publish,
                summary="Make an image of a session, service or snapshot.",
                tag="images",
                body=archive_orders.IMAGE_BODY,
                answers={200: IMAGE_SCHEMA},
                refusals=_PUBLISHING,
                long=True,
                audited="image",
            ),
            Endpoint(
                method="GET",
                path="/images",
                handler=self._list,
                summary="The images that this key can use, or those of one `filter`.",
                tag="images",
                query={"filter": one_of("owned", "shared", "public", "all")},
                answers={200: _LIST},
            ),
            # Before /images/{image_id}, which would take these words for an id.
            self._listed("owned", "The images of this key."),
            self._listed("shared", "The images that were granted to this key."),
            self._listed("public", "The images of other keys that everybody can use."),
            Endpoint(
                method="GET",
                path="/images/{image_id}",
                handler=self._show,
                summary="One image.",
                tag="images",
                answers={200: IMAGE_SCHEMA},
                refusals=frozenset({404}),
            ),
            Endpoint(
                method="DELETE",
                path="/images/{image_id}",
                handler=self._delete,
                summary="Delete an image.  409 while it is locked.",
                tag="images",
                answers={
                    200: an_object(("success", "message"), success=BOOLEAN, message=TEXT, id=TEXT)
                },
                refusals=_OWNERS | {409},
                audited="image",
            ),
            *self._changes(),
            *self._trust(),
            *self._uses(),
            Endpoint(
                method="POST",
                path="/image",
                handler=self._draw,
                summary="Pictures from a text: not offered by this platform, which has no model.",
                tag="images",
                body=an_object(
                    ("prompt",),
                    prompt=TEXT,
                    model=TEXT,
                    size=one_of(*_SIZES),
                    quality=one_of(*_QUALITIES),
                    n=integer(1, 10),
                ),
                answers={},
                refusals=frozenset({501}),
            ),
        )

    def _listed(self, access: Access, summary: str) -> Endpoint:
        return Endpoint(
            method="GET",
            path=f"/images/{access}",
            handler=lambda call: self._shown_list(call, access),
            summary=summary,
            tag="images",
            answers={200: _LIST},
        )

    def _changes(self) -> tuple[Endpoint, ...]:
        return (
            self._change("lock", self._lock, "Refuse to delete it."),
            self._change("unlock", self._unlock, "Allow to delete it again."),
            self._change(
                "visibility",
                self._visibility,
                "Say who may use it: nobody else, granted keys, or all.",
                body=an_object(
                    ("visibility",), visibility=one_of(*archive_orders.VISIBILITIES, "shared")
                ),
            ),
            self._change(
                "transfer",
                self._transfer,
                "Give it to another key.",
                body=an_object(("to_api_key",), to_api_key=TEXT),
                refusals=frozenset({409}),
            ),
        )

    def _change(
        self,
        verb: str,
        handler: Handler,
        summary: str,
        *,
        body: Schema | None = None,
        aliases: Aliases = (),
        refusals: frozenset[int] = frozenset(),
    ) -> Endpoint:
        return Endpoint(
            method="POST",
            path=f"/images/{{image_id}}/{verb}",
            aliases=aliases,
            handler=handler,
            summary=summary,
            tag="images",
            body=an_object() if body is None else body,
            answers={200: IMAGE_SCHEMA},
            refusals=_OWNERS | refusals,
            audited="image",
        )

    def _trust(self) -> tuple[Endpoint, ...]:
        return (
            self._change(
                "grant",
                self._grant,
                "Let another key use it.",
                body=archive_orders.TRUST_BODY,
                aliases=_posts("access", "access/grant", "grant-access"),
                refusals=frozenset({409}),
            ),
            self._change(
                "revoke",
                self._revoke,
                "Let another key not use it any more.",
                body=archive_orders.TRUST_BODY,
                aliases=_posts("access/revoke", "revoke-access"),
            ),
            Endpoint(
                method="DELETE",
                path="/images/{image_id}/access/{key}",
                handler=self._revoke,
                summary="Let another key not use it any more.",
                tag="images",
                answers={200: IMAGE_SCHEMA},
                refusals=_OWNERS,
                audited="image",
            ),
            Endpoint(
                method="GET",
                path="/images/{image_id}/trusted",
                aliases=(("GET", "/images/{image_id}/access"),),
                handler=self._trusted,
                summary="The keys that may use it.",
                tag="images",
                answers={200: _TRUSTED},
                refusals=_OWNERS,
            ),
        )

    def _uses(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                method="POST",
                path="/images/{image_id}/spawn",
                handler=self._spawn,
                summary="Make a service (or, by `type`, a session) of an image.",
                tag="images",
                body=COPY_SCHEMA,
                answers={200: COPIED},
                refusals=frozenset({404, 409}),
                long=True,
                audited="image",
            ),
            Endpoint(
                method="POST",
                path="/images/{image_id}/clone",
                handler=self._clone,
                summary="An image of one's own with the same content; private.",
                tag="images",
                body=archive_orders.IMAGE_CLONE_BODY,
                answers={200: IMAGE_SCHEMA},
                refusals=frozenset({404, 409}),
                long=True,
                audited="image",
            ),
        )

    def start(self) -> None:
        """Put right what an earlier process left."""
        self._api.images.start()

    # -- handlers ------------------------------------------------------------------------------

    def _publish(self, call: Call) -> Response:
        order = archive_orders.parse_image(call.body)
        if order.source_type != "snapshot":
            self._api.require_isolation()
        return self._published(call, order)

    def _clone(self, call: Call) -> Response:
        return self._published(
            call, archive_orders.parse_image_clone(call.body, call.path["image_id"])
        )

    def _published(self, call: Call, order: ImageOrder) -> Response:
        return self._shown(call, self._api.images.publish(call.caller, order))

    def _list(self, call: Call) -> Response:
        return self._shown_list(call, archive_orders.parse_filter(call.query))

    def _shown_list(self, call: Call, access: Access | None) -> Response:
        found = self._api.images.reachable(call.public_key, access)
        images = [self._document(row, way) for row, way in found]
        return reply({"images": images, "count": len(images)})

    def _show(self, call: Call) -> Response:
        row, access = self._api.images.find(call.public_key, call.path["image_id"])
        return reply(self._document(row, access))

    def _delete(self, call: Call) -> Response:
        row = self._api.images.delete(call.public_key, call.path["image_id"])
        return reply(
            {
                "success": True,
                "message": f"image {row['image_id']} is deleted",
                "id": row["image_id"],
                "image_id": row["image_id"],
                "status": "deleted",
            }
        )

    def _lock(self, call: Call) -> Response:
        return self._changed(call, lambda key, one: self._api.images.set_locked(key, one, True))

    def _unlock(self, call: Call) -> Response:
        return self._changed(call, lambda key, one: self._api.images.set_locked(key, one, False))

    def _visibility(self, call: Call) -> Response:
        wanted = archive_orders.parse_visibility(call.body)
        return self._changed(
            call, lambda key, one: self._api.images.set_visibility(key, one, wanted)
        )

    def _grant(self, call: Call) -> Response:
        trusted = archive_orders.parse_trusted_key(call.body)
        return self._changed(call, lambda key, one: self._api.images.grant(key, one, trusted))

    def _revoke(self, call: Call) -> Response:
        if "key" in call.path:
            trusted = archive_orders.parse_public_key(call.path, "key")
        else:
            trusted = archive_orders.parse_trusted_key(call.body)
        return self._changed(call, lambda key, one: self._api.images.revoke(key, one, trusted))

    def _transfer(self, call: Call) -> Response:
        to_key = archive_orders.parse_public_key(call.body, "to_api_key")
        return self._changed(call, lambda key, one: self._api.images.transfer(key, one, to_key))

    def _changed(self, call: Call, change: Callable[[str, str], Row]) -> Response:
        return self._shown(call, change(call.public_key, call.path["image_id"]))

    def _trusted(self, call: Call) -> Response:
        row = self._api.images.owned(call.public_key, call.path["image_id"])
        keys = self._api.images.trusted(row["image_id"])
        return reply({"trusted_keys": keys, "trusted": keys, "count": len(keys)})

    def _spawn(self, call: Call) -> Response:
        row = self._api.images.ready(call.public_key, call.path["image_id"])
        kind = copies.parse_kind(call.body, "type", "service")
        body = {"network_mode": "zerotrust"} | call.body
        if kind == "service" and body.get("name") is None:
            # The name is a host name, and must be nobody else's.
            body["name"] = f"image-{secrets.token_hex(6)}"
        named = _with_body(call, body)
        return copied(self._api, named, row, kind, self._api.images.filler(row), row["image_id"])

    def _draw(self, call: Call) -> Response:
        text_field(call.body, "prompt", limit=_PROMPT_CHARACTERS_MAX)
        for name, known in (("size", _SIZES), ("quality", _QUALITIES)):
            if call.body.get(name) not in (None, *known):
                raise bad_field(name, call.body[name], "one of " + ", ".join(known))
        int_field(call.body, "n", 1, least=1, most=10)
        raise Problem(
            501,
            "not_offered",
            "this platform runs code and has no model that makes pictures. Nothing was made; "
            "run a model of your own in a session.",
        )

    # -- answers -------------------------------------------------------------------------------

    def _shown(self, call: Call, row: Row) -> Response:
        access: Literal["owned", "shared"] = (
            "owned" if row["owner_key"] == call.public_key else "shared"
        )
        return reply(self._document(row, access))

    def _document(self, row: Row, access: str) -> dict[str, Any]:
        trusted = self._api.images.trusted(row["image_id"]) if access == "owned" else ()
        return image_document(row, access, trusted)


def _posts(*verbs: str) -> Aliases:
    return tuple(("POST", f"/images/{{image_id}}/{verb}") for verb in verbs)


def _with_body(call: Call, body: dict[str, Any]) -> Call:

    return msgspec.structs.replace(call, body=body)
