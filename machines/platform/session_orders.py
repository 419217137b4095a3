"""Bodies of requests about sessions, checked once: what comes out of here is well-formed.

Every refusal is a 400 that names the field, the value seen and what was expected.  Fields that no
handler knows are ignored, as the wire facts ask.

`multiplexer` (`tmux` or `screen`; some clients say `"tmux":true`) asks for a terminal that stays
when its client leaves.  No such program runs: the platform itself keeps the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from machines.platform.orders import VCPUS_MAX, parse_files, parse_network_mode
from machines.platform.replies import bad_field, int_field, text_field
from machines.platform.sandbox.backend import Network
from machines.platform.session_rows import Listing

TTL_SECONDS_DEFAULT = 3600
SESSION_TTL_SECONDS_MAX = 86_400
MULTIPLEXERS = ("tmux", "screen")
LISTINGS = ("active", "frozen", "locked")
_SHELL_NAMES = {"python": "python3", "javascript": "node"}


class SessionOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked `POST /sessions`.

    `image` is the id of a base image, `audited` whether the terminal is recorded; `files` by
    their path inside; `toolbox` whether this product is shown inside.
    """

    shell: str
    network_mode: Network
    ttl_seconds: int
    vcpu: int
    multiplexer: str | None = None
    files: dict[str, bytes] = msgspec.field(default_factory=dict)
    image: str | None = None
    audited: bool = False
    toolbox: bool = False


def parse_session(
    body: dict[str, Any],
    shells: Callable[[], frozenset[str]],
    query: Mapping[str, str] | None = None,
) -> SessionOrder:
    """Check a create request.

    Raises:
        Problem: 400 naming the field, the value seen and what was expected.
    """
    ttl_seconds = int_field(body, "ttl", TTL_SECONDS_DEFAULT, least=0, most=SESSION_TTL_SECONDS_MAX)
    image = body.get("image")
    return SessionOrder(
        shell=_shell(body, shells),
        network_mode=parse_network_mode(body),
        # 0 asks for "no limit"; the platform's cap is 24 h.
        ttl_seconds=ttl_seconds or SESSION_TTL_SECONDS_MAX,
        vcpu=int_field(body, "vcpu", 1, least=1, most=VCPUS_MAX),
        multiplexer=_multiplexer(body),
        files=parse_files(body.get("input_files")),
        image=None if image is None else text_field(body, "image", limit=100),
        audited=parse_audit(query or {}),
        toolbox=_toolbox(body),
    )


def parse_audit(query: Mapping[str, str]) -> bool:
    """`?audit=1`.

    Raises:
        Problem: 400.
    """
    value = query.get("audit", "0")
    if value not in ("0", "1"):
        raise bad_field("audit", value, "1 or 0")
    return value == "1"


def parse_listing(query: Mapping[str, str]) -> Listing | None:
    """`?status=active`, `frozen` or `locked`; None lists every session that has not ended.

    Raises:
        Problem: 400.
    """
    value = query.get("status")
    if value is None:
        return None
    if value not in LISTINGS:
        raise bad_field("status", value, "one of " + ", ".join(LISTINGS))
    return cast(Listing, value)


def parse_boost(body: dict[str, Any]) -> int | None:
    """The vCPUs wanted; None leaves it to the platform.

    Raises:
        Problem: 400.
    """
    if body.get("vcpu") is None:
        return None
    return int_field(body, "vcpu", 1, least=1, most=VCPUS_MAX)


def parse_extension(body: dict[str, Any]) -> int:
    """The seconds to add.

    Raises:
        Problem: 400.
    """
    return int_field(body, "ttl", TTL_SECONDS_DEFAULT, least=1, most=SESSION_TTL_SECONDS_MAX)


def _shell(body: dict[str, Any], shells: Callable[[], frozenset[str]]) -> str:
    """`shell`; two clients say `language` beside it, or instead of it."""
    language = text_field(body, "language", "bash", limit=40)
    wanted = text_field(body, "shell", language, limit=40)
    name = "language" if body.get("shell") is None and body.get("language") is not None else "shell"
    shell = _SHELL_NAMES.get(wanted, wanted)
    offered = shells()
    if shell not in offered:
        raise bad_field(name, wanted, "one of " + ", ".join(sorted(offered)))
    return shell


def _toolbox(body: dict[str, Any]) -> bool:
    wanted = body.get("toolbox")
    if wanted is None or isinstance(wanted, bool):
        return bool(wanted)
    raise bad_field("toolbox", wanted, "true or false")


def _multiplexer(body: dict[str, Any]) -> str | None:
    for name in MULTIPLEXERS:
        if body.get(name) not in (None, True, False):
            raise bad_field(name, body[name], "true or false")
    named = body.get("multiplexer")
    if named is None:
        return next((name for name in MULTIPLEXERS if body.get(name)), None)
    if named not in MULTIPLEXERS:
        raise bad_field("multiplexer", named, "tmux, screen or null")
    return cast(str, named)
