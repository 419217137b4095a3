"""Services as rows: what is read and written, inside the caller's transaction."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import msgspec

from machines.platform import lives, refusals
from machines.platform.limits import CONCURRENCY_RETRY_SECONDS
from machines.platform.lives.service import ServiceLife, ServiceTerms
from machines.platform.orders import Caller
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Handle
from machines.platform.service_orders import Bootstrap, Change, ServiceOrder
from persistence.database import Row
from persistence.database import Session as Sql

SERVICES_MAX = 64
COMMANDS_MAX = 32
"""Commands that may run in one service at once: each has a thread of the platform."""
# Bootstraps and input files may be large: they are read where they are needed.
_SMALL = (
    "service_id, public_key, name, state, reason, network_mode, vcpu, ports, custom_domains, "
    "service_type, unfreeze_on_demand, show_freeze_page, locked, source_image, deployment, "
    "created_ms, last_active_ms, ended_ms, idempotency_key, digest"
)
_ALL_BUT_FILES = f"{_SMALL}, bootstrap"


def insert(sql: Sql, service_id: str, caller: Caller, order: ServiceOrder, now_ms: int) -> None:
    """A new row, `starting`.

    Raises:
        Problem: 409, the name or a domain is another's, or the key has too many services.
    """
    require_room(sql, caller.public_key)
    require_free_name(sql, order.name)
    sql.run(
        "INSERT INTO service (service_id, public_key, name, state, network_mode, vcpu, ports, "
        "custom_domains, service_type, bootstrap, input_files, unfreeze_on_demand, "
        "show_freeze_page, source_image, created_ms, last_active_ms, idempotency_key, digest) "
        "VALUES (:id, :key, :name, 'starting', :mode, :vcpu, :ports, '[]', :type, :bootstrap, "
        ":files, :on_demand, :page, :image, :now, :now, :once, :digest)",
        id=service_id,
        key=caller.public_key,
        name=order.name,
        mode=order.network_mode,
        vcpu=order.vcpu,
        ports=_text(order.ports),
        type=order.service_type,
        bootstrap=pack_bootstrap(order.bootstrap),
        files=pack_files(order.input_files),
        on_demand=int(order.unfreeze_on_demand),
        page=int(order.show_freeze_page),
        image=order.source_image,
        now=now_ms,
        once=caller.idempotency_key,
        digest=caller.digest,
    )
    lives.begin(sql, ServiceLife, service_id, ServiceTerms(vcpu=order.vcpu), now_ms)
    set_domains(sql, service_id, order.custom_domains)


def change(sql: Sql, service_id: str, wanted: Change) -> None:
    """Write what a PATCH asks for, the state excepted.

    Raises:
        Problem: 409, the name or a domain is another's.
    """
    if wanted.name is not None:
        require_free_name(sql, wanted.name, service_id)
    if wanted.custom_domains is not None:
        set_domains(sql, service_id, wanted.custom_domains)
    sql.run(
        "UPDATE service SET name = coalesce(:name, name), ports = coalesce(:ports, ports), "
        "vcpu = coalesce(:vcpu, vcpu), "
        "unfreeze_on_demand = coalesce(:on_demand, unfreeze_on_demand), "
        "show_freeze_page = coalesce(:page, show_freeze_page) WHERE service_id = :id",
        id=service_id,
        name=wanted.name,
        ports=None if wanted.ports is None else _text(wanted.ports),
        vcpu=wanted.vcpu,
        on_demand=None if wanted.unfreeze_on_demand is None else int(wanted.unfreeze_on_demand),
        page=None if wanted.show_freeze_page is None else int(wanted.show_freeze_page),
    )


def remember(
    sql: Sql,
    service_id: str,
    bootstrap: Bootstrap | None,
    files: Mapping[str, bytes] | None,
) -> None:
    """Count a deployment, and store what a redeploy was given beside what is stored."""
    sql.run(
        "UPDATE service SET deployment = deployment + 1, bootstrap = coalesce(:bootstrap, "
        "bootstrap), input_files = coalesce(:files, input_files) WHERE service_id = :id",
        id=service_id,
        bootstrap=pack_bootstrap(bootstrap),
        files=None if files is None else pack_files(files) or "{}",
    )


def clear(sql: Sql, service_id: str) -> None:
    """Forget what a deleted service knew; its name, domains and secrets are free."""
    for table in ("service_domain", "service_vault", "service_log"):
        sql.run(f"DELETE FROM {table} WHERE service_id = :id", id=service_id)  # noqa: S608
    sql.run(
        "UPDATE service SET bootstrap = NULL, input_files = NULL, custom_domains = '[]' "
        "WHERE service_id = :id",
        id=service_id,
    )


def remove(sql: Sql, service_id: str) -> None:
    """No trace of a service that never came to be."""
    clear(sql, service_id)
    sql.run("DELETE FROM service WHERE service_id = :id", id=service_id)


def set_domains(sql: Sql, service_id: str, domains: Sequence[str]) -> None:
    """Make these the custom domains of a service.

    Raises:
        Problem: 409, one of them is another service's.
    """
    sql.run("DELETE FROM service_domain WHERE service_id = :id", id=service_id)
    for domain in domains:
        if sql.one("SELECT 1 FROM service_domain WHERE domain = :domain", domain=domain):
            raise Problem(
                409,
                "domain_taken",
                f"custom domain {domain!r} belongs to another service. Choose another.",
                fields={"domain": domain},
            )
        sql.run(
            "INSERT INTO service_domain (domain, service_id) VALUES (:domain, :id)",
            domain=domain,
            id=service_id,
        )
    sql.run(
        "UPDATE service SET custom_domains = :domains WHERE service_id = :id",
        id=service_id,
        domains=_text(domains),
    )


def require_free_name(sql: Sql, name: str, service_id: str = "") -> None:
    """Names are global: they are host names.

    Raises:
        Problem: 409 `name_taken`.
    """
    taken = sql.one(
        "SELECT 1 FROM service WHERE name = :name AND state <> 'deleted' AND service_id <> :id",
        name=name,
        id=service_id,
    )
    if taken:
        raise Problem(
            409,
            "name_taken",
            f"service name {name!r} is in use. Choose another.",
            fields={"name": name},
        )


def require_room(sql: Sql, public_key: str) -> None:
    """Services that do not run cost rows; a key may have so many.

    Raises:
        Problem: 409.
    """
    count = sql.scalar(
        "SELECT count(*) FROM service WHERE public_key = :key AND state <> 'deleted'",
        key=public_key,
    )
    if count >= SERVICES_MAX:
        raise Problem(
            409,
            "too_many_services",
            f"this key has {count} services, at most {SERVICES_MAX} are kept. Delete one.",
        )


def require_calm(sql: Sql, public_key: str, service_id: str) -> None:
    """Refuse one more command in a service that runs as many as it may.

    Raises:
        Problem: 429.
    """
    running = sql.scalar(
        "SELECT count(*) FROM execution WHERE public_key = :key AND service_id = :id "
        "AND state IN ('pending', 'running')",
        key=public_key,
        id=service_id,
    )
    if running >= COMMANDS_MAX:
        raise Problem(
            429,
            "concurrency_limit_reached",
            f"{running} commands run in service {service_id}, at most {COMMANDS_MAX} may. "
            "Wait for one to end, or cancel it: DELETE /jobs/{job_id}.",
            headers={"Retry-After": str(CONCURRENCY_RETRY_SECONDS)},
            fields={"active_executions": running, "concurrency_limit": COMMANDS_MAX},
        )


def repeated(sql: Sql, caller: Caller) -> Row | None:
    """What this request made before.

    Raises:
        Problem: 409, the key was used for another request.
    """
    return refusals.repeated(sql, caller, "service", columns=_SMALL)


def select(sql: Sql, service_id: str) -> Row | None:
    """A service, deleted or not, by its id; without its input files."""
    return sql.one(
        f"SELECT {_ALL_BUT_FILES} FROM service WHERE service_id = :id",  # noqa: S608 - our columns
        id=service_id,
    )


def select_small(sql: Sql, service_id: str) -> Row | None:
    """The same without its bootstrap: what every visitor's request needs."""
    return sql.one(
        f"SELECT {_SMALL} FROM service WHERE service_id = :id",  # noqa: S608 - our columns
        id=service_id,
    )


