"""Build the wheel, install it in a clean virtual environment, and run the main job from there.

    python -m tests.acceptance.wheel_smoke

Nothing of the checkout is on the path of the installed program; what is in the wheel is compared
with the packages that should be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"engine", "machines", "migrations", "persistence"}


def main() -> int:
    """Run every step; the exit code."""
    with tempfile.TemporaryDirectory(prefix="turtles-wheel-") as name:
        work = Path(name)
        wheel = build(work)
        check_contents(wheel)
        turtles = install(wheel, work)
        smoke(turtles, work)
    print("wheel smoke: 4 passed, 0 failed")
    return 0


def build(work: Path) -> Path:
    """The wheel, built from a clean copy of the tracked and new files."""
    copy = work / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode()  # fmt: skip
    for file in filter(None, listed.split("\0")):
        source, target = ROOT / file, copy / file
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work)]
    subprocess.run(command, cwd=copy, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = work.glob("turtles-*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Exactly our packages, with the migrations and the type marker, and no tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == PACKAGES, f"wheel holds {sorted(tops)}, expected {sorted(PACKAGES)}"
    for needed in ("engine/py.typed", "machines/py.typed", "persistence/py.typed"):
        assert needed in names, f"wheel lacks {needed}"
    on_disk = {str(path.relative_to(ROOT)) for path in (ROOT / "migrations").rglob("versions/*.py")}
    missing = on_disk - set(names)
    assert not missing, f"wheel lacks migrations: {sorted(missing)}"


def install(wheel: Path, work: Path) -> Path:
    """A clean environment with the wheel and its dependencies, at the locked versions."""
    home = work / "venv"
    venv.create(home, with_pip=True)
    pip = [str(home / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "requirements.lock"), str(wheel)], check=True)
    return home / "bin/turtles"


def smoke(turtles: Path, work: Path) -> None:
    """The program runs, knows no checkout, and does its main job."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    place = work / "elsewhere"
    place.mkdir()
    where = "import engine, machines, persistence; print(engine.__file__)"
    python = turtles.with_name("python")
    found = _run([str(python), "-c", where], place, environment)
    assert "site-packages" in found, f"engine comes from {found}"
    _run([str(turtles), "--help"], place, environment)
    command = [str(turtles), "inception", "--depth", "1", "--data-dir", str(place / "d"), "--json"]
    result = json.loads(_run(command, place, environment).strip().splitlines()[-1])
    assert result["state"] == "done", result
    assert result["spent_cents"] == 700, result


def _run(command: list[str], place: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=180
    )
    if done.returncode != 0:
        raise SystemExit(f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
