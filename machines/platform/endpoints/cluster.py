"""What the platform and its machine are doing (wire facts, section 12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from machines.platform.cluster import (
    Cluster,
    cluster_document,
    pools_document,
    stats_document,
)
from machines.platform.replies import reply
from machines.platform.wire import Call, Endpoint, Feature

if TYPE_CHECKING:
    from collections.abc import Callable

    from machines.platform.api import Api
    from machines.platform.cluster import Reading


class ClusterEndpoints(Feature):
    """`/cluster`, `/stats`, `/pools`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._cluster = Cluster(api.context, api.sessions)

    def start(self) -> None:
        """The platform serves from now on."""
        self._cluster.start()

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (
            self._showing("/cluster", cluster_document, "Sandboxes and memory of the cluster."),
            self._showing("/stats", stats_document, "Load of the machine."),
            self._showing("/pools", pools_document, "Sandboxes by pool."),
        )

    def _showing(
        self, path: str, document: Callable[[Reading], dict[str, Any]], summary: str
    ) -> Endpoint:
        def show(_call: Call) -> Response:
            return reply(document(self._cluster.read(self._api.can_isolate)))

        return Endpoint(method="GET", path=path, handler=show, summary=summary, tag="cluster")
