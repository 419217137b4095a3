"""All clients of an embedded platform, where everything hangs under one base URL::

/                                portal and platform API
/rpc/btc/wallet/payer            bitcoin wallet; the same with ltc
/rpc/doge/                       dogecoin: one wallet per node, no name
/rpc/xmr/wallet/payer/json_rpc   monero-wallet-rpc
/rpc/xmr/daemon/...              monerod: json_rpc, get_transactions, is_key_image_spent
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.secrets import Secret
from machines.clients.bitcoind import BitcoindWallet
from machines.clients.executions import REPLY_BYTES_MAX, HttpExecutions
from machines.clients.gift_cards import HttpGiftCards
from machines.clients.images import HttpImages
from machines.clients.introspection import HttpFacilities
from machines.clients.monero import MoneroWallet
from machines.clients.platform import HttpPlatform
from machines.clients.portal import HttpPortal
from machines.clients.ports import Currency, Wallet
from machines.clients.services import HttpServices
from machines.clients.sessions import HttpSessions
from machines.clients.snapshots import HttpSnapshots
from machines.clients.transport import Transport, base_of

if TYPE_CHECKING:
    import httpx

WALLET_NAME = "payer"


@dataclass(frozen=True)
class Clients:
    """Everything the flows reach the outside through, over one transport."""

    portal: HttpPortal
    gift_cards: HttpGiftCards
    platform: HttpPlatform
    facilities: HttpFacilities
    executions: HttpExecutions
    sessions: HttpSessions
    services: HttpServices
    snapshots: HttpSnapshots
    images: HttpImages
    wallets: Mapping[Currency, Wallet]
    transport: Transport

    async def aclose(self) -> None:
        """Close every connection."""
        await self.transport.aclose()


@asynccontextmanager
async def own_clients(base_url: str, clock_ms: Callable[[], int]) -> AsyncIterator[Clients]:
    """Clients of a platform on this machine, whose simulated wallets let everybody in."""
    clients = clients_for(
        base_url, rpc_username="turtles", rpc_password=Secret("turtles"), clock_ms=clock_ms
    )
    try:
        yield clients
    finally:
        await clients.aclose()


def clients_for(
    base_url: str,
    *,
    rpc_username: str,
    rpc_password: Secret[str],
    clock_ms: Callable[[], int],
    network: httpx.AsyncBaseTransport | None = None,
    proxy: str | None = None,
) -> Clients:
    """Clients of an embedded platform.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``.
        rpc_username: name for the four wallets.
        rpc_password: its password.
        clock_ms: our time, milliseconds since 1970; it also signs.
        network: an httpx transport instead of sockets, e.g. `httpx.ASGITransport(app)`.
        proxy: the one way out of a semitrusted sandbox.
    """
    base = base_of(base_url)
    transport = Transport(
        clock_ms, network=network, proxy=proxy, response_bytes_max=REPLY_BYTES_MAX
    )

    def bitcoind(currency: Currency, wallet_name: str | None) -> BitcoindWallet:
        return BitcoindWallet(
            currency,
            f"{base}/rpc/{currency.value.lower()}",
            transport,
            wallet_name=wallet_name,
            username=rpc_username,
            password=rpc_password,
        )

    monero = MoneroWallet(
        f"{base}/rpc/xmr/wallet/{WALLET_NAME}/json_rpc",
        f"{base}/rpc/xmr/daemon",
        transport,
        wallet_name=WALLET_NAME,
        username=rpc_username,
        password=rpc_password,
    )
    wallets: dict[Currency, Wallet] = {
        Currency.BTC: bitcoind(Currency.BTC, WALLET_NAME),
        Currency.LTC: bitcoind(Currency.LTC, WALLET_NAME),
        Currency.DOGE: bitcoind(Currency.DOGE, None),
        Currency.XMR: monero,
    }
    portal, platform = HttpPortal(base, transport), HttpPlatform(base, transport)
    facilities = HttpFacilities(base, transport)
    return Clients(
        portal=portal,
        gift_cards=HttpGiftCards(base, transport),
        platform=platform,
        facilities=facilities,
        executions=HttpExecutions(base, transport),
        sessions=HttpSessions(base, transport),
        services=HttpServices(base, transport),
        snapshots=HttpSnapshots(base, transport),
        images=HttpImages(base, transport),
        wallets=wallets,
        transport=transport,
    )
