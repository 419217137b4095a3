"""`turtles verify`: what docs/verification.md promises a newcomer, and bad input of every kind."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Tree

import pytest

from engine.cli.verify import edge_of
from engine.errors import UsageError
from engine.table import compile_table

ROOT = Path(__file__).resolve().parents[3]
SCOPE = ("--phases", "scope", "--seed", "1")

HEAD = """
import random
import time
from collections.abc import Iterator
from typing import Any

from engine import Context, Event, Machine, State, effect, ensures, invariant
from engine.verification.environment import Environment, always, payloads, sometimes

SEEN: list[int] = []


def few(context: Any) -> bool:
    return context.number < 3


class Count(Context):
    number: int = 0


class Add(Event, tag="add"):
    amount: int


class Other(Event, tag="other"):
    amount: int


class M(Machine[Count]):
    opened = State(initial=True, waits=True)
    closed = State(final=True)
    add = opened.to.itself(cond="few", on="grow")
    close = opened.to(closed)

    def few(self, context: Count, event: Add) -> bool:
        return GUARD

    def grow(self, context: Count, event: Add) -> Count:
        return ACTION

    CONTRACT
"""
PARTS = {
    "GUARD": "0 < event.amount < 3 and context.number < 3",
    "ACTION": "self.but(context, number=context.number + event.amount)",
    "CONTRACT": "",
}
ENVIRONMENT = """

class Of(Environment):
    machine = M

