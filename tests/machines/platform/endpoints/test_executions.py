"""`/execute`, `/run`, `/jobs`, `/languages`, `/shells` over HTTP, also with a real sandbox."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import select
import threading
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machines.platform.sandbox.backend import Command, Handle, Result
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import SandboxGone, SandboxUnavailable
from machines.platform.sandbox.fake import FakeBackend

CODE = {"language": "python", "code": "print(1)"}
SUBMITTING = ("/execute", "/execute/async", "/run", "/run/async")


class Held(FakeBackend):
    """Holds programs until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()

    def execute(self, handle: Handle, command: Command, **options: Any) -> Result:
        assert self.go.wait(30)
        return super().execute(handle, command, **options)


@pytest.fixture
def backend() -> Held:
    return Held()


def body_of(path: str) -> Any:
    return b"print(1)" if path.startswith("/run") else CODE


async def a_job(api: Any, pair: tuple[str, str]) -> str:
    return str((await api.call(pair, "POST", "/execute", CODE)).json()["job_id"])


async def test_execute_answers_with_every_name_of_the_wire(api: Any) -> None:
    pair = api.key()
    answer = (await api.call(pair, "POST", "/execute", CODE)).json()
    assert uuid.UUID(answer["job_id"])
    expected = {
        "success": True,
        "stdout": "1\n",
        "stderr": "",
        "exit_code": 0,
        "status": "completed",
        "language": "python",
        "network_mode": "zerotrust",
        "execution_mode": "on_demand",
        "artifacts": [],
    }
    assert {name: answer[name] for name in expected} == expected
    assert (await api.call(pair, "GET", f"/jobs/{answer['job_id']}")).json() == answer
    assert "detected_language" not in answer


async def test_a_program_that_fails_is_no_refusal(api: Any) -> None:
    body = {"language": "bash", "code": "no such thing"}
    answer = await api.call(api.key(), "POST", "/execute", body)
    shown = answer.json()
    assert (answer.status_code, shown["status"], shown["success"]) == (200, "completed", False)
    assert shown["exit_code"] == 2
    assert "error" not in shown


@pytest.mark.parametrize("path", ["/run", "/run/async"])
async def test_a_source_is_recognized_and_run(api: Any, path: str) -> None:
    pair = api.key()
    query = "?ttl=5&network_mode=semitrusted&env=" + quote(json.dumps({"A": "1"}))
    answer = await api.call(pair, "POST", path + query, b"#!/bin/sh\necho $A\n")
    shown = answer.json()
    assert answer.status_code == (202 if "async" in path else 200)
    assert shown["detected_language"] == "bash"
    done = (await api.call(pair, "GET", f"/jobs/{shown['job_id']}/wait")).json()
    assert (done["network_mode"], done["detected_language"]) == ("semitrusted", "bash")


@pytest.mark.parametrize("path", ["/execute/async", "/run/async"])
async def test_what_is_submitted_is_pending(api: Any, backend: Held, path: str) -> None:
    pair = api.key()
    backend.go.clear()
    answer = await api.call(pair, "POST", path, body_of(path))
    shown = answer.json()
    assert (answer.status_code, shown["status"]) == (202, "pending")
    assert shown["job_id"] in shown["message"]
    listed = (await api.call(pair, "GET", "/jobs")).json()
    assert (listed["count"], listed["jobs"][0]["job_id"]) == (1, shown["job_id"])
    backend.go.set()
    done = (await api.call(pair, "GET", f"/jobs/{shown['job_id']}/wait?timeout=20")).json()
    assert (done["status"], done["stdout"]) == ("completed", "1\n")
    assert (await api.call(pair, "GET", "/jobs")).json() == {"jobs": [], "count": 0}


@pytest.mark.parametrize("path", SUBMITTING)
async def test_without_a_slot_nothing_is_run(api: Any, backend: Held, path: str) -> None:
    pair = api.key(tier=4)
    backend.go.clear()
    await api.call(pair, "POST", "/execute/async", CODE)
    refused = await api.call(pair, "POST", path, body_of(path))
    assert (refused.status_code, refused.json()["active_executions"]) == (429, 1)
    backend.go.set()


