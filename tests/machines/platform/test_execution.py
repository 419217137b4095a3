"""Executions: stored before they run, run once, honest about what was lost."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import pytest

from machines.platform.languages import SOURCE_DIRECTORY
from machines.platform.orders import INPUT_DIRECTORY
from machines.platform.sandbox.backend import Command, Handle, Result
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.sessions import Sessions


class CountingBackend(FakeBackend):
    """Counts what was run, can hold it, and keeps the last command."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.result: Result | None = None
        self.last: tuple[Command, bytes] | None = None

    def _ran(self, otherwise: Result) -> Result:
        self.runs += 1
        self.entered.set()
        assert self.go.wait(30)
        return self.result or otherwise

    def execute(self, handle: Handle, command: Command, **options: Any) -> Result:
        self.last = (command, options.get("stdin", b""))
        return self._ran(super().execute(handle, command, **options))

    def cell(self, handle: Handle, language: str, code: str, **options: Any) -> Result:
        return self._ran(super().cell(handle, language, code, **options))


@pytest.fixture
def backend() -> CountingBackend:
    return CountingBackend()


CODE = {"language": "python", "code": "print(1)"}


async def opened(api: Any, tier: int = 8, **body: Any) -> tuple[tuple[str, str], str]:
    pair = api.key(tier=tier)
    made = await api.call(pair, "POST", "/sessions", body)
    return pair, f"/sessions/{made.json()['id']}"


async def test_variables_last_in_a_session(api: Any) -> None:
    pair, path = await opened(api, language="python")
    await api.call(pair, "POST", path + "/execute", {"code": "x = 41"})
    ran = await api.call(pair, "POST", path + "/execute", {"code": "print(x)"})
    assert ran.json()["stdout"] == "41\n"


async def test_the_same_key_runs_a_command_once(api: Any, backend: Any) -> None:
    pair, path = await opened(api)
    first = await api.call(pair, "POST", path + "/execute", {"command": "echo 1"}, once="k")
    again = await api.call(pair, "POST", path + "/execute", {"command": "echo 1"}, once="k")
    assert first.json() == again.json()
    assert backend.runs == 1
    other = await api.call(pair, "POST", path + "/execute", {"command": "echo 2"}, once="k")
    assert other.json()["error"] == "idempotency_key_reused"
    assert backend.runs == 1


async def test_a_stored_result_outlives_its_session(api: Any) -> None:
    pair, path = await opened(api)
    first = await api.call(pair, "POST", path + "/execute", {"command": "echo 1"}, once="k")
    await api.call(pair, "DELETE", path)
    again = await api.call(pair, "POST", path + "/execute", {"command": "echo 1"}, once="k")
    assert (again.status_code, again.json()) == (200, first.json())


@pytest.mark.parametrize("one_off", [True, False])
async def test_racing_requests_run_once(api: Any, backend: Any, one_off: bool) -> None:
    pair, path = (api.key(tier=8), "/execute") if one_off else await opened(api)
    url, body = (path, CODE) if one_off else (path + "/execute", {"command": "echo 1"})
    backend.go.clear()
    racing = [asyncio.create_task(api.call(pair, "POST", url, body, once="k")) for _ in range(8)]
    assert await asyncio.to_thread(backend.entered.wait, 10)
    backend.go.set()
    answers = await asyncio.gather(*racing)
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["stdout"] == "1\n"
    assert backend.runs == 1


async def test_a_running_execution_holds_a_slot_and_is_listed(api: Any, backend: Any) -> None:
    pair = api.key(tier=4)
    backend.go.clear()
    running = asyncio.create_task(api.call(pair, "POST", "/execute", CODE))
    assert await asyncio.to_thread(backend.entered.wait, 10)
    jobs = (await api.call(pair, "GET", "/jobs")).json()
    assert (jobs["count"], jobs["jobs"][0]["status"]) == (1, "running")
    refused = await api.call(pair, "POST", "/sessions")
    assert refused.json()["error"] == "concurrency_limit_reached"
    backend.go.set()
    assert (await running).status_code == 200
    assert (await api.call(pair, "POST", "/sessions")).status_code == 200


