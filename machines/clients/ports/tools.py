"""What a program knows of its own code: the port that says which wheel belongs into a sandbox.

No network is behind it.  The answers are about the code that is running, so they hold at every
depth: an engine inside a sandbox runs from an unpacked copy of the same wheel.
"""

from __future__ import annotations

from typing import Protocol

from machines.clients.ports import Record


class Package(Record):
    """The running code as a wheel.

    Args:
        sha256: of the wheel, in hexadecimal.
        record: path of the RECORD in it, which names every file with its digest and size.
        record_sha256: of that RECORD.
    """

    filename: str
    version: str
    sha256: str
    record: str
    record_sha256: str


class Tools(Protocol):
    """The running code, as a package to hand on."""

    async def package(self) -> Package:
        """Which wheel it is.

        Raises:
            Rejected: the running code cannot be packed (it has no source files).
        """

    async def proof(self, salt: str) -> str:
        """The SHA-256, in hexadecimal, of a text followed by the bytes of the wheel.

        Only who has read the whole wheel after learning the salt can say it.
        """
