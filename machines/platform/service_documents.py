"""Services as the API shows them, with every name that some client reads (wire facts, 6.1, 6.2)."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from machines.platform.documents import MEMORY_MIB_PER_VCPU
from machines.platform.replies import iso
from machines.platform.service_rows import domains_of, ports_of
from machines.platform.wire import BOOLEAN, INTEGER, TEXT, Schema, an_object, array, one_of
from persistence.database import Row

STATES = ("starting", "running", "frozen", "redeploying", "failed", "stopped", "deleted")
_STATE = one_of(*STATES)

SERVICE_SCHEMA: Schema = an_object(
    ("id", "service_id", "name", "state", "status", "url", "ports", "created_at"),
    id=TEXT,
    service_id=TEXT,
    name=TEXT,
    state=_STATE,
    status=_STATE,
    reason=TEXT,
    url=TEXT,
    ports=array(INTEGER),
    port_mappings=array(an_object(("port", "protocol"), port=INTEGER, protocol=TEXT)),
    domains=array(TEXT),
    custom_domains=array(TEXT),
    container_name=TEXT,
    network_mode=one_of("zerotrust", "semitrusted"),
    vcpu=INTEGER,
    memory_mb=INTEGER,
    locked=BOOLEAN,
    unfreeze_on_demand=BOOLEAN,
    show_freeze_page=BOOLEAN,
    deployment=INTEGER,
    created_at=TEXT,
    last_activity=TEXT,
)
STATE_SCHEMA: Schema = an_object(
    ("id", "service_id", "state", "status"), id=TEXT, service_id=TEXT, state=_STATE, status=_STATE
)


def service_document(row: Row, base_url: str) -> dict[str, Any]:
    """A service.  `base_url`: how the caller names this platform."""
    ports, domains = ports_of(row), domains_of(row)
    document: dict[str, Any] = {
        "id": row["service_id"],
        "service_id": row["service_id"],
        "name": row["name"],
        "state": row["state"],
        "status": row["state"],
        "url": public_url(row["name"], base_url),
        "ports": ports,
        "port_mappings": [
            {"port": port, "protocol": row["service_type"] or "http"} for port in ports
        ],
        "domains": [host_of(row["name"], base_url), *domains],
        "custom_domains": domains,
        "container_name": row["service_id"].replace("unsb-service-", "unsb-vm-"),
        "network_mode": row["network_mode"],
        "vcpu": row["vcpu"],
        "memory_mb": row["vcpu"] * MEMORY_MIB_PER_VCPU,
        "locked": bool(row["locked"]),
        "unfreeze_on_demand": bool(row["unfreeze_on_demand"]),
        "show_freeze_page": bool(row["show_freeze_page"]),
        "deployment": row["deployment"],
        "created_at": iso(row["created_ms"]),
        "last_activity": iso(row["last_active_ms"]),
    }
    for name in ("service_type", "source_image", "reason"):
        if row[name]:
            document[name] = row[name]
    return document


def state_document(row: Row) -> dict[str, Any]:
    """What has become of a service."""
    shown: dict[str, Any] = {
        "id": row["service_id"],
        "service_id": row["service_id"],
        "state": row["state"],
        "status": row["state"],
    }
    if row["reason"]:
        shown["reason"] = row["reason"]
    return shown


def public_url(name: str, base_url: str) -> str:
    """Where visitors find a service: its host name, at the port of this platform."""
    scheme, host, port = _split(base_url)
    return f"{scheme}://{name}.on.{host}{port}/"


def host_of(name: str, base_url: str) -> str:
    """The host name of a service."""
    return f"{name}.on.{_split(base_url)[1]}"


def _split(base_url: str) -> tuple[str, str, str]:
    """Scheme, host and `:port` of an address.  A caller may have written anything there."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or "localhost"
    except ValueError:
        return "http", "localhost", ""
    try:
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        port = ""
    return parts.scheme or "http", "localhost" if _is_loopback(host) else host, port


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
