"""How long a refused call waits, by what was used up.

::

    rate_limit     what the server asked for, else 10 s: a tier's requests come back by the minute
    concurrency    what the server asked for, else 5 s: somebody else must end first
    anything else  the policy of the effect

Source: platform-api.md 1.6, 1.8 (429 has two bodies).
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.clock import seconds
from engine.errors import Transient
from machines.clients.ports import ClientError, Unavailable
from machines.flows.keyed import later

WAIT_MS: Mapping[str, int] = {"rate_limit": seconds(10), "concurrency": seconds(5)}


def after(error: ClientError) -> Exception:
    """What a failed call means when performing it again with its key is harmless."""
    if isinstance(error, Unavailable) and error.retry_after_ms is None:
        return Transient(str(error), retry_after_ms=WAIT_MS.get(error.kind))
    return later(error)


def lacks_slot(error: ClientError) -> bool:
    """Whether the key's slots are all in use."""
    return isinstance(error, Unavailable) and error.kind == "concurrency"