@pytest.mark.parametrize("path", SUBMITTING)
async def test_a_repeated_request_is_the_same_job(api: Any, path: str) -> None:
    pair = api.key()
    first = await api.call(pair, "POST", path, body_of(path), once="k")
    again = await api.call(pair, "POST", path, body_of(path), once="k")
    assert again.json()["job_id"] == first.json()["job_id"]
    other = b"print(2)" if path.startswith("/run") else {**CODE, "code": "print(2)"}
    refused = await api.call(pair, "POST", path, other, once="k")
    assert (refused.status_code, refused.json()["error"]) == (409, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/execute", {"language": "klingon", "code": "x"}, "unknown_language"),
        ("/execute", {"language": "haskell", "code": "x"}, "language_unavailable"),
        ("/execute", {"code": "x"}, "invalid_request"),
        ("/execute", {**CODE, "ttl": 901}, "invalid_request"),
        ("/execute/async", {**CODE, "vcpu": 9}, "invalid_request"),
        ("/execute", {**CODE, "return_wasm_artifact": True}, "invalid_request"),
        ("/run", b"hello world", "undetected_language"),
        ("/run/async", b"\xff", "invalid_request"),
        ("/run", b"#!/usr/bin/ruby\nputs 1", "language_unavailable"),
        ("/run?ttl=0", b"print(1)", "invalid_request"),
    ],
)
async def test_a_bad_request_is_refused(api: Any, path: str, body: Any, error: str) -> None:
    refused = await api.call(api.key(), "POST", path, body)
    assert (refused.status_code, refused.json()["error"]) == (400, error)
    assert refused.json()["field"]


async def test_an_absent_language_names_its_package(api: Any) -> None:
    body = {"language": "haskell", "code": "x"}
    refused = (await api.call(api.key(), "POST", "/execute", body)).json()
    assert (refused["package"], "ghc" in refused["message"]) == ("ghc", True)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        *("language", "code", "network_mode", "network", "ttl", "vcpu", "env", "stdin", "args"),
        *("input_files", "return_artifact", "return_wasm_artifact"),
    ]
)
FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(path=st.sampled_from(SUBMITTING[:2]), fields=st.dictionaries(FIELDS, JSON, max_size=4))
async def test_any_body_is_run_or_named(api: Any, path: str, fields: dict[str, Any]) -> None:
    api.now_ms += 60_000
    answer = await api.call(api.key(tier=32), "POST", path, {**CODE, **fields})
    assert answer.status_code in (200, 202, 400)
    if answer.status_code == 400:
        assert answer.json()["field"] in {*fields, "language"}


@FUZZ
@given(
    path=st.sampled_from(SUBMITTING[2:]),
    raw=st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    query=st.dictionaries(st.sampled_from(["ttl", "env", "network_mode"]), st.text(max_size=12)),
)
async def test_any_source_is_run_or_named(
    api: Any, path: str, raw: bytes, query: dict[str, str]
) -> None:
    api.now_ms += 60_000
    words = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    target = f"{path}?{words}" if words else path
    answer = await api.call(api.key(tier=32), "POST", target, raw)
    assert answer.status_code in (200, 202, 400)


ABOUT_A_JOB = (
    ("GET", "/jobs/{}"),
    ("GET", "/jobs/{}/wait"),
    ("DELETE", "/jobs/{}"),
    ("POST", "/jobs/{}/cancel"),
)


@pytest.mark.parametrize(("method", "path"), ABOUT_A_JOB)
async def test_another_keys_job_and_no_job_are_the_same(api: Any, method: str, path: str) -> None:
    job_id = await a_job(api, api.key())
    unknown = str(uuid.uuid4())
    stranger = api.key()
    texts = set()
    for name in (job_id, unknown, "x"):
        refused = await api.call(stranger, method, path.format(name))
        assert refused.status_code == 404
        texts.add(refused.text.replace(name, "ID", 1))
    assert len({text.replace("'x'", "'ID'") for text in texts}) == 1


@pytest.mark.parametrize(("method", "path"), ABOUT_A_JOB)
async def test_a_job_that_has_ended_keeps_its_result(api: Any, method: str, path: str) -> None:
    pair = api.key()
    job_id = await a_job(api, pair)
    answer = await api.call(pair, method, path.format(job_id))
    shown = answer.json()
    assert (answer.status_code, shown["status"], shown["stdout"]) == (200, "completed", "1\n")


@pytest.mark.parametrize("seconds", ["x", "-1", "961", "1.5", "9" * 40, "%00"])
async def test_a_bad_time_to_wait_is_named(api: Any, seconds: str) -> None:
    pair = api.key()
    job_id = await a_job(api, pair)
    refused = await api.call(pair, "GET", f"/jobs/{job_id}/wait?timeout={seconds}")
    assert (refused.status_code, refused.json()["field"]) == (400, "timeout")


async def test_a_strangers_jobs_are_not_listed(api: Any, backend: Held) -> None:
    pair = api.key()
    backend.go.clear()
    await api.call(pair, "POST", "/execute/async", CODE)
    assert (await api.call(pair, "GET", "/jobs")).json()["count"] == 1
    assert (await api.call(api.key(), "GET", "/jobs")).json() == {"jobs": [], "count": 0}
    backend.go.set()


async def test_languages_and_shells_are_those_of_the_sandbox(api: Any) -> None:
    pair = api.key()
    languages = (await api.call(pair, "GET", "/languages")).json()
    assert languages["languages"] == ["python", "bash"]
    assert languages["count"] == 2
    assert languages["aliases"]["py"] == "python"
    assert set(languages["aliases"].values()) == {"python", "bash"}
    shells = (await api.call(pair, "GET", "/shells")).json()
    assert shells["shells"] == ["bash", "python3", "sh"]
    assert shells["categories"] == {"shells": ["bash", "sh"], "interpreters": ["python3"]}
    assert shells["count"] == 3


