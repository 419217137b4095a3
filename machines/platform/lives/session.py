"""The life of a session.

::

    starting ──built──► running ◄──thaw── frozen
        │                 │  └──freeze──────► │
        └──────end────────┴────────end────────┘──► terminated

`resize` (boost, unboost), `lock` and `unlock` change what it is, not where it is.
Source: platform-api.md 5.3.
"""

from __future__ import annotations

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.events import Context, Event

VCPUS_MAX = 8


class SessionTerms(Context):
    """What a session is: its vCPUs now and as bought, whether it is locked, why it ended."""

    vcpu: int
    base_vcpu: int
    locked: bool = False
    reason: str = ""


class Built(Event, tag="built"):
    """Its sandbox is there."""


class Freeze(Event, tag="freeze"):
    """Its processes stand still and its slots are free."""


class Thaw(Event, tag="thaw"):
    """Its processes go on; slots were found for it."""


class Resize(Event, tag="resize"):
    """Boosted, or back to what was bought."""

    vcpu: int


class Lock(Event, tag="lock"):
    """It may not be deleted until it is unlocked."""


class Unlock(Event, tag="unlock"):
    """It may be deleted."""


class End(Event, tag="end"):
    """It is over: `deleted`, `expired`, `sandbox_died`, `platform_restarted`, ..."""

    reason: str


class SessionLife(Machine[SessionTerms]):
    """A sandbox with a shell, from its creation to its end."""

    starting = State(initial=True, waits=True)  # turtles: ignore[V009] by request
    running = State(waits=True)  # turtles: ignore[V009] by request
    frozen = State(waits=True)  # turtles: ignore[V009] by request
    terminated = State(final=True, invariant="says_why")

    built = starting.to(running)
    freeze = running.to(frozen)
    thaw = frozen.to(running)
    resize = running.to.itself()
    lock = running.to.itself() | frozen.to.itself()
    unlock = running.to.itself() | frozen.to.itself()
    end = starting.to(terminated) | running.to(terminated) | frozen.to(terminated)

    def on_resize(self, context: SessionTerms, event: Resize) -> SessionTerms:
        return self.but(context, vcpu=event.vcpu)

    def on_lock(self, context: SessionTerms) -> SessionTerms:
        return self.but(context, locked=True)

    def on_unlock(self, context: SessionTerms) -> SessionTerms:
        return self.but(context, locked=False)

    def on_end(self, context: SessionTerms, event: End) -> SessionTerms:
        return self.but(context, reason=event.reason)

    @requires(end)
    def is_not_deleted_while_locked(self, context: SessionTerms, event: End) -> bool:
        return event.reason != "" and not (context.locked and event.reason == "deleted")

    @requires(resize)
    def is_within_bounds(self, context: SessionTerms, event: Resize) -> bool:
        return context.base_vcpu <= event.vcpu <= VCPUS_MAX

    @ensures(built, freeze, thaw)
    def changes_nothing_else(self, old: SessionTerms, new: SessionTerms) -> bool:
        return old == new

    @invariant
    def has_what_was_bought(self, context: SessionTerms) -> bool:
        return 1 <= context.base_vcpu <= context.vcpu <= VCPUS_MAX

    def says_why(self, context: SessionTerms) -> bool:
        return context.reason != ""