def select_all_live(sql: Sql, public_key: str) -> list[Row]:
    """A key's services that are not deleted, without bootstraps and files, oldest first."""
    return sql.all(
        f"SELECT {_SMALL} FROM service "  # noqa: S608 - our columns
        "WHERE public_key = :key AND state <> 'deleted' ORDER BY created_ms, service_id",
        key=public_key,
    )


def select_live(sql: Sql, public_key: str, id_or_name: str) -> Row:
    """A service of this key that is not deleted, by its id or its name.

    Raises:
        Problem: 404.
    """
    row = sql.one(
        f"SELECT {_ALL_BUT_FILES} FROM service "  # noqa: S608 - our columns
        "WHERE (service_id = :one OR name = :one) AND public_key = :key AND state <> 'deleted'",
        one=id_or_name,
        key=public_key,
    )
    if row is None:
        raise not_found(id_or_name)
    return row


def select_by_host(sql: Sql, host: str) -> Row | None:
    """The service, of any key, that a `Host` header names; its port does not matter."""
    name = host.strip().lower()
    if not name.endswith("]"):
        name = name.partition(":")[0]
    labels = name.rstrip(".").split(".")
    if len(labels) >= 3 and labels[1] == "on":
        return sql.one(
            f"SELECT {_SMALL} FROM service "  # noqa: S608 - our columns
            "WHERE name = :name AND state <> 'deleted'",
            name=labels[0],
        )
    owner = sql.one(
        "SELECT service_id FROM service_domain WHERE domain = :domain", domain=".".join(labels)
    )
    return None if owner is None else select_small(sql, owner["service_id"])


def not_found(id_or_name: str) -> Problem:
    """404, whoever's it is."""
    return Problem(
        404,
        "not_found",
        f"service {id_or_name[:80]!r}: this key has none of that id. List them: GET /services.",
    )


def handle_of(row: Row) -> Handle:
    """The sandbox of a service has its id."""
    return Handle(row["service_id"])


def ports_of(row: Row) -> tuple[int, ...]:
    """The declared ports."""
    return msgspec.json.decode(row["ports"], type=tuple[int, ...])


def domains_of(row: Row) -> tuple[str, ...]:
    """The custom domains."""
    return msgspec.json.decode(row["custom_domains"], type=tuple[str, ...])


def bootstrap_of(row: Row) -> Bootstrap | None:
    """What it was last started with."""
    packed = row["bootstrap"]
    return None if packed is None else msgspec.json.decode(packed, type=Bootstrap)


def files_of(sql: Sql, service_id: str) -> dict[str, bytes]:
    """Its input files: path inside -> content."""
    packed = sql.scalar("SELECT input_files FROM service WHERE service_id = :id", id=service_id)
    return {} if packed is None else msgspec.json.decode(packed, type=dict[str, bytes])


def pack_bootstrap(bootstrap: Bootstrap | None) -> str | None:
    """The stored form."""
    return None if bootstrap is None else _text(bootstrap)


def pack_files(files: Mapping[str, bytes]) -> str | None:
    """The stored form: contents in base64."""
    packed = {path: base64.b64encode(content).decode() for path, content in files.items()}
    return _text(packed) if packed else None


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