class NoWalls(FakeBackend):
    def __init__(self) -> None:
        super().__init__(SandboxUnavailable("no namespaces here", "allow them"))


class TestWithoutIsolation:
    @pytest.fixture
    def backend(self) -> NoWalls:
        return NoWalls()

    @pytest.mark.parametrize("path", SUBMITTING)
    async def test_nothing_is_run(self, api: Any, path: str) -> None:
        refused = await api.call(api.key(), "POST", path, body_of(path))
        assert (refused.status_code, refused.json()["fix"]) == (503, "allow them")

    @pytest.mark.parametrize("path", ["/languages", "/shells"])
    async def test_nothing_is_offered(self, api: Any, path: str) -> None:
        assert (await api.call(api.key(), "GET", path)).status_code == 503


class TestInARealSandbox:
    @pytest.fixture
    def backend(self, tmp_path: Path) -> BubblewrapBackend:
        return BubblewrapBackend(tmp_path / "sandboxes")

    async def test_files_go_in_and_artifacts_come_out(self, api: Any) -> None:
        content = base64.b64encode(b"41").decode()
        code = (
            "import os, pathlib, sys\n"
            "n = int(pathlib.Path('/tmp/input/n').read_text())\n"
            "assert n == int(pathlib.Path('/tmp/n').read_text())\n"
            "assert n == int(pathlib.Path('/root/input/n').read_text())\n"
            "pathlib.Path('/root/artifacts').mkdir()\n"
            "pathlib.Path('/root/artifacts/m').write_text(str(n + 1))\n"
            "print(sys.argv[1], os.environ['A'], input())\n"
        )
        body = {
            "language": "PYTHON",
            "code": code,
            "args": ["one"],
            "env": {"A": "two"},
            "stdin": "three\n",
            "input_files": [{"filename": "n", "content": content}],
        }
        answer = (await api.call(api.key(), "POST", "/execute", body)).json()
        assert (answer["stdout"], answer["stderr"]) == ("one two three\n", "")
        (artifact,) = answer["artifacts"]
        assert (artifact["type"], artifact["filename"], artifact["size"]) == ("base64", "m", 2)
        assert base64.b64decode(artifact["data"]) == b"42"
        assert artifact["content_base64"] == artifact["data"]

    async def test_a_c_program_comes_back_and_its_absent_wasm_target_is_named(
        self, api: Any
    ) -> None:
        pair = api.key()
        body = {"language": "c", "code": "int main(void) { return 7; }", "return_artifact": True}
        answer = (await api.call(pair, "POST", "/execute", body)).json()
        assert (answer["exit_code"], answer["success"]) == (7, False)
        assert base64.b64decode(answer["artifact"]["data"])[:4] == b"\x7fELF"
        wasm = await api.call(pair, "POST", "/execute", {**body, "return_wasm_artifact": True})
        if wasm.status_code == 200:
            assert base64.b64decode(wasm.json()["wasm_artifact"]["data"])[:4] == b"\0asm"
        else:
            refusal = wasm.json()
            assert (wasm.status_code, refusal["error"]) == (400, "wasm_unavailable")
            assert "wasi-libc" in refusal["package"]

    async def test_a_job_is_ended_and_its_output_kept(self, api: Any) -> None:
        pair = api.key()
        code = "mkdir /tmp/artifacts; echo kept >/tmp/artifacts/a; echo part; sleep 1000 & wait"
        body = {"language": "bash", "code": code, "ttl": 300}
        job_id = (await api.call(pair, "POST", "/execute/async", body)).json()["job_id"]
        await asyncio.to_thread(_until_it_sleeps, api, f"exec-{job_id}")
        answer = (await api.call(pair, "DELETE", f"/jobs/{job_id}")).json()
        assert (answer["status"], answer["stdout"]) == ("cancelled", "part\n")
        assert base64.b64decode(answer["artifacts"][0]["data"]) == b"kept\n"

    async def test_a_program_that_runs_too_long_is_stopped(self, api: Any) -> None:
        body = {"language": "bash", "code": "echo part; while :; do :; done", "ttl": 1}
        answer = (await api.call(api.key(), "POST", "/execute", body)).json()
        assert (answer["status"], answer["success"]) == ("timeout", False)
        assert answer["stdout"] == "part\n"


def _until_it_sleeps(api: Any, sandbox_id: str) -> None:
    line = "until grep -qs sleep /proc/[0-9]*/comm; do sleep 0; done"
    while True:
        try:
            program = api.backend.start_program(
                Handle(sandbox_id), Command(argv=("bash", "-c", line))
            )
            break
        except SandboxGone:
            continue  # not there yet
    ended = select.poll()
    ended.register(program.status, select.POLLIN)
    assert ended.poll(10_000)
    os.close(program.status)
    os.close(program.output)
