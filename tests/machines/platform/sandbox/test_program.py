"""Which bubblewrap is tried, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from machines.platform.sandbox import program as module
from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.program import Bubblewrap, find_candidates


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TURTLES_BWRAP", raising=False)


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\necho '--disable-userns'\n")
    path.chmod(0o755)
    return path


def test_the_variable_excludes_all_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = executable(tmp_path / "bin" / "bwrap")
    monkeypatch.setenv("TURTLES_BWRAP", str(named))
    assert find_candidates() == [Bubblewrap(named)]


def test_the_distributions_comes_before_the_wheels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = executable(tmp_path / "a"), executable(tmp_path / "b")
    monkeypatch.setattr(module, "_DISTRIBUTION", first)
    monkeypatch.setattr(module, "_from_wheel", lambda: second)
    assert [each.program for each in find_candidates()] == [first, second]


def test_none_at_all_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_DISTRIBUTION", tmp_path / "absent")
    monkeypatch.setattr(module, "_from_wheel", lambda: None)
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        find_candidates()


def test_the_wheels_libraries_are_found_beside_it(tmp_path: Path) -> None:
    wheel = executable(tmp_path / "package" / "_bin" / "bwrap")
    (tmp_path / "package.libs").mkdir()
    assert module._libraries_of(wheel) == tmp_path / "package.libs"


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_a_wheel_without_its_program_is_no_candidate(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(_name: str) -> None:
        raise error

    monkeypatch.setattr(module, "import_module", fail)
    assert module._from_wheel() is None


def test_what_a_program_can_do_is_read_from_its_help(tmp_path: Path) -> None:
    assert Bubblewrap(executable(tmp_path / "new")).can_disable_userns()
    old = executable(tmp_path / "old")
    old.write_text("#!/bin/sh\necho '--unshare-user'\n")
    assert not Bubblewrap(old).can_disable_userns()
    assert not Bubblewrap(tmp_path / "absent").can_disable_userns()


def test_a_program_that_disappeared_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(SandboxUnavailable, match="cannot be opened"),
        Bubblewrap(tmp_path / "absent").opened(),
    ):
        pass
