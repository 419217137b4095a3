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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = tmp_path / "versions" / "bin" / "python3"
    base.parent.mkdir(parents=True)
    base.symlink_to("python3.11")
    real = base.with_name("python3.11")
    real.write_text("#!/bin/sh\nexit 0\n")
    real.chmod(0o755)
    monkeypatch.setattr(layout, "_SYSTEM_PYTHONS", (str(tmp_path / "absent"),))
    monkeypatch.setattr(sys, "_base_executable", str(base))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "versions"))
    assert layout.find_interpreter() == layout.Interpreter(str(real), str(tmp_path / "versions"))


def test_a_python_outside_usr_with_a_name_below_usr_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A link in /usr/local/bin to a Python elsewhere would dangle inside."""
    real = tmp_path / "elsewhere"
    real.write_text("#!/bin/sh\nexit 0\n")
    real.chmod(0o755)
    (tmp_path / "python3").symlink_to(real)
    monkeypatch.setattr(layout, "_SYSTEM_PYTHONS", (str(tmp_path / "python3"),))
    monkeypatch.setattr(sys, "base_prefix", "/")
    with pytest.raises(SandboxUnavailable):
        layout.find_interpreter()


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
    # GHC keeps its list of packages outside /usr.
    allowed = ("/usr", "/bin", "/sbin", "/lib", "/etc/", "/var/lib/ghc", "9")
    assert all(path.startswith(allowed) for path in shown)
    assert not {"/etc", "/etc/passwd", "/etc/shadow", "/root", "/home"} & set(shown)
    assert not {"--bind", "--dev-bind"} & set(words)


def test_a_toolbox_is_bound_read_only_below_directories_that_anybody_may_enter() -> None:
    binds, files = [("/host/a", "/opt/x/lib/a")], [("/opt/x/bin/run", 7), ("/opt/x/data", 8)]
    words = layout.toolbox_mounts(binds, ["/opt/x/lib/a/hidden"], files)
    assert words == [
        *(word for path in ("/opt", "/opt/x", "/opt/x/bin", "/opt/x/lib")
          for word in ("--perms", "0755", "--dir", path)),
        *("--ro-bind", "/host/a", "/opt/x/lib/a"),
        *("--perms", "0555", "--size", "4096", "--tmpfs", "/opt/x/lib/a/hidden"),
        *("--remount-ro", "/opt/x/lib/a/hidden"),
        *("--perms", "0555", "--file", "7", "/opt/x/bin/run"),
        *("--perms", "0444", "--file", "8", "/opt/x/data"),
    ]  # fmt: skip
    whole = layout.file_system(16 * MIB, USR_PYTHON, 9, {}, words)
    assert whole[-6 - len(words) : -6] == words, "before the base becomes read-only"


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


def test_a_semitrusted_environment_names_the_proxy_unless_the_session_does() -> None:
    spec = Spec("fine", network="semitrusted", environment={"HTTP_PROXY": "http://mine"})
    seen = layout.environment(spec, USR_PYTHON)
    assert seen["HTTP_PROXY"] == "http://mine"
    for name in ("HTTPS_PROXY", "http_proxy", "https_proxy"):
        assert seen[name] == "http://127.0.0.1:3128"
    assert seen["NO_PROXY"] == seen["no_proxy"] == "localhost,127.0.0.1"
