"""What flow 5 runs inside a sandbox, in directories of the host: killed, cut short, changed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from machines.flows import tool_inside
from machines.wheel import PACKAGES, RECORD, build_wheel

TOOL = {"name": "execute", "parameters": {"type": "object", "properties": {}}}
PROGRAM = """
import json, sys
if sys.argv[1:] == ["--version"]:
    print("turtles 0.1.0")
else:
    print(json.dumps({"tools": %r}))
"""

Ask = Callable[..., dict[str, Any]]


class Place:
    """A toolbox with a small wheel, and a home to install it in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.house = root / "toolbox" / "wheelhouse"
        self.house.mkdir(parents=True)
        self.write_code(PROGRAM % [TOOL])
        python = root / "toolbox" / "bin" / "python"
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -P -S -B "$@"\n')
        python.chmod(0o755)

    def write_code(self, program: str) -> None:
        for package in PACKAGES:
            (self.root / "code" / package).mkdir(parents=True, exist_ok=True)
            (self.root / "code" / package / "__init__.py").write_text("")
        (self.root / "code" / "machines" / "__main__.py").write_text(program)
        self.wheel = build_wheel(self.root / "code")
        self.shown = self.house / self.wheel.filename
        self.shown.write_bytes(self.wheel.content)

    @property
    def target(self) -> Path:
        return self.home / self.wheel.sha256

    def ask(self, step: str) -> dict[str, str]:
        return {
            "step": step,
            "home": str(self.home),
            "toolbox": str(self.root / "toolbox"),
            "filename": self.wheel.filename,
            "digest": self.wheel.sha256,
            "record": RECORD,
            "salt": "salt",
        }

    def do(self, step: str) -> dict[str, Any]:
        return tool_inside.perform(self.ask(step))

    def install(self) -> None:
        """Everything, as it should go."""
        self.do("fetch")
        assert not self.do("install")["kept"]

    def is_whole(self) -> bool:
        program = (self.home / "bin" / "turtles").read_text()
        return str(self.target) in program and not tool_inside.damages(self.target, RECORD)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_it_is_fetched_installed_and_checked(place: Place) -> None:
    fetched = place.do("fetch")
    proof = hashlib.sha256(b"salt" + place.wheel.content).hexdigest()
    assert (fetched["digest"], fetched["proof"]) == (place.wheel.sha256, proof)
    assert not place.home.joinpath("bin").exists()
    assert not place.do("install")["kept"]
    assert place.do("check") == {
        "record": place.wheel.record_sha256,
        "version": "0.1.0",
        "tools": 1,
        "unusable": 0,
        "path": str(place.home / "bin" / "turtles"),
    }
    assert sorted(path.name for path in place.home.iterdir()) == [place.wheel.sha256, "bin"]


def test_again_is_the_same_and_keeps_what_is_whole(place: Place) -> None:
    place.install()
    before = (place.target / "machines" / "__init__.py").stat().st_ino
    place.do("fetch")
    assert place.do("install")["kept"]
    assert (place.target / "machines" / "__init__.py").stat().st_ino == before
    assert place.is_whole()


@pytest.mark.parametrize("keep", [0, 1, 100])
def test_a_truncated_download_is_fetched_again(place: Place, keep: int) -> None:
    place.do("fetch")
    staged = place.home / "incoming" / place.wheel.filename
    staged.write_bytes(place.wheel.content[:keep])
    assert not place.do("install")["kept"]
    assert place.is_whole()


def test_a_lost_download_is_fetched_again(place: Place) -> None:
    assert not place.do("install")["kept"]
    assert place.is_whole()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a source is cut short": lambda at: _cut(at / "machines" / "__main__.py"),
    "a source is altered": lambda at: (at / "engine" / "__init__.py").write_text("x = 1\n"),
    "a source is gone": lambda at: (at / "engine" / "__init__.py").unlink(),
    "a file too many": lambda at: (at / "engine" / "more.py").write_text(""),
    "bytecode is cut short": lambda at: _cut(next(at.rglob("__main__*.pyc"))),
    "bytecode is gone": lambda at: next(at.rglob("__main__*.pyc")).unlink(),
    "bytecode too many": lambda at: (at / "engine" / "more.pyc").write_bytes(b""),
    "no manifest": lambda at: (at / tool_inside.MANIFEST).unlink(),
    "half a manifest": lambda at: _cut(at / tool_inside.MANIFEST),
    "a manifest of something else": lambda at: (at / tool_inside.MANIFEST).write_text("[]"),
    "a manifest without bytecode": lambda at: (at / tool_inside.MANIFEST).write_text(
        json.dumps({"python": sys.version})
    ),
    "another Python's bytecode": lambda at: (at / tool_inside.MANIFEST).write_text(
        (at / tool_inside.MANIFEST).read_text().replace(sys.version[:5], "3.10.1")
    ),
    "no record": lambda at: (at / RECORD).unlink(),
    "half a record": lambda at: _cut(at / RECORD),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_mended(place: Place, damage: str) -> None:
    place.install()
    DAMAGES[damage](place.target)
    assert place.do("check")["damaged"]
    assert not place.do("install")["kept"]
    assert place.is_whole()


def test_a_record_that_fits_altered_files_is_not_ours(place: Place) -> None:
    """Whoever rewrites RECORD, too, is found out by its digest, which is compared outside."""
    place.install()
    (place.target / "engine" / "__init__.py").write_text("x = 1\n")
    (place.target / RECORD).write_bytes(tool_inside._record(place.target, RECORD))
    assert place.do("check")["record"] != place.wheel.record_sha256