"""


def call(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def verify(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return call(where, "-m", "machines.cli", "verify", *words)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    text = (ROOT / "docs" / "verification.md").read_text()
    (tmp_path / "till.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    return tmp_path


def mend(place: Path) -> None:
    file = place / "till.py"
    text = file.read_text()
    assert "context.taken + 1\n" in text
    file.write_text(text.replace("context.taken + 1\n", "context.taken\n"))


def machine(where: Path, name: str, environment: str = "", **parts: str) -> str:
    """A file with a machine; what a command calls it."""
    text = HEAD
    for part, usual in PARTS.items():
        text = text.replace(part, parts.get(part.lower(), usual))
    (where / f"{name}.py").write_text(text + (ENVIRONMENT + environment if environment else ""))
    return f"{where / name}.py:M"


# -- five minutes ---------------------------------------------------------------------------------


@pytest.mark.acceptance
def test_newcomer_finds_keeps_and_mends_the_mistake(place: Path) -> None:
    found = verify(place, "till.py:Till", "--seed", "7", "--out", "found")
    assert found.returncode == 3, found.stdout + found.stderr
    first = found.stdout.splitlines()[0]
    assert first.startswith("verify Till ") and "  seed 7  turtles " in first
    assert "FAIL safety: quarantined  (3 steps)" in found.stdout
    assert "never_more_than_held does not hold" in found.stdout
    assert "-> Till opened (quarantined)" in found.stdout
    assert "found/test_till_7_1.py" in found.stdout
    token = re.findall(r"tv1:\S+", found.stdout)[0]
    kept = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "found")
    assert call(place, *kept).returncode == 1
    again = verify(place, "till.py:Till", "--replay", token)
    assert again.returncode == 3 and "never_more_than_held" in again.stdout

    mend(place)
    assert call(place, *kept).returncode == 0
    fixed = verify(place, "till.py:Till", "--replay", token)
    assert fixed.returncode == 0 and "FIXED" in fixed.stdout
    passed = verify(place, "till.py:Till")
    assert passed.returncode == 0, passed.stdout
    assert "EXHAUSTED" in passed.stdout and "0 mismatches" in passed.stdout
    assert "transitions 3/3   cells 6/6   transition x fault 9/9" in passed.stdout


def test_environment_in_the_docs_counts(place: Path) -> None:
    mend(place)
    text = (ROOT / "docs" / "verification.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "OfTill" in b)
    with (place / "till.py").open("a") as file:
        file.write(block)
    found = verify(place, "till.py:Till", *SCOPE)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "OfTill" in found.stdout and "sometimes 1/1" in found.stdout
    assert "2 messages" in found.stdout


def test_machines_are_verified_in_processes_of_their_own(place: Path) -> None:
    machine(place, "other")
    found = verify(place, "till.py:Till", "other.py:M", "--jobs", "2", "--budget", "4",
                   "--seed", "3", "--junit", "j.xml", "--html", "p.html", "--json")  # fmt: skip
    told = json.loads(found.stdout)
    assert found.returncode == told["exit"] == 3
    assert [one["machine"] for one in told["machines"]] == ["Till", "M"]
    assert [one["exit"] for one in told["machines"]] == [3, 0]
    assert found.stderr == ""
    root = Tree.parse(place / "j.xml").getroot()  # noqa: S314 - we wrote it
    assert [(one.get("name"), one.get("failures")) for one in root] == [("Till", "1"), ("M", "0")]
    page = (place / "p.html").read_text()
    assert "never_more_than_held" in page and "<script" not in page


# -- in this process ------------------------------------------------------------------------------


def test_json_has_figures_and_what_to_keep(demo: Any, place: Path) -> None:
    answer = demo("verify", f"{place}/till.py:Till", "--json", "--seed", "7", "--budget", "30")
    told = answer.json
    assert (told["exit"], told["seed"], told["mismatches"]) == (3, 7, 0) and answer.code == 3
    assert answer.err == ""
    assert told["phases"]["scope"]["exhausted"] is True
    assert set(told["phases"]) == {"static", "scope", "random", "schedules"}
    failure = told["failures"][0]
    assert failure["diagram"].startswith("sequenceDiagram")
    assert failure["token"].startswith("tv1:") and failure["token"][:40] in failure["test"]


def test_seed_is_chosen_and_said(demo: Any, tmp_path: Path) -> None:
    name = machine(tmp_path, "seeded")
    seeds = {demo("verify", name, "--phases", "static", "--json").json["seed"] for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed < 2**32 for seed in seeds)


def test_gap_is_named_with_the_command_that_leads_there(demo: Any, tmp_path: Path) -> None:
    name = machine(tmp_path, "gap", guard="event.amount == 987654321 * context.number + 1")
    answer = demo("verify", name, *SCOPE, "--messages", "0", "--budget", "1")
    assert answer.code == 2
    assert "MISSING   opened --close--> closed" in answer.out
    assert f'turtles verify {name} --until-edge "opened --close--> closed"' in answer.out


def test_until_edge_tells_the_way_and_a_token(demo: Any, tmp_path: Path) -> None:
    name = machine(tmp_path, "until")
    answer = demo("verify", name, "--until-edge", "opened --close--> closed", "--seed", "1")
    assert answer.code == 0, answer.out
    assert "reached in 3 steps" in answer.out
    token = re.findall(r"tv1:\S+", answer.out)[0]
    again = demo("verify", name, "--replay", token)
    assert again.code == 0 and "REACHED: opened --close--> closed" in again.out
    assert "M closed (completed)" in again.out


def test_until_edge_that_is_not_reached_is_a_gap(demo: Any, tmp_path: Path) -> None:
    name = machine(tmp_path, "unreached")
    answer = demo("verify", name, "--until-edge", "opened --close--> closed", "--messages", "0",
                  "--no-faults")  # fmt: skip
    assert answer.code == 2
    assert "cannot be reached in this scope" in answer.out


def test_exhaustion_may_be_required(demo: Any, tmp_path: Path) -> None:
    name = machine(tmp_path, "required")
    answer = demo("verify", name, *SCOPE, "--budget", "0.05", "--messages", "8",
                  "--require-exhaustive")  # fmt: skip
    assert answer.code == 6 and "BUDGET OVER" in answer.out


def test_doublecheck_compares_two_explorations(demo: Any, tmp_path: Path) -> None:
    steady = machine(tmp_path, "steady")
    answer = demo("verify", steady, "--doublecheck", "--messages", "1")
    assert answer.code == 0 and "twice: alike" in answer.out
    fickle = machine(tmp_path, "fickle", guard="SEEN.append(1) or len(SEEN) % 7 != 0")
    answer = demo("verify", fickle, "--doublecheck", "--messages", "1", "--phases", "scope")
    assert answer.code == 5


@pytest.mark.acceptance
def test_mutants_only_if_asked_for(demo: Any, tmp_path: Path) -> None:
    name = machine(tmp_path, "mutated", contract="""@invariant
    def bounded(self, context: Count) -> bool:
        return 0 <= context.number <= 4""")  # fmt: skip
    answer = demo("verify", name, "--phases", "mutants", "--json", "--messages", "1")
    figures = answer.json["phases"]["mutants"]
    assert figures["judged"] >= figures["killed"] > 0
    assert answer.code in (0, 2)


def test_result_files_are_checked_before_time_is_spent(demo: Any, tmp_path: Path) -> None:
    name = machine(tmp_path, "files")
    answer = demo("verify", name, "--html", str(tmp_path / "no" / "page.html"))
    assert answer.code == 64 and "--html" in answer.err and "scope" not in answer.out


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Nothing",), "no machine 'Nothing'"),
        (("nowhere.py:M",), "nowhere.py"),
        ((), "--all"),
        (("--all", "Order"), "not both"),
        (("Order", "--budget", "0"), "more than 0 seconds"),
        (("Order", "--budget", "-3"), "more than 0 seconds"),
        (("Order", "--budget", "nan"), "more than 0 seconds, got nan"),
        (("Order", "--budget", "inf"), "more than 0 seconds, got inf"),
        (("Order", "--budget", "soon"), "got 'soon'"),
        (("Order", "--messages", "-1"), "--messages"),
        (("Order", "--phases", "scope,luck"), "phase 'luck'"),
        (("Order", "--nothing"), "--nothing"),
        (("Order", "--until-edge", "here"), "state --event--> target"),
        (("Order", "--until-edge", "awaiting --payd--> shipping"), "awaiting --paid--> shipping"),
        (("Order", "--replay", "pv1:abc"), "has the form pv1"),
        (("Order", "--replay", "tv1:%%%"), "damaged"),
        (("Order", "--replay", "tv1:eJyrVkrOT0"), "token"),
        (("Order", "--replay", ""), "token"),
        (("--all", "--replay", "tv1:abc"), "--replay"),
        (("--history", "nothing.db"), "expected a database file"),
    ],
)
def test_wrong_use_is_answered_in_words(demo: Any, words: tuple[str, ...], said: str) -> None:
    answer = demo("verify", *words)
    assert answer.code == 64, answer
    assert said in answer.err
    assert "Traceback" not in answer.err


def token(**fields: Any) -> str:
    body = zlib.compress(json.dumps(fields).encode())
    return "tv1:" + base64.urlsafe_b64encode(body).decode()


START = ["start", "M", '{"number":0}']


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "no steps"),
        ([["move", 1]], "no steps that begin with a start"),
        ([[]], "no steps"),
        ([START, ["leap", 1]], "'leap'"),
        ([START, ["move"]], "cannot be gone"),
        ([START, ["clock", "soon"]], "cannot be gone"),
        ([START, ["send", "vanished", "", 1]], "cannot be gone"),
        ([START, ["move", 9]], "not possible any more"),
    ],
)
def test_token_of_an_older_shape_is_refused_in_words(
    demo: Any, tmp_path: Path, steps: list[Any], said: str
) -> None:
    text = token(machine="M", fingerprint="old", kind="safety", rule="r", steps=steps)
    answer = demo("verify", machine(tmp_path, "older"), "--replay", text)
    assert answer.code == 64 and said in answer.err, answer


def test_token_of_another_fingerprint_works_with_a_warning(demo: Any, tmp_path: Path) -> None:
    text = token(machine="M", fingerprint="old", steps=[START])  # without kind and rule
    answer = demo("verify", machine(tmp_path, "reshaped"), "--replay", text)
    assert answer.code == 0
    assert "warning: the shape of M has changed" in answer.out and "FIXED" in answer.out


def test_token_of_another_machine_says_so(demo: Any, tmp_path: Path) -> None:
    text = token(machine="N", fingerprint="f", steps=[["start", "N", "{}"]])
    answer = demo("verify", machine(tmp_path, "another"), "--replay", text)
    assert answer.code == 64 and "the token is of n f" in answer.err.lower()


RAISES = "raise ValueError('no') if context.number else True"
FINDINGS = [
    ("clock", 5, "V013", {"guard": "time.time_ns() % 2 == 0"}),
    ("chance", 5, "V013", {"guard": "random.random() < 0.5"}),
    ("hidden", 5, "not a function of its arguments",
     {"action": "self.but(context, number=SEEN.append(1) or len(SEEN) % 3)"}),
    ("outside", 1, "V013", {"guard": "open('/proc/uptime').close() is None and few(context)"}),
    ("unstorable", 3, "cannot be stored", {"action": "self.but(context, number=object())"}),
    ("guard raises", 3, "guard few raised AttributeError", {"guard": "context.nothing"}),
    ("action raises", 3, "raised ZeroDivisionError", {"action": "1 // 0"}),
    ("invariant raises", 3, "invariant odd raised ZeroDivisionError", {"contract": """@invariant
    def odd(self, context: Count) -> bool:
        return 1 // (2 - context.number) > -9"""}),
    ("ensures raises", 3, "ensures odd raised KeyError", {"contract": """@ensures(add)
    def odd(self, new: Count) -> bool:
        raise KeyError('x')"""}),
    ("never", 1, "no small context fulfils its invariants", {"contract": """@invariant
    def never(self, context: Count) -> bool:
        return context.number * context.number == -1"""}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "code", "said", "parts"), FINDINGS, ids=[f[0] for f in FINDINGS])
