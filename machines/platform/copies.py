"""What new session or service is made of an archive: the recipe kept with it, and a request.

A recipe says how the archive's source was made, as far as a copy needs it.  A request may say
something else for each part of it.  `input_files` and secrets of a vault are no part of a recipe:
the files are in the archive, and secrets belong to one service.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import msgspec

from machines.platform import service_orders, service_rows, session_orders
from machines.platform.orders import VCPUS_MAX
from machines.platform.replies import bad_field
from machines.platform.sandbox.backend import Network
from machines.platform.service_orders import Bootstrap, ServiceOrder
from machines.platform.session_orders import SESSION_TTL_SECONDS_MAX, SessionOrder
from machines.platform.wire import BOOLEAN, INTEGER, TEXT, Schema, an_object, integer, one_of
from persistence.database import Row

Kind = Literal["session", "service"]
KINDS: tuple[Kind, ...] = ("session", "service")

COPY_SCHEMA: Schema = an_object(
    type=one_of(*KINDS),
    name=TEXT,
    shell=TEXT,
    network_mode=one_of("zerotrust", "semitrusted"),
    vcpu=integer(1, VCPUS_MAX),
    ttl=integer(0, SESSION_TTL_SECONDS_MAX),
    toolbox=BOOLEAN,
    ports={"anyOf": [{"type": "array", "items": INTEGER}, {"type": "string"}]},
    bootstrap=TEXT,
    bootstrap_content=TEXT,
)
"""What a request may say; what is absent comes from the recipe."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the source of an archive was made; stored as JSON."""

    kind: Kind
    network_mode: Network
    vcpu: int
    shell: str = "bash"
    toolbox: bool = False
    ports: tuple[int, ...] = ()
    service_type: str | None = None
    bootstrap: Bootstrap | None = None

    def stored(self) -> str:
        """As it is written into a row."""
        return msgspec.json.encode(self).decode()


def recipe_of(row: Row) -> Recipe:
    """The recipe in the row of a snapshot or an image."""
    return msgspec.json.decode(row["recipe"], type=Recipe)


def recipe_of_session(row: Row) -> Recipe:
    """How a session was made."""
    return Recipe(
        kind="session",
        network_mode=row["network_mode"],
        vcpu=row["base_vcpu"],
        shell=row["shell"],
        toolbox=bool(row["toolbox"]),
    )


def recipe_of_service(row: Row) -> Recipe:
    """How a service is made."""
    return Recipe(
        kind="service",
        network_mode=row["network_mode"],
        vcpu=row["vcpu"],
        ports=service_rows.ports_of(row),
        service_type=row["service_type"],
        bootstrap=service_rows.bootstrap_of(row),
    )


def parse_kind(body: dict[str, Any], name: str, default: Kind | None) -> Kind:
    """`session` or `service`.

    Raises:
        Problem: 400.
    """
    value = body.get(name)
    value = default if value is None else value
    if value not in KINDS:
        raise bad_field(name, value, "'session' or 'service'")
    return cast(Kind, value)


def parse_session_copy(
    body: dict[str, Any], recipe: Recipe, shells: Callable[[], frozenset[str]]
) -> SessionOrder:
    """The session that a request asks for.

    Raises:
        Problem: 400.
    """
    known = {
        "shell": recipe.shell,
        "network_mode": recipe.network_mode,
        "vcpu": recipe.vcpu,
        "toolbox": recipe.toolbox,
    }
    names = ("shell", "network_mode", "vcpu", "ttl", "multiplexer", "tmux", "screen", "toolbox")
    said = {name: body[name] for name in names if body.get(name) is not None}
    return session_orders.parse_session(known | said, shells)


def parse_service_copy(body: dict[str, Any], recipe: Recipe) -> ServiceOrder:
    """The service that a request asks for; its `name` must be there.

    Without a bootstrap it gets the recipe's, unless that is a URL and the copy has no network.

    Raises:
        Problem: 400.
    """
    known = {"network_mode": recipe.network_mode, "vcpu": recipe.vcpu}
    names = ("network_mode", "vcpu", "name", "ports", "bootstrap", "bootstrap_content")
    said = {name: body[name] for name in names if body.get(name) is not None}
    order = service_orders.parse_service(known | said)
    kept = recipe.bootstrap
    if kept is not None and kept.url is not None and order.network_mode != "semitrusted":
        kept = None
    return msgspec.structs.replace(
        order,
        ports=order.ports if "ports" in said else recipe.ports,
        bootstrap=order.bootstrap or kept,
        service_type=recipe.service_type,
    )
