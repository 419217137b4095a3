"""The platform's own log lines, and the audit log of a key (wire facts, sections 11 and 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machines.platform.wire import Feature

if TYPE_CHECKING:
    from machines.platform.api import Api


class LogEndpoints(Feature):
    """`/logs`."""

    def __init__(self, api: Api) -> None:
        self._api = api
