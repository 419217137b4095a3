"""Executions: stored before they run, run once, honest about what was lost."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from typing import Any

import pytest

from engine.errors import StoreBusy
from machines.platform import lives
from machines.platform.execution import Executions
from machines.platform.execution_rows import LIVE_STATES
from machines.platform.languages import SOURCE_DIRECTORY
from machines.platform.lives.job import JobLife
from machines.platform.one_off import JOB_MARK
from machines.platform.orders import Caller
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Command, Handle, Program, Result, Spec
from machines.platform.sandbox.errors import SandboxError, SandboxGone, SandboxLimit
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.sessions import Sessions
from machines.platform.transfers import INPUT_DIRECTORY


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
        self.refusal: SandboxError | None = None
        self.spec: Spec | None = None
        self.left = b""
        self.killed: list[str] = []

    def create(self, spec: Spec) -> Handle:
        self.spec = spec
        if self.refusal is not None:
            raise self.refusal
        return super().create(spec)

    def start_program(self, handle: Handle, command: Command) -> Program:
        """The killer of `one_off`: with it what runs ends, when it is one that can be killed."""
        if JOB_MARK not in command.argv[2]:
            return super().start_program(handle, command)
        self.killed.append(command.argv[-1])
        output, status = os.pipe(), os.pipe()
        os.write(status[1], b"0\n" if self.result else b"1\n")
        for end in (output[1], status[1]):
            os.close(end)
        self.go.set()
        return Program(7, output[0], status[0])

    def _ran(self, otherwise: Result) -> Result:
        self.runs += 1
        self.entered.set()
        assert self.go.wait(30)
        return self.result or otherwise

    def execute(self, handle: Handle, command: Command, **options: Any) -> Result:
        if command.argv[0] == "find":
            return Result(0, self.left, b"")
        if "ln -sT" in " ".join(command.argv):
            return Result(0, b"", b"")
        self.last = (command, options.get("stdin", b""))
        return self._ran(super().execute(handle, command, **options))

    def cell(self, handle: Handle, language: str, code: str, **options: Any) -> Result:
        return self._ran(super().cell(handle, language, code, **options))


@pytest.fixture
def backend() -> CountingBackend:
    return CountingBackend()


CODE = {"language": "python", "code": "print(1)"}


def restart(api: Any, backend: Any) -> None:
    """What a new process does first: the rows of the old one belong to nobody."""
    sessions = Sessions(api.context, backend)
    sessions.start()
    Executions(api.context, backend, sessions).start()


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
        lives.forget(sql, JobLife, ran.json()["job_id"])
    restart(api, backend)
    again = await api.call(pair, "POST", "/execute", CODE, once="k")
    assert (again.status_code, again.json()["error"]) == (409, "outcome_unknown")
    assert backend.runs == 1


async def test_a_lost_outcome_in_a_dead_session_is_gone(api: Any, backend: Any) -> None:
    pair, path = await opened(api)
    body = {"command": "echo 1"}
    await api.call(pair, "POST", path + "/execute", body, once="k")
    with api.database.transaction() as sql:
        sql.run("UPDATE execution SET state = 'running', exit_code = NULL, ended_ms = NULL")
    restart(api, backend)
    again = await api.call(pair, "POST", path + "/execute", body, once="k")
    assert (again.status_code, again.json()["error"]) == (410, "session_terminated")
    assert backend.runs == 1


async def test_a_refusal_frees_the_idempotency_key(api: Any, backend: Any) -> None:
    pair = api.key()
    backend.refusal = SandboxLimit("too many of them")
    assert (await api.call(pair, "POST", "/execute", CODE, once="k")).status_code == 400
    backend.refusal = None
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
    while (await asyncio.to_thread(executions.find, pair[0], job_id))["state"] in LIVE_STATES:
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


async def test_a_job_that_the_sandbox_refuses_fails_with_its_reason(api: Any, backend: Any) -> None:
    pair = api.key()
    backend.refusal = SandboxLimit("too many of them")
    job_id = (await api.call(pair, "POST", "/execute/async", CODE)).json()["job_id"]
    job = await finished(api, pair, job_id)
    assert (job["status"], job["success"], job["stdout"]) == ("failed", False, "")
    assert job["error"] == "too many of them"


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


async def started(api: Any, backend: Any, pair: tuple[str, str], **fields: Any) -> str:
    """A job that runs in the background until `backend.go`."""
    backend.go.clear()
    answer = await api.call(pair, "POST", "/execute/async", {**CODE, **fields})
    assert await asyncio.to_thread(backend.entered.wait, 10)
    return str(answer.json()["job_id"])


async def test_a_cancelled_job_has_what_it_printed(api: Any, backend: Any) -> None:
    pair = api.key()
    job_id = await started(api, backend, pair)
    backend.result = Result(137, b"part", b"noise", duration_ms=12)
    backend.left = b"."
    with_files = {"a": b"1"}
    backend.collect = lambda *_names, **_limits: with_files
    cancelled = (await api.call(pair, "DELETE", f"/jobs/{job_id}")).json()
    assert backend.killed == [job_id]
    assert (cancelled["status"], cancelled["success"]) == ("cancelled", False)
    assert (cancelled["stdout"], cancelled["stderr"]) == ("part", "noise")
    assert cancelled["artifacts"][0]["filename"] == "a"
    assert "completed_at" in cancelled
    assert "exit_code" not in cancelled


async def test_a_blocking_execution_can_be_cancelled(api: Any, backend: Any) -> None:
    pair = api.key()
    backend.go.clear()
    running = asyncio.create_task(api.call(pair, "POST", "/execute", CODE))
    assert await asyncio.to_thread(backend.entered.wait, 10)
    job_id = (await api.call(pair, "GET", "/jobs")).json()["jobs"][0]["job_id"]
    backend.result = Result(137, b"part", b"")
    await api.call(pair, "POST", f"/jobs/{job_id}/cancel")
    answer = await running
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json()["stdout"] == "part"


async def test_a_job_cancelled_while_its_sandbox_is_made_never_runs(api: Any, backend: Any) -> None:
    pair = api.key()
    making, go_on = threading.Event(), threading.Event()
    create = backend.create

    def slow(spec: Spec) -> Any:
        making.set()
        assert go_on.wait(10)
        return create(spec)

    backend.create = slow
    answer = await api.call(pair, "POST", "/execute/async", CODE)
    assert await asyncio.to_thread(making.wait, 10)
    job_id = answer.json()["job_id"]
    await api.call(pair, "DELETE", f"/jobs/{job_id}")
    go_on.set()
    waited = await api.call(pair, "GET", f"/jobs/{job_id}/wait")
    assert waited.json()["status"] == "cancelled"
    await asyncio.to_thread(api.app.state.api.executions.stop)
    assert backend.runs == 0


async def test_a_job_cancelled_before_it_began_never_runs(api: Any, backend: Any) -> None:
    pair = api.key()
    executions = api.app.state.api.executions
    begun = executions._begun

    def cancelled_first(job_id: str) -> bool:
        executions.cancel(pair[0], job_id)
        return bool(begun(job_id))

    executions._begun = cancelled_first
    answer = await api.call(pair, "POST", "/execute/async", CODE)
    job_id = answer.json()["job_id"]
    assert (await finished(api, pair, job_id))["status"] == "cancelled"
    assert backend.runs == 0


async def test_waiting_ends_with_the_job(api: Any, backend: Any) -> None:
    pair = api.key()
    job_id = await started(api, backend, pair)
    early = await api.call(pair, "GET", f"/jobs/{job_id}/wait?timeout=0")
    assert early.json()["status"] == "running"
    waiting = asyncio.create_task(api.call(pair, "GET", f"/jobs/{job_id}/wait"))
    backend.go.set()
    answer = (await waiting).json()
    assert (answer["status"], answer["stdout"]) == ("completed", "1\n")


async def test_only_so_many_wait(api: Any, backend: Any) -> None:
    pair = api.key()
    job_id = await started(api, backend, pair)
    executions = api.app.state.api.executions
    while executions._runs._waiters.acquire(blocking=False):
        pass
    refused = await api.call(pair, "GET", f"/jobs/{job_id}/wait")
    assert (refused.status_code, refused.json()["error"]) == (503, "busy")
    backend.go.set()


async def test_an_execution_holds_a_slot_for_each_vcpu(api: Any, backend: Any) -> None:
    pair = api.key(tier=8)
    refused = await api.call(pair, "POST", "/execute", {**CODE, "vcpu": 3})
    assert refused.json()["error"] == "concurrency_limit_reached"
    await started(api, backend, pair, vcpu=2, network_mode="semitrusted")
    assert (backend.spec.vcpus, backend.spec.memory_bytes) == (2, 4 * 1024**3)
    assert backend.spec.network == "semitrusted"
    refused = await api.call(pair, "POST", "/execute", CODE)
    assert refused.json()["error"] == "concurrency_limit_reached"
    backend.go.set()


async def test_an_execution_costs_two_commits(api: Any) -> None:
    pair = api.key()
    await api.call(pair, "POST", "/execute", CODE)
    commits = 0
    transaction = type(api.database).transaction

    def counting(database: Any) -> Any:
        nonlocal commits
        commits += 1
        return transaction(database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(api.database), "transaction", counting)
        assert (await api.call(pair, "POST", "/execute", CODE)).status_code == 200
    assert commits == 2


@pytest.mark.parametrize(("busy", "status"), [(4, 200), (5, 500)])
async def test_a_busy_database_does_not_lose_a_result_at_once(
    api: Any, busy: int, status: int
) -> None:
    pair = api.key()
    executions = api.app.state.api.executions
    finish, refused = executions._finish, 0

    def sometimes(*arguments: Any) -> Any:
        nonlocal refused
        if refused < busy:
            refused += 1
            raise StoreBusy("locked")
        return finish(*arguments)

    executions._finish = sometimes
    answer = await api.call(pair, "POST", "/execute", CODE)
    assert answer.status_code == status
    if status == 500:
        assert answer.json()["error"] == "outcome_unknown"
        api.now_ms += 60_000
        executions.tick()
        job = await api.call(pair, "GET", f"/jobs/{answer.json()['job_id']}")
        assert job.json()["error"] == "the result was lost"


async def test_what_a_dead_process_left_is_written_off(api: Any, backend: Any) -> None:
    pair = api.key(tier=32)
    states = {"pending": "", "running": ""}
    for state in states:
        ran = await api.call(pair, "POST", "/execute", CODE)
        states[state] = ran.json()["job_id"]
        with api.database.transaction() as sql:
            sql.run(
                "UPDATE execution SET state = :state, exit_code = NULL, ended_ms = NULL "
                "WHERE job_id = :job",
                state=state,
                job=states[state],
            )
            lives.forget(sql, JobLife, states[state])
    executions = api.app.state.api.executions
    executions.tick()
    api.now_ms += 60_000
    running = await started(api, backend, pair)
    executions.tick()
    for job_id in states.values():
        job = (await api.call(pair, "GET", f"/jobs/{job_id}")).json()
        assert (job["status"], job["error"]) == ("failed", "the result was lost")
    # What this process runs is not lost.
    assert (await api.call(pair, "GET", f"/jobs/{running}")).json()["status"] == "running"
    backend.go.set()


async def test_old_results_are_forgotten_by_the_tick(api: Any) -> None:
    pair = api.key()
    job_id = (await api.call(pair, "POST", "/execute", CODE)).json()["job_id"]
    api.now_ms += 7 * 86_400_000 + 1
    api.app.state.api.tick()
    assert (await api.call(pair, "GET", f"/jobs/{job_id}")).status_code == 404


# -- commands in services --------------------------------------------------------------------------

COMMAND = Command(argv=("sh", "-c", "echo 1"))


class Service:
    """A sandbox as a service has one, and commands in it."""

    def __init__(self, api: Any, backend: Any) -> None:
        self.executions = api.app.state.api.executions
        self.pair = api.key()
        self.lost: list[SandboxGone] = []
        backend.create(Spec(sandbox_id="service-1"))

    def submit(self, once: str | None = None, **options: Any) -> Any:
        caller = Caller(public_key=self.pair[0], tier=4, idempotency_key=once, digest="d")
        place = {"service_id": "s", "sandbox_id": "service-1", "network_mode": "zerotrust"}
        return self.executions.submit_in(
            caller,
            COMMAND,
            timeout_seconds=5.0,
            gone=self.lost.append,
            **{**place, **options},
        )


async def test_a_command_in_a_service_is_waited_for_as_long_as_asked(
    api: Any, backend: Any
) -> None:
    service = Service(api, backend)
    backend.go.clear()
    row = await asyncio.to_thread(service.submit)
    assert (row["state"], row["service_id"], row["session_id"]) == ("running", "s", None)
    backend.go.set()
    row = await asyncio.to_thread(service.submit, wait_ms=10_000)
    assert (row["state"], row["stdout"], row["exit_code"]) == ("completed", "1\n", 0)
    assert backend.last[0].environment == {JOB_MARK: row["job_id"]}


async def test_a_service_command_holds_no_slot_and_runs_once_for_a_key(
    api: Any, backend: Any
) -> None:
    service = Service(api, backend)
    backend.go.clear()
    first = await asyncio.to_thread(service.submit, "k")
    assert (await asyncio.to_thread(service.submit, "k"))["job_id"] == first["job_id"]
    again = asyncio.create_task(api.call(service.pair, "POST", "/execute", CODE))
    backend.go.set()
    assert (await again).status_code == 200


async def test_a_service_command_can_be_refused_and_cancelled(api: Any, backend: Any) -> None:
    service = Service(api, backend)

    def closed(_sql: Any) -> None:
        raise Problem(409, "service_not_running", "it is not")

    with pytest.raises(Problem, match="it is not"):
        service.submit(claim=closed)
    backend.go.clear()
    row = service.submit()
    assert await asyncio.to_thread(backend.entered.wait, 10)
    backend.result = Result(137, b"part", b"")
    cancelled = await api.call(service.pair, "DELETE", f"/jobs/{row['job_id']}")
    assert (cancelled.json()["status"], cancelled.json()["stdout"]) == ("cancelled", "part")
    # The service goes on.
    assert backend.stats(Handle("service-1")).processes == 0


async def test_a_service_command_in_a_sandbox_that_is_gone_is_lost(api: Any, backend: Any) -> None:
    service = Service(api, backend)
    backend.destroy(Handle("service-1"))
    row = await asyncio.to_thread(service.submit, wait_ms=10_000)
    assert row["state"] == "lost"
    assert [error.sandbox_id for error in service.lost] == ["service-1"]


async def test_a_service_command_in_a_frozen_sandbox_fails(api: Any, backend: Any) -> None:
    service = Service(api, backend)
    backend.freeze(Handle("service-1"))
    row = await asyncio.to_thread(service.submit, wait_ms=10_000)
    assert (row["state"], "is frozen" in row["error"]) == ("failed", True)
