"""What a sandbox sees of the host."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines.platform.sandbox import layout
from machines.platform.sandbox.backend import MIB, Spec
from machines.platform.sandbox.errors import SandboxUnavailable

USR_PYTHON = layout.Interpreter("/usr/bin/python3", None)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    layout.find_interpreter.cache_clear()
    yield
    layout.find_interpreter.cache_clear()


def test_the_base_installation_is_used_where_usr_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "_SYSTEM_PYTHONS", ())
    found = layout.find_interpreter()
    assert found.prefix == str(Path(sys.base_prefix).resolve())
    assert found.program.startswith(found.prefix)
    assert sys.prefix == sys.base_prefix or not found.program.startswith(sys.prefix)


def test_no_usable_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_can_run_agent", lambda _program: False)
    with pytest.raises(SandboxUnavailable, match="apt-get install python3"):
        layout.find_interpreter()


def test_a_whole_root_directory_is_never_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_SYSTEM_PYTHONS", ())
    monkeypatch.setattr(sys, "base_prefix", "/")
    with pytest.raises(SandboxUnavailable):
        layout.find_interpreter()


def test_every_wall_is_named_one_by_one() -> None:
    words = layout.namespaces(can_disable_userns=True)
    assert "--unshare-all" not in words
    assert {"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc"} <= set(words)
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert "--disable-userns" in words
    assert "--disable-userns" not in layout.namespaces(can_disable_userns=False)


def test_only_usr_and_a_few_public_files_are_shown() -> None:
    words = layout.file_system(16 * MIB, USR_PYTHON, 9, {})
    shown = [words[at + 1] for at, word in enumerate(words) if word.startswith("--ro-bind")]
    allowed = ("/usr", "/bin", "/sbin", "/lib", "/etc/", "9")
    assert all(path.startswith(allowed) for path in shown)
    assert not {"/etc", "/etc/passwd", "/etc/shadow", "/root", "/home"} & set(shown)
    assert not {"--bind", "--dev-bind"} & set(words)


def test_memory_files_share_the_promised_size() -> None:
    words = layout.file_system(16 * MIB, USR_PYTHON, 9, {})
    sizes = [int(words[at + 1]) for at, word in enumerate(words) if word == "--size"]
    assert len(sizes) == words.count("--tmpfs") == 3
    assert sum(sizes) == 16 * MIB
    assert words[-6:-2] == ["--remount-ro", "/dev", "--remount-ro", "/"]


def test_the_environment_is_the_sessions_over_a_fixed_few() -> None:
    spec = Spec("fine", environment={"LANG": "C", "NEW": "1"})
    seen = layout.environment(spec, layout.Interpreter("/opt/py/bin/python3", "/opt/py"))
    assert (seen["LANG"], seen["NEW"], seen["HOME"]) == ("C", "1", "/root")
    assert seen["PATH"].endswith(":/opt/py/bin")
    assert set(seen) == {"HOME", "PATH", "LANG", "USER", "NEW"}
