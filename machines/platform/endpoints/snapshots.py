"""Snapshots of sessions and services (wire facts, section 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machines.platform.wire import Feature

if TYPE_CHECKING:
    from machines.platform.api import Api


class SnapshotEndpoints(Feature):
    """`/snapshots`."""

    def __init__(self, api: Api) -> None:
        self._api = api
