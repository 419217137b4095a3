"""HTTP clients for the portal, the platform and four wallets; the flows see only `ports`.

Names are loaded on first use: the flows import `machines.clients.ports`, which passes through
here, and must not pay for httpx nor depend on it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machines.clients.bitcoind import BitcoindWallet
    from machines.clients.bundle import Clients, clients_for, own_clients
    from machines.clients.monero import MoneroWallet
    from machines.clients.platform import HttpPlatform
    from machines.clients.portal import HttpPortal
    from machines.clients.transport import Transport

__all__ = [
    "BitcoindWallet",
    "Clients",
    "HttpPlatform",
    "HttpPortal",
    "MoneroWallet",
    "Transport",
    "clients_for",
    "own_clients",
]

_HOMES = {
    "BitcoindWallet": "bitcoind",
    "Clients": "bundle",
    "HttpPlatform": "platform",
    "HttpPortal": "portal",
    "MoneroWallet": "monero",
    "Transport": "transport",
    "clients_for": "bundle",
    "own_clients": "bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
