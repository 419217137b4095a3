"""`lint`: findings with their place, as text and JSON; machines by name and by file."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "lint.md"
HEAD = """
from engine import Context, Machine, State, seconds


class Bill(Context):
    cents: int = 1


"""
WAITING = """
class Waiting(Machine[Bill]):
    open = State(initial=True, waits=True)
    done = State(final=True)
    close = open.to(done)
"""
IMPURE = """
import time


class Impure(Machine[Bill]):
    open = State(initial=True, waits=True, timeout=5, on_timeout="close")
    done = State(final=True)
    close = open.to(done, cond="late") | open.to(done)

    def late(self, context: Bill) -> bool:
        print("looking")
        return time.time() > context.cents
"""
REFUSED = """
class Refused(Machine[Bill]):
    open = State(initial=True)
    lost = State()
    done = State(final=True)
    close = open.to(done)
"""


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "shop.py"
    path.write_text(HEAD + textwrap.dedent(WAITING) + IMPURE)
    return path


def test_the_programs_machines_are_checked_without_a_store(demo):
    answer = demo("lint")
    assert answer.code == 0, answer
    assert "16 checks  2 machines  0 errors" in answer.out
    assert not demo.data_dir.exists()


def test_a_warning_has_its_line_and_does_not_fail(demo, shop):
    answer = demo("lint", f"{shop}:Waiting")
    assert answer.code == 0
    line = shop.read_text().splitlines().index("    open = State(initial=True, waits=True)") + 1
    assert f"V009 warning  {shop}:{line}  Waiting  open" in answer.out
    assert "0 errors  1 warnings" in answer.out


def test_an_error_fails_and_a_guard_that_prints_does_not_garble_the_answer(demo, shop):
    answer = demo("lint", f"{shop}:Impure", f"{shop}:Waiting", "Order", "--json")
    assert answer.code == 1
    assert len(answer.out.splitlines()) == 1
    shown = answer.json
    assert shown["ok"] is False and shown["machines"] == ["Impure", "Waiting", "Order"]
    found = {(one["code"], one["machine"]) for one in shown["findings"]}
    assert found >= {("V013", "Impure"), ("V009", "Waiting")}
    assert all(one["line"] and one["remedy"] for one in shown["findings"])


def test_a_class_that_is_refused_is_told_with_every_finding(demo, tmp_path):
    path = tmp_path / "refused.py"
    path.write_text(HEAD + REFUSED)
    answer = demo("lint", f"{path}:Refused", "--json")
    assert answer.code == 1
    assert answer.json["error"] == "definition"
    assert "lost: cannot be reached" in answer.err and "lost: has no way out" in answer.err


def test_the_guide_shows_what_is_printed_and_every_code(demo, tmp_path, monkeypatch):
    from engine.verification.static.finding import TITLES

    text = GUIDE.read_text()
    source = text.partition("```python\n")[2].partition("```")[0]
    expected = text.partition("says\n\n```\n")[2].partition("```")[0]
    (tmp_path / "shop.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    answer = demo("lint", "shop.py:Order")
    assert answer.code == 1
    assert answer.out.splitlines()[:-1] == expected.splitlines()[:-1]
    assert answer.out.splitlines()[-1].startswith(expected.splitlines()[-1].rpartition("  ")[0])
    assert all(f"| {code} |" in text for code in TITLES)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Odor", "no machine 'Odor'. There are: Order, Shipment."),
        ("nowhere.py:X", "not there"),
        ("no.such.module:X", "cannot be imported (ModuleNotFoundError"),
        ("engine.run:Run", "has no machine class 'Run'"),
    ],
)
def test_what_cannot_be_found_is_named(demo, name, told):
    answer = demo("lint", name)
    assert answer.code == 2
    assert told in answer.err
