"""The word by which a server names a refusal, as far as a flow has to tell refusals apart.

Our clients keep what the server said in the message of their error, in one form::

    snapshots.take: status 409: service_frozen: service unsb-service-1 is frozen; ...
"""

from __future__ import annotations

import re

from machines.clients.ports import ClientError

_SAID = re.compile(r": status (?P<status>\d{3}): (?P<code>[a-z][a-z0-9_]*)(?=: |$)")


def code_of(error: ClientError) -> str:
    """The server's own word, e.g. `locked`; empty when it gave none."""
    found = _SAID.search(str(error))
    return found["code"] if found else ""


def status_of(error: ClientError) -> int:
    """The HTTP status behind an error; 0 when there was none."""
    found = re.search(r": status (\d{3}):", str(error))
    return int(found[1]) if found else 0
