"""A run of flow 6: what it is asked for, what moves it, and what it reports."""

from __future__ import annotations

import base64
import binascii
from typing import Literal

import msgspec

from engine.clock import minutes, seconds
from engine.events import Event, GaveUp
from machines.clients.ports import Record
from machines.clients.ports.executions import (
    Artifact,
    CodeOrder,
    InputFile,
    Job,
    NetworkMode,
    Variable,
)
from machines.flows.keyed import Keyed
from machines.flows.languages import canonical, like
from machines.flows.text import kept

POLL_MS = (300, 450, 700, 900, 650, 1600, 2000)
"""Pauses before the first looks at a job; the last one is repeated (platform-api.md 3)."""
MISSES_MAX = 5
"""So many answers "no such job" in a row are taken for a registration that is late."""
TTL_SECONDS_MAX = 900
VCPUS_MAX = 8
FILES_MAX = 1000
GRACE_MS = seconds(60)
"""A job that is still going so long after its time limit is ended by us."""
ORDER_BYTES_MAX = 96 * 1024
OUTPUT_BYTES_MAX = 32 * 1024
"""Of each stream, and of the list of artifacts, as they are stored."""

Outcome = Literal["completed", "failed", "timed_out", "cancelled"]
RefusalKind = Literal[
    "unknown_language",
    "language_missing",
    "undetected",
    "out_of_range",
    "rejected",
    "no_slot",
    "unauthorized",
    "unavailable",
    "lost",
]


class Output(Record):
    """What a program left: bounded text, and the names and digests of its files.

    Args:
        exit_code: of a program that ran to its own end, and of no other.
        truncated: text was cut, by the platform or by us.
        artifacts_left_out: files that came out and are not listed.
    """

    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    artifacts: tuple[Artifact, ...] = ()
    artifacts_left_out: int = 0
    duration_ms: int = 0


class CodeRun(Keyed, kw_only=True):
    """Which code to run, how, and what was learnt.

    Args:
        language: one of the 42 names or an alias; empty: the platform finds out (`run`).
        mode: `sync` asks once and waits for the reply; `async` submits and polls.
        slot_attempts: so often the key is found without a free slot before that is told.
        submit_ms: how long submitting may take in all, beside the code's own time.
        grace_ms: how long after its time limit a job that is still going is ended by us.
        give_up_ms: the moment of that.
        polls: which pause comes next.  misses: answers "no such job" in a row.
        stopping: why we end the job ourselves.
        outcome: how it ended; empty until then.
        provides: what would have to be installed on the platform's machine.
    """

    code: str
    language: str = ""
    mode: Literal["sync", "async"] = "sync"
    stdin: str = ""
    arguments: tuple[str, ...] = ()
    environment: tuple[Variable, ...] = ()
    files: tuple[InputFile, ...] = ()
    network_mode: NetworkMode = "zerotrust"
    ttl_seconds: int = 60
    vcpu: int = 1
    wants_binary: bool = False
    slot_attempts: int = 30
    submit_ms: int = minutes(30)
    grace_ms: int = GRACE_MS
    job_id: str = ""
    ran_language: str = ""
    give_up_ms: int = 0
    polls: int = 0
    misses: int = 0
    stopping: Literal["", "cancel", "overdue", "silence"] = ""
    outcome: Literal["", "completed", "failed", "timed_out", "cancelled"] = ""
    output: Output = Output()
    reason: str = ""
    provides: str = ""


class ExecutionReport(Record):
    """What a parent learns beside the final state.  `success`: it ended by itself with 0."""

    outcome: str
    success: bool
    language: str
    output: Output
    reason: str
    provides: str


class Submitted(Event, tag="submitted"):
    """The platform has taken it as a job."""

    job_id: str
    language: str
    at_ms: int


class Refused(Event, tag="refused"):
    """Nothing was run; or (`lost`) nobody knows, and it is not run again."""

    kind: RefusalKind
    detail: str
    provides: str = ""


class Ended(Event, tag="ended"):
    """The job is over; `detail` is the platform's word for a failure."""

    outcome: Outcome
    output: Output
    language: str = ""
    detail: str = ""


class StillRunning(Event, tag="still_running"):
    """It goes on."""


class Missing(Event, tag="missing"):
    """The platform knows no such job."""


class RanOver(Event, tag="ran_over"):
    """It goes on long after its time limit."""


