"""Running code once: what to run, what became of it, and the port that does it.

Errors are those of `machines.clients.ports`, and `Refusal` with the platform's code.
Source: platform-api.md sections 2 to 4.
"""

from __future__ import annotations

from typing import Literal, Protocol

from engine.secret import Secret
from machines.clients.ports import Credentials, Record

NetworkMode = Literal["zerotrust", "semitrusted"]
"""No network at all, or egress through the platform's proxy."""
JobStatus = Literal["pending", "running", "completed", "failed", "timeout", "cancelled"]
"""`completed` says nothing of the exit code; the last four are final."""


class Variable(Record):
    """An environment variable; its value may be a secret."""

    name: str
    value: Secret[str]


class InputFile(Record):
    """A file that the program finds in /tmp/input."""

    name: str
    content_base64: str


class CodeOrder(Record):
    """What to run.  Without a `language` the platform finds out which it is (`/run`)."""

    code: str
    language: str
    stdin: str
    arguments: tuple[str, ...]
    environment: tuple[Variable, ...]
    files: tuple[InputFile, ...]
    network_mode: NetworkMode
    ttl_seconds: int
    vcpu: int
    wants_binary: bool


class Artifact(Record):
    """A file that came out: its name, its size and the SHA-256 of its content, in hex."""

    name: str
    size_bytes: int
    sha256: str


class Job(Record):
    """An execution as the platform tells it.

    Args:
        exit_code: of a program that ran to its end, or was stopped at its time limit.
        truncated: the platform kept only the beginning of the output.
        error: why there is no result, in the platform's words.
    """

    job_id: str
    status: JobStatus
    language: str
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    truncated: bool = False
    artifacts: tuple[Artifact, ...] = ()
    duration_ms: int = 0
    error: str = ""


class Executions(Protocol):
    """One-off executions, every call signed."""

    async def execute(self, credentials: Credentials, order: CodeOrder, *, key: str) -> Job:
        """Run and wait for the end; the same `key` runs it once and answers the same."""

    async def submit(self, credentials: Credentials, order: CodeOrder, *, key: str) -> Job:
        """Run in the background; the same `key` submits it once."""

    async def job(self, credentials: Credentials, job_id: str) -> Job:
        """How a job stands."""

    async def cancel(self, credentials: Credentials, job_id: str) -> Job:
        """End a job; one that has ended already keeps its result."""
