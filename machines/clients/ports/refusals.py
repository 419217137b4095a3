"""What a platform says when it refuses, as far as a program can act on it.

A `Refusal` carries the code that the API prints in `error` (`language_unavailable`,
`session_busy`, `outcome_unknown`, ...), so that a flow can give each its own state.
"""

from __future__ import annotations

from machines.clients.ports import ClientError, Rejected


class Refusal(Rejected):
    """The request is refused, and `code` says for what.

    Args:
        code: the platform's own word, such as `bad_field`; `other` when it says none.
        status: of HTTP.
        provides: the package that would bring what is missing, where the platform names one.
    """

    def __init__(self, message: str, *, code: str, status: int, provides: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.provides = provides


def code_of(error: ClientError) -> str:
    """The platform's own word for a refusal, e.g. `locked`; empty for every other error."""
    return error.code if isinstance(error, Refusal) else ""
