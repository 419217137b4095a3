"""Running code over HTTP: `/execute`, `/run` and `/jobs`, signed and keyed.

::

    POST /execute, /execute/async     a language is named
    POST /run, /run/async             the source is the body; the platform detects the language
    GET  /jobs/{id}                   how it stands
    DELETE /jobs/{id}                 end it

The content of artifacts is hashed here and not kept.  Source: platform-api.md 2 and 3.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, get_args
from urllib.parse import quote, urlencode

from machines.clients.fields import Fields
from machines.clients.ports import Credentials
from machines.clients.ports.executions import Artifact, CodeOrder, Job, JobStatus
from machines.clients.signed import Signed
from machines.clients.transport import Transport, segment

REPLY_BYTES_MAX = 64 * 1024 * 1024
"""A result may carry 8 MiB of artifacts, in base64 and under two names, beside its output."""
GRACE_SECONDS = 30.0
"""How much longer than the program's time limit its reply may take."""

_STATUSES: dict[str, JobStatus] = {status: status for status in get_args(JobStatus)}


class HttpExecutions:
    """`Executions` over one base URL."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._signed = Signed(base_url, transport)

    async def execute(self, credentials: Credentials, order: CodeOrder, *, key: str) -> Job:
        """Run it and wait."""
        return await self._send(credentials, order, key, "executions.execute", blocking=True)

    async def submit(self, credentials: Credentials, order: CodeOrder, *, key: str) -> Job:
        """Run it in the background."""
        return await self._send(credentials, order, key, "executions.submit", blocking=False)

    async def _send(
        self, credentials: Credentials, order: CodeOrder, key: str, call: str, *, blocking: bool
    ) -> Job:
        path, body = _request(order, "" if blocking else "/async")
        seconds = order.ttl_seconds + GRACE_SECONDS if blocking else None
        data = await self._signed.json(
            credentials, "POST", path, call, body=body, key=key, read_seconds=seconds
        )
        return job_of(Fields(data, call))

    async def job(self, credentials: Credentials, job_id: str) -> Job:
        """How it stands."""
        call = "executions.job"
        path = f"/jobs/{segment(job_id)}"
        return job_of(Fields(await self._signed.json(credentials, "GET", path, call), call))

    async def cancel(self, credentials: Credentials, job_id: str) -> Job:
        """End it."""
        call = "executions.cancel"
        path = f"/jobs/{segment(job_id)}"
        return job_of(Fields(await self._signed.json(credentials, "DELETE", path, call), call))


def _request(order: CodeOrder, suffix: str) -> tuple[str, dict[str, Any] | str]:
    """Path and body: `/run` has room for the source alone."""
    environment = {one.name: one.value.reveal() for one in order.environment}
    if not order.language:
        query = {"network_mode": order.network_mode, "ttl": str(order.ttl_seconds)}
        if environment:
            query["env"] = json.dumps(environment, separators=(",", ":"))
        return f"/run{suffix}?{urlencode(query, quote_via=quote, safe='')}", order.code
    wanted: dict[str, Any] = {
        "language": order.language,
        "code": order.code,
        "network_mode": order.network_mode,
        "ttl": order.ttl_seconds,
        "vcpu": order.vcpu,
        "env": environment,
        "stdin": order.stdin,
        "args": list(order.arguments),
        "input_files": [
            {"filename": one.name, "content": one.content_base64} for one in order.files
        ],
        "return_artifact": order.wants_binary,
    }
    return f"/execute{suffix}", {name: value for name, value in wanted.items() if value}


def job_of(fields: Fields) -> Job:
    """A job as the platform shows it; no status is a final result (platform-api.md 3)."""
    said = fields.optional_text("status", "state") or "completed"
    status = _STATUSES.get(said)
    if status is None:
        raise fields.refusal(("status",), f"expected one of {', '.join(_STATUSES)}")
    binary = fields.inner("artifact")
    listed = fields.items("artifacts") if fields.get("artifacts") is not None else []
    return Job(
        job_id=fields.text("job_id", "id"),
        status=status,
        language=fields.optional_text("detected_language", "language") or "",
        stdout=fields.optional_text("stdout", "output") or "",
        stderr=fields.optional_text("stderr") or "",
        exit_code=fields.integer("exit_code") if fields.get("exit_code") is not None else None,
        truncated=fields.get("truncated") is True,
        artifacts=tuple(_artifact(one) for one in (*listed, *([binary] if binary else []))),
        duration_ms=fields.integer(
            "total_time_ms", "execution_time_ms", "execution_time", "duration_ms", default=0
        ),
        error=fields.optional_text("error") or "",
    )


def _artifact(fields: Fields) -> Artifact:
    text = fields.optional_text("data", "content_base64") or ""
    try:
        content = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise fields.refusal(("data",), "expected base64") from error
    name = fields.text("filename", "name")
    return Artifact(name, len(content), hashlib.sha256(content).hexdigest())
