"""A store in memory for tests, out of the distribution's own `persistence`.

The engine knows no store: this is the one place that looks for it, when a test asks for it.
"""

from __future__ import annotations

from importlib import import_module

from engine.ports import Store


def memory_store() -> Store:
    """A new, empty store; nobody else can see it, and it is gone with the process."""
    store: Store = import_module("persistence.store").open_store("sqlite://")
    return store