async def test_a_lost_outcome_is_said_and_never_run_again(api: Any, backend: Any) -> None:
    pair = api.key()
    ran = await api.call(pair, "POST", "/execute", CODE, once="k")
    # The platform died between the run and the writing of its result.
    with api.database.transaction() as sql:
        sql.run(
            "UPDATE execution SET state = 'running', exit_code = NULL, ended_ms = NULL "
            "WHERE job_id = :job",
            job=ran.json()["job_id"],
        )
    Sessions(api.context, backend).start()
    again = await api.call(pair, "POST", "/execute", CODE, once="k")
    assert (again.status_code, again.json()["error"]) == (409, "outcome_unknown")
    assert backend.runs == 1


async def test_a_lost_outcome_in_a_dead_session_is_gone(api: Any, backend: Any) -> None:
    pair, path = await opened(api)
    body = {"command": "echo 1"}
    await api.call(pair, "POST", path + "/execute", body, once="k")
    with api.database.transaction() as sql:
        sql.run("UPDATE execution SET state = 'running', exit_code = NULL, ended_ms = NULL")
    Sessions(api.context, backend).start()
    again = await api.call(pair, "POST", path + "/execute", body, once="k")
    assert (again.status_code, again.json()["error"]) == (410, "session_terminated")
    assert backend.runs == 1


async def test_a_refusal_frees_the_idempotency_key(api: Any, backend: Any) -> None:
    pair = api.key()
    bad = {**CODE, "env": {"not a name": "x"}}
    assert (await api.call(pair, "POST", "/execute", bad, once="k")).status_code == 400
    assert (await api.call(pair, "POST", "/execute", CODE, once="k")).status_code == 200


async def test_an_execution_is_not_idle(api: Any, backend: Any) -> None:
    pair, path = await opened(api, ttl=86_400)
    backend.go.clear()
    body = {"command": "echo 1", "timeout": 900_000}
    running = asyncio.create_task(api.call(pair, "POST", path + "/execute", body))
    assert await asyncio.to_thread(backend.entered.wait, 10)
    api.now_ms += 3_600_000
    assert (await api.call(pair, "GET", path)).json()["status"] == "running"
    backend.go.set()
    assert (await running).status_code == 200
    assert (await api.call(pair, "GET", path)).json()["status"] == "running"


async def test_a_timeout_is_told(api: Any, backend: Any) -> None:
    backend.result = Result(137, b"part", b"", timed_out=True, duration_ms=1000)
    answer = (await api.call(api.key(), "POST", "/execute", CODE)).json()
    assert (answer["status"], answer["success"], answer["stdout"]) == ("timeout", False, "part")
    assert answer["error"] == "stopped at its time limit"


async def test_bytes_that_are_no_text_survive_as_replacements(api: Any, backend: Any) -> None:
    backend.result = Result(0, b"a\xff\x00b", b"")
    answer = await api.call(api.key(), "POST", "/execute", CODE)
    assert answer.json()["stdout"] == "a�\x00b"


async def test_arguments_stdin_and_files_arrive(api: Any, backend: Any) -> None:
    content = base64.b64encode(b"hello").decode()
    body = {
        "language": "python",
        "code": "print(1)",
        "args": ["one", "two"],
        "stdin": "typed",
        "input_files": [{"filename": "data.txt", "content": content}],
    }
    await api.call(api.key(), "POST", "/execute", body)
    command, stdin = backend.last
    source, data = SOURCE_DIRECTORY + "/code.py", INPUT_DIRECTORY + "/data.txt"
    assert command.argv == ("python3", source, "one", "two")
    assert command.files == {source: b"print(1)", data: b"hello"}
    assert stdin == b"typed"


async def test_another_keys_job_is_not_found(api: Any) -> None:
    job_id = (await api.call(api.key(), "POST", "/execute", CODE)).json()["job_id"]
    assert (await api.call(api.key(), "GET", f"/jobs/{job_id}")).status_code == 404


