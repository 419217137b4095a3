"""Services as clients read them."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.service_documents import (
    host_of,
    public_url,
    service_document,
    state_document,
)

ROW: dict[str, Any] = {
    "service_id": "unsb-service-1",
    "public_key": "unsb-pk-1",
    "name": "web",
    "state": "running",
    "reason": None,
    "network_mode": "semitrusted",
    "vcpu": 2,
    "ports": "[8000]",
    "custom_domains": '["www.example.com"]',
    "service_type": None,
    "bootstrap": '{"script":"secret"}',
    "unfreeze_on_demand": 1,
    "show_freeze_page": 0,
    "locked": 0,
    "source_image": None,
    "deployment": 3,
    "created_ms": 1_700_000_000_000,
    "last_active_ms": 1_700_000_060_000,
}


def test_a_service_has_every_name_that_a_client_reads() -> None:
    shown = service_document(ROW, "http://127.0.0.1:8000")
    assert shown == {
        "id": "unsb-service-1",
        "service_id": "unsb-service-1",
        "name": "web",
        "state": "running",
        "status": "running",
        "url": "http://web.on.localhost:8000/",
        "ports": (8000,),
        "port_mappings": [{"port": 8000, "protocol": "http"}],
        "domains": ["web.on.localhost", "www.example.com"],
        "custom_domains": ("www.example.com",),
        "container_name": "unsb-vm-1",
        "network_mode": "semitrusted",
        "vcpu": 2,
        "memory_mb": 4096,
        "locked": False,
        "unfreeze_on_demand": True,
        "show_freeze_page": False,
        "deployment": 3,
        "created_at": "2023-11-14T22:13:20Z",
        "last_activity": "2023-11-14T22:14:20Z",
    }


def test_what_is_known_more_is_shown() -> None:
    more = {"service_type": "tcp", "source_image": "unsb-image-1", "reason": "exit_code_1"}
    shown = service_document(ROW | more, "http://h")
    assert {name: shown[name] for name in more} == more
    assert shown["port_mappings"] == [{"port": 8000, "protocol": "tcp"}]
    assert state_document(ROW | more)["reason"] == "exit_code_1"
    assert "reason" not in state_document(ROW)


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://127.0.0.1:8000", "http://web.on.localhost:8000/"),
        ("http://[::1]:8000", "http://web.on.localhost:8000/"),
        ("http://localhost", "http://web.on.localhost/"),
        ("https://Platform.Example:443", "https://web.on.platform.example:443/"),
        ("http://host:port", "http://web.on.host/"),
        ("http://[junk", "http://web.on.localhost/"),
        ("", "http://web.on.localhost/"),
    ],
)
def test_addresses(base_url: str, url: str) -> None:
    assert public_url("web", base_url) == url
    assert host_of("web", base_url) in url
