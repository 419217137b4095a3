"""Limits: how much of the outside's patience all workers together may use.

::

    App([Payment], store, limits=[
        Limit("cards", machine=Payment, slots=5),                        # at once, in the fleet
        Limit("paying", machine=Payment, state="paying", per_tenant=True, slots=1),
        Limit("bank", machine=Payment, state="paying", rate=Rate(10, per_ms=seconds(60))),
    ])

A limit covers the effects of a state, or of all states of a machine, or of all machines: their
calls, what reconciles them, and what compensates them.  Decisions (events, timers, operators'
requests) reach nothing outside and never wait for a limit::

    enters a limited state --> needs {bank, cards}: given up, ready
    claim: a slot of each and a token of each, or nothing at all
    --> attempt (costs the token) --> outcome --> next state needs {cards}: goes on with its slot
                                              --> next state needs none: the slots are free
                                              --> next state needs others: given up, ready
    given up, ended, or its worker's lease is over: the slots are free

A run that waits for something (a timer, an event, a child, its next try) holds no slot.  A worker
checks before every effect that the claim brought what the effect needs; how the run came into its
hands (an event, `apply`, a reap) does not matter, so no path leads past a limit.

Limits are stored, and each worker reads them with every heartbeat, so that one that was declared by
any program soon holds for all.  The last declaration of a name counts.  When fewer slots are
declared than are held, nobody gets one until those above the new number are free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from engine.errors import UsageError

if TYPE_CHECKING:
    from engine.definition import Machine
    from engine.run import Run
    from engine.table import Table

log = structlog.get_logger("turtles.limits")

SLOTS_MAX = 10_000
TENANT_CHARACTERS_MAX = 200
PRIORITY_MAX = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
NONE: frozenset[str] = frozenset()


class Rate(msgspec.Struct, frozen=True):
    """`count` attempts in `per_ms` milliseconds, evenly spaced but for bursts of `burst`.

    In any `per_ms` milliseconds there are at most `count + burst - 1` attempts, so with the
    default there are never more than `count`.  The rule is the generic cell rate algorithm (ITU-T
    I.371): one number for each rate, the moment until which all that was taken is paid.

    Raises:
        UsageError: a number below 1.
    """

    count: int
    per_ms: int
    burst: int = 1

    def __post_init__(self) -> None:
        for name in ("count", "per_ms", "burst"):
            if getattr(self, name) < 1:
                raise UsageError(f"rate: {name} is {getattr(self, name)}, expected 1 or more.")

    @property
    def interval_us(self) -> int:
        """Microseconds that one attempt pays for; rounded up, so never too fast."""
        return -(-self.per_ms * 1000 // self.count)

    def free(self, paid_until_us: int, now_ms: int) -> int:
        """How many attempts may be made now."""
        ahead_us = max(paid_until_us - now_ms * 1000, 0)
        return max(self.burst * self.interval_us - ahead_us, 0) // self.interval_us

    def paid(self, paid_until_us: int, now_ms: int, attempts: int) -> int:
        """Until when is paid, after these attempts."""
        return max(paid_until_us, now_ms * 1000) + attempts * self.interval_us

    def free_at_ms(self, paid_until_us: int) -> int:
        """When the next attempt may be made."""
        return -(-(paid_until_us - (self.burst - 1) * self.interval_us) // 1000)


class Limit(msgspec.Struct, frozen=True):
    """A cap on what all workers do at once (`slots`), or one after the other (`rate`), or both.

    Args:
        name: by which the fleet knows it; letters, digits and `_.-`.
        machine: whose effects it covers; None for all machines'.
        state: whose effect, reconcile and compensation it covers; None for all states of `machine`.
        slots: how many runs may have such an effect in hand at once; 0 stops them all.
        rate: how many attempts may be begun in a time.
        per_tenant: every tenant has slots and a rate of its own.

    Raises:
        UsageError: a bad name, a state without a machine, neither slots nor a rate.
    """

    name: str
    machine: type[Machine[Any]] | str | None = None
    state: str | None = None
    slots: int | None = None
    rate: Rate | None = None
    per_tenant: bool = False

    def __post_init__(self) -> None:
        where = f"limit {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{where}: expected a name of 1 to 100 letters, digits and `_.-`, "
                "beginning with a letter or digit."
            )
        if self.state is not None and self.machine is None:
            raise UsageError(f"{where}: names state {self.state!r} of no machine; give machine=.")
        if self.slots is None and self.rate is None:
            raise UsageError(f"{where}: limits nothing; give slots= or rate=.")
        if self.slots is not None and not 0 <= self.slots <= SLOTS_MAX:
            raise UsageError(f"{where}: expected 0 to {SLOTS_MAX} slots, got {self.slots}.")
        if self.machine is not None and not isinstance(self.machine, str):
            msgspec.structs.force_setattr(self, "machine", self.machine.__name__)

    def covers(self, machine: str, state: str) -> bool:
        """Whether the effect of this state, or its compensation, needs this limit."""
        return self.machine in (None, machine) and self.state in (None, state)

    def tenant_of(self, tenant: str) -> str:
        """Whose slots and tokens a run of this tenant takes."""
        return tenant if self.per_tenant else ""


def check_limits(limits: Sequence[Limit], tables: Mapping[str, Table]) -> None:
    """Refuse limits of what is not there.

    Raises:
        UsageError: two of one name; a machine or a state that the program does not have.
    """
    names = [one.name for one in limits]
    for one in limits:
        where = f"limit {one.name!r}"
        if names.count(one.name) > 1:
            raise UsageError(f"{where}: declared twice; give each limit a name of its own.")
        if one.machine is None:
            continue
        table = tables.get(str(one.machine))
        if table is None:
            raise UsageError(
                f"{where}: machine {one.machine!r} is not one of this program's "
                f"({', '.join(sorted(tables)) or 'none'})."
            )
        if one.state is not None and one.state not in table.places:
            raise UsageError(
                f"{where}: machine {one.machine} has no state {one.state!r}; it has "
                f"{', '.join(sorted(table.places))}."
            )


def check_share(tenant: str, priority: int) -> None:
    """Refuse a tenant or a priority that cannot be stored.

    Raises:
        UsageError: names the value and what was expected.
    """
    if len(tenant) > TENANT_CHARACTERS_MAX or "\x00" in tenant:
        raise UsageError(
            f"tenant: expected at most {TENANT_CHARACTERS_MAX} characters without NUL, "
            f"got {len(tenant)} ({tenant[:40]!r})."
        )
    if abs(priority) > PRIORITY_MAX:
        raise UsageError(f"priority: expected -{PRIORITY_MAX} to {PRIORITY_MAX}, got {priority}.")


def written(names: Iterable[str]) -> str | None:
    """Names as a run's row has them: `,bank,cards,`; None for none."""
    listed = sorted(names)
    return f",{','.join(listed)}," if listed else None


