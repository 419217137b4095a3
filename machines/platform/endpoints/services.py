"""Services: programs that answer on ports, and go on (wire facts, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machines.platform.wire import Feature

if TYPE_CHECKING:
    from machines.platform.api import Api


class ServiceEndpoints(Feature):
    """`/services`."""

    def __init__(self, api: Api) -> None:
        self._api = api
