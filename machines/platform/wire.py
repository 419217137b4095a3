"""One signed endpoint, described once: what serves it, what it takes, what it may answer.

Routes, the OpenAPI document, the tests that walk every endpoint with another tenant's ids and
those that kill the platform in the middle of each are all made from these descriptions, so none
of them can forget one.  Schemas are JSON Schema (draft 2020-12, as OpenAPI 3.1 wants them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from machines.platform import keys
from machines.platform.limits import Admission
from machines.platform.orders import Caller

Schema = Mapping[str, Any]
EVERY_SIGNED_REFUSAL = frozenset({400, 401, 413, 429, 500, 503})
"""What any signed endpoint may answer, whatever it is."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One authentic request.

    `body` is the JSON object that was sent (`{}` when none was, or when the endpoint takes text);
    `raw` the bytes; `query` the last value of each name; `client` the peer's address; `base_url`
    how the caller names this platform (`http://127.0.0.1:8000`), without a slash at the end;
    `admission` counts it, where the endpoint `counts`.
    """

    key: keys.KeyRow
    body: dict[str, Any]
    path: Mapping[str, str]
    idempotency_key: str | None
    digest: str
    raw: bytes = b""
    query: Mapping[str, str] = msgspec.field(default_factory=dict)
    content_type: str = ""
    client: str = ""
    base_url: str = ""
    admission: Admission | None = None

    @property
    def public_key(self) -> str:
        """Who asks."""
        return self.key.public_key

    @property
    def caller(self) -> Caller:
        """The part of it that an execution needs."""
        return Caller(
            public_key=self.key.public_key,
            tier=self.key.tier,
            idempotency_key=self.idempotency_key,
            digest=self.digest,
            admission=self.admission,
        )


Handler = Callable[[Call], Response]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A method and a path that signed requests may name.

    Args:
        path: with `{session_id}`, `{service_id}`, `{snapshot_id}`, `{image_id}`, `{job_id}` ...
        handler: runs in a thread; a `Problem` it raises is the answer.
        summary: one line for the document.
        tag: the group in the document: sessions, services, ...
        body: schema of the JSON object it takes; None when it looks at no body.
        takes: `json` (an object, parsed before), `text`, or `any`: the handler reads `raw`.
        query: the schemas of its query's values, by name; all are optional.
        answers: the statuses of success, and the schema of each one's body.
        media: the content type of success.
        refusals: statuses beyond `EVERY_SIGNED_REFUSAL` that it may answer.
        aliases: other (method, path) pairs that mean the same.
        any_standing: serves keys that are expired or suspended, too.
        long: may take minutes, and must not use up the threads of short requests.
        audited: the kind of resource it changes, when that belongs in the audit log.
        counts: its handler changes nothing before a `Call.admission.transaction`, so that the
            request is counted there; all others are counted before they are handled.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Handler
    summary: str
    tag: str
    body: Schema | None = None
    takes: Literal["json", "text", "any"] = "json"
    query: Mapping[str, Schema] = msgspec.field(default_factory=dict)
    answers: Mapping[int, Schema] = msgspec.field(default_factory=lambda: {200: ANY_OBJECT})
    media: str = "application/json"
    refusals: frozenset[int] = frozenset()
    aliases: tuple[tuple[str, str], ...] = ()
    any_standing: bool = False
    long: bool = False
    audited: str | None = None
    counts: bool = False

    @property
    def routes(self) -> tuple[tuple[str, str], ...]:
        """Every (method, path) under which it is served."""
        return ((self.method, self.path), *self.aliases)

    @property
    def statuses(self) -> frozenset[int]:
        """Every status it may answer."""
        return frozenset(self.answers) | EVERY_SIGNED_REFUSAL | self.refusals


ANY_OBJECT: Schema = {"type": "object"}
TEXT: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
INTEGER: Schema = {"type": "integer"}


def integer(least: int, most: int) -> Schema:
    """Schema of an integer within bounds."""
    return {"type": "integer", "minimum": least, "maximum": most}


def one_of(*words: str) -> Schema:
    """Schema of a string out of a list."""
    return {"type": "string", "enum": list(words)}


def array(items: Schema) -> Schema:
    """Schema of an array."""
    return {"type": "array", "items": items}


def an_object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Schema of an object; members that are not named are allowed, as the wire facts ask."""
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return schema | ({"required": list(required)} if required else {})


class Feature:
    """A part of the API: its endpoints, and what it does as the platform lives.

    `Api` calls `start` after the sandboxes of an earlier process were swept, `tick` about once a
    second, `stop` before the sandboxes are ended.  All three run in threads.
    """

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return ()

    def routes(self) -> tuple[Any, ...]:
        """Starlette routes that are no signed HTTP endpoint (sockets, pages)."""
        return ()

    def start(self) -> None:
        """The platform begins to serve."""

    def tick(self) -> None:
        """About a second has passed."""

    def stop(self) -> None:
        """The platform ends."""