async def test_old_results_are_forgotten_after_seven_days(api: Any) -> None:
    pair = api.key()
    job_id = (await api.call(pair, "POST", "/execute", CODE)).json()["job_id"]
    api.now_ms += 7 * 86_400_000
    api.app.state.api.executions.start()
    assert (await api.call(pair, "GET", f"/jobs/{job_id}")).status_code == 200
    api.now_ms += 1
    api.app.state.api.executions.start()
    assert (await api.call(pair, "GET", f"/jobs/{job_id}")).status_code == 404


async def finished(api: Any, pair: tuple[str, str], job_id: str) -> Any:
    executions = api.app.state.api.executions
    limit = asyncio.get_running_loop().time() + 20
    # By the database, not by GET: polling would use up the key's requests.
    while (await asyncio.to_thread(executions.find, pair[0], job_id))["state"] == "running":
        assert asyncio.get_running_loop().time() < limit
    return (await api.call(pair, "GET", f"/jobs/{job_id}")).json()


async def test_a_job_runs_in_the_background(api: Any, backend: Any) -> None:
    pair = api.key(tier=4)
    backend.go.clear()
    answer = await api.call(pair, "POST", "/execute/async", CODE, once="k")
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    job_id = answer.json()["job_id"]
    again = await api.call(pair, "POST", "/execute/async", CODE, once="k")
    assert again.json()["job_id"] == job_id
    full = await api.call(pair, "POST", "/execute/async", CODE)
    assert full.json()["error"] == "concurrency_limit_reached"
    backend.go.set()
    job = await finished(api, pair, job_id)
    assert (job["status"], job["stdout"], job["success"]) == ("completed", "1\n", True)
    assert backend.runs == 1


async def test_a_cancelled_job_stays_cancelled(api: Any, backend: Any) -> None:
    pair = api.key(tier=4)
    backend.go.clear()
    job_id = (await api.call(pair, "POST", "/execute/async", CODE)).json()["job_id"]
    assert await asyncio.to_thread(backend.entered.wait, 10)
    cancelled = await api.call(pair, "DELETE", f"/jobs/{job_id}")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    # Its slot is free at once, and what the sandbox still says changes nothing.
    assert (await api.call(pair, "POST", "/sessions")).status_code == 200
    backend.go.set()
    again = await api.call(pair, "POST", f"/jobs/{job_id}/cancel")
    assert again.json()["status"] == "cancelled"
    assert (await finished(api, pair, job_id))["success"] is False


async def test_a_finished_job_keeps_its_result(api: Any) -> None:
    pair = api.key()
    job_id = (await api.call(pair, "POST", "/execute", CODE)).json()["job_id"]
    answer = (await api.call(pair, "DELETE", f"/jobs/{job_id}")).json()
    assert (answer["status"], answer["stdout"]) == ("completed", "1\n")


async def test_a_job_that_the_sandbox_refuses_fails_with_its_reason(api: Any) -> None:
    pair = api.key()
    bad = {**CODE, "env": {"not a name": "x"}}
    job_id = (await api.call(pair, "POST", "/execute/async", bad)).json()["job_id"]
    job = await finished(api, pair, job_id)
    assert job["status"] == "failed"
    assert "not a name" in job["error"]


async def test_a_command_in_a_session_is_not_cancelled_alone(api: Any, backend: Any) -> None:
    pair, path = await opened(api)
    backend.go.clear()
    body = {"command": "echo 1"}
    running = asyncio.create_task(api.call(pair, "POST", path + "/execute", body))
    assert await asyncio.to_thread(backend.entered.wait, 10)
    job_id = (await api.call(pair, "GET", "/jobs")).json()["jobs"][0]["job_id"]
    refused = await api.call(pair, "DELETE", f"/jobs/{job_id}")
    assert (refused.status_code, refused.json()["error"]) == (409, "job_in_session")
    backend.go.set()
    assert (await running).json()["stdout"] == "1\n"
