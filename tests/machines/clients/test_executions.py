"""Jobs as the wire tells them.  Sending is tested against the platform, in flow 6."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from machines.clients.executions import job_of
from machines.clients.fields import Fields
from machines.clients.ports import Rejected
from machines.clients.ports.executions import Artifact, Job


def _job(**fields: Any) -> Job:
    return job_of(Fields({"job_id": "j1", "status": "completed", **fields}, "reply"))


def test_a_whole_job() -> None:
    data = base64.b64encode(b"bytes").decode()
    digest = hashlib.sha256(b"bytes").hexdigest()
    job = _job(stdout="o", stderr="e", exit_code=3, language="c", truncated=True, total_time_ms=5,
               artifacts=[{"filename": "a", "data": data}], artifact={"name": "code",
               "content_base64": data}, error="why")  # fmt: skip
    assert job == Job(
        job_id="j1", status="completed", language="c", stdout="o", stderr="e", exit_code=3,
        truncated=True, duration_ms=5, error="why",
        artifacts=(Artifact("a", 5, digest), Artifact("code", 5, digest)),
    )  # fmt: skip


def test_aliases_and_absences() -> None:
    assert _job(output="o", detected_language="lua", execution_time=7) == Job(
        job_id="j1", status="completed", language="lua", stdout="o", duration_ms=7
    )
    assert job_of(Fields({"id": "j2", "exit_code": 0}, "reply")).status == "completed"


@pytest.mark.parametrize(
    "bad", [{"status": "odd"}, {"artifacts": [{"filename": "a", "data": "?"}]}]
)
def test_what_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match=r"expected"):
        _job(**bad)
