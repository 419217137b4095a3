"""`Tools` of this very process: what `machines.wheel` builds of the running code."""

from __future__ import annotations

import asyncio
import hashlib

from machines.clients.ports import Rejected
from machines.clients.ports.tools import Package
from machines.wheel import RECORD, Wheel, own_wheel


class OwnTools:
    """The wheel of the running code, built once per process, off the event loop."""

    async def package(self) -> Package:
        """Which wheel it is."""
        wheel = await _wheel()
        return Package(
            filename=wheel.filename,
            version=wheel.version,
            sha256=wheel.sha256,
            record=RECORD,
            record_sha256=wheel.record_sha256,
        )

    async def proof(self, salt: str) -> str:
        """The digest of `salt` and the wheel's bytes."""
        wheel = await _wheel()
        return hashlib.sha256(salt.encode() + wheel.content).hexdigest()


async def _wheel() -> Wheel:
    try:
        return await asyncio.to_thread(own_wheel)
    except OSError as error:
        raise Rejected(f"own code cannot be packed into a wheel: {error}") from error