class Unanswered(GaveUp, tag="unanswered"):
    """No answer after all attempts."""


def order_of(context: CodeRun) -> CodeOrder:
    """What is sent."""
    return CodeOrder(
        code=context.code,
        language=canonical(context.language) or "",
        stdin=context.stdin,
        arguments=context.arguments,
        environment=context.environment,
        files=context.files,
        network_mode=context.network_mode,
        ttl_seconds=context.ttl_seconds,
        vcpu=context.vcpu,
        wants_binary=context.wants_binary,
    )


def problem_of(context: CodeRun) -> Refused | None:
    """Why an order need not be sent; pure."""
    if not 1 <= context.ttl_seconds <= TTL_SECONDS_MAX:
        return Refused(
            kind="out_of_range",
            detail=f"ttl_seconds: got {context.ttl_seconds}, expected 1 to {TTL_SECONDS_MAX}",
        )
    if context.language and canonical(context.language) is None:
        return Refused(kind="unknown_language", detail=_unknown(context.language))
    problem = _detection_problem(context) or _size_problem(context) or _files_problem(context)
    return None if problem is None else Refused(kind="rejected", detail=problem)


def _unknown(name: str) -> str:
    close = ", ".join(like(name)) or "one of the 42 that `turtles run Introspection` lists"
    return f"language: got {name[:40]!r}, which nobody knows; did you mean {close}?"


def _detection_problem(context: CodeRun) -> str | None:
    """`/run` takes the source, the network mode, the time and the environment, and no more."""
    more = context.stdin or context.arguments or context.files or context.wants_binary
    if not context.language and (more or context.vcpu != 1):
        return "stdin, arguments, files, binaries and vCPUs need a language: name it"
    return None


def _size_problem(context: CodeRun) -> str | None:
    if not context.code.strip():
        return "code: got nothing, expected a program"
    if not 1 <= context.vcpu <= VCPUS_MAX:
        return f"vcpu: got {context.vcpu}, expected 1 to {VCPUS_MAX}"
    secret = sum(len(one.name) + len(one.value.reveal()) for one in context.environment)
    rest = (context.code, context.stdin, context.arguments, context.files)
    size = secret + len(msgspec.json.encode(rest))
    if size > ORDER_BYTES_MAX:
        return f"the order takes {size} bytes, at most {ORDER_BYTES_MAX} are sent with a run"
    return None


def _files_problem(context: CodeRun) -> str | None:
    if len(context.files) > FILES_MAX:
        return f"files: got {len(context.files)}, expected at most {FILES_MAX}"
    for file in context.files:
        if not file.name or "/" in file.name or "\0" in file.name or file.name in (".", ".."):
            return f"files: name {file.name[:40]!r}, expected one without a directory"
        try:
            base64.b64decode(file.content_base64, validate=True)
        except (ValueError, binascii.Error):
            return f"files: the content of {file.name[:40]!r} is not base64"
    return None


def ended_of(job: Job) -> Ended:
    """A final job as an event.  An exit code counts only for a program that ended by itself."""
    outcomes: dict[str, Outcome] = {
        "completed": "completed",
        "timeout": "timed_out",
        "cancelled": "cancelled",
    }
    outcome = outcomes.get(job.status, "failed")
    if outcome == "completed" and job.exit_code is None:
        outcome = "failed"
    stdout, cut = kept(job.stdout, OUTPUT_BYTES_MAX)
    stderr, cut_too = kept(job.stderr, OUTPUT_BYTES_MAX)
    listed = _listed(job.artifacts)
    output = Output(
        exit_code=job.exit_code if outcome == "completed" else None,
        stdout=stdout,
        stderr=stderr,
        truncated=job.truncated or cut or cut_too,
        artifacts=listed,
        artifacts_left_out=len(job.artifacts) - len(listed),
        duration_ms=job.duration_ms,
    )
    return Ended(outcome=outcome, output=output, language=job.language, detail=_detail(job))


def _detail(job: Job) -> str:
    if job.status == "completed" and job.exit_code is None:
        return "the platform says it completed, and tells no exit code"
    return kept(job.error, 1024)[0]


def _listed(artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    listed: list[Artifact] = []
    left = OUTPUT_BYTES_MAX
    for one in artifacts:
        left -= len(msgspec.json.encode(one.name)) + 128
        if left < 0:
            break
        listed.append(one)
    return tuple(listed)
