"""The programs on the pages below docs/ run as they stand there, and print what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGE = ROOT / "docs" / "testing.md"


def test_blocks_of_the_page_pass(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    shop, *tests = blocks
    (tmp_path / "shop.py").write_text(shop)
    (tmp_path / "test_page.py").write_text("\n".join(["from shop import *", *tests]))
    installed = any(one.name == "turtles" for one in entry_points(group="pytest11"))
    loaded = () if installed else ("-p", "engine.testing.plugin")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *loaded, "-W", "error", "-p", "no:cacheprovider",
         "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    declared = sum(block.count("def test_") for block in tests)
    parameters = 24 - 1  # test_a_death_anywhere
    assert re.search(rf"\b{declared + parameters} passed\b", done.stdout), done.stdout


def test_the_walk_over_the_platform_prints_what_the_page_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "platform.md").read_text()
    (program,) = BLOCK.findall(text)
    (printed,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        timeout=100, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def test_the_program_about_embedding_runs(tmp_path: Path) -> None:
    program = "\n".join(BLOCK.findall((ROOT / "docs" / "embedding.md").read_text()))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True,
        text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_program_about_workers_prints_what_the_page_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "workers.md").read_text()
    (program,) = BLOCK.findall(text)
    (printed,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == printed


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == [], page


def test_the_pages_of_the_machines_are_those_of_their_classes() -> None:
    """`turtles page docs/machines` makes them."""
    done = subprocess.run(
        [sys.executable, "-m", "machines.cli", "page", "docs/machines", "--check"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
