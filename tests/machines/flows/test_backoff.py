"""How long to wait, by what was used up."""

from __future__ import annotations

import pytest

from engine.errors import OutcomeUnknown, Permanent, Transient
from machines.clients.ports import Rejected, ReplyLost, Unavailable
from machines.flows.backoff import after, lacks_slot


@pytest.mark.parametrize(
    ("kind", "asked_ms", "wait_ms"),
    [("rate_limit", None, 10_000), ("concurrency", None, 5_000), ("unreachable", None, None),
     ("rate_limit", 7, 7), ("concurrency", 0, 0)],
)  # fmt: skip
def test_waits(kind: str, asked_ms: int | None, wait_ms: int | None) -> None:
    error = after(Unavailable("429", kind=kind, retry_after_ms=asked_ms))
    assert isinstance(error, Transient) and error.retry_after_ms == wait_ms
    assert lacks_slot(Unavailable("429", kind=kind)) == (kind == "concurrency")


def test_the_rest_means_what_it_does_elsewhere() -> None:
    assert isinstance(after(ReplyLost("cut")), OutcomeUnknown)
    assert isinstance(after(Rejected("no")), Permanent)
    assert not lacks_slot(Rejected("no"))