KILLED = """
import json, os, sys
from machines.flows import tool_inside

owner, name = {"rename": (tool_inside.Path, "rename"), "compile": (tool_inside.py_compile, "compile"),
               "copyfile": (tool_inside.shutil, "copyfile"), "chmod": (tool_inside.Path, "chmod"),
               "manifest": (tool_inside, "_bytecode"), "rmtree": (tool_inside.shutil, "rmtree")}[sys.argv[2]]
real, left = getattr(owner, name), int(sys.argv[3])
def dying(*words, **named):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    return real(*words, **named)
setattr(owner, name, dying)
tool_inside.perform(json.loads(sys.argv[1]))
"""  # noqa: E501 - a program


@pytest.mark.parametrize(
    ("step", "function", "number"),
    [
        ("fetch", "copyfile", 0),
        ("fetch", "rename", 0),
        ("install", "compile", 0),
        ("install", "compile", 3),
        ("install", "manifest", 0),
        ("install", "rename", 0),
        ("install", "chmod", 0),
        ("install", "rename", 1),
        ("install", "rmtree", 0),
    ],
)
def test_a_kill_is_mended_by_the_next_try(
    place: Place, step: str, function: str, number: int
) -> None:
    if step == "install":
        place.do("fetch")
    ask = json.dumps(place.ask(step))
    words = [sys.executable, "-c", KILLED, ask, function, str(number)]
    root = Path(tool_inside.__file__).parents[2]
    died = subprocess.run(words, cwd=root, capture_output=True, timeout=20, check=False)
    assert died.returncode == 9, died.stderr
    if step == "fetch":
        assert place.do("fetch")["digest"] == place.wheel.sha256
    assert "kept" in place.do("install")
    assert place.is_whole()
    assert sorted(path.name for path in place.home.iterdir()) == [place.wheel.sha256, "bin"]


def test_a_damaged_installation_is_mended_after_a_kill_in_its_removal(place: Place) -> None:
    place.install()
    (place.target / "engine" / "__init__.py").unlink()  # a removal begins somewhere
    (place.home / ".new-1").mkdir()
    assert not place.do("install")["kept"]
    assert place.is_whole()


def test_another_wheel_is_refused(place: Place) -> None:
    ask = place.ask("install")
    place.shown.write_bytes(place.wheel.content[:-1])
    told = tool_inside.perform(ask)
    assert told["refused"] == "checksum"
    assert not place.target.exists()
    assert not list(place.home.glob(".new-*"))


def test_a_wheelhouse_without_it_names_what_is_there(place: Place) -> None:
    place.shown.rename(place.house / "turtles-9-py3-none-any.whl")
    told = place.do("fetch")
    assert told["refused"] == "unresolved"
    assert "turtles-9-py3-none-any.whl" in told["reason"]
    assert place.do("install")["refused"] == "unresolved"


def test_what_it_wrote_is_removed(place: Place) -> None:
    place.do("fetch")
    (place.home / ".new-1").mkdir()
    assert place.do("remove") == {"removed": True}
    place.install()
    assert place.do("remove") == place.do("remove") == {"removed": True}
    assert [path for path in place.home.rglob("*") if path.is_file()] == []


def test_another_installation_stays(place: Place) -> None:
    place.install()
    first = place.target
    ask = {**place.ask("remove"), "digest": "another"}
    assert tool_inside.perform(ask) == {"removed": True}
    assert place.target == first
    assert place.is_whole()


@pytest.mark.parametrize(
    ("tools", "counted"),
    [
        ([TOOL, {**TOOL, "name": "run"}], (2, 0)),
        ([TOOL, TOOL], (1, 0)),
        ([TOOL, {"name": "bare"}], (1, 1)),
        ([TOOL, {"name": "odd", "parameters": {"type": "string"}}], (1, 1)),
        ([TOOL, "text", {"parameters": {}}], (1, 2)),
        ({"a": 1}, (0, 0)),
    ],
)
def test_only_tools_with_a_schema_count(place: Place, tools: Any, counted: tuple[int, int]) -> None:
    place.write_code(PROGRAM.replace("%r", repr(tools)))
    place.install()
    told = place.do("check")
    assert (told["tools"], told["unusable"]) == counted


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit('no such thing')", "no such thing"),
        ("print('turtles 0.1.0')", "JSONDecodeError"),
        ("print('[]')", "TypeError"),
        ("print('{}')", "KeyError"),
    ],
)
def test_a_program_that_does_not_run_is_unusable(place: Place, program: str, said: str) -> None:
    place.write_code(program)
    place.install()
    told = place.do("check")
    assert told["refused"] == "unusable"
    assert said in told["reason"]


def test_a_program_that_cannot_be_started_is_unusable(place: Place) -> None:
    place.install()
    (place.home / "bin" / "turtles").chmod(0o600)
    (place.home / "bin" / "turtles").unlink()
    assert place.do("check")["refused"] == "unusable"


def test_a_full_disk_is_told_by_its_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_words: object) -> None:
        raise OSError(28, "No space left on device", "/root/x")

    monkeypatch.setattr(tool_inside.shutil, "copyfile", full)
    told = place.do("fetch")
    assert told == {"refused": "disk_full", "reason": "/root/x: No space left on device"}


def test_other_errors_are_not_explained_away(place: Place) -> None:
    place.home.write_text("not a directory")
    with pytest.raises(NotADirectoryError):
        place.do("fetch")


def test_it_needs_nothing_but_the_standard_library(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", tool_inside.source(), json.dumps(place.ask("fetch"))],
        capture_output=True, timeout=20, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == place.wheel.sha256
