"""Images: snapshots that outlive their source and can be shared (wire facts, section 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machines.platform.wire import Feature

if TYPE_CHECKING:
    from machines.platform.api import Api


class ImageEndpoints(Feature):
    """`/images`."""

    def __init__(self, api: Api) -> None:
        self._api = api
