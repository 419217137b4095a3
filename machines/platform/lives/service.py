"""The life of a service.

::

    starting ──up──► running ──freeze──► frozen ──thaw──► running
       │               │ ▲
       │ fail          │ │ up
       ▼               ▼ │
     failed ──redeploy──► redeploying ──fail──► failed
                              ▲
    stopped ──redeploy────────┘         stop: from wherever it lives; its sandbox is gone

`resize`, `lock`, `unlock` change what it is, not where it is; `delete` ends it from anywhere,
unless it is locked.  Source: platform-api.md 6.5.
"""

from __future__ import annotations

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.events import Context, Event


class ServiceTerms(Context):
    """What a service is: vCPUs, which deployment it is at, whether it is locked, what failed."""

    vcpu: int
    deployment: int = 1
    locked: bool = False
    reason: str = ""


class Up(Event, tag="up"):
    """Its bootstrap is done, or serves."""


class Down(Event, tag="fail"):
    """Its bootstrap, or its program, ended badly."""

    reason: str


class FreezeService(Event, tag="freeze"):
    """Its processes stand still and its slots are free."""


class ThawService(Event, tag="thaw"):
    """Its processes go on."""


class Redeploy(Event, tag="redeploy"):
    """The bootstrap is run again."""


class Stop(Event, tag="stop"):
    """Its sandbox is gone."""

    reason: str


class ResizeService(Event, tag="resize"):
    """Another number of vCPUs."""

    vcpu: int


class LockService(Event, tag="lock"):
    """It may not be deleted until it is unlocked."""


class UnlockService(Event, tag="unlock"):
    """It may be deleted."""


class Delete(Event, tag="delete"):
    """Its owner has no more use for it."""


class ServiceLife(Machine[ServiceTerms]):
    """A program that answers on ports, and goes on."""

    starting = State(initial=True, waits=True)  # turtles: ignore[V009] by request
    running = State(waits=True)  # turtles: ignore[V009] by request
    frozen = State(waits=True)  # turtles: ignore[V009] by request
    redeploying = State(waits=True)  # turtles: ignore[V009] by request
    failed = State(waits=True, invariant="says_why")  # turtles: ignore[V009] by request
    stopped = State(waits=True, invariant="says_why")  # turtles: ignore[V009] by request
    deleted = State(final=True)

    up = starting.to(running) | redeploying.to(running)
    fail = starting.to(failed) | redeploying.to(failed) | running.to(failed)
    freeze = running.to(frozen)
    thaw = frozen.to(running)
    redeploy = running.to(redeploying) | failed.to(redeploying) | stopped.to(redeploying)
    stop = (
        starting.to(stopped)
        | running.to(stopped)
        | redeploying.to(stopped)
        | frozen.to(stopped)
        | failed.to(stopped)
    )
    resize = running.to.itself() | frozen.to.itself() | failed.to.itself() | stopped.to.itself()
    lock = (
        starting.to.itself()
        | running.to.itself()
        | frozen.to.itself()
        | redeploying.to.itself()
        | failed.to.itself()
        | stopped.to.itself()
    )
    unlock = (
        starting.to.itself()
        | running.to.itself()
        | frozen.to.itself()
        | redeploying.to.itself()
        | failed.to.itself()
        | stopped.to.itself()
    )
    delete = (
        starting.to(deleted)
        | running.to(deleted)
        | frozen.to(deleted)
        | redeploying.to(deleted)
        | failed.to(deleted)
        | stopped.to(deleted)
    )

    def on_up(self, context: ServiceTerms) -> ServiceTerms:
        return self.but(context, reason="")

    def on_fail(self, context: ServiceTerms, event: Down) -> ServiceTerms:
        return self.but(context, reason=event.reason)

    def on_stop(self, context: ServiceTerms, event: Stop) -> ServiceTerms:
        return self.but(context, reason=event.reason)

    def on_redeploy(self, context: ServiceTerms) -> ServiceTerms:
        return self.but(context, deployment=context.deployment + 1, reason="")

    def on_resize(self, context: ServiceTerms, event: ResizeService) -> ServiceTerms:
        return self.but(context, vcpu=event.vcpu)

    def on_lock(self, context: ServiceTerms) -> ServiceTerms:
        return self.but(context, locked=True)

    def on_unlock(self, context: ServiceTerms) -> ServiceTerms:
        return self.but(context, locked=False)

    @requires(fail)
    def failure_is_explained(self, event: Down) -> bool:
        return event.reason != ""

    @requires(stop)
    def stop_is_explained(self, event: Stop) -> bool:
        return event.reason != ""

    @requires(resize)
    def is_within_bounds(self, event: ResizeService) -> bool:
        return 1 <= event.vcpu <= 8

    @requires(delete)
    def is_unlocked(self, context: ServiceTerms) -> bool:
        return not context.locked

    @ensures(freeze, thaw)
    def changes_nothing_else(self, old: ServiceTerms, new: ServiceTerms) -> bool:
        return old == new

    @ensures(redeploy)
    def is_the_next_deployment(self, old: ServiceTerms, new: ServiceTerms) -> bool:
        return new.deployment == old.deployment + 1

    @invariant
    def holds_slots(self, context: ServiceTerms) -> bool:
        return 1 <= context.vcpu <= 8 and context.deployment >= 1

    def says_why(self, context: ServiceTerms) -> bool:
        return context.reason != ""
