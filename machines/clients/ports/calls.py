"""Any call of the API host, for those who only pass it on: an agent's tools."""

from __future__ import annotations

from typing import Any, Protocol

from machines.clients.ports import Credentials


class Calls(Protocol):
    """One signed request, whatever it is for."""

    async def call(
        self,
        credentials: Credentials | None,
        method: str,
        path: str,
        *,
        name: str,
        body: dict[str, Any] | None = None,
        text: str | None = None,
        key: str | None = None,
    ) -> Any:
        """The JSON of a 2xx reply (numbers with a fraction as `Decimal`), or a `ClientError`.

        Args:
            credentials: whose key signs; None sends it unsigned.
            path: below the base address, with its query; ids in it are already quoted.
            name: what this is, for logs and messages; no ids in it.
            body: sent as JSON; `text` instead is sent as it is.  Neither: no body.
            key: the `Idempotency-Key`; a POST with the same one is done once.
        """
