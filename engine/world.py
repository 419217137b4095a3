"""The seam: everything in which production, a test and the explorer may differ.

::

    App([Payment], store)                                        # the real world
    App([Payment], store, world=World(clock=clock, calls=fake))  # a test's

The engine asks for the time, for names of runs and workers, for the store and for the outside only
through here.  Messages come in through the store's inbox, so what wraps the store can lose, repeat
and reorder them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.clock import Clock
from engine.committer import Committer, Io
from engine.performing import Calls, OutsideCalls
from engine.ports import Store, WorkerIdentity
from engine.process import this_worker
from engine.system import SystemClock, new_run_id


def _as_it_is(store: Store) -> Store:
    return store


@dataclass(frozen=True, kw_only=True)
class World:
    """Clock, names, store, delivery and effects.

    Args:
        clock: what time it is, and how to wait.
        calls: how effects reach the outside.
        store: wraps the store that the app was given, deliveries of events included.
        io: where the store's methods run; None: a thread of their own, in place for a store in
            memory.
        committer: how writes reach the store.
        new_id: names new runs, given the time in ms.
        worker: who this program is among those that share the store.
    """

    clock: Clock = field(default_factory=SystemClock)
    calls: Calls = field(default_factory=OutsideCalls)
    store: Callable[[Store], Store] = _as_it_is
    io: Io | None = None
    committer: Callable[[Store, Io, Callable[[], bool]], Committer] = Committer
    new_id: Callable[[int], str] = new_run_id
    worker: Callable[[], WorkerIdentity] = this_worker