def test_bad_machine_is_a_finding(
    demo: Any, tmp_path: Path, name: str, code: int, said: str, parts: dict[str, str]
) -> None:
    where = machine(tmp_path, name.replace(" ", "_"), **parts)
    answer = demo("verify", where, "--phases", "static,scope", "--budget", "3", "--messages", "2",
                  "--seed", "1")  # fmt: skip
    assert answer.code == code, answer
    assert said in answer.out and "Traceback" not in answer.out + answer.err


ENVIRONMENTS = [
    ("wrong value", 1, "carries Add, got int", "yield 3"),
    ("wrong type", 1, "carries Add, got Other", "yield Other(amount=1)"),
    ("wrong field", 1, "Expected `int`, got `str`", "yield Add(amount='x')"),
    ("no iterable", 1, "'int' object is not iterable", "return 7"),
    ("raises", 1, "raised ValueError: weather", "raise ValueError('weather')"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code", "said", "body"), ENVIRONMENTS, ids=[e[0] for e in ENVIRONMENTS]
)
@pytest.mark.parametrize("phase", ["scope", "schedules"])
def test_bad_environment_is_told(
    demo: Any, tmp_path: Path, name: str, code: int, said: str, body: str, phase: str
) -> None:
    given = f"    @payloads('add')\n    def adds(self) -> Any:\n        {body}\n"
    where = machine(tmp_path, f"{name.replace(' ', '_')}_{phase}", given)
    answer = demo("verify", where, "--phases", phase, "--budget", "1", "--seed", "1")
    if name == "wrong field" and phase == "schedules":  # there it is sent as it is, and refused
        assert answer.code == 3 and "BadPayload" in answer.out
        return
    assert answer.code == code, answer
    assert said in answer.out and "Traceback" not in answer.out + answer.err
    if name == "raises":
        assert re.search(r"raises_\w+\.py:\d+: code of the machine or its environ", answer.out)


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("    @payloads('subtract')\n    def a(self) -> Any:\n        return []\n", 1,
         "payloads for 'subtract', which is none of its events"),
        ("    @payloads('add')\n    def a(self, weather: int) -> Any:\n        return []\n", 1,
         "parameter 'weather'"),
        ("    def contexts(self) -> Any:\n        raise OSError('disk')\n", 1, "OSError: disk"),
        ("    def contexts(self) -> Any:\n        yield Add(amount=1)\n", 1, "expected Count"),
        ("    @always\n    def claim(self, context: Count) -> bool:\n        return context.no\n",
         3, "always claim"),
        ("    @sometimes\n    def seen(self, context: Count) -> bool:\n        return context.no\n",
         1, "has no attribute 'no'"),
        ("    reasons = {'misspelt': 'why'}\n", 0, "'misspelt' is none of the transitions"),
    ],
)  # fmt: skip
def test_environment_that_does_not_fit_is_told(
    demo: Any, tmp_path: Path, given: str, code: int, said: str
) -> None:
    where = machine(tmp_path, "unfit", given)
    answer = demo("verify", where, *SCOPE, "--budget", "3", "--messages", "2")
    assert answer.code == code, answer
    assert said in answer.out + answer.err and "Traceback" not in answer.out + answer.err


