"""The one place where flows, clients and store meet.

`turtles_app(store, clients)` is an `App` that knows every machine of this package and gives their
effects the clients they ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.app import App
from engine.definition import Machine
from machines.clients.ports import Platform, Portal
from machines.flows.f01_discovery import Discovery, LocalSurroundings, Surroundings
from machines.flows.f03_payment import Payment
from machines.flows.f03c_confirmation import Confirmation
from machines.flows.f03w_wallet import Spend
from machines.flows.f04_authentication import Authentication
from machines.flows.f13_inception import Inception
from machines.flows.money import Wallets

if TYPE_CHECKING:
    from engine.decide import Decision
    from engine.ports import Store
    from machines.clients.bundle import Clients

MACHINES: tuple[type[Machine[Any]], ...] = (
    Authentication,
    Confirmation,
    Discovery,
    Inception,
    Payment,
    Spend,
)


def resources_of(clients: Clients) -> dict[Any, Any]:
    """What the effects of our machines may ask for."""
    return {
        Portal: clients.portal,
        Platform: clients.platform,
        Wallets: Wallets(clients.wallets),
        Surroundings: LocalSurroundings(),
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
