"""What flow 8 is asked for, and what moves it: one service, and the orders it obeys."""

from __future__ import annotations

from typing import Literal

from engine.events import Event, GaveUp
from engine.secret import Secret
from machines.clients.ports import Record
from machines.flows.errands import Errand, Order

RESTARTS_MAX = 3
"""So often a service that fails is deployed again by itself."""

Cause = Literal["name_taken", "no_slot", "gone", "refused"]
"""Why the platform declines."""


class Redeploy(Order, tag="redeploy"):
    """Run the bootstrap again, another one if it is given; files stay."""

    bootstrap: str = ""


class Freeze(Order, tag="freeze"):
    """Stop its processes where they are, and give the slot back."""


class Unfreeze(Order, tag="unfreeze"):
    """Let them go on."""


class Wake(Order, tag="wake"):
    """Visit it while it is frozen: one that is unfrozen on demand goes on by that."""


class SetEnv(Order, tag="set_env", kw_only=True):
    """Write variables, `NAME=value` a line, into its vault; a redeploy lets it see them."""

    env: Secret[str]


class Lock(Order, tag="lock"):
    """Do not let it be destroyed."""


class Unlock(Order, tag="unlock"):
    """Let it be destroyed again."""


class Destroy(Order, tag="destroy"):
    """End it for ever."""


class HandOver(Order, tag="hand_over"):
    """Leave it on the platform as it is, on purpose, and end."""


ServiceOrder = Redeploy | Freeze | Unfreeze | Wake | SetEnv | Lock | Unlock | Destroy | HandOver


class Deployment(Errand, kw_only=True):
    """What to run behind which address, and what to do with it.

    Args:
        name: becomes the host name, for all keys; lower case.
        ports: where it answers; the first is its address.
        bootstrap: a script, or a URL of one; `exec` what shall go on.
        health_path: asked for through the platform before it counts as running; empty: not asked.
        ready_seconds: how long a deployment may take until it answers.
        then: what to do when the script is done: destroy it, hand it over, or wait for messages.
        url: the address that the platform has for it.
        address: where it answers now; empty while it does not.
        env: what is being written into the vault; nothing when that is done.
    """

    name: str
    ports: tuple[int, ...] = ()
    bootstrap: str = ""
    network_mode: str = "zerotrust"
    vcpu: int = 1
    unfreeze_on_demand: bool = False
    health_path: str = "/"
    ready_seconds: int = 180
    restarts_max: int = RESTARTS_MAX
    script: tuple[ServiceOrder, ...] = ()
    then: Literal["wait", "destroy", "hand_over"] = "wait"
    service_id: str = ""
    url: str = ""
    address: str = ""
    http_status: int = 0
    deployment: int = 0
    restarts: int = 0
    thaws: int = 0
    locked: bool = False
    env: Secret[str] | None = None


class ServiceReport(Record):
    """What a finished run tells."""

    service_id: str
    url: str
    deployments: int
    restarts: int
    locked: bool
    reason: str


class Created(Event, tag="created"):
    """There is a service; it does not answer yet."""

    service_id: str
    url: str
    deployment: int


class Ready(Event, tag="ready"):
    """It runs, and answered with this status; 0 when there is nothing to ask."""

    url: str
    deployment: int
    http_status: int


class Broke(Event, tag="broke"):
    """Its program failed, or its sandbox died."""

    detail: str


class Declined(Event, tag="declined"):
    """The platform says that this cannot be."""

    cause: Cause
    detail: str


class FoundFrozen(Event, tag="found_frozen"):
    """Somebody else froze it."""


class FoundRunning(Event, tag="found_running"):
    """Somebody else unfroze it: a visitor, perhaps."""


class Frozen(Event, tag="frozen_now"):
    """Its processes stand still."""


class Thawed(Event, tag="thawed"):
    """They go on."""


class EnvSet(Event, tag="env_set"):
    """The vault holds it."""


class LockSet(Event, tag="lock_set"):
    """It is locked, or is not any more."""

    locked: bool


class Redeployed(Event, tag="redeployed"):
    """A new deployment has begun."""

    deployment: int


class Gone(Event, tag="destroyed_now"):
    """It is no more."""


class Barred(Event, tag="barred"):
    """The script asks for what cannot be now."""

    cause: Literal["locked", "out_of_turn"]
    detail: str


class ClearedUp(Event, tag="cleared_up"):
    """What may have been made without our knowing is gone."""


class NotClearedUp(GaveUp, tag="not_cleared_up"):
    """Nobody can say whether something was made."""
