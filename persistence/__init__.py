"""Databases: `open_store(url)` gives the store that `engine.App` works on."""

from __future__ import annotations

from persistence.store import SqlStore, open_store

__all__ = ["SqlStore", "open_store"]
