"""A verification in words: a terminal, JSON, JUnit, a page; tokens, tests and diagrams."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Tree

import msgspec
import pytest

from engine import Child, Context, Event, Machine, State, invariant
from engine.errors import UsageError
from engine.table import compile_table
from engine.verification.environment import Environment, payloads
from engine.verification.junit import junit
from engine.verification.page import page
from engine.verification.replaying import replayed
from engine.verification.report import (
    EXITS,
    Told,
    all_json,
    as_json,
    diagram,
    lines,
    pytest_file,
    read_token,
    said,
    summary,
    token_of,
    told,
)
from engine.verification.result import Failure, Scope
from engine.verification.scheduler import STRATEGIES
from engine.verification.schedules import Schedule, ScheduleFailure
from engine.verification.tokens import children_of, said_with_states, warning_of
from engine.verification.verify import Found, Verification, verify
from persistence.store import open_store

ROOT = Path(__file__).resolve().parents[3]
NASTY = '<script>alert("1")</script> & \x00 #; \ud7ff'


class Count(Context):
    number: int = 0


class Add(Event, tag="add"):
    amount: int


class Wrong(Machine[Count]):
    opened = State(initial=True, waits=True)
    closed = State(final=True)
    add = opened.to.itself(on="grow")
    close = opened.to(closed)

    def grow(self, context: Count, event: Add) -> Count:
        return self.but(context, number=context.number + event.amount)

    @invariant
    def small(self, context: Count) -> bool:
        return context.number < 3


class OfWrong(Environment):
    machine = Wrong
    scope = Scope(messages=2, cancels=False)
    reasons = {"add in closed": "nobody is there <any more>"}  # noqa: RUF012 - as in the docs

    @payloads("add")
    def amounts(self) -> Any:
        yield Add(amount=2)


class Parent(Machine[Count]):
    waiting = State(initial=True, child="below", on_child="ended", timeout=9, on_timeout="late")
    done = State(final=True)
    over = State(final=True, failure=True)
    ended = waiting.to(done)
    late = waiting.to(over)

    def below(self, context: Count) -> Child:
        return Child(machine="Wrong", context=Count())


def store() -> Any:
    return open_store("sqlite://")


@pytest.fixture(scope="module")
def found() -> Verification:
    return verify(Wrong, store, environment=OfWrong(), budget_seconds=4, seed=9)


@pytest.fixture(scope="module")
def data(found: Verification) -> Told:
    return told(found, subject="shop.py:Wrong")


@pytest.fixture
def nasty(data: Told) -> Told:
    """With texts that mean something to XML and HTML."""
    failure = msgspec.structs.replace(data.failures[0], problem=NASTY, rule=NASTY)
    return msgspec.structs.replace(data, failures=(failure,), notes=(NASTY,))


def test_terminal_has_header_phases_coverage_and_failure(data: Told) -> None:
    text = "\n".join(lines(data))
    assert re.match(r"verify Wrong  [0-9a-f]+  seed 9  turtles \S.*  python 3\.\d+.*sqlite 3", text)
    for part in ("static      16 checks", "EXHAUSTED", "seq/s", "2 workers", "transitions 2/2",
                 "FAIL safety: quarantined", "found by scope", "-> Wrong opened (quarantined)",
                 "replay  turtles verify shop.py:Wrong --replay tv1:"):  # fmt: skip
        assert part in text, part
    assert data.exit == 3 and data.environment.endswith("test_report:OfWrong")


def test_plain_data_crosses_processes_and_is_json(data: Told) -> None:
    assert pickle.loads(pickle.dumps(data)) == data  # noqa: S301 - our own
    again = json.loads(json.dumps(as_json(data)))
    assert again["phases"]["scope"]["states"] > 0 and again["exit"] == 3
    assert again["failures"][0]["steps"][0][0] == "start"
    both = all_json([data, data], 3)
    assert both["exit"] == 3 and len(both["machines"]) == 2


def test_gaps_excuses_and_the_matrix() -> None:
    scope = Scope(messages=0, cancels=False, faults=False)
    found = verify(Wrong, store, environment=OfWrong(), scope=scope, phases=("scope",), seed=1)
    data = told(found)
    assert data.exit == 2 and data.coverage is not None
    kinds = {gap.kind for gap in data.coverage.gaps}
    assert {"transition", "cell"} <= kinds
    assert data.coverage.excused == {"add in closed": "nobody is there <any more>"}
    assert dict(zip(data.coverage.states, data.coverage.matrix, strict=True))["closed"] == "e."
    text = "\n".join(lines(data))
    assert "MISSING   opened --close--> closed" in text
    assert 'turtles verify Wrong --until-edge "opened --close--> closed"' in text
    assert "excused   add in closed: nobody is there" in text


def test_summary_has_a_line_for_each_machine(data: Told) -> None:
    text = "\n".join(summary([data, data]))
    assert text.count("Wrong  EXHAUSTED") == 2 and "exit 3 (a safety property is broken)" in text
    assert "power loss" in text


def test_junit_is_well_formed_whatever_the_texts(nasty: Told) -> None:
    root = Tree.fromstring(junit([nasty]))  # noqa: S314 - we wrote it
    suite = root[0]
    assert (suite.get("name"), suite.get("failures"), root.get("failures")) == ("Wrong", "1", "1")
    names = [case.get("name") for case in suite.iter("testcase")]
    assert names == ["static", "scope", "random", "schedules", "coverage"]
    failure = next(suite.iter("failure"))
    assert "<script>" in (failure.get("message") or "") and "\x00" not in (failure.text or "")


def test_junit_tells_gaps_and_troubles(data: Told) -> None:
    class Raising(Environment):
        machine = Parent

        def contexts(self) -> Any:
            raise ValueError("weather")

    found = verify(Parent, store, environment=Raising(), known=[Wrong], budget_seconds=2)
    root = Tree.fromstring(junit([told(found)]))  # noqa: S314 - we wrote it
    assert root.get("errors") == "1"
    gap = verify(Wrong, store, scope=Scope(messages=0), phases=("scope",), environment=OfWrong())
    case = Tree.fromstring(junit([told(gap)]))[0].find("testcase[@name='coverage']/failure")  # noqa: S314
    assert case is not None and "--until-edge" in (case.text or "")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_closed_escaped_and_loads_nothing(nasty: Told) -> None:
    parsed = _Page()
    parsed.feed(page([nasty, nasty]))
    assert parsed.open == []
    assert "script" not in parsed.tags and 'alert("1")' in parsed.text
    assert all(link.startswith("#") for link in parsed.links)
    for part in ("transition x fault", "sequenceDiagram", "--replay tv1:", "quarantined"):
        assert part in parsed.text, part


def test_page_marks_what_was_touched(data: Told) -> None:
    text = page([data])
    assert 'class="applied" title="add in opened: applied"' in text
    assert 'class="refused" title="close in closed: refused"' in text


# -- tokens ---------------------------------------------------------------------------------------


def test_token_names_the_environment_and_is_replayed(found: Verification) -> None:
    failure = found.found[0].failure
    text = token_of(found.table, failure, found.environment)
    token = read_token(f"  {text}\n")
    assert token.environment.endswith(":OfWrong")
    again = replayed(found.table, store, text)
    assert again.exit_code == 3 and again.warning == ""
    assert "FAIL quarantined" in "\n".join(again.lines())
    assert again.as_json()["fixed"] is False


def test_what_differs_from_the_token_is_a_warning(found: Verification) -> None:
    token = read_token(token_of(found.table, found.found[0].failure, found.environment))
    table = found.table
    assert "made in environment" in warning_of(token, table, None)
    other = msgspec.structs.replace(token, fingerprint="old")
    assert "shape of Wrong has changed" in warning_of(other, table, found.environment)
    assert "is of Wrong" in warning_of(token, compile_table(Parent), None)
    assert warning_of(token, table, found.environment) == ""


def test_token_that_unpacks_without_end_is_refused() -> None:
    import base64
    import zlib

    packed = base64.urlsafe_b64encode(zlib.compress(b" " * 50_000_000)).decode()
    with pytest.raises(UsageError, match="longer than any of ours"):
        read_token(f"tv1:{packed}")
    with pytest.raises(UsageError, match="damaged"):
        read_token("tv1:\u00e9\u00e9")


def test_states_stand_behind_the_action_that_led_there() -> None:
    steps = [
        ("start", "M", "{}"),
        ("move", 1),
        ("call", "ok", "made", ""),
        ("crash", 2),
        ("cancel",),
    ]
    shown = said_with_states(steps, ["M a (pending)", "M b (waiting)", "M b (waiting)"])
    assert [state for _, state in shown] == ["M a (pending)", "", "", "M b (waiting)", ""]


@pytest.mark.parametrize(
    "step",
    [("pause",), ("resume",), ("child", "to_done", "", 2), ("probe", "add", ""), ("clock", 0),
     ("again", "add", "{}", 1), ("call", "arrives", "add", "{}", "1"), ("call", "unknown"),
     ("odd", 1)],
)  # fmt: skip
def test_every_step_has_words(step: tuple[Any, ...]) -> None:
    assert said(step) and "{'" not in said(step)


# -- tests and diagrams ---------------------------------------------------------------------------


def test_children_are_found_and_imported(found: Verification) -> None:
    table = compile_table(Parent)
    assert children_of(table, [Wrong, Parent]) == [Wrong]
    text = pytest_file(table, found.found[0].failure, [Wrong, Parent])
    assert re.search(r"from \S*test_report import Parent, Wrong", text)
    assert ", known=[Wrong]" in text


def test_stand_ins_are_not_imported_and_the_environment_is(found: Verification) -> None:
    class OfParent(Environment):
        machine = Parent
        stand_ins = (Wrong,)

    OfParent.__module__ = "shop.environments"
    text = pytest_file(compile_table(Parent), found.found[0].failure, [Wrong], OfParent())
    assert "import shop.environments  # noqa: F401" in text
    assert "known=" not in text


def test_generated_test_fails_on_the_defect_and_passes_without_hypothesis_on_the_fix(
    tmp_path: Path,
) -> None:
    """The machine, its child and its environment are in three modules."""
    (tmp_path / "below.py").write_text(
        "from engine import Context, Machine, State\n\n\n"
        "class Nothing(Context):\n    pass\n\n\n"
        "class Below(Machine[Nothing]):\n"
        "    begun = State(initial=True, timeout=1, on_timeout='tick')\n"
        "    done = State(final=True)\n    tick = begun.to(done)\n"
    )
    (tmp_path / "above.py").write_text(
        "from below import Nothing\nfrom engine import Child, Context, Machine, State, invariant\n"
        "\n\nclass Sum(Context):\n    number: int = 0\n\n\nclass Above(Machine[Sum]):\n"
        "    waiting = State(initial=True, child='below', on_child='ended')\n"
        "    done = State(final=True, invariant='small')\n    ended = waiting.to(done, on='grow')\n"
        "\n    def below(self, context: Sum) -> Child:\n"
        "        return Child(machine='Below', context=Nothing())\n"
        "\n    def grow(self, context: Sum) -> Sum:\n"
        "        return self.but(context, number=context.number + 2)\n"
        "\n    def small(self, context: Sum) -> bool:\n        return context.number < 3\n"
    )
    (tmp_path / "outside.py").write_text(
        "from above import Above, Sum\nfrom engine.verification.environment import Environment\n"
        "\n\nclass Of(Environment):\n    machine = Above\n"
        "\n    def contexts(self):\n        yield Sum(number=1)\n"
    )
    (tmp_path / "make.py").write_text(
        "import outside\nfrom above import Above\nfrom below import Below\n"
        "from engine.verification.report import told\n"
        "from engine.verification.verify import verify\nfrom persistence.store import open_store\n"
        "found = verify(Above, lambda: open_store('sqlite://'), known=[Below], seed=1,\n"
        "               budget_seconds=5, phases=('scope',))\n"
        "open('test_kept.py', 'w').write(told(found).failures[0].test)\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            check=False, env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip

    made = run("make.py")
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "test_kept.py").read_text()
    assert "import outside" in text and "from below import Below" in text
    kept = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
            "--rootdir=.", "test_kept.py")  # fmt: skip
    failed = run(*kept)
    assert failed.returncode == 1 and "small" in failed.stdout, failed.stdout
    assert "hypothesis" not in text
    above = tmp_path / "above.py"
    above.write_text(above.read_text().replace("number + 2", "number + 1"))
    assert run(*kept).returncode == 0


def test_an_interleaving_is_kept_too() -> None:
    schedule = Schedule(seed=3, strategy=STRATEGIES[0], workers=2, runs=1, picks=(1, 0))
    trace = (("w-1", "claim"), ("w-2", "claim"))
    failure = ScheduleFailure(
        rule="fence", problem="a; b", schedule=schedule, trace=trace, found_after_ms=1
    )
    table = compile_table(Wrong)
    assert read_token(token_of(table, failure)).schedule == schedule
    text = pytest_file(table, failure)
    compile(text, "test_generated.py", "exec")
    assert "replay_schedule(Wrong" in text
    assert "participant A1 as w-2" in diagram(failure)
    verification = Verification(table, 1, 1.0, None, ("schedules",))
    verification.found.append(Found(phase="schedules", failure=failure))
    assert "w-1: claim" in "\n".join(lines(told(verification)))
    again = replayed(table, store, token_of(table, failure))
    assert again.kind == "schedule" and again.breaches == ()


def test_long_ways_are_cut_in_the_middle(data: Told) -> None:
    failure = data.failures[0]
    long = msgspec.structs.replace(failure, way=failure.way[:1] * 500)
    text = "\n".join(lines(msgspec.structs.replace(data, failures=(long,))))
    assert "... 440 steps" in text and "  500  " in text and "  100  " not in text


def test_every_exit_code_has_words() -> None:
    assert set(EXITS) == {0, 1, 2, 3, 4, 5, 6, 64, 66, 70, 130}


def test_liveness_failures_are_gone_beyond_their_end() -> None:
    failure = Failure(kind="liveness", rule="stuck", problem="p", found_after_ms=0,
                      steps=(("start", "Wrong", '{"number":0}'),))  # fmt: skip
    text = pytest_file(compile_table(Wrong), failure)
    assert 'liveness = token.kind == "liveness"' in text
