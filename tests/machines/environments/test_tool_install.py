"""`ToolInstall` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.events import Event
from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.environments.tool_install import (
    DIGEST,
    PROOF,
    REASONS,
    RECORD_DIGEST,
    REQUESTS_MAX,
    OfToolInstall,
)
from machines.flows.f05_tool_install import REPAIRS_MAX, TOOLS_COUNT, ToolInstall
from machines.flows.tool_calls import (
    BrokeOff,
    Checked,
    Compared,
    Downloaded,
    Installation,
    Removed,
    TurnedDown,
)
from persistence.store import open_store

OF = OfToolInstall()
(ONCE,) = OF.contexts()
REPAIRED = msgspec.structs.replace(ONCE, repairs=REPAIRS_MAX)


def test_everything_is_explored_and_nothing_is_wrong() -> None:
    """Nobody asks it to stop here; `turtles verify` does it all."""
    scope = msgspec.structs.replace(OF.scope, cancels=False)
    report = explore(
        ToolInstall, open_store("sqlite://"), scope=scope, environment=OF, budget_seconds=60
    )
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)
    assert report.executions < 6_000


def test_no_answer_of_an_honest_platform_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


@pytest.mark.parametrize("state", REASONS)
def test_every_reason_is_tried_once_and_one_of_them_later(state: str) -> None:
    def told(context: Installation, now_ms: int) -> list[Any]:
        found = OF.payloads_of("turned_down", context=context, state=state, now_ms=now_ms)
        return [one.kind for one in found or () if isinstance(one, TurnedDown)]

    assert told(ONCE, 0) == list(REASONS[state])
    assert told(ONCE, 1) == told(REPAIRED, 0) == [REASONS[state][0]]


def test_a_wheel_may_be_another_or_only_be_said_to_be_ours() -> None:
    found = OF.payloads_of("downloaded", context=ONCE, state="downloading", now_ms=0)
    answers = [(one.digest, one.proof) for one in found or () if isinstance(one, Downloaded)]
    assert answers == [(DIGEST, PROOF), ("another", "another"), (DIGEST, "made up")]


def _checked(**changes: Any) -> Checked:
    fields = {"record_sha256": RECORD_DIGEST, "version": "1", "tools": TOOLS_COUNT, "unusable": 0}
    return Checked(**{**fields, "path": "/p", **changes})


def _done(effect: str, event: Event, key: str = "") -> Done:
    return Done(effect, key or effect, event)


WHEEL = _done("download", Downloaded(digest=DIGEST, proof=PROOF, salt="s", python="3"))
COMPARED = _done("compare", Compared(proof=PROOF))
CHECKED = _done("check", _checked())


def _broken(state: str, status: str, *done: Done, reason: str = "why") -> list[str]:
    context = msgspec.structs.replace(ONCE, reason=reason)
    return list(OF.broken(context=context, state=state, status=status, now_ms=0, done=done))


def test_properties_hold() -> None:
    assert _broken("downloading", "running", reason="") == []
    assert _broken("installed", "completed", WHEEL, COMPARED, CHECKED) == []
    assert _broken("damaged", "failed", WHEEL, _done("uninstall", Removed())) == []
    assert _broken("unresolved", "failed") == []
    assert _broken("unreachable", "failed", reason="") == []


def test_properties_can_fail() -> None:
    liar = _done("download", Downloaded(digest=DIGEST, proof="made up", salt="s", python="3"))
    unproven = ["is_installed_after_proof_and_check"]
    assert _broken("installed", "completed", liar, COMPARED, CHECKED) == unproven
    assert _broken("installed", "completed", WHEEL, COMPARED) == unproven
    short = _done("check", _checked(tools=58))
    assert _broken("installed", "completed", WHEEL, COMPARED, short) == unproven
    killed = _done("install", BrokeOff(reason="killed"))
    assert _broken("installing", "running", WHEEL, killed) == ["nothing_is_unpacked_unproven"]
    many = [_done("check", BrokeOff(reason="x"), str(n)) for n in range(REQUESTS_MAX + 1)]
    assert _broken("checking", "running", *many) == ["costs_few_requests"]
    assert _broken("refused", "failed", WHEEL) == ["is_removed_when_it_failed"]
    assert _broken("refused", "failed", reason="") == ["says_why"]
