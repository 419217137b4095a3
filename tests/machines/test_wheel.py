"""The wheel of the running code: the same bytes everywhere, and one that pip takes."""

from __future__ import annotations

import email
import hashlib
import subprocess
import sys
import tomllib
import zipfile
from base64 import urlsafe_b64encode
from io import BytesIO
from pathlib import Path

import pytest

from machines import wheel
from machines.wheel import PACKAGES, RECORD, build_wheel, own_wheel, write_wheel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(BytesIO(own_wheel().content)) as archive:
        archive.extractall(place)
    return place


def test_it_is_what_pyproject_says_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    said = project["project"]
    assert list(wheel.REQUIREMENTS) == said["dependencies"]
    assert (
        said["name"], said["version"], said["description"], said["requires-python"],
    ) == (wheel.NAME, wheel.VERSION, wheel.SUMMARY, wheel.REQUIRES_PYTHON)  # fmt: skip
    shipped = set(project["tool"]["setuptools"]["packages"]["find"]["include"])
    assert {each.partition(".")[0] for each in shipped} == set(PACKAGES)
    entries = {"console_scripts": said["scripts"], **said["entry-points"]}
    lines = [f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
             for group, points in entries.items()]  # fmt: skip
    assert "\n".join(lines) == wheel.ENTRY_POINTS


def test_the_same_code_gives_the_same_bytes() -> None:
    assert build_wheel(ROOT).sha256 == build_wheel(ROOT).sha256


def test_an_unpacked_copy_gives_the_same_bytes(unpacked: Path, tmp_path: Path) -> None:
    """Also when bytecode and other things lie about, and files have other times."""
    (unpacked / "engine" / "__init__.py").touch()
    (unpacked / "engine" / "notes.txt").write_text("not ours")
    (unpacked / "engine" / "__pycache__").mkdir(exist_ok=True)
    (unpacked / "engine" / "__pycache__" / "run.pyc").write_bytes(b"")
    words = "import machines.wheel as w; print(w.own_wheel().sha256, w.__file__)"
    done = subprocess.run(
        [sys.executable, "-B", "-c", words], cwd=unpacked, env={"PYTHONPATH": str(unpacked)},
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [own_wheel().sha256, f"{unpacked}/machines/wheel.py"]


def test_another_code_gives_another_digest(unpacked: Path, tmp_path: Path) -> None:
    before = build_wheel(unpacked)
    file = unpacked / "engine" / "errors.py"
    text = file.read_text()
    file.write_text(text + "\n")
    assert build_wheel(unpacked).sha256 != before.sha256
    file.write_text(text)
    assert build_wheel(unpacked).sha256 == before.sha256


def test_record_names_every_file_with_its_digest() -> None:
    with zipfile.ZipFile(BytesIO(own_wheel().content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
        assert archive.testzip() is None
    record = files.pop(RECORD)
    lines = [line.rsplit(",", 2) for line in record.decode().splitlines()]
    assert lines.pop() == [RECORD, "", ""]
    assert [name for name, _, _ in lines] == sorted(files)
    for name, digest, size in lines:
        encoded = urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={encoded}", len(files[name]))
    assert own_wheel().record_sha256 == hashlib.sha256(record).hexdigest()


def test_it_holds_the_code_that_runs_and_nothing_else() -> None:
    with zipfile.ZipFile(BytesIO(own_wheel().content)) as archive:
        names = set(archive.namelist())
        metadata = email.message_from_bytes(archive.read("turtles-0.1.0.dist-info/METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("turtles", "0.1.0")
    code = {name for name in names if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in code} == set(PACKAGES)
    assert {"machines/py.typed", "migrations/platform/versions/0005_toolbox.py"} <= code
    assert {Path(name).suffix for name in code} == {".py", ".typed"}


def test_pip_takes_it(tmp_path: Path) -> None:
    path = write_wheel(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == f"{own_wheel().sha256}  {path.name}\n"
    target = tmp_path / "target"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(path)],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert (target / "machines" / "wheel.py").read_bytes() == Path(wheel.__file__).read_bytes()
    assert (target / "bin" / "turtles").is_file()


def test_code_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="package engine: no source files in"):
        build_wheel(tmp_path)
