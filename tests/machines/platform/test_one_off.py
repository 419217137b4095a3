"""One program in a real sandbox of its own: what goes in, what comes out, what is killed."""

from __future__ import annotations

import base64
import os
import select
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from machines.platform import orders
from machines.platform.languages import LANGUAGES, Language
from machines.platform.one_off import Outcome, interrupt, run_alone
from machines.platform.sandbox.backend import Command, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import SandboxGone

RECIPES = {language.name: language for language in LANGUAGES}


@pytest.fixture(scope="module")
def sandboxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BubblewrapBackend]:
    backend = BubblewrapBackend(tmp_path_factory.mktemp("sandboxes"))
    yield backend
    backend.close()


def recipe(name: str) -> Language:
    return RECIPES[name]


def run(backend: BubblewrapBackend, language: str, code: str, **fields: Any) -> Outcome:
    order = orders.parse_code({"language": language, "code": code, **fields}, recipe)
    return run_alone(backend, "exec-1", "job-1", order, lambda: None)


def test_a_sandbox_ends_with_its_program(sandboxes: BubblewrapBackend) -> None:
    assert run(sandboxes, "bash", "echo $TURTLES_JOB_ID").result.stdout == b"job-1\n"
    with pytest.raises(SandboxGone):
        sandboxes.stats(Handle("exec-1"))


def test_what_is_not_wanted_any_more_is_not_run(sandboxes: BubblewrapBackend) -> None:
    def unwanted() -> None:
        raise SandboxGone("exec-1", "cancelled")

    order = orders.parse_code({"language": "bash", "code": "echo 1"}, recipe)
    with pytest.raises(SandboxGone, match="cancelled"):
        run_alone(sandboxes, "exec-1", "job-1", order, unwanted)
    with pytest.raises(SandboxGone, match="does not exist"):
        sandboxes.stats(Handle("exec-1"))


def test_input_files_are_found_in_all_three_places(sandboxes: BubblewrapBackend) -> None:
    content = base64.b64encode(b"hello\n").decode()
    files = [
        {"filename": "a b.txt", "content": content},
        {"filename": "$(id).txt", "content_base64": content},
        # Names that are taken in /tmp keep their meaning there.
        {"filename": "code.sh", "content": content},
        {"filename": "input", "content": content},
    ]
    code = "for d in /tmp/input /tmp /root/input; do cat $d/*.txt; done; cat /tmp/input/code.sh"
    result = run(sandboxes, "bash", code, input_files=files).result
    assert (result.stdout, result.stderr) == (b"hello\n" * 7, b"")


def test_artifacts_of_both_directories_come_out(sandboxes: BubblewrapBackend) -> None:
    code = (
        "mkdir -p /tmp/artifacts/deep /root/artifacts; echo -n 1 >/tmp/artifacts/deep/a; "
        "echo -n 2 >/root/artifacts/b; ln -s /etc/passwd /tmp/artifacts/link"
    )
    yielded = run(sandboxes, "bash", code).yielded
    assert {each.filename: base64.b64decode(each.data) for each in yielded.artifacts} == {
        "deep/a": b"1",
        "b": b"2",
    }
    assert yielded.omitted == 0


def test_what_does_not_fit_is_counted(sandboxes: BubblewrapBackend) -> None:
    code = (
        "mkdir /tmp/artifacts; cd /tmp/artifacts; head -c 9000000 /dev/zero >large; "
        "echo 1 >small; for i in $(seq 120); do : >$i; done"
    )
    yielded = run(sandboxes, "bash", code).yielded
    assert len(yielded.artifacts) == 100
    assert yielded.omitted == 22


def test_artifacts_of_a_program_that_ran_too_long_come_out(sandboxes: BubblewrapBackend) -> None:
    code = "mkdir /tmp/artifacts; echo 1 >/tmp/artifacts/a; echo part; while :; do :; done"
    outcome = run(sandboxes, "bash", code, ttl=1)
    assert outcome.result.timed_out
    assert outcome.result.stdout == b"part\n"
    assert [each.filename for each in outcome.yielded.artifacts] == ["a"]


C_SOURCE = '#include <stdio.h>\nint main(void) { puts("built"); return 3; }'


def test_a_compiled_program_comes_out_when_asked_for(sandboxes: BubblewrapBackend) -> None:
    outcome = run(sandboxes, "c", C_SOURCE, return_artifact=True)
    assert (outcome.result.stdout, outcome.result.exit_code) == (b"built\n", 3)
    artifact = outcome.yielded.artifact
    assert artifact is not None
    content = base64.b64decode(artifact.data)
    assert (artifact.filename, artifact.size, content[:4]) == ("code", len(content), b"\x7fELF")
    assert run(sandboxes, "c", C_SOURCE).yielded.artifact is None


def test_there_is_nothing_to_give_back_for_scripts_and_broken_sources(
    sandboxes: BubblewrapBackend,
) -> None:
    assert run(sandboxes, "bash", "echo 1", return_artifact=True).yielded.artifact is None
    broken = run(sandboxes, "c", "int main(", return_artifact=True)
    assert broken.result.exit_code != 0
    assert b"error" in broken.result.stderr
    assert broken.yielded.artifact is None


def test_a_killed_program_leaves_its_output_and_its_files(sandboxes: BubblewrapBackend) -> None:
    """The whole tree is killed, also what has left its session."""
    code = (
        "mkdir /tmp/artifacts; echo 1 >/tmp/artifacts/a; setsid sleep 1000 & "
        "echo part; touch /tmp/ready; sleep 1000"
    )
    outcomes: list[Outcome] = []
    running = threading.Thread(target=lambda: outcomes.append(run(sandboxes, "bash", code)))
    running.start()
    wait_until_ready(sandboxes, Handle("exec-1"))
    assert interrupt(sandboxes, Handle("exec-1"), "job-1")
    running.join(20)
    assert outcomes[0].result.exit_code == 137
    assert outcomes[0].result.stdout == b"part\n"
    assert [each.filename for each in outcomes[0].yielded.artifacts] == ["a"]


def wait_until_ready(backend: BubblewrapBackend, handle: Handle) -> None:
    """Until the program has made /tmp/ready; asked by the channel that does not wait for it."""
    argv = ("sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.01; done")
    while True:
        try:
            program = backend.start_program(handle, Command(argv=argv))
            break
        except SandboxGone:
            continue  # not there yet
    ended = select.poll()
    ended.register(program.status, select.POLLIN)
    assert ended.poll(10_000)
    os.close(program.status)
    os.close(program.output)


def test_nothing_else_in_the_sandbox_is_killed(sandboxes: BubblewrapBackend) -> None:
    handle = sandboxes.create(Spec(sandbox_id="service-1"))
    try:
        assert sandboxes.cell(handle, "bash", "x=41").exit_code == 0
        assert not interrupt(sandboxes, handle, "job-1")
        assert sandboxes.cell(handle, "bash", "echo $x").stdout == b"41\n"
        assert sandboxes.execute(handle, Command(argv=("true",))).exit_code == 0
    finally:
        sandboxes.destroy(handle)


def test_a_sandbox_that_is_gone_has_nothing_to_kill(sandboxes: BubblewrapBackend) -> None:
    assert not interrupt(sandboxes, Handle("exec-none"), "job-1")
