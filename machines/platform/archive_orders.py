"""Bodies of requests about snapshots and images, checked once.

Every refusal is a 400 that names the field, the value seen and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from machines.platform.copies import Kind, parse_kind
from machines.platform.image_rows import Access, Visibility
from machines.platform.images import DESCRIPTION_CHARACTERS_MAX, ImageOrder
from machines.platform.replies import bad_field, int_field, text_field
from machines.platform.service_orders import parse_flag
from machines.platform.snapshots import NAME_CHARACTERS_MAX, TTL_SECONDS_MAX, SnapshotOrder
from machines.platform.wire import BOOLEAN, TEXT, Schema, an_object, integer, one_of

ID_CHARACTERS_MAX = 200
VISIBILITIES = ("private", "unlisted", "public")
KEY_FIELDS = ("trusted_api_key", "trusted_key", "api_key")
_PUBLIC_KEY = re.compile(r"unsb-pk-[A-Za-z0-9-]{1,80}")

_SNAPSHOT: dict[str, Schema] = {
    "name": TEXT,
    "hot": BOOLEAN,
    "ephemeral": BOOLEAN,
    "ttl": integer(0, TTL_SECONDS_MAX),
}
SNAPSHOT_OF_BODY: Schema = an_object((), **_SNAPSHOT)
SNAPSHOT_BODY: Schema = an_object(
    (),
    source_type=one_of("session", "service"),
    source_id=TEXT,
    session_id=TEXT,
    service_id=TEXT,
    **_SNAPSHOT,
)
IMAGE_BODY: Schema = an_object(
    ("source_type", "source_id"),
    source_type=one_of("session", "service", "snapshot"),
    source_id=TEXT,
    name=TEXT,
    description=TEXT,
)
IMAGE_CLONE_BODY: Schema = an_object(name=TEXT, description=TEXT)
TRUST_BODY: Schema = an_object((), **dict.fromkeys(KEY_FIELDS, TEXT))


def parse_snapshot(body: dict[str, Any]) -> SnapshotOrder:
    """`POST /snapshots`, in both forms: a type and an id, or an id whose name says the type.

    Raises:
        Problem: 400.
    """
    if body.get("source_type") is None and body.get("source_id") is None:
        given = [name for name in ("session_id", "service_id") if body.get(name) is not None]
        if len(given) != 1:
            raise bad_field(
                given[1] if given else "source_type",
                body.get(given[1]) if given else None,
                "source_type and source_id, or one of session_id and service_id",
            )
        kind: Kind = "session" if given[0] == "session_id" else "service"
        return parse_snapshot_of(body, kind, plain(body, given[0], ID_CHARACTERS_MAX))
    kind = parse_kind(body, "source_type", None)
    return parse_snapshot_of(body, kind, plain(body, "source_id", ID_CHARACTERS_MAX))


def parse_snapshot_of(body: dict[str, Any], kind: Kind, source_id: str) -> SnapshotOrder:
    """What a request says of a snapshot whose source is known.  `ttl` 0 keeps it.

    Raises:
        Problem: 400.
    """
    hot = [parse_flag(body, name) for name in ("hot", "ephemeral")]
    ttl_seconds = int_field(body, "ttl", 0, least=0, most=TTL_SECONDS_MAX)
    return SnapshotOrder(
        source_type=kind,
        source_id=source_id,
        name=optional(body, "name", NAME_CHARACTERS_MAX),
        hot=any(hot),
        ttl_seconds=ttl_seconds or None,
    )


def parse_snapshot_id(body: dict[str, Any]) -> str:
    """The `snapshot_id` that a session or service is restored from.

    Raises:
        Problem: 400.
    """
    return plain(body, "snapshot_id", ID_CHARACTERS_MAX)


def parse_listing(query: Mapping[str, str]) -> Kind | None:
    """`?source_type=session` or `service`; None lists all.

    Raises:
        Problem: 400.
    """
    value = query.get("source_type")
    return None if value is None else parse_kind({"source_type": value}, "source_type", None)


def parse_image(body: dict[str, Any]) -> ImageOrder:
    """`POST /images`.

    Raises:
        Problem: 400.
    """
    kind = body.get("source_type")
    if kind not in ("session", "service", "snapshot"):
        raise bad_field("source_type", kind, "'session', 'service' or 'snapshot'")
    return ImageOrder(
        source_type=kind,
        source_id=plain(body, "source_id", ID_CHARACTERS_MAX),
        name=optional(body, "name", NAME_CHARACTERS_MAX),
        description=optional(body, "description", DESCRIPTION_CHARACTERS_MAX),
    )


def parse_image_clone(body: dict[str, Any], image_id: str) -> ImageOrder:
    """`POST /images/{id}/clone`.

    Raises:
        Problem: 400.
    """
    return ImageOrder(
        source_type="image",
        source_id=image_id,
        name=optional(body, "name", NAME_CHARACTERS_MAX),
        description=optional(body, "description", DESCRIPTION_CHARACTERS_MAX),
    )


def parse_filter(query: Mapping[str, str]) -> Access | None:
    """`?filter=owned`, `shared` or `public`; None lists all.

    Raises:
        Problem: 400.
    """
    value = query.get("filter")
    if value in (None, "", "all"):
        return None
    if value not in ("owned", "shared", "public"):
        raise bad_field("filter", value, "'owned', 'shared', 'public' or 'all'")
    return cast(Access, value)


def parse_visibility(body: dict[str, Any]) -> Visibility:
    """`private`, `unlisted` (one client calls it `shared`) or `public`.

    Raises:
        Problem: 400.
    """
    value = body.get("visibility")
    if value == "shared":
        return "unlisted"
    if value not in VISIBILITIES:
        raise bad_field("visibility", value, "'private', 'unlisted' or 'public'")
    return cast(Visibility, value)


def parse_trusted_key(body: dict[str, Any]) -> str:
    """The public key that a grant is about, under any of its three names.

    Raises:
        Problem: 400.
    """
    given = [name for name in KEY_FIELDS if body.get(name) is not None]
    if len({str(body[name]) for name in given}) > 1:
        raise bad_field(given[1], body[given[1]], f"the same key as in {given[0]}")
    return parse_public_key(body, given[0] if given else KEY_FIELDS[0])


def parse_public_key(body: Mapping[str, Any], name: str) -> str:
    """A member that is a public key.

    Raises:
        Problem: 400.
    """
    value = body.get(name)
    if not isinstance(value, str) or not _PUBLIC_KEY.fullmatch(value):
        raise bad_field(name, value, "a public key (unsb-pk-...)")
    return value


def optional(body: dict[str, Any], name: str, limit: int) -> str | None:
    """A text that may be absent, null or empty.

    Raises:
        Problem: 400.
    """
    return None if body.get(name) in (None, "") else plain(body, name, limit)


def plain(body: dict[str, Any], name: str, limit: int) -> str:
    """A text that can be stored and shown: no NUL, no half surrogates.

    Raises:
        Problem: 400.
    """
    text = text_field(body, name, limit=limit)
    if "\0" in text or text.encode(errors="replace") != text.encode(errors="surrogatepass"):
        raise bad_field(name, text, "text without NUL and half surrogates")
    return text