def read(text: str | None) -> frozenset[str]:
    """The names in a run's row."""
    return frozenset(text.strip(",").split(",")) if text else NONE


class Limiting:
    """The limits as this worker knows them, and what an effect needs by them."""

    def __init__(self) -> None:
        self._limits: dict[str, Limit] = {}
        self._rates: frozenset[str] = NONE
        self._needed: dict[tuple[str, str], frozenset[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._limits)

    def know(self, limits: Iterable[Limit]) -> None:
        """These are the limits from now on."""
        found = {one.name: one for one in limits}
        if found != self._limits:
            self._limits = found
            self._rates = frozenset(name for name, one in found.items() if one.rate)
            self._needed = {}

    def needed(self, run: Run) -> frozenset[str]:
        """What the pending effect of a run needs; nothing where there is none."""
        effect = run.effect
        if effect is None or not self._limits or run.due_ms is None:
            return NONE
        key = (run.machine, effect.undo_of or run.state)
        found = self._needed.get(key)
        if found is None:
            found = frozenset(n for n, one in self._limits.items() if one.covers(*key))
            self._needed[key] = found
        return found

    def spent(self, held: frozenset[str]) -> frozenset[str]:
        """What is left after an attempt: the slots, but no token."""
        return held - self._rates


def changed(before: Limit, after: Limit) -> None:
    """Say that a limit was declared anew with other numbers."""
    log.warning("limit.changed", limit=after.name, before=_shown(before), after=_shown(after))


def _shown(limit: Limit) -> str:
    where = ".".join(str(one) for one in (limit.machine, limit.state) if one) or "all machines"
    rate = limit.rate
    size = [
        *([f"{limit.slots} slots"] if limit.slots is not None else []),
        *([f"{rate.count} in {rate.per_ms} ms, burst {rate.burst}"] if rate else []),
    ]
    return f"{where}: {', '.join(size)}{' for each tenant' if limit.per_tenant else ''}"
