"""Which user a sandbox runs as on the host.

Root inside is nobody outside. An ordinary user's platform has only its own id to give; root gives
every sandbox an id of its own, far from accounts and from the ranges that /etc/subuid hands out
first, so that two sandboxes have nothing in common even if a namespace failed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection
from pathlib import Path

from machines.platform.sandbox.errors import SandboxUnavailable

__all__ = ["free_user_id"]

_BASES = (300_000, 20_000)
_COUNT = 40_000


def free_user_id(used: Collection[int | None], uid_map: str | None = None) -> int | None:
    """An id outside `used`; None (stay who you are) unless this process is root.

    `uid_map`: content of /proc/self/uid_map, for tests. Raises SandboxUnavailable when root's own
    user namespace has no spare ids.
    """
    if os.geteuid() != 0:
        return None
    base = _mapped_base(uid_map or Path("/proc/self/uid_map").read_text())
    while (user_id := base + secrets.randbelow(_COUNT)) in used:
        pass
    return user_id


def _mapped_base(uid_map: str) -> int:
    """The first range of ids that exists in our own user namespace."""
    rows = [list(map(int, row.split())) for row in uid_map.splitlines()]
    for base in _BASES:
        if any(start <= base and base + _COUNT <= start + count for start, _, count in rows):
            return base
    raise SandboxUnavailable(
        f"root has no user ids {_BASES[-1]} to {_BASES[-1] + _COUNT} to run sandboxes as here "
        "(/proc/self/uid_map)",
        "start the platform as an ordinary user, or in a container with 65536 user ids",
    )
