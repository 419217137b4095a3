"""Service, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.secret import Secret
from engine.table import compile_table
from machines.flows.deployment import (
    Barred,
    Broke,
    ClearedUp,
    Created,
    Declined,
    Deployment,
    Destroy,
    EnvSet,
    FoundFrozen,
    FoundRunning,
    Freeze,
    Frozen,
    Gone,
    HandOver,
    Lock,
    LockSet,
    NotClearedUp,
    Ready,
    Redeploy,
    Redeployed,
    ServiceReport,
    SetEnv,
    Thawed,
    Unfreeze,
    Unlock,
    Wake,
)
from machines.flows.deployment_calls import undo, was_redeployed
from machines.flows.errands import NoAnswer
from machines.flows.f08_service import Service

URL = "http://web.on.here/"
BASE = Deployment(
    public_key="pk",
    secret_key=Secret("sk"),
    name="web",
    bootstrap="run",
    poll_seconds=3,
    attended_seconds=7,
    ready_seconds=5,
    restarts_max=2,
    unfreeze_on_demand=True,
    service_id="s1",
    url=URL,
    deployment=1,
)
RUNS = {"address": URL}
GIVES_UP = {"on_exhausted": "no_answer"}
CALLS: dict[str, Any] = {"status": "running", "sends": GIVES_UP}
WAITS: dict[str, Any] = {
    "status": "running",
    "due": lambda c, now_ms: now_ms + 7_000,
    "sends": GIVES_UP | {"on_timeout": "nobody_asks"},
    "moved": True,
}
FAILS = {"status": "failed"}
CALLING = ("creating", "setting_env", "locking", "unlocking", "freezing", "thawing", "waking",
           "redeploying", "destroying")  # fmt: skip
FAILURES = ("failed", "never_ready", "name_taken", "no_slot", "gone", "refused", "locked",
            "out_of_turn", "not_destroyed", "unreachable", "unresolved")  # fmt: skip
PLACES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(CALLING, CALLS),
    "starting": {
        "status": "running",
        "due": lambda c, now_ms: now_ms + 5_000,
        "sends": GIVES_UP | {"on_timeout": "never_answers"},
    },
    "running": WAITS,
    "frozen": WAITS,
    "clearing_up": {
        "status": "running",
        "sends": {"on_exhausted": "not_cleared_up"},
        "waits_for_cancel": True,
    },
    **{key: {"status": "completed"} for key in ("destroyed", "handed_over")},
    **dict.fromkeys(FAILURES, FAILS),
}
NO_ANSWER = NoAnswer(effect="call", reason="silence", attempts=3)
ENV = Secret("A=1")


def _row(state: str, event: Any, to: str, **gives: Any) -> dict[str, Any]:
    """One edge; what leaves `running` has no address any more, what enters it has one."""
    given: dict[str, Any] = gives.pop("given", {})
    if state == "running":
        given = RUNS | given
        gives = {"address": ""} | gives
    if to == "running":
        gives = RUNS | gives
    return {"state": state, "event": event, "to": to, "given": given, "gives": gives}


def _ordered(state: str, event: Any, to: str, **gives: Any) -> list[dict[str, Any]]:
    """As a message, as a line of the script, and as one that is done."""
    again = {name: getattr(event, name) for name in event.__struct_fields__ if name != "at"}
    line = type(event)(at=2, **again)
    return [
        _row(state, event, to, **gives),
        _row(state, line, to, given={"line": 1}, line=2, **gives),
        _row(state, line, to, given={"line": 4}, **gives),
    ]


def _declined(state: str, cause: Any, to: str) -> dict[str, Any]:
    return _row(state, Declined(cause=cause, detail="said"), to, reason="said")


ROWS: list[dict[str, Any]] = [
    _row("creating", Created(service_id="s2", url="http://u/", deployment=4), "starting",
         service_id="s2", url="http://u/", deployment=4),
    _row("starting", Ready(url="http://v/", deployment=4, http_status=204), "running",
         url="http://v/", address="http://v/", deployment=4, http_status=204),
    _row("starting", Ready(url=URL, deployment=1, http_status=499), "running", http_status=499),
    {"state": "starting", "event": Ready(url=URL, deployment=1, http_status=500),
     "refused": "did_answer"},
    _row("starting", "never_answers", "never_ready", reason="no answer within 5 s"),
    _row("starting", Broke(detail="why"), "failed", reason="why"),
    _row("running", Broke(detail="why"), "redeploying", reason="why", restarts=1),
    _row("running", Broke(detail="why"), "redeploying", given={"restarts": 1},
         reason="why", restarts=2),
    _row("running", Broke(detail="why"), "failed", given={"restarts": 2}, reason="why"),
    _row("running", Broke(detail="why"), "failed", given={"bootstrap": ""}, reason="why"),
    _row("frozen", Broke(detail="why"), "failed", reason="why"),
    *_ordered("running", Redeploy(), "redeploying"),
    *_ordered("running", Redeploy(bootstrap="other"), "redeploying", bootstrap="other"),
    *_ordered("running", Freeze(), "freezing"),
    *_ordered("running", SetEnv(env=ENV), "setting_env", env=ENV),
    *_ordered("running", Lock(), "locking"),
    *_ordered("running", Unlock(), "unlocking"),
    *_ordered("running", Destroy(), "destroying"),
    *_ordered("running", HandOver(), "handed_over"),
    *_ordered("frozen", Unfreeze(), "thawing"),
    *_ordered("frozen", Wake(), "waking"),
    *_ordered("frozen", Destroy(), "destroying"),
    *_ordered("frozen", HandOver(), "handed_over"),
    *({"state": state, "event": Destroy(), "given": {"locked": True}, "refused": "is_not_locked"}
      for state in ("running", "frozen")),
    {"state": "frozen", "event": Wake(), "given": {"unfreeze_on_demand": False},
     "refused": "wakes_on_demand"},
    *(_row(state, Barred(cause="locked", detail="no"), "locked", given={"locked": True},
           reason="no") for state in ("running", "frozen")),
    *(_row(state, Barred(cause="out_of_turn", detail="no"), "out_of_turn", reason="no")
      for state in ("running", "frozen")),
    *(_row(state, "nobody_asks", "destroying") for state in ("running", "frozen")),
    *(_row(state, "nobody_asks", "handed_over", given={"locked": True})
      for state in ("running", "frozen")),
    _row("running", FoundFrozen(), "frozen"),
    _row("frozen", FoundRunning(), "starting", thaws=1),
    _row("freezing", Frozen(), "frozen"),
    _row("thawing", Thawed(), "starting", thaws=1),
    _row("waking", Thawed(), "starting", thaws=1),
    _row("setting_env", EnvSet(), "running", given={"env": ENV}, env=None),
    _row("locking", LockSet(locked=True), "running", locked=True),
    _row("unlocking", LockSet(locked=False), "running", given={"locked": True}, locked=False),
    _row("redeploying", Redeployed(deployment=2), "starting", given={"reason": "why"},
         deployment=2, reason=""),
    _row("destroying", Gone(), "destroyed", service_id=""),
    _declined("creating", "name_taken", "name_taken"),
    _declined("creating", "no_slot", "no_slot"),
    _declined("creating", "gone", "refused"),
    _declined("creating", "refused", "refused"),
    *(_declined(state, cause, "gone")
      for state in ("starting", "running", "frozen", "locking", "unlocking")
      for cause in ("gone", "refused")),
    *(_declined(state, "gone", "gone")
      for state in ("freezing", "thawing", "redeploying", "setting_env")),
    *(_declined(state, cause, "refused") for state in ("freezing", "setting_env")
      for cause in ("refused", "no_slot")),
    *(_declined(state, cause, to) for state in ("thawing", "redeploying")
      for cause, to in [("no_slot", "no_slot"), ("refused", "refused"), ("name_taken", "refused")]),
    *(_declined("waking", cause, "no_slot") for cause in ("no_slot", "refused")),
    *(_row(state, NO_ANSWER, to, reason="call was given up")
      for state, to in [("creating", "clearing_up"), ("destroying", "not_destroyed"),
                        *((state, "unreachable") for state in
                          ("starting", "running", "frozen", *CALLING[1:-1]))]),
    _row("clearing_up", ClearedUp(), "unreachable"),
    _row("clearing_up", NotClearedUp(effect="asking", reason="", attempts=3), "unresolved",
         given={"reason": "it failed"}, reason="it failed, and so was asking"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Service, BASE, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Service, BASE, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Service, BASE, PLACES)


@pytest.mark.parametrize(("service_id", "url"), [("s1", URL), ("", "")])
def test_output(output_of: Any, service_id: str, url: str) -> None:
    fields = {"service_id": service_id, "restarts": 2, "locked": True, "reason": "why"}
    assert output_of(Service, BASE, **fields) == ServiceReport(url=url, deployments=1, **fields)


@pytest.mark.parametrize("state", ["starting", "running", "frozen"])
def test_pauses_between_looks(state: str) -> None:
    every = compile_table(Service).places[state].every
    assert every is not None and every({"context": BASE}) == 3_000


def test_contracts(verdicts: Any, ensured: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Service, BASE)
    assert holds("only_what_is_there_is_locked", locked=True)
    assert holds("only_what_is_there_is_locked", service_id="")
    assert not holds("only_what_is_there_is_locked", service_id="", locked=True)
    assert holds("restarts_are_bounded", restarts=2)
    assert not holds("restarts_are_bounded", restarts=3)
    assert holds("has_an_address", address=URL) and not holds("has_an_address")
    assert not holds("has_an_address", address=URL, service_id="")
    assert holds("is_silent") and not holds("is_silent", address=URL)
    assert holds("is_nowhere", service_id="") and not holds("is_nowhere")
    assert not holds("is_nowhere", service_id="", address=URL)
    assert holds("is_there") and not holds("is_there", service_id="")
    assert holds("is_locked", locked=True) and not holds("is_locked")
    keeps = ensured(Service, BASE)
    assert keeps("lock_is_as_asked", event=LockSet(locked=True), locked=True)
    assert not keeps("lock_is_as_asked", event=LockSet(locked=True))
    assert keeps("is_a_new_deployment", deployment=2)
    assert not keeps("is_a_new_deployment", deployment=1)
    assert not keeps("is_a_new_deployment", deployment=2, service_id="s2")


def test_a_redeploy_is_asked_about_before_it_is_made_again() -> None:
    made = compile_table(Service).places["redeploying"].effect
    assert made is not None and not made.idempotent and made.ask is was_redeployed


def test_what_a_look_told_and_was_lost_is_asked_for_again() -> None:
    places = compile_table(Service).places
    looks = {name for name, one in places.items() if one.every is not None}
    assert looks == {"starting", "running", "frozen"}
    for name in looks:
        look = places[name].effect
        assert look is not None and not look.idempotent and look.ask is not None


def test_what_is_undone_by_what() -> None:
    places = compile_table(Service).places
    undone = {name: one.compensation for name, one in places.items() if one.compensation}
    assert undone == {"creating": undo}
    assert {name for name, one in places.items() if one.undoes == "creating"} == {"destroying"}
