"""The one place where flows, clients and store meet.

`turtles_app(store, clients)` is an `App` that knows every machine of this package and gives their
effects the clients they ask for.  `restore_reservations` is called once before it works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.app import App
from engine.definition import Machine
from engine.ports import Query
from machines.clients.ports import Currency, Platform, Portal
from machines.clients.ports.executions import Executions
from machines.clients.ports.gift_cards import GiftCards
from machines.clients.ports.images import Images
from machines.clients.ports.introspection import Facilities
from machines.clients.ports.services import Services
from machines.clients.ports.sessions import Sessions
from machines.clients.ports.snapshots import Snapshots
from machines.clients.ports.tools import Tools
from machines.clients.tools import OwnTools
from machines.flows.canaries import Canaries, LocalCanaries
from machines.flows.f01_discovery import Discovery, LocalSurroundings, Surroundings
from machines.flows.f03_payment import Payment
from machines.flows.f03b_gift_card import GiftCard, Redemption
from machines.flows.f03c_confirmation import Confirmation
from machines.flows.f03w_wallet import Spend
from machines.flows.f04_authentication import Authentication
from machines.flows.f05_tool_install import ToolInstall
from machines.flows.f06_execution import Execution
from machines.flows.f07_session import Session
from machines.flows.f08_service import Service
from machines.flows.f09_snapshot import Snapshot
from machines.flows.f10_image import Image
from machines.flows.f11_introspection import Introspection
from machines.flows.f12_trust import Trust
from machines.flows.f13_inception import Inception
from machines.flows.f14_agent import Agent
from machines.flows.money import Wallets

if TYPE_CHECKING:
    from engine.decide import Decision
    from engine.ports import Store
    from machines.clients.bundle import Clients
    from machines.clients.ports import SignedTransaction

MACHINES: tuple[type[Machine[Any]], ...] = (
    Agent,
    Authentication,
    Confirmation,
    Discovery,
    Execution,
    GiftCard,
    Image,
    Inception,
    Introspection,
    Payment,
    Redemption,
    Service,
    Session,
    Snapshot,
    Spend,
    ToolInstall,
    Trust,
)


def resources_of(clients: Clients) -> dict[Any, Any]:
    """What the effects of our machines may ask for."""
    return {
        Portal: clients.portal,
        GiftCards: clients.gift_cards,
        Platform: clients.platform,
        Wallets: Wallets(clients.wallets),
        Surroundings: LocalSurroundings(),
        Facilities: clients.facilities,
        Executions: clients.executions,
        Sessions: clients.sessions,
        Images: clients.images,
        Services: clients.services,
        Snapshots: clients.snapshots,
        Canaries: LocalCanaries(),
        Tools: OwnTools(),
    }


def turtles_app(
    store: Store,
    clients: Clients | None = None,
    *,
    moved: Callable[[Decision], None] | None = None,
    **options: Any,
) -> App:
    """An `App` over all machines.

    Args:
        clients: what the effects speak through; without them the app only looks and sends.
        moved: called after every transition.
        options: passed on to `App`.
    """
    resources = resources_of(clients) if clients is not None else {}
    options.setdefault("work", clients is not None)
    return App(MACHINES, store, resources=resources, moved=moved, **options)


async def restore_reservations(app: App, clients: Clients) -> int:
    """Make the wallets' input locks agree with the spends that are under way.

    A process that died between funding a transaction and committing it leaves inputs locked that
    nobody will spend; a node that was restarted has forgotten the locks of those that somebody
    will.  Skipped while another worker shares the store: it may be building right now.

    Returns:
        The number of locks that were given back.
    """
    from machines.clients import BitcoindWallet

    if len(app.store.workers.all()) > 1:
        return 0
    released = 0
    live = await _signed_spends(app)
    for currency, wallet in clients.wallets.items():
        if isinstance(wallet, BitcoindWallet):
            held = [signed for coin, signed in live if coin is currency]
            released += await wallet.release_orphans(held)
            for signed in held:
                await wallet.hold(signed)
    return released


async def _signed_spends(app: App) -> list[tuple[Currency, SignedTransaction]]:
    """The transactions of spends that have not ended."""
    statuses = ("pending", "running", "waiting", "paused", "quarantined")
    query = Query(machine=Spend.__name__, statuses=statuses, limit=10_000)
    contexts = [(await app.get(stored.run.run_id)).context for stored in await app.runs(query)]
    return [(c.currency, c.transaction) for c in contexts if c.transaction is not None]
