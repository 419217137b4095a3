"""Authentication, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.secret import Secret
from machines.flows.f04_authentication import (
    Accepted,
    Authentication,
    Denied,
    Identity,
    OutOfStep,
    Proof,
    Unanswered,
)

PROOF = Proof(public_key="pk", secret_key=Secret("sk"), timeout_ms=600, offset_ms_max=50)
SENDS = {"on_timeout": "nobody_answers", "on_exhausted": "unanswered"}
RUNNING: dict[str, Any] = {
    "status": "running",
    "due": lambda c, now_ms: now_ms + 600,
    "sends": SENDS,
}
FAILS = {"status": "failed"}
PLACES: dict[str, dict[str, Any]] = {
    "verifying": RUNNING,
    "resyncing": RUNNING,
    "authenticated": {"status": "completed"},
    **dict.fromkeys(
        ("skewed", "rejected", "expired", "suspended", "rotated", "unreachable"),
        FAILS,
    ),
}
KNOWN = {"tier": 1, "concurrency": 2, "requests_per_minute": 3}
NO_TIME = "our clock is off, and the server does not tell its"


def _denied(reason: Any) -> Denied:
    return Denied(reason=reason, detail=f"said {reason}")


def _from_either(state: str) -> list[dict[str, Any]]:
    """What both states do alike."""
    gave_up = Unanswered(effect="prove", reason="silence", attempts=30)
    rows: list[dict[str, Any]] = [
        {"event": Accepted(**KNOWN), "to": "authenticated", "gives": KNOWN},
        {"event": Accepted(tier=1, concurrency=1, requests_per_minute=1), "to": "authenticated",
         "gives": {"tier": 1, "concurrency": 1, "requests_per_minute": 1}},
        *({"event": Accepted(**{**KNOWN, field: 0}), "refused": "offers_something"}
          for field in KNOWN),
        *({"event": _denied(reason), "to": to, "gives": {"reason": f"said {reason}"}}
          for reason, to in [("expired", "expired"), ("suspended", "suspended"),
                             ("invalid_signature", "rejected"), ("invalid_key", "rejected"),
                             ("other", "rejected")]),
        {"event": _denied("invalid_signature"), "given": {"proven_before": True}, "to": "rotated",
         "gives": {"reason": "said invalid_signature"}},
        {"event": _denied("invalid_key"), "given": {"proven_before": True}, "to": "rejected",
         "gives": {"reason": "said invalid_key"}},
        {"event": gave_up, "to": "unreachable", "gives": {"reason": "silence"}},
        {"event": "nobody_answers", "to": "unreachable"},
    ]  # fmt: skip
    return [{"state": state, **row} for row in rows]


def _skewed(state: str, server_ms: int | None, reason: str) -> dict[str, Any]:
    event = OutOfStep(server_ms=server_ms, local_ms=1_000)
    return {"state": state, "event": event, "to": "skewed", "gives": {"reason": reason}}


def _measured(server_ms: int) -> dict[str, Any]:
    return {
        "state": "verifying",
        "event": OutOfStep(server_ms=server_ms, local_ms=1_000),
        "to": "resyncing",
        "gives": {"offset_ms": server_ms - 1_000, "resyncs": 1},
    }


ROWS = [
    *_from_either("verifying"),
    *_from_either("resyncing"),
    *map(_measured, (950, 999, 1_050)),
    _skewed("verifying", 1_051, "our clock is 51 ms behind the server's"),
    _skewed("verifying", 949, "our clock is 51 ms ahead of the server's"),
    _skewed("verifying", None, NO_TIME),
    _skewed("resyncing", 1_001, "our clock is 1 ms behind the server's"),
    _skewed("resyncing", 1_000, "our clock is 0 ms ahead of the server's"),
    _skewed("resyncing", None, NO_TIME),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Authentication, PROOF, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Authentication, PROOF, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Authentication, PROOF, PLACES)


@pytest.mark.parametrize("tier", [0, 1])
def test_output(output_of: Any, tier: int) -> None:
    known = Identity(offset_ms=-3, tier=1, concurrency=2, requests_per_minute=3)
    fields = {**KNOWN, "tier": tier, "offset_ms": -3}
    assert output_of(Authentication, PROOF, **fields) == (known if tier else None)


def test_contracts(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Authentication, PROOF)
    assert holds("resyncs_once", resyncs=1) and not holds("resyncs_once", resyncs=2)
    assert holds("offset_is_bounded", offset_ms=-50)
    assert not holds("offset_is_bounded", offset_ms=-51)
    assert holds("is_known", tier=1) and not holds("is_known", tier=0)
    assert not holds("was_proven_before") and holds("was_proven_before", proven_before=True)
