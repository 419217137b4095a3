"""Execution, edge by edge."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from engine.clock import minutes
from engine.secret import Secret
from machines.clients.ports.executions import Artifact
from machines.flows.code_run import (
    CodeRun,
    Ended,
    ExecutionReport,
    Missing,
    Output,
    RanOver,
    RefusalKind,
    Refused,
    StillRunning,
    Submitted,
    Unanswered,
)
from machines.flows.f06_execution import Execution

ASKED = CodeRun(
    public_key="pk",
    secret_key=Secret("sk"),
    code="1",
    ttl_seconds=3,
    submit_ms=50,
    grace_ms=5_000,
    polls=2,
)
TAKEN = {"job_id": "j1", "give_up_ms": 9_000}
FAILURES = ("timed_out", "failed", "cancelled", "overdue", "lost", "unreachable")
PLACES: dict[str, dict[str, Any]] = {
    "submitting": {
        "status": "running",
        "due": lambda c, now_ms: now_ms + 3_050,
        "sends": {"on_timeout": "time_up", "on_exhausted": "unanswered"},
    },
    "running": {
        "status": "waiting",
        "due": lambda c, now_ms: (
            now_ms + {0: 300, 1: 450, 2: 700, 3: 900, 4: 650, 5: 1600, 6: 2000}[c.polls]
        ),
        "sends": {"on_timeout": "time_to_look"},
    },
    "polling": {
        "status": "running",
        "due": lambda c, now_ms: now_ms + minutes(5),
        "sends": {"on_timeout": "time_up", "on_exhausted": "unanswered"},
    },
    "withdrawing": {
        "status": "running",
        "waits_for_cancel": True,
        "sends": {"on_exhausted": "unanswered"},
    },
    "completed": {"status": "completed"},
    **{name: {"status": "failed"} for name in (*FAILURES, *get_args(RefusalKind))},
}
DONE = Output(exit_code=1, stdout="out", artifacts=(Artifact("a", 1, "ff"),))
STOPPED = Output(stdout="half")
SILENT = {"stopping": "silence", "reason": "the platform did not answer"}
ASKED_TO_STOP = {"stopping": "cancel", "reason": "cancelled on request"}
GAVE_UP = Unanswered(effect="look", reason="silence", attempts=30)


def _ended(outcome: Any, output: Output = STOPPED, **fields: Any) -> Ended:
    return Ended(outcome=outcome, output=output, **fields)


def _ends(state: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """What every state with a call does with an end."""
    rows: list[dict[str, Any]] = [
        {"event": _ended("completed", DONE, language="awk"), "to": "completed",
         "gives": {"outcome": "completed", "output": DONE, "ran_language": "awk"}},
        {"event": _ended("timed_out", detail="too long"), "to": "timed_out",
         "gives": {"outcome": "timed_out", "output": STOPPED, "reason": "too long"}},
        {"event": _ended("failed", detail="broke"), "to": "failed",
         "gives": {"outcome": "failed", "output": STOPPED, "reason": "broke"}},
        {"event": _ended("completed"), "refused": "exit_code_is_of_a_completed_program"},
        *({"event": _ended(other, DONE), "refused": "exit_code_is_of_a_completed_program"}
          for other in ("failed", "timed_out", "cancelled")),
    ]  # fmt: skip
    return [{"state": state, "given": given, **row} for row in rows]


def _stopped(why: str, to: str) -> list[dict[str, Any]]:
    """How a job ends that was told to."""
    given = {**TAKEN, "stopping": why, "reason": "why"}
    return [
        {"state": "withdrawing", "given": given, "event": _ended("cancelled"), "to": to,
         "gives": {"outcome": "cancelled", "output": STOPPED}},
        {"state": "withdrawing", "given": given, "event": Missing(), "to": to,
         "gives": {"misses": 1, "polls": 3}},
    ]  # fmt: skip


ROWS = [
    {"state": "submitting", "event": Submitted(job_id="j1", language="c", at_ms=1_000),
     "to": "running", "gives": {**TAKEN, "ran_language": "c"}},
    {"state": "submitting", "event": Submitted(job_id="", language="c", at_ms=1_000),
     "refused": "job_has_a_name"},
    *({"state": "submitting", "to": kind,
       "event": Refused(kind=kind, detail=f"said {kind}", provides="apt"),
       "gives": {"reason": f"said {kind}", "provides": "apt"}} for kind in get_args(RefusalKind)),
    *_ends("submitting", {}),
    {"state": "submitting", "event": _ended("cancelled"), "to": "cancelled",
     "gives": {"outcome": "cancelled", "output": STOPPED}},
    {"state": "submitting", "event": GAVE_UP, "to": "unreachable", "gives": {"reason": "silence"}},
    {"state": "submitting", "event": "time_up", "to": "unreachable"},
    {"state": "running", "given": TAKEN, "event": "time_to_look", "to": "polling"},
    {"state": "running", "given": TAKEN, "event": "cancel", "to": "withdrawing",
     "gives": {**ASKED_TO_STOP, "polls": 0}},
    *_ends("polling", TAKEN),
    {"state": "polling", "given": {**TAKEN, "ran_language": "c"},
     "event": _ended("completed", DONE), "to": "completed",
     "gives": {"outcome": "completed", "output": DONE}},
    {"state": "polling", "given": TAKEN, "event": _ended("cancelled"), "to": "cancelled",
     "gives": {"outcome": "cancelled", "output": STOPPED}},
    *({"state": "polling", "given": {**TAKEN, "polls": polls, "misses": 5}, "event": StillRunning(),
       "to": "running", "gives": {"misses": 0, **({"polls": then} if then != polls else {})}}
      for polls, then in [(0, 1), (5, 6), (6, 6)]),
    *({"state": "polling", "given": {**TAKEN, "misses": misses}, "event": Missing(),
       "to": "running" if misses < 5 else "lost",
       "gives": {"misses": misses + 1, "polls": 3,
                 "reason": "the platform knows no job of this id"}} for misses in (0, 4, 5)),
    {"state": "polling", "given": {**TAKEN, "polls": 6, "reason": "known"}, "event": Missing(),
     "to": "running", "gives": {"misses": 1}},
    {"state": "polling", "given": {**TAKEN, "misses": 1}, "event": RanOver(), "to": "withdrawing",
     "gives": {"stopping": "overdue", "polls": 0, "misses": 0,
               "reason": "still running 5 s after its time limit; it was ended"}},
    {"state": "polling", "given": TAKEN, "event": GAVE_UP, "to": "withdrawing",
     "gives": {**SILENT, "reason": "silence", "polls": 0}},
    {"state": "polling", "given": TAKEN, "event": "time_up", "to": "withdrawing",
     "gives": {**SILENT, "polls": 0}},
    {"state": "polling", "given": TAKEN, "event": "cancel", "to": "withdrawing",
     "gives": {**ASKED_TO_STOP, "polls": 0}},
    *_ends("withdrawing", {**TAKEN, "stopping": "cancel"}),
    *_stopped("cancel", "cancelled"),
    *_stopped("overdue", "overdue"),
    *_stopped("silence", "unreachable"),
    {"state": "withdrawing", "given": {**TAKEN, "stopping": "overdue"}, "event": GAVE_UP,
     "to": "unreachable", "gives": {"reason": "silence"}},
    {"state": "withdrawing", "given": {**TAKEN, "stopping": "overdue"}, "event": "cancel",
     "to": "withdrawing"},
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Execution, ASKED, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Execution, ASKED, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Execution, ASKED, PLACES)


def test_a_time_below_zero_takes_none_off_the_patience(check_begin: Any) -> None:
    places = {"submitting": {**PLACES["submitting"], "due": lambda c, now_ms: now_ms + 50}}
    begun = CodeRun(
        public_key="pk", secret_key=Secret("sk"), code="1", ttl_seconds=-7, submit_ms=50
    )
    check_begin(Execution, begun, places)


@pytest.mark.parametrize(("exit_code", "success"), [(0, True), (1, False), (None, False)])
def test_output(output_of: Any, exit_code: int | None, success: bool) -> None:
    output = Output(exit_code=exit_code, stdout="o")
    fields = {"outcome": "completed", "ran_language": "c", "reason": "r", "provides": "p"}
    assert output_of(Execution, ASKED, output=output, **fields) == ExecutionReport(
        outcome="completed", success=success, language="c", output=output, reason="r", provides="p"
    )


def test_invariants(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Execution, ASKED)
    only = "exit_code_only_when_completed"
    assert holds(only) and holds(only, outcome="completed", output=DONE)
    assert not holds(only, outcome="failed", output=DONE) and not holds(only, outcome="completed")
    counted = "looks_are_counted"
    assert holds(counted, polls=0, misses=0) and holds(counted, polls=6, misses=6)
    assert not any(holds(counted, **one) for one in (
        {"polls": -1}, {"polls": 7}, {"misses": -1}, {"misses": 7}))  # fmt: skip


@pytest.mark.parametrize(
    ("clause", "good", "bad"),
    [
        ("nothing_is_known", {}, [{"job_id": "j"}, {"outcome": "failed"}, {"stopping": "cancel"}]),
        ("has_a_job", {"job_id": "j"}, [{"job_id": ""}, {"outcome": "failed"},
                                        {"stopping": "cancel"}]),
        ("is_ended_for_a_reason", {"job_id": "j", "stopping": "cancel"},
         [{"job_id": ""}, {"outcome": "failed"}, {"stopping": ""}]),
        ("has_completed", {"outcome": "completed"}, [{"outcome": "failed"}]),
        ("has_timed_out", {"outcome": "timed_out"}, [{"outcome": "failed"}]),
        ("has_failed", {"outcome": "failed"}, [{"outcome": "completed"}]),
        ("was_cancelled", {"outcome": "cancelled"}, [{"outcome": "failed"}]),
        ("was_cancelled", {"stopping": "cancel"}, [{"stopping": "overdue"}]),
        ("was_ended_by_us", {"stopping": "overdue"},
         [{"stopping": "cancel"}, {"outcome": "failed"}]),
        ("was_ended_by_us", {"stopping": "overdue", "outcome": "cancelled"}, []),
        ("nothing_ran", {"reason": "r"}, [{"reason": ""}, {"job_id": "j"}, {"outcome": "failed"}]),
        ("nothing_is_told", {}, [{"outcome": "failed"}, {"output": DONE}]),
        ("nothing_is_told", {"outcome": "cancelled"}, []),
    ],
)  # fmt: skip
def test_invariants_of_states(
    verdicts: Any, clause: str, good: dict[str, Any], bad: list[dict[str, Any]]
) -> None:
    holds = verdicts(Execution, ASKED)
    assert holds(clause, **good)
    for one in bad:
        assert not holds(clause, **{**good, **one}), one


def test_a_run_follows_one_job(ensured: Any) -> None:
    holds = ensured(Execution, ASKED)
    assert holds("follows_one_job", polls=4)
    assert not holds("follows_one_job", job_id="j2")
    assert not holds("follows_one_job", give_up_ms=1)
