"""What goes in and what comes out, against a backend that answers as told."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from machines.platform import transfers
from machines.platform.sandbox.backend import Command, Handle, Result, Spec
from machines.platform.sandbox.errors import SandboxError, SandboxGone
from machines.platform.sandbox.fake import FakeBackend

HANDLE = Handle("exec-1")


class Scripted(FakeBackend):
    """Counts `count` files, gives `files`; or fails."""

    def __init__(self, count: int, files: dict[str, bytes], exit_code: int = 0) -> None:
        super().__init__()
        self.counted = Result(exit_code, b"." * count, b"")
        self.files = files
        self.asked: list[Command] = []
        self.failure: SandboxError | None = None
        self.create(Spec(sandbox_id="exec-1"))

    def execute(self, handle: Handle, command: Command, **_options: Any) -> Result:
        self.asked.append(command)
        if self.failure is not None:
            raise self.failure
        return self.counted

    def collect(self, handle: Handle, directories: Any, **_options: Any) -> dict[str, bytes]:
        return self.files


def test_nothing_that_came_out_is_stored_as_nothing() -> None:
    assert transfers.collect_artifacts(Scripted(0, {"a": b"1"}), HANDLE) == transfers.Yield()
    assert transfers.Yield().packed() is None
    assert transfers.unpacked(None) == transfers.Yield()


def test_what_is_stored_comes_back() -> None:
    found = transfers.collect_artifacts(Scripted(3, {"b": b"2", "a": b"1"}), HANDLE)
    assert [each.filename for each in found.artifacts] == ["a", "b"]
    assert found.omitted == 1
    assert transfers.unpacked(found.packed()) == found


def test_without_find_inside_artifacts_still_come_out() -> None:
    found = transfers.collect_artifacts(Scripted(0, {"a": b"1"}, exit_code=127), HANDLE)
    assert [base64.b64decode(each.data) for each in found.artifacts] == [b"1"]
    assert found.omitted == 0


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a\0b"])
def test_names_that_lead_elsewhere_are_left_out(name: str) -> None:
    found = transfers.collect_artifacts(Scripted(1, {name: b"1"}), HANDLE)
    assert (found.artifacts, found.omitted) == ((), 1)


def test_a_name_that_is_no_text_can_be_shown() -> None:
    found = transfers.collect_artifacts(Scripted(1, {"a\udcff": b"1"}), HANDLE)
    assert found.artifacts[0].filename == "a?"
    assert found.packed() is not None


def test_a_sandbox_that_ended_gives_nothing() -> None:
    backend = Scripted(1, {"a": b"1"})
    backend.failure = SandboxGone("exec-1", "cancelled")
    assert transfers.collect_artifacts(backend, HANDLE) == transfers.Yield()
    assert transfers.collect_file(backend, HANDLE, "/tmp/code") is None  # noqa: S108


def test_one_file_comes_out_by_its_name() -> None:
    found = transfers.collect_file(Scripted(0, {"code": b"\x7fELF"}), HANDLE, "/tmp/code")  # noqa: S108
    assert found == transfers.Artifact("code", 4, "f0VMRg==")
    assert transfers.collect_file(Scripted(0, {}), HANDLE, "/tmp/code") is None  # noqa: S108


def test_links_are_made_for_names_that_are_free() -> None:
    backend = Scripted(0, {})
    paths = ["/tmp/input/a.txt", "/tmp/input/code.py", "/elsewhere/b"]  # noqa: S108
    transfers.link_inputs(backend, HANDLE, paths, ("code.py",))
    assert backend.asked[0].argv[3:] == ("sh", "a.txt")
    transfers.link_inputs(backend, HANDLE, ())
    assert len(backend.asked) == 1