def test_class_that_is_refused_and_file_that_is_broken(demo: Any, tmp_path: Path) -> None:
    (tmp_path / "refused.py").write_text(
        (tmp_path / machine(tmp_path, "good").rpartition(":")[0])
        .read_text()
        .replace("State(final=True)", "State()")
    )
    answer = demo("verify", f"{tmp_path}/refused.py:M")
    assert answer.code == 1 and "finding" in answer.err
    (tmp_path / "broken.py").write_text("class M(:\n")
    answer = demo("verify", f"{tmp_path}/broken.py:M", "--json")
    assert answer.code == 64 and "SyntaxError" in answer.json["message"]


def test_machine_that_prints_does_not_garble_the_answer(demo: Any, tmp_path: Path) -> None:
    where = machine(tmp_path, "printing", guard="print('hello') or context.number < 2")
    answer = demo("verify", where, *SCOPE, "--json", "--budget", "2", "--messages", "1")
    assert answer.json["machine"] == "M" and "hello" not in answer.out


def test_environments_that_cannot_be_imported_are_named() -> None:
    from engine.cli.verify import import_environments
    from engine.errors import DefinitionError

    import_environments(["machines.environments"])
    with pytest.raises(DefinitionError, match=r"no\.such\.module"):
        import_environments(["no.such.module"])


def test_edges_are_read_with_any_spaces(program: Any) -> None:
    table = compile_table(program.Order)
    wanted = ("awaiting", "paid", "shipping")
    assert edge_of(table, "awaiting --paid--> shipping") == wanted
    assert edge_of(table, " awaiting--paid-->shipping ") == wanted
    with pytest.raises(UsageError, match="There are"):
        edge_of(table, "shipping --paid--> awaiting")
